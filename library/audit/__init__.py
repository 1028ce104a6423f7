"""The audit: what a LoRA file gives away about who was in its training set."""
