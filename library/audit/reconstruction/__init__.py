"""Pictures from the weights alone: what a shared LoRA file gives away without its pictures (arXiv 2409.08482)."""
