"""The suite's own trainers, by the names of their scripts: no other name becomes a script that is run."""

GAME = ("PLoRA", "SPLoRA")  # against a proxy attacker
PRIVATE = ("DPLoRA",)  # differentially private
TRAINERS = (*GAME, *PRIVATE)
