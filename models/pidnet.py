"""pidnet (being written)."""
