"""Comparison of gradient estimators: known integrands, bounds, regression, a VAE."""
