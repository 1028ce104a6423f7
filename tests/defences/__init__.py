"""Whole runs with one defence: a target of the AUC, distillation, differential privacy."""
