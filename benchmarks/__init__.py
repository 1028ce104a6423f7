"""Measurements beside the tests: each is a command, and none is timed by CI."""
