"""rtlinearformer (being written)."""
