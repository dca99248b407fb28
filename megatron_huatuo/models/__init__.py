"""Backbones: one file a family, the table that knows them all, and `core/`, which builds any of them on megatron-core."""
