"""rtformer (being written)."""
