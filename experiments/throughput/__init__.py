"""Throughput beside hand-written JAX, NumPyro and PyTorch; where the time goes."""
