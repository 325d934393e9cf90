"""Asking the model: which answers are missing, which batch of videos comes next, what happens to failures."""
