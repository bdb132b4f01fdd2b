"""What landmarks and uncertainty are worth: the experiments of the CheXmask-U paper, on images of one's own."""
