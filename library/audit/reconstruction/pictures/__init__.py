"""Pictures painted with a LoRA under audit, and how much of a person is in them beyond what the controls show."""
