"""LoRA files: names, kinds, ranks and hashes, metadata, and the names of other trainers."""
