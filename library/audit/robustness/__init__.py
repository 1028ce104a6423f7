"""How far small changes of a picture or of its text move a model, for the base and for a LoRA at several ranks."""
