"""The suite's own trainers, by the names of their scripts: no other name becomes a script that is run."""

TRAINERS = ("PLoRA", "SPLoRA")
