"""Checkpoints: their layout on disk, their integrity, and how model and optimizer state go in and out."""
