"""What is audited: LoRA runs, their provenance, and the candidate pictures."""
