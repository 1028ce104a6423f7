"""Commands beside the doors: the environment, converters of raw archives, captioning."""
