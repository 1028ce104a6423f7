"""Proxy attackers: how they are built and what they minimise."""
