"""Several audited LoRAs side by side: the table of one split, the frontier of several."""
