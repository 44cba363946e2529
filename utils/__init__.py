"""How to train, evaluate, measure and record. Imports nothing of configs, datasets or models."""
