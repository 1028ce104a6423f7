"""Networks that are put into the frozen model by kohya's module protocol, and what their files add to its weights."""
