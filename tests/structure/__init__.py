"""Tests of the structure: what the code is made of, not what it computes."""
