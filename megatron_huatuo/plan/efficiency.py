"""What programs reach of a data sheet's rates: the few constants of the time model, fitted and assumed.

Invariant: every constant has a meaning outside this model, so it could be measured by itself, and a range from published
measurements that the fit may not leave. `benchmarks/published.py` fits them to half of the published rows; a test holds
them to the other half.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.plan.gpus import Gpu


@dataclass(frozen=True)
class Constants:
    """Shares of peak rates, unless said otherwise."""

    ampere_products: float = 0.92
    """Large matrix products in bf16 on A100, of 312 TFLOP/s."""
    hopper_products: float = 0.77
    """Large matrix products in bf16 on H100 and H200, of 989 TFLOP/s; power limits it."""
    hopper_fp8_products: float = 0.72
    """Large matrix products in fp8 on H100, of 1,979 TFLOP/s."""
    blackwell_fp8_products: float = 0.55
    """Large matrix products in fp8 on B200, of 4,500 TFLOP/s."""
    ampere_attention: float = 0.46
    """Long causal attention, forward and backward together, of the bf16 peak of A100 (FLOPs of the lower triangle)."""
    hopper_attention: float = 0.40
    """The same on H100, H200 and B200."""
    overlap_loss: float = 0.59
    """Share of its own time that communication costs although products run beside it: it takes multiprocessors and
    memory bandwidth away from them, and its first and last pieces have nothing to hide behind."""
    eager_factor: float = 4.0
    """Memory traffic of norms, rotation, activations and residuals in plain PyTorch, as a multiple of fused kernels'."""

    blackwell_products: float = 0.70
    """Assumed: no published bf16 row of B200 has a known layout."""
    memory: float = 0.85
    """Assumed: of the memory bandwidth, by kernels that stream."""
    links: float = 0.80
    """Assumed: of a link's rate, by large collectives (nccl-tests on 8 × H100: 360-370 GB/s of 450)."""
    attention_half_length: float = 500.0
    """Assumed: documents of this many tokens get half of the attention rate (FlashAttention 2 and 3, causal, by length)."""
    launch_s: float = 5e-6
    """Assumed: host time of one kernel launch."""
    step_s: float = 5e-3
    """Assumed: agreement of the ranks, next batch and logging of a step."""

    def products_flops_per_s(self, gpu: Gpu, precision: str) -> float:
        """Rate of large matrix products; precision: bf16, fp8 or fp32."""
        bf16 = {"ampere": self.ampere_products, "hopper": self.hopper_products, "blackwell": self.blackwell_products}
        fp8 = {"hopper": self.hopper_fp8_products, "blackwell": self.blackwell_fp8_products}
        if precision == "fp8":
            assert gpu.peak_fp8_flops_per_s is not None, "checked by Workload"
            return gpu.peak_fp8_flops_per_s * fp8[gpu.generation]
        peak = gpu.peak_flops_per_s if precision == "bf16" else gpu.peak_fp32_flops_per_s
        return peak * bf16[gpu.generation]

    def attention_flops_per_s(self, gpu: Gpu, attended_length: float) -> float:
        """Rate of the attention kernel, in bf16 whatever the products are in, for documents of that many tokens."""
        share = self.ampere_attention if gpu.generation == "ampere" else self.hopper_attention
        return gpu.peak_flops_per_s * share * attended_length / (attended_length + self.attention_half_length)

    def memory_bytes_per_s(self, gpu: Gpu) -> float:
        """Rate at which kernels stream."""
        return gpu.memory_bytes_per_s * self.memory


# What the fit may choose from, and where the bounds come from.
RANGES = {
    "ampere_products": (0.75, 0.92),  # cuBLAS on A100: 230-285 TFLOP/s
    "hopper_products": (0.55, 0.80),  # cuBLAS on H100 SXM under its power limit: 550-790 TFLOP/s
    "hopper_fp8_products": (0.45, 0.75),  # 900-1,480 TFLOP/s
    "blackwell_fp8_products": (0.40, 0.75),  # 1,800-3,400 TFLOP/s
    "ampere_attention": (0.35, 0.62),  # FlashAttention 2: 110-190 TFLOP/s
    "hopper_attention": (0.30, 0.60),  # FlashAttention 2 and 3: 300-590 TFLOP/s
    "overlap_loss": (0.10, 0.70),
    "eager_factor": (1.5, 4.0),  # an RMSNorm in float32 moves seven times the bytes of a fused one, a SiLU twice
}
