"""Throughput benchmarks against hand-written JAX, NumPyro and PyTorch."""
