"""Optimizers, learning-rate schedules, the optimizer step, and the average of the weights."""
