"""LoRA files: names, kinds, ranks, hashes and metadata, and the names of other trainers."""
