"""Held-out log p(x) of VAEs beside that of other models, on the same folds."""
