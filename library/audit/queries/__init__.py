"""Queries to the audited model: the plan, the model with its switchable adapter, the cache."""
