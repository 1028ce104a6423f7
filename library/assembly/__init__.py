"""Where the rooms meet: what a training needs from several of them at once, as plain values and never as the config."""
