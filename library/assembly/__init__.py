"""What a training needs from several rooms at once: the run, the game, validation, outputs."""
