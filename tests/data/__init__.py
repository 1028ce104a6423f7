"""Claims about pictures, captions, the split and batches."""
