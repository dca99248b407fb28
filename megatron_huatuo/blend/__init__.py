"""Sources -> priority order -> packed rows: what a model sees when, decided before the run and the same everywhere."""

from megatron_huatuo.blend.order_plan import priority_order
from megatron_huatuo.blend.row_packing import pack_rows

__all__ = ["pack_rows", "priority_order"]
