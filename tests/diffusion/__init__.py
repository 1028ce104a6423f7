"""Claims about the frozen model, its files, losses and previews."""
