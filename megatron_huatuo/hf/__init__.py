"""Hugging Face checkpoints, both directions: configuration, names and shapes of weights, reading, writing."""
