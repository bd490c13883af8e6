"""Gradient estimators compared: known integrands, bounds, regression, a VAE."""
