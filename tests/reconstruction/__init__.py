"""Tests of the attack on shared weights."""
