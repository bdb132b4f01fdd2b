"""HybridGNet: a convolutional encoder, a variational bottleneck and a graph decoder over the 120 landmarks."""
