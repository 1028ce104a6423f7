"""Model families: the settings and tokenizers that single files come without."""
