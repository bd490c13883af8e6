"""Trained models and estimates of log p(x) against exact answers."""
