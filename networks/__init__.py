"""Networks that are injected into the frozen model, and tools on their files."""
