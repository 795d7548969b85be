"""Sparse recovery from few measurements: the benchmark of unrolled networks."""
