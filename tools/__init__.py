"""Commands beside the doors: the environment, converters of raw archives, captioning, the page of files."""
