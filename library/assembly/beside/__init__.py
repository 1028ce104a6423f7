"""What ``audit.py`` measures of a LoRA beside membership, one measurement a module."""
