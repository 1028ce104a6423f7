"""Pictures that the model generates, feature extractors, and what both say about a leak."""
