"""The options of the doors: declared, read, resolved, checked, written out; only doors use them."""
