"""Metrics, intervals, permutation tests, one-run epsilon and distances between sets."""
