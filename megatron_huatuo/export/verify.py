"""Prove that a Hugging Face directory computes what the checkpoint computes.

Invariant: the checkpoint is loaded by megatron-core and run by the training model, the directory is loaded and run by
transformers; the two paths share no code of ours but the architecture.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.checkpoint.layout import STATE, resolve_checkpoint
from megatron_huatuo.checkpoint.store import load_weights
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.export.llamafy import fold_head, llama_architecture
from megatron_huatuo.hf.config import load_architecture
from megatron_huatuo.hf.state_tensors import StateReader
from megatron_huatuo.hf.weight_files import WeightFiles
from megatron_huatuo.host import enable_host
from megatron_huatuo.index.chat_format import ANSWER_TAG, QUESTION_TAG
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.model.architecture import Architecture
from megatron_huatuo.model.build import build_model
from megatron_huatuo.model.parallel import ParallelConfig
from megatron_huatuo.model.process_groups import destroy_process_groups, initialize_process_groups
from megatron_huatuo.storage.manifest import read_json

TOLERANCE = 1e-4
CONTINUATION_TOKENS = 16
_TEXTS = (
    f"{QUESTION_TAG}高血压患者平时应该注意什么？{ANSWER_TAG}",
    f"{QUESTION_TAG}What are the symptoms of type 2 diabetes? 请用中文回答。{ANSWER_TAG}",
)
_TOKENIZER_TEXTS = (
    *_TEXTS,
    f"{QUESTION_TAG}布洛芬 400 mg，每日 3 次？\n{ANSWER_TAG}  可以 </s><unk> <答>： ½ é\t😀",
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
    """What that difference may be, times max(1, largest logit): 1e-4; 2^-7 for a folded head in bfloat16."""
    positions: int
    """Token positions whose logits were compared."""
    continuation_tokens: int
    """Length of the greedy continuations, which are identical (0: not compared, a folded head in bfloat16)."""
    tokenizer_texts: int
    """Texts for which transformers gives the ids of the index."""

    def to_dict(self) -> dict[str, Any]:
        """For the model card and the manifest."""
        return asdict(self)


def load_checkpoint_architecture(checkpoint: Path) -> Architecture:
    """Architecture of one checkpoint directory."""
    return Architecture.from_dict(read_json(checkpoint / "architecture.json"))


def verify_export(
    checkpoint: str | os.PathLike[str], hf_directory: str | os.PathLike[str], *, allow_token_mismatch: bool = False
) -> Parity:
    """Compare weights, logits, greedy continuation and token ids of a checkpoint and a Hugging Face directory.

    checkpoint: a run, its checkpoints/ or one iteration. Needs memory for the model in float32, once.
    Raises: IntegrityError that says what differs.
    """
    directory = resolve_checkpoint(checkpoint)
    verify_checkpoint(directory)
    return verify_converted(directory, Path(hf_directory), allow_token_mismatch=allow_token_mismatch)


def verify_converted(directory: Path, hf_directory: Path, *, allow_token_mismatch: bool = False) -> Parity:
    """As `verify_export`, for a checkpoint directory that has been proved sound."""
    architecture, files = load_checkpoint_architecture(directory), WeightFiles(hf_directory)
    published = load_architecture(hf_directory)
    is_folded = architecture.norm_head and not published.norm_head
    state = StateReader(directory / STATE, llama_architecture(architecture) if is_folded else architecture)
    tensors = compare_weights(fold_head(state) if is_folded else state, files)
    texts = 0 if allow_token_mismatch else compare_tokens(directory / "tokenizer", hf_directory)
    tokens = _sample_tokens(directory, architecture)
    # The export rounds a folded head after its normalisation, this comparison before: in bf16 that is no rounding error.
    is_rounded_twice = is_folded and files.dtype == torch.bfloat16
    continued = 0 if is_rounded_twice else CONTINUATION_TOKENS
    expected = _run_checkpoint(directory, architecture, tokens, files.dtype, continued)
    found = _run_transformers(hf_directory, tokens, continued)
    tolerance = 2**-7 if is_rounded_twice else TOLERANCE
    difference, scale = _compare(expected, found, tolerance, hf_directory)
    return Parity(
        tensors=tensors,
        max_logit_difference=difference,
        max_logit=scale,
        tolerance=tolerance,
        positions=sum(row.numel() for row in tokens),
        continuation_tokens=continued,
        tokenizer_texts=texts,
    )


def compare_weights(weights: Iterable[tuple[str, list[torch.Tensor]]], files: WeightFiles) -> int:
    """Compare every weight bit by bit, one at a time; returns their number. Raises: IntegrityError naming the tensor.

    weights: (name, row blocks), as `StateReader` yields them.
    """
    count = 0
    for name, blocks in weights:
        if name not in files.file_of:
            raise IntegrityError(f"tensor is missing: {name!r} in {files.directory}. Export again.")
        start = 0
        for block in blocks:
            exported = files.read(name, 0, start, start + len(block))
            if exported.shape != block.shape or not torch.equal(block.to(exported.dtype), exported):
                raise IntegrityError(
                    f"tensor {name!r} differs from the checkpoint ({files.file_of[name]}). Export again."
                )
            start += len(block)
        count += 1
    return count


def compare_tokens(tokenizer_directory: Path, hf_directory: Path) -> int:
    """Compare the ids of plain transformers with the index's, and the chat template with its text.

    Returns the number of texts; 0 when the checkpoint has no tokenizer. Raises: IntegrityError naming the text.
    """
    if not tokenizer_directory.is_dir():
        return 0
    ours = load_tokenizer(tokenizer_directory)
    theirs = _load_transformers_tokenizer(hf_directory)
    for text in _TOKENIZER_TEXTS:
        expected, got = ours.encode(text), theirs(text, add_special_tokens=False).input_ids
        if expected != got:
            raise IntegrityError(
                f"tokenizer differs from the index: {text!r} gives {got}, need {expected} ({hf_directory}). "
                "Serve the index's own ids, or accept the difference with --allow-token-mismatch."
            )
    chat = [{"role": "user", "content": "头痛？"}, {"role": "assistant", "content": "休息。"}]
    chat.append({"role": "user", "content": "吃什么药？"})
    rendered = theirs.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
    continuing = (f"{ANSWER_TAG}休息。", f"\n{QUESTION_TAG}吃什么药？", ANSWER_TAG)
    segments = (ours.encode(f"{QUESTION_TAG}头痛？"), *ours.encode_batch(continuing, continues=True))
    expected = [int(token) for segment in segments for token in segment]
    if rendered != expected:
        raise IntegrityError(
            f"chat template gives other ids than training saw: got {rendered}, need {expected} ({hf_directory}); "
            "the tokenizer joins text across a role tag. "
            "Accept the difference with --allow-token-mismatch."
        )
    return len(_TOKENIZER_TEXTS) + 1


def _load_transformers_tokenizer(hf_directory: Path) -> Any:
    """By the class that the directory names: AutoTokenizer asks a question at the terminal where it sees remote code."""
    import transformers

    name = read_json(hf_directory / "tokenizer_config.json")["tokenizer_class"]
    if not hasattr(transformers, name):
        raise IntegrityError(
            f"transformers has no tokenizer class {name!r} ({hf_directory / 'tokenizer_config.json'})."
        )
    return getattr(transformers, name).from_pretrained(hf_directory)


def _sample_tokens(directory: Path, architecture: Architecture) -> list[torch.Tensor]:
    """Two prompts as the tokenizer gives them, int64 [1, length] each; arbitrary ids where there is no tokenizer."""
    if (directory / "tokenizer").is_dir():
        tokenizer = load_tokenizer(directory / "tokenizer")
        return [torch.tensor([tokenizer.encode(text)]) for text in _TEXTS]
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(architecture.vocab_size, (1, length), generator=generator) for length in (24, 40)]


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


class _Outputs(NamedTuple):
    """Of each row: logits float32 [length, vocabulary], and the ids of its greedy continuation."""

    logits: list[torch.Tensor]
    continuations: list[list[int]]


@torch.no_grad()
def _run_checkpoint(
    directory: Path, architecture: Architecture, tokens: list[torch.Tensor], dtype: torch.dtype, continued: int
) -> _Outputs:
    """Run the training model on the CPU."""
    with _alone():
        model = build_model(architecture, precision="fp32", perform_initialization=False).eval()
        load_weights(directory, [model])
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))  # what the export rounded, this comparison rounds as well
        logits = [model(row, None, None)[0] for row in tokens]
        continuations = []
        for prompt in tokens:
            row = prompt
            for _ in range(continued):
                row = torch.cat([row, model(row, None, None)[:, -1:].argmax(-1)], dim=1)
            continuations.append(row[0, prompt.shape[1] :].tolist())
    return _Outputs(logits, continuations)


def _load_with_transformers(hf_directory: Path) -> Any:
    """The model in float32. Code that lies in the directory is not run: Baichuan2's is this project's own file."""
    if load_architecture(hf_directory).family == "baichuan2":
        from megatron_huatuo.export.modeling_baichuan import BaichuanForCausalLM as model_class
    else:
        from transformers import AutoModelForCausalLM as model_class

    return model_class.from_pretrained(hf_directory, dtype=torch.float32).eval()


@torch.no_grad()
def _run_transformers(hf_directory: Path, tokens: list[torch.Tensor], continued: int) -> _Outputs:
    from transformers import GenerationConfig

    model = _load_with_transformers(hf_directory)
    logits = [model(row).logits[0] for row in tokens]
    # Plainly greedy, whatever the base model's generation_config.json asks for (sampling, penalties); without an end
    # token generation runs on, as the continuation of the training model does.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    continuations = [
        model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=continued)[0, row.shape[1] :].tolist()
        for row in tokens
        if continued
    ]
    return _Outputs(logits, continuations or [[] for _ in tokens])


def _compare(expected: _Outputs, found: _Outputs, tolerance: float, hf_directory: Path) -> tuple[float, float]:
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
