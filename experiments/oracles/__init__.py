"""Trained models and estimates of log p(x), compared with exact values."""
