"""Differentially private training (DP-SGD): what a run may spend, what it has spent, and the noise that pays for it."""
