"""Architectures on megatron-core: description, building, norm, head, packed attention."""
