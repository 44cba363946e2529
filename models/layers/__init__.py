"""Layers shared by at least two families."""
