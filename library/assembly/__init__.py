"""Where the rooms meet: pieces that need several of them at once. They take plain values, never the config."""
