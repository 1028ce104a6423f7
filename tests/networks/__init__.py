"""Claims about LoRA networks and files."""
