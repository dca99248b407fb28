"""Time of one transformer layer, and of the output layer, for one micro-batch on one rank.

Matrix products by a roofline whose two sides add up: arithmetic at the rate of large products, and the traffic of
operands and result, which is hidden only in part and is what makes small products slow. Attention counts the lower
triangle of each document, of which a sliding window leaves a band, 2.5 times as much backward as forward. Everything else moves bytes. Tensor-parallel
communication after Korthikanti et al. 2022, section 4.2, and megatron-core's linear layers: what runs beside a product
costs `overlap_loss` of its time, the rest all of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from megatron_huatuo.plan.efficiency import Constants
from megatron_huatuo.plan.gpus import Gpu
from megatron_huatuo.plan.links import Links
from megatron_huatuo.plan.workload import Workload

# Kernels of one layer, forward and backward; seen in profiles of megatron-core with fused pieces, and of plain PyTorch.
_LAUNCHES = {True: (30, 50), False: (70, 130)}
# Bytes of one logit: written, copied to float32, exponentials and gradients (fused loss; 1.5 times as much without).
_LOSS_BYTES = 20
# Bytes of one value that is cast to fp8: the cast that no producing kernel has taken in, and the copy for the transposed product.
_CAST_BYTES = 3


@dataclass(frozen=True)
class Parts:
    """Seconds by what they are spent on."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor_parallel: float = 0.0
    host: float = 0.0
    """The GPU waits for launches."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Parts) -> Parts:
        return Parts(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    def __mul__(self, factor: float) -> Parts:
        return Parts(**{field.name: factor * getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class ForwardBackward:
    """Seconds of the two passes; `again`: of the forward work that the backward pass repeats."""

    forward: Parts
    backward: Parts
    again: float = 0.0

    @property
    def backward_total(self) -> float:
        """Backward with what is computed again."""
        return self.backward.total + self.again


def keys_per_query(length: float, window: int | None) -> float:
    """Tokens that a token of a document attends to, on average, itself included; causal, the diagonal counted half.

    >>> keys_per_query(4096.0, None), keys_per_query(4096.0, 512), keys_per_query(300.0, 512)
    (2048.0, 480.0, 150.0)
    """
    reach = min(length, window or length)
    return reach * (1 - reach / (2 * length))


@dataclass(frozen=True)
class LayerModel:
    """Times on one GPU of one cluster."""

    workload: Workload
    gpu: Gpu
    links: Links
    constants: Constants

    def layer(self) -> ForwardBackward:
        """One layer, without what pipeline and data parallelism add."""
        forward, backward = self._products()
        attention = self._attention_s()
        moved_forward, moved_backward = self._elementwise_s()
        sent_forward, sent_backward = self._tensor_parallel_s()
        forward_parts = Parts(forward, attention, moved_forward, sent_forward)
        backward_parts = Parts(backward, 2.5 * attention, moved_backward, sent_backward)
        launches = _LAUNCHES[self.workload.fused]
        forward_parts = self._wait_for_host(forward_parts, launches[0])
        backward_parts = self._wait_for_host(backward_parts, launches[1])
        return ForwardBackward(forward_parts, backward_parts, self._again_s(forward_parts))

    def head(self) -> ForwardBackward:
        """Output layer and loss, in bf16 or fp32; a norm head also scales its rows, there and back."""
        work, architecture = self.workload, self.workload.architecture
        rows = architecture.vocab_size / work.tensor_parallel
        product = self._product_s(work.tokens, rows, architecture.hidden_size, head=True)
        loss_bytes = work.tokens * rows * _LOSS_BYTES * (1.0 if work.fused else 1.5)
        scaled_bytes = 8.0 * rows * architecture.hidden_size if architecture.norm_head else 0.0
        moved = (loss_bytes + scaled_bytes) / self.constants.memory_bytes_per_s(self.gpu) / 2
        return ForwardBackward(
            Parts(products=product, elementwise=moved), Parts(products=2 * product, elementwise=moved)
        )

    def _product_s(self, m: float, n: float, k: float, *, result_bytes: float = 0.0, head: bool = False) -> float:
        """[m, k] × [k, n]; result_bytes: of one value of the result, 0 for the width of activations."""
        precision = self.workload.precision
        if head and precision == "fp8":
            precision = "bf16"
        width = {"fp8": 1, "bf16": 2, "fp32": 4}[precision]
        arithmetic = 2.0 * m * n * k / self.constants.products_flops_per_s(self.gpu, precision)
        moved = width * (m * k + k * n) + (result_bytes or max(2, width)) * m * n
        return arithmetic + moved / self.constants.memory_bytes_per_s(self.gpu)

    def _products(self) -> tuple[float, float]:
        """Forward; backward for inputs, and for weights, which are added to float32 gradients."""
        forward = backward = 0.0
        m = self.workload.tokens
        for n, k in self._matrices():
            forward += self._product_s(m, n, k)
            backward += self._product_s(m, k, n) + self._product_s(n, k, m, result_bytes=8)
        return forward, backward

    def _matrices(self) -> list[tuple[float, float]]:
        """(outputs, inputs) of the rank's share of qkv, projection, gate with up, and down."""
        architecture, ranks = self.workload.architecture, self.workload.tensor_parallel
        hidden, ffn = architecture.hidden_size, architecture.ffn_hidden_size
        query, key_value = self._widths()
        return [
            ((query + 2 * key_value) / ranks, hidden),
            (hidden, query / ranks),
            (2 * ffn / ranks, hidden),
            (hidden, ffn / ranks),
        ]

    def _widths(self) -> tuple[int, int]:
        architecture = self.workload.architecture
        return (
            architecture.num_attention_heads * architecture.head_dim,
            architecture.num_query_groups * architecture.head_dim,
        )

    def _attention_s(self) -> float:
        """Mean of the layers, which may have windows of their own."""
        work = self.workload
        query, _ = self._widths()
        seconds = 0.0
        for window, count in Counter(work.architecture.windows()).items():
            keys = keys_per_query(work.attended_length, window)
            flops = 4.0 * work.tokens * keys * query / work.tensor_parallel
            rate = self.constants.attention_flops_per_s(self.gpu, 2 * keys)
            seconds += count / work.architecture.num_layers * flops / rate
        return seconds * (self.gpu.peak_flops_per_s / self.gpu.peak_fp32_flops_per_s if work.precision == "fp32" else 1)

    def _elementwise_s(self) -> tuple[float, float]:
        """Norms and residuals (divided as sequences are), rotation and gated unit (divided as matrices are).

        Values moved for a token: norm forward 2, backward 3, of the hidden state twice or with norms behind four times, and
        where they are normalised of queries and keys; residual 3 each way; rotation 2 of each query and key; gated unit 3
        forward, 5 backward.
        """
        work, architecture = self.workload, self.workload.architecture
        width = 4 if work.precision == "fp32" else 2
        query, key_value = self._widths()
        rotated = 0 if architecture.alibi else 2 * (query + key_value)
        normalised = query + key_value if architecture.qk_norm else 0
        norms = 4 if architecture.post_norms else 2
        outside = architecture.hidden_size / work.outside_division
        ranks, ffn = work.tensor_parallel, architecture.ffn_hidden_size
        rate = self.constants.memory_bytes_per_s(self.gpu)
        factor = width * work.tokens / rate * (1.0 if work.fused else self.constants.eager_factor)
        forward = factor * ((2 * norms + 6) * outside + (2 * normalised + rotated + 3 * ffn) / ranks)
        backward = factor * ((3 * norms + 6) * outside + (3 * normalised + rotated + 5 * ffn) / ranks)
        if work.precision == "fp8":
            inputs = architecture.hidden_size * 2 + query + ffn
            gradients = query + 2 * key_value + 2 * architecture.hidden_size + 2 * ffn
            forward += _CAST_BYTES * work.tokens * inputs / ranks / rate
            backward += _CAST_BYTES * work.tokens * gradients / ranks / rate
        return forward, backward

    def _tensor_parallel_s(self) -> tuple[float, float]:
        """Seconds that products stand still: 4 gathers or scatters forward and 4 backward, and 2 gathers of inputs again
        for the gradients of weights when sequences are split."""
        work, ranks = self.workload, self.workload.tensor_parallel
        width = 4 if work.precision == "fp32" else 2
        message = width * work.tokens * work.architecture.hidden_size
        one = self.links.gather_s(message, ranks, 1)
        beside = self.constants.overlap_loss * one
        if not work.sequence_parallel:  # two all-reduces each way; the backward ones run beside products
            return 4 * one, 4 * beside
        if work.tp_comm_overlap:
            return 4 * beside, 6 * beside
        return 4 * one, 2 * one + 4 * beside

    def _wait_for_host(self, parts: Parts, launches: int) -> Parts:
        waiting = launches * self.constants.launch_s - parts.total
        return parts + Parts(host=max(0.0, waiting))

    def _again_s(self, forward: Parts) -> float:
        """Forward work of the recomputed modules; an MLP's are its two matrices, gated unit and two collectives."""
        work = self.workload
        if "layer" in work.recomputed:
            return work.recomputed_layers * forward.total
        seconds = forward.attention if "core_attn" in work.recomputed else 0.0
        if "mlp" in work.recomputed:
            matrices = sum(self._product_s(work.tokens, n, k) for n, k in self._matrices()[2:])
            seconds += matrices + forward.tensor_parallel / 2 + forward.elementwise / 2
        return seconds
