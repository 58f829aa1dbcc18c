"""Helpers that import nothing from the rest of trickle."""
