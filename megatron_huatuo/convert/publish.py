"""A checkpoint becomes a Hugging Face directory: complete, proved equal, or not there at all."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_huatuo.checkpoint.integrity import verify_checkpoint, verify_harmless
from megatron_huatuo.convert.card_metadata import CardFacts, complete_facts
from megatron_huatuo.convert.llamafy import fold_head, llama_architecture
from megatron_huatuo.convert.model_card import CARD, HF_KIND, model_card, refuse_forgetting
from megatron_huatuo.convert.run_models import check_memory
from megatron_huatuo.convert.served_format import ServedFormat, describe_format, served_format
from megatron_huatuo.convert.state_tensors import StateReader
from megatron_huatuo.convert.token_ids import TokenParity, compare_tokens
from megatron_huatuo.convert.tokenizer_files import write_tokenizer_files
from megatron_huatuo.convert.verify import Parity, load_checkpoint_architecture, verify_converted
from megatron_huatuo.convert.write_hf_weights import DTYPES, write_weights
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family
from megatron_huatuo.models.hf_config import config_json
from megatron_huatuo.models.weight_table import hf_shapes
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.manifest import describe_files, read_json, sha256_file, write_json, write_manifest
from megatron_huatuo.storage.run_files import (
    CONFIG,
    STATE,
    TOKENIZER,
    iteration_of,
    read_run_config,
    read_training_state,
    resolve_checkpoint,
)

_PROOFS = 2  # threads: with one, two cores have written the weights before it has read them


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    hf_directory: str | os.PathLike[str],
    *,
    base_hf: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    skip_verification: bool = False,
    allow_token_mismatch: bool = False,
    llamafy: bool = False,
    allow_forgetting: bool = False,
    card: CardFacts | None = None,
) -> Parity | None:
    """Write a Hugging Face directory and return the parity figures of its verification (None when skipped).

    checkpoint: a run, its checkpoints/ or one iteration.
    base_hf: the published model that training began with; its tokenizer settings and generation_config.json are copied.
        By default those that the checkpoint carries.
    dtype: "bfloat16", "float16" or "float32"; by default the type of the checkpoint's weights.
    llamafy: write a Baichuan2-7B as a Llama, with the normalised head folded in.
    allow_forgetting: publish also where the loss on general text rose by more than the run allows; the model card says it.
    card: what the model card says of base model, license, languages and data sets; the rest is taken from the base's card.
    allow_token_mismatch: publish also where transformers gives other token ids than training saw.
    Raises: IntegrityError when the checkpoint is damaged or the result differs from it, ConfigError when memory does not
        suffice to compare them; nothing is published then.
    """
    directory = resolve_checkpoint(checkpoint)
    get_logger(__name__).info("exporting %s", directory)
    verify_harmless(directory)
    training = read_training_state(directory)
    if not allow_forgetting:
        refuse_forgetting(training.get("forgetting") or {}, directory)
    architecture = load_checkpoint_architecture(directory)
    if llamafy:
        architecture = llama_architecture(architecture)
    state = StateReader(directory / STATE, architecture)
    dtype = dtype or str(state.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConfigError(f"wrong dtype: got {dtype!r}, need one of {', '.join(DTYPES)} (--dtype).")
    tokenizer = _tokenizer(directory, base_hf, architecture)
    served = None if tokenizer is None else served_format(directory, tokenizer)
    if not skip_verification:
        check_memory(architecture)
    # Tensors are harmless to read before they are proved sound; nothing is published before the proof is there.
    with atomic_directory(hf_directory) as root, _proving_sound(directory) as proofs:
        _write_settings(root, architecture, served, dtype)
        token_ids = TokenParity(0, 0)
        if served is not None and not skip_verification:  # before the weights, which take long
            token_ids = compare_tokens(served, root, allow_mismatch=allow_token_mismatch)
        files = write_weights(root, hf_shapes(architecture), fold_head(state) if llamafy else state, DTYPES[dtype])
        for proof in proofs:
            proof.result()
        parity = None
        if not skip_verification:
            get_logger(__name__).info("comparing with the training model: weights, logits, continuation")
            parity = verify_converted(directory, root, token_ids)
        origin, form = _origin(directory), {} if served is None else describe_format(served)
        facts = complete_facts(card or CardFacts(), _base_directory(directory, base_hf))
        text = model_card(architecture, dtype, origin | form, parity, facts, Path(hf_directory).resolve().name)
        (root / CARD).write_text(text, encoding="utf-8")
        small = [path.name for path in root.iterdir() if path.name not in files]
        described = files | describe_files(root, sorted(small))
        content = {"checkpoint": origin, "served": form, "parity": parity.to_dict() if parity else None}
        content["card"] = asdict(facts)
        write_manifest(root, HF_KIND, content, described)
    return parity


@contextlib.contextmanager
def _proving_sound(directory: Path) -> Iterator[list[Future[Any]]]:
    """Hash the checkpoint's files beside the block, which asks for the results. When it fails, the hashing ends early."""
    given_up = threading.Event()
    prove = functools.partial(verify_checkpoint, directory, world_size=_PROOFS, cancelled=given_up)
    with ThreadPoolExecutor(_PROOFS) as threads:
        try:
            yield [threads.submit(prove, rank=rank) for rank in range(_PROOFS)]
        finally:
            given_up.set()


def _tokenizer(directory: Path, base_hf: str | os.PathLike[str] | None, architecture: Architecture) -> Tokenizer | None:
    """The checkpoint's tokenizer; from the base model where that is named, so that its newer settings come along.

    Raises: DataError when it has ids beyond the embedding, or the base model has another one.
    """
    carried = directory / TOKENIZER
    if not carried.is_dir() and base_hf is None:
        get_logger(__name__).warning("no tokenizer in %s and no --base-hf: exporting weights alone", directory)
        return None
    tokenizer = load_tokenizer(carried if carried.is_dir() else str(base_hf))
    if carried.is_dir() and base_hf is not None:
        same = Path(base_hf) / tokenizer.path.name
        if not Path(base_hf).is_dir():
            raise ConfigError(f"no base model: {base_hf} is not a directory. Check --base-hf.")
        if not same.is_file() or sha256_file(same) != tokenizer.sha256:
            raise DataError(
                f"wrong base model: {same} is not the tokenizer that the checkpoint was trained with. "
                "Name the model that training began with, or leave --base-hf out."
            )
        tokenizer = load_tokenizer(same)
    architecture.check_vocabulary(tokenizer.vocab_size, tokenizer.path)
    return tokenizer


def _write_settings(root: Path, architecture: Architecture, served: ServedFormat | None, dtype: str) -> None:
    config = config_json(architecture, dtype)
    if served is not None:
        config["eos_token_id"] = _one_or_several(served.end_ids)  # what training put at the end of every answer
        write_tokenizer_files(served.tokenizer, root, architecture.family, served.template)
    get_family(architecture.family).add_model_code(root, config)
    write_json(root / "config.json", config)
    write_json(root / "generation_config.json", _generation_config(config, served))


def _generation_config(config: Mapping[str, Any], served: ServedFormat | None) -> dict[str, Any]:
    """The base model's, which the tokenizer's files carry, with training's ends among its ends; greedy without one."""
    base = served.tokenizer.files.get("generation_config.json") if served else None
    if served is None or base is None:
        ends = config["eos_token_id"]
        pad = config["pad_token_id"] if config["pad_token_id"] is not None else (served.end_ids[0] if served else ends)
        own = {"eos_token_id": ends, "bos_token_id": config["bos_token_id"], "pad_token_id": pad}
        return {**own, "do_sample": False, "max_new_tokens": 1024}
    content = dict(read_json(base))
    named = content.get("eos_token_id")
    if not set(served.end_ids) <= set(named if isinstance(named, list) else [named]):
        content["eos_token_id"] = _one_or_several(served.end_ids)
    return content


def _one_or_several(ids: Sequence[int]) -> int | list[int]:
    """As config.json holds ids that end a text."""
    return ids[0] if len(ids) == 1 else list(ids)


def _base_directory(checkpoint: Path, base_hf: str | os.PathLike[str] | None) -> Path | None:
    """The base model: as named, else where the run took its first weights from."""
    if base_hf is None and (checkpoint / CONFIG).is_file():
        base_hf = read_run_config(checkpoint)["model"].get("init_from")
    return Path(base_hf) if base_hf is not None and Path(base_hf).is_dir() else None


def _origin(directory: Path) -> dict[str, Any]:
    """What identifies the checkpoint: its iteration and the run's fingerprints."""
    training = read_training_state(directory)
    kept = (
        "consumed_train_samples",
        "fingerprints",
        "decisive",
        "learning_rate_by_source",
        "ignored_config_keys",
        "forgetting",
        "chat_formats",
    )
    return {"iteration": iteration_of(directory), **{key: training[key] for key in kept if training.get(key)}}
