"""How good a classifier or its features are: metrics, probes and two-dimensional maps."""
