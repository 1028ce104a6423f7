"""Claims about options and their page."""
