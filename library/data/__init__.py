"""From folders to batches: examples, the four-sided split, buckets, cached latents."""
