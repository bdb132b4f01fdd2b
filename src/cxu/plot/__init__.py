"""Figures, with matplotlib: the optional extra ``plot``. One module a subject; :mod:`cxu.plot.figure` has what they share."""
