"""Claims about the suite; every model here is tiny and made on the spot."""
