"""The gate: the one way in for every kind of file from outside, with bounds, declared shapes and one kind of error."""
