"""Sources -> priority order -> packed rows: what a model sees when, decided before the run and the same everywhere."""

from megatron_huatuo.blend.packing import pack_rows
from megatron_huatuo.blend.priority import priority_order

__all__ = ["pack_rows", "priority_order"]
