"""Damaged files at every way in: each must be read as documented or give one clear error."""
