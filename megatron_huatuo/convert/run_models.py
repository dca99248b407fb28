"""Run a model as transformers loads it and as training does, one after the other, in float32 on the CPU.

Invariant: the checkpoint is loaded by megatron-core and run by the training model, the directory is loaded and run by
transformers; the two paths share no code of ours but the architecture. One model is in memory at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from megatron_huatuo.checkpoint.store import load_weights
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.core.build_model import build_model
from megatron_huatuo.models.core.flops import count_parameters
from megatron_huatuo.models.families import get_family
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.parallel.host import enable_host
from megatron_huatuo.parallel.parallel_config import ParallelConfig
from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups

_MEMORY_FACTOR = 1.5
"""Peak of loading, in sizes of the model in float32, as measured: 1.5 from bfloat16 weights, 1.3 from float32 ones."""
_OTHER_BYTES = 1 << 30
"""Libraries and the logits of short prompts."""


class Outputs(NamedTuple):
    """Of each prompt: logits float32 [length, vocabulary], and the ids of its greedy continuation."""

    logits: list[torch.Tensor]
    continuations: list[list[int]]


def check_memory(architecture: Architecture) -> None:
    """Raises: ConfigError when the machine has not the memory that the models need."""
    need = _MEMORY_FACTOR * 4 * count_parameters(architecture) + _OTHER_BYTES
    available = psutil.virtual_memory().available
    if need > available:
        raise ConfigError(
            f"not enough memory to compare the models in float32: got {available / 1e9:.1f} GB, need {need / 1e9:.1f} GB. "
            "Run it on a larger machine, or export with --skip-verification and run `verify` there."
        )


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use every core, whatever a launcher left in OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def run_transformers(hf_directory: Path, prompts: list[torch.Tensor], continued: int) -> Outputs:
    """Logits of `prompts` (int64 [1, length] each) and their continuations of `continued` tokens (none with 0)."""
    from transformers import GenerationConfig

    model = _load_with_transformers(hf_directory)
    logits = [model(row).logits[0] for row in prompts]
    # Plainly greedy, whatever the base model's generation_config.json asks for (sampling, penalties); without an end
    # token generation runs on.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    continuations = [
        model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=continued)[0, row.shape[1] :].tolist()
        for row in prompts
        if continued
    ]
    return Outputs(logits, continuations or [[] for _ in prompts])


def _load_with_transformers(hf_directory: Path) -> Any:
    """The model in float32. Code that lies in the directory is not run: a family that needs some has it here."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    family = get_family(load_architecture(hf_directory).family)
    _, model_class = family.transformers_classes() or (None, transformers.AutoModelForCausalLM)
    return model_class.from_pretrained(hf_directory, dtype=torch.float32).eval()


@torch.no_grad()
def run_checkpoint(
    directory: Path,
    architecture: Architecture,
    prompts: list[torch.Tensor],
    continuations: list[list[int]],
    dtype: torch.dtype,
) -> Outputs:
    """Logits of `prompts`, and what the model would say after each token of `continuations`: it goes on as they do if it
    says the same, and one forward pass tells it.

    dtype: of the exported weights; what the export rounded is rounded here as well.
    """
    outputs = Outputs([], [])
    with _alone():
        model = build_model(architecture, precision="fp32", perform_initialization=False).eval()
        load_weights(directory, [model])
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        for prompt, continuation in zip(prompts, continuations, strict=True):
            length = prompt.shape[1]
            row = torch.cat([prompt, torch.tensor([continuation], dtype=prompt.dtype)], dim=1)
            logits = model(row, None, None)[0]
            outputs.logits.append(logits[:length])
            outputs.continuations.append(logits[length - 1 : -1].argmax(-1).tolist())
    return outputs


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """megatron-core's process groups for this process alone, on the CPU."""
    if torch.distributed.is_initialized():
        raise ConfigError("a verification runs in one process of its own, not inside a distributed job.")
    enable_host()
    initialize_process_groups(ParallelConfig(), torch.device("cpu"))
    try:
        yield
    finally:
        destroy_process_groups()
