"""Sections of the report about what is measured beside membership, and the pages made of them."""
