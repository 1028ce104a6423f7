"""Attacks: from answers to membership scores, their registry, baselines and shadow models."""
