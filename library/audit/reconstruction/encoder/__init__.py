"""The encoder of arXiv 2409.08482: from the matrices of a LoRA to a prompt embedding."""
