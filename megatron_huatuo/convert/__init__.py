"""Checkpoints to and from Hugging Face directories: import, export, verification, and the model card."""
