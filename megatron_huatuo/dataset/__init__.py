"""From packed rows on disk to the tensors of a training step."""
