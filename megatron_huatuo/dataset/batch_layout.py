"""Which rows a step trains on, from `consumed_train_samples` alone.

Invariant: step by step, the rows of a global batch are the next `global_batch_size` rows of the blend, whatever the
number of ranks and the micro-batch size; ranks only divide them among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is divided over data-parallel ranks and micro-batches."""

    global_batch_size: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int

    def __post_init__(self) -> None:
        per_microbatch = self.micro_batch_size * self.data_parallel_size
        if self.micro_batch_size < 1 or self.global_batch_size < 1 or self.global_batch_size % per_microbatch:
            raise ConfigError(
                f"wrong training.global_batch_size: got {self.global_batch_size}, need a multiple of micro_batch_size × "
                f"data-parallel ranks = {self.micro_batch_size} × {self.data_parallel_size}. "
                f"Use {max(1, round(self.global_batch_size / max(1, per_microbatch))) * per_microbatch}."
            )

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one rank a step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    def rows(self, consumed_train_samples: int, microbatch: int) -> range:
        """Rows of one micro-batch of this rank, after `consumed_train_samples` rows of earlier steps.

        Example: global batch 8, micro-batch 2, 2 ranks; after 16 rows, micro-batch 1 of rank 1 is rows 22 and 23.
        """
        start = consumed_train_samples + (microbatch * self.data_parallel_size + self.data_parallel_rank) * (
            self.micro_batch_size
        )
        return range(start, start + self.micro_batch_size)
