"""Tests of library/incoming."""
