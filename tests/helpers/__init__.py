"""Tiny models, made-up data and other helpers that several tests share."""
