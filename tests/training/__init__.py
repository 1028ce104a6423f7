"""Claims about running a training."""
