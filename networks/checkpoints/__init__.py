"""Checkpoints on the disk: where each layer of a base model lies, and copies with changed layers."""
