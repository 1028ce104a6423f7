"""Where the rooms meet: pieces that need data, diffusion and privacy at once. They take plain values, never the config."""
