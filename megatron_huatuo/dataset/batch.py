"""Rows to tensors: one micro-batch as megatron-core's GPTModel takes it, prepared a step ahead.

Invariant: documents of one row never see each other. Their bounds travel as `PackedSeqParams` with cumulative lengths
over the flattened batch ([b * L], batch first), which the project's core attention reads; every pipeline stage gets them.
"""

from __future__ import annotations

import megatron_huatuo.parallel.import_core  # noqa: F401 (first)

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_huatuo._ext import load_kernel
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.row_block import RowBlock
from megatron_huatuo.dataset.rows import PackedRows

_POSITIONS = 128


@dataclass(frozen=True)
class Batch:
    """One micro-batch; b = micro_batch_size, L = seq_length.

    tokens, labels: int64 [b, L]. loss_mask: float32 [b, L]. source_of_token: int64 [b, L], -1 in padding.
    loss_positions: int64 [t], where logits are computed: ascending numbers of positions of the hidden states [L, b].
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    loss_positions: torch.Tensor
    source_of_token: torch.Tensor
    packed_seq_params: PackedSeqParams | None

    def on_device(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same batch with every tensor moved."""
        packed = self.packed_seq_params
        if packed is not None:
            cu = move(packed.cu_seqlens_q)
            packed = dataclasses.replace(packed, cu_seqlens_q=cu, cu_seqlens_kv=cu)
        names = (field.name for field in dataclasses.fields(self) if field.name != "packed_seq_params")
        return Batch(**{name: move(getattr(self, name)) for name in names}, packed_seq_params=packed)


def build_batch(rows: RowBlock, device: torch.device, *, isolate_documents: bool = True) -> Batch:
    """Rows on a device. Without `isolate_documents` a row is one sequence, as in the reference implementation."""
    packed = None
    if isolate_documents:
        bounds = rows.document_bounds
        longest = int(np.diff(bounds).max())
        cu = torch.from_numpy(bounds)
        packed = PackedSeqParams(
            qkv_format="sbhd", cu_seqlens_q=cu, cu_seqlens_kv=cu, max_seqlen_q=longest, max_seqlen_kv=longest
        )
    batch = Batch(
        tokens=torch.from_numpy(rows.tokens),
        labels=torch.from_numpy(rows.labels),
        loss_mask=torch.from_numpy(rows.loss_mask),
        loss_positions=torch.from_numpy(loss_positions(rows.loss_mask)),
        source_of_token=torch.from_numpy(rows.source_of_token),
        packed_seq_params=packed,
    )
    return batch if device.type == "cpu" else batch.on_device(lambda tensor: tensor.to(device))


def loss_positions(loss_mask: np.ndarray) -> np.ndarray:
    """int64 [t]: every trained position of loss_mask [b, L], numbered as in [L, b], and as many others as make t a
    multiple of `_POSITIONS` or all: tensors of few different sizes suit the GPU's allocator and kernels."""
    if kernel := load_kernel():
        return kernel.loss_positions(loss_mask, _POSITIONS)
    trained = loss_mask.T.flatten() > 0
    count = max(1, -(-int(trained.sum()) // _POSITIONS)) * _POSITIONS
    return np.sort(np.argsort(~trained, kind="stable")[:count])


class StepBatches:
    """The micro-batches of one step after another, read by one thread while the step before computes.

    On a GPU the thread copies them from pinned memory on a stream of its own, so that it waits for no kernel and no kernel
    waits for it.
    """

    def __init__(
        self, rows: PackedRows, layout: BatchLayout, device: torch.device, *, isolate_documents: bool = True
    ) -> None:
        self._rows, self._layout, self._device, self._isolate = rows, layout, device, isolate_documents
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self._ahead: tuple[int, Future[tuple[list[Batch], Any]]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def _read(self, consumed_train_samples: int) -> tuple[list[Batch], Any]:
        """(micro-batches, event after which they are on the GPU)."""
        batches = [
            build_batch(
                self._rows.read(self._layout.rows(consumed_train_samples, microbatch)),
                torch.device("cpu"),
                isolate_documents=self._isolate,
            )
            for microbatch in range(self._layout.num_microbatches)
        ]
        if self._stream is None:
            return batches, None
        with torch.cuda.stream(self._stream):
            moved = [batch.on_device(self._copy) for batch in batches]
            return moved, self._stream.record_event()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def next_step(self, consumed_train_samples: int) -> tuple[list[Batch], float]:
        """(micro-batches of the step that starts after `consumed_train_samples` rows, seconds that the call waited)."""
        started = time.perf_counter()
        if self._ahead is None or self._ahead[0] != consumed_train_samples:
            self._ahead = (consumed_train_samples, self._thread.submit(self._read, consumed_train_samples))
        batches, copied = self._ahead[1].result()
        following = consumed_train_samples + self._layout.global_batch_size
        self._ahead = (following, self._thread.submit(self._read, following))
        if copied is not None:
            self._take_over(batches, copied)
        return batches, time.perf_counter() - started

    def _take_over(self, batches: list[Batch], copied: Any) -> None:
        """Kernels of the step wait for the copies; their memory is not used again before these kernels have run."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)

        def used_here(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(current)
            return tensor

        for batch in batches:
            batch.on_device(used_here)

    def close(self) -> None:
        """Stop the reading thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
