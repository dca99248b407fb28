"""Prove that a Hugging Face directory is the checkpoint: weights, token ids, logits, greedy continuation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_huatuo.checkpoint.hf_weight_files import WeightFiles
from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.checkpoint.streaming import ahead
from megatron_huatuo.convert.llamafy import fold_head, llama_architecture
from megatron_huatuo.convert.run_models import Outputs, all_cores, check_memory, run_checkpoint, run_transformers
from megatron_huatuo.convert.served_format import served_format
from megatron_huatuo.convert.state_tensors import StateReader
from megatron_huatuo.convert.token_ids import TokenParity, compare_tokens, has_template_of
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.index.formats.chat_format import ANSWER_TAG, QUESTION_TAG
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family, read_architecture
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.storage.run_files import ARCHITECTURE, STATE, TOKENIZER, resolve_checkpoint

TOLERANCE = 1e-4
CONTINUATION_TOKENS = 16
_PROMPTS = (
    f"{QUESTION_TAG}高血压患者平时应该注意什么？{ANSWER_TAG}",
    f"{QUESTION_TAG}What are the symptoms of type 2 diabetes? 请用中文回答。{ANSWER_TAG}",
)


@dataclass(frozen=True)
class Parity:
    """What a verification measured."""

    tensors: int
    """Weights compared bit by bit (after the conversion to the exported type)."""
    max_logit_difference: float
    """Largest absolute difference of two logits, both computed in float32 from the exported weights."""
    max_logit: float
    """Largest absolute logit, for scale."""
    tolerance: float
    """What that difference may be, times max(1, largest logit): 1e-4; 2^-7 for a folded head in bfloat16, 2^-10
    in float16."""
    positions: int
    """Token positions whose logits were compared."""
    continuation_tokens: int
    """Length of the greedy continuations, which are identical (0: not compared, a folded head in 16 bits)."""
    tokenizer_texts: int
    """Texts and conversations for which transformers gives the ids of training (0: there is no tokenizer to compare)."""
    tokenizer_mismatches: int
    """Those for which it gives others, which was accepted."""

    def to_dict(self) -> dict[str, Any]:
        """For the model card and the manifest."""
        return asdict(self)


def load_checkpoint_architecture(checkpoint: Path) -> Architecture:
    """Architecture of one checkpoint directory."""
    return read_architecture(read_json(checkpoint / ARCHITECTURE))


def verify_export(
    checkpoint: str | os.PathLike[str], hf_directory: str | os.PathLike[str], *, allow_token_mismatch: bool = False
) -> Parity:
    """Compare weights, logits, greedy continuation and token ids of a checkpoint and a Hugging Face directory.

    checkpoint: a run, its checkpoints/ or one iteration. hf_directory: an export, or the published model that the checkpoint
    was imported from; token ids are compared where its chat template is training's.
    Raises: IntegrityError that says what differs; ConfigError when memory does not suffice.
    """
    directory, published = resolve_checkpoint(checkpoint), Path(hf_directory)
    check_memory(load_checkpoint_architecture(directory))
    verify_checkpoint(directory)
    token_ids = TokenParity(0, 0)
    carried = directory / TOKENIZER
    served = served_format(directory, load_tokenizer(carried)) if carried.is_dir() else None
    if served is not None and has_template_of(served, published):
        token_ids = compare_tokens(served, published, allow_mismatch=allow_token_mismatch)
    else:
        get_logger(__name__).info("token ids are not compared: no tokenizer, or another chat template than training's")
    return verify_converted(directory, published, token_ids)


def verify_converted(directory: Path, hf_directory: Path, token_ids: TokenParity) -> Parity:
    """Compare weights, logits and greedy continuation of a checkpoint directory that has been proved sound.

    token_ids: what `compare_tokens` found before.
    """
    architecture, published = load_checkpoint_architecture(directory), load_architecture(hf_directory)
    files = WeightFiles(hf_directory, get_family(published.family))
    is_folded = architecture.norm_head and not published.norm_head
    state = StateReader(directory / STATE, llama_architecture(architecture) if is_folded else architecture)
    tensors = compare_weights(fold_head(state) if is_folded else state, files)
    # The export rounds a folded head after its normalisation, this comparison before: in 16 bits that tells.
    is_rounded_twice = is_folded and files.dtype != torch.float32
    prompts = _prompts(directory, architecture)
    with all_cores():
        found = run_transformers(hf_directory, prompts, 0 if is_rounded_twice else CONTINUATION_TOKENS)
        expected = run_checkpoint(directory, architecture, prompts, found.continuations, files.dtype)
    tolerance = torch.finfo(files.dtype).eps if is_rounded_twice else TOLERANCE
    difference, scale = _compare(expected, found, tolerance, hf_directory)
    return Parity(
        tensors=tensors,
        max_logit_difference=difference,
        max_logit=scale,
        tolerance=tolerance,
        positions=sum(row.numel() for row in prompts),
        continuation_tokens=len(found.continuations[0]),
        tokenizer_texts=token_ids.equal,
        tokenizer_mismatches=token_ids.different,
    )


def compare_weights(weights: Iterable[tuple[str, torch.Tensor]], files: WeightFiles) -> int:
    """Compare every weight bit by bit, some rows at a time; returns their number. Raises: IntegrityError naming the tensor.

    weights: (name, rows), as `StateReader` yields them.
    """
    compared: dict[str, int] = {}
    with contextlib.closing(ahead(weights)) as stream:
        for name, rows in stream:
            if name not in files.file_of:
                raise IntegrityError(f"tensor is missing: {name!r} in {files.directory}. Export again.")
            start = compared.get(name, 0)
            compared[name] = start + len(rows)
            exported = files.read(name, 0, start, compared[name])
            if exported.shape != rows.shape or not torch.equal(rows.to(exported.dtype), exported):
                raise IntegrityError(
                    f"tensor {name!r} differs from the checkpoint ({files.file_of[name]}). Export again."
                )
    return len(compared)


def _prompts(directory: Path, architecture: Architecture) -> list[torch.Tensor]:
    """Two prompts as the tokenizer gives them, int64 [1, length] each; arbitrary ids where there is no tokenizer."""
    if (directory / TOKENIZER).is_dir():
        tokenizer = load_tokenizer(directory / TOKENIZER)
        return [torch.tensor([tokenizer.encode(text)]) for text in _PROMPTS]
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(architecture.vocab_size, (1, length), generator=generator) for length in (24, 40)]


def _compare(expected: Outputs, found: Outputs, tolerance: float, hf_directory: Path) -> tuple[float, float]:
    """Largest difference and largest logit. Raises: IntegrityError beyond `tolerance` · max(1, largest logit)."""
    pairs = list(zip(expected.logits, found.logits, strict=True))
    scale = max(logits.abs().max().item() for logits in expected.logits)
    difference = max((logits - others).abs().max().item() for logits, others in pairs)
    if not difference <= tolerance * max(1.0, scale):
        raise IntegrityError(
            f"logits differ: got {difference:.2e} at most, need {tolerance * max(1.0, scale):.2e} ({hf_directory}). "
            "The directory does not compute what the checkpoint computes; export again."
        )
    for ours, theirs in zip(expected.continuations, found.continuations, strict=True):
        if ours != theirs:
            raise IntegrityError(
                f"greedy continuation differs: transformers gives {theirs}, the checkpoint {ours} ({hf_directory}). "
                "The directory does not compute what the checkpoint computes; export again."
            )
    return difference, scale
