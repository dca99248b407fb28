"""README.md of an exported model: what it is, where it comes from, what was proved, what it must not be used for.

Invariant: the card follows from the manifest beside it and from exams, so it can be written again at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from megatron_huatuo import __version__
from megatron_huatuo.convert.card_metadata import CardFacts, card_data, read_scores_of
from megatron_huatuo.convert.verify import Parity
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.storage.atomic import atomic_write
from megatron_huatuo.storage.manifest import describe_files, read_json, read_manifest, write_manifest
from megatron_huatuo.storage.targets import HUATUO_RULE, NATIVE_RULE

HF_KIND = "hf_model"
CARD = "README.md"

_DISCLAIMER = """\
## Medical disclaimer

This model writes text that looks like medical advice. It can be wrong, outdated or harmful, and it has not been
evaluated as a medical device. Do not use it for diagnosis, treatment or triage, and do not show its output to patients
without review by a qualified clinician. In an emergency call your local emergency number.
"""


def rewrite_card(
    hf_directory: str | os.PathLike[str],
    evaluations: Sequence[str | os.PathLike[str]] = (),
    given: CardFacts | None = None,
) -> None:
    """Write the card of an exported directory again, with the scores of exams that it has sat.

    evaluations: result directories of `tools/evaluate.py exam`. given: facts that replace those of the export.
    Raises: IntegrityError for a directory that is not an export, or an unfinished exam; DataError for another model's exam.
    """
    root = Path(hf_directory)
    manifest = read_manifest(root, HF_KIND)
    known, new = manifest.get("card") or {}, asdict(given or CardFacts())
    facts = CardFacts(**{name: value or known.get(name, value) for name, value in new.items()})
    parity = Parity(**manifest["parity"]) if manifest["parity"] else None
    scores = read_scores_of(root, evaluations)
    config = read_json(root / "config.json")
    served = manifest.get("served") or {}  # 0.1.0 did not write it
    origin = manifest["checkpoint"] | served
    text = model_card(load_architecture(root), config["dtype"], origin, parity, facts, root.resolve().name, scores)
    with atomic_write(root / CARD, "w") as handle:
        handle.write(text)
    files = manifest["files"] | describe_files(root, [CARD])
    content = {key: manifest[key] for key in ("checkpoint", "parity")} | {"served": served, "card": asdict(facts)}
    write_manifest(root, HF_KIND, content, files)


def model_card(
    architecture: Architecture,
    dtype: str,
    origin: Mapping[str, Any],
    parity: Parity | None,
    facts: CardFacts,
    name: str,
    scores: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Markdown text of the card, the Hub's metadata in front.

    origin: iteration, consumed_train_samples, fingerprints, decisive settings, learning_rate_by_source, ignored_config_keys and
        chat_formats of the checkpoint, and what `describe_format` says of the export.
    parity: figures of the verification, None when it was skipped. name: of the model. scores: as `read_scores_of` gives them.
    """
    ignored = origin.get("ignored_config_keys")
    fingerprints = origin.get("fingerprints") or {}
    rows = [
        ("Family", architecture.family),
        ("Layers × hidden size", f"{architecture.num_layers} × {architecture.hidden_size}"),
        ("Vocabulary", f"{architecture.vocab_size}"),
        ("Weights", dtype),
        ("Iteration", str(origin.get("iteration"))),
        ("Rows trained on", str(origin.get("consumed_train_samples", "unknown"))),
        *((f"Fingerprint of the {name}", f"`{value}`") for name, value in fingerprints.items()),
        *((("Keys of config.json ignored on request", ", ".join(ignored)),) if ignored else ()),
        ("Written by", f"megatron_huatuo {__version__}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    text = f"""
# Medical language model, one-stage adaptation

| | |
| --- | --- |
{table}

{_format_text(origin)} When the training data came
from template questions (as in the bundled demo), the model shows that the pipeline works and nothing more.

{_rates_text(origin)}{_forgetting_text(origin.get("forgetting") or {})}## Parity with the training checkpoint

{_parity_text(parity)}

{_scores_text(scores)}{_DISCLAIMER}"""
    return str(ModelCard(f"---\n{card_data(facts, name, scores).to_yaml()}\n---\n{text}"))


def _format_text(origin: Mapping[str, Any]) -> str:
    """The form of conversations, and which sources had another one."""
    if origin.get("chat_format") != NATIVE_RULE.chat_format:
        return "Conversations have the form `<问>：question\\n<答>：answer`; the chat template writes it."
    others = [f"`{name}`" for name, one in origin["chat_formats"].items() if one == HUATUO_RULE.chat_format]
    return (
        "Conversations have the form of the base model's own chat template, which training saw and this directory has "
        f"unchanged (sha256 `{origin['chat_template_sha256']}`)."
        + (f" The sources {', '.join(others)} had the form `<问>：question\\n<答>：answer`." if others else "")
    )


def refuse_forgetting(losses: Mapping[str, Any], directory: Path) -> None:
    """Raises: IntegrityError when a loss on general text rose by more than its run allows, or was not measured."""
    for name, known in losses.items():
        loss, base, limit = known["loss"], known["base_loss"], known["max_increase"]
        if loss is None:
            get_logger(__name__).warning("%s was saved before a validation: what it forgot is not known", directory)
        elif not loss <= base * (1 + limit):
            raise IntegrityError(
                f"model forgot: its loss on {name!r} rose from {base:.4f} to {loss:.4f}, by {loss / base - 1:.2%}, and "
                f"data.validation allows {limit:.2%} ({directory}). Train with more general text (examples/replay), a lower "
                "learning rate, or accept it with --allow-forgetting; the model card will say it."
            )


def _forgetting_text(losses: Mapping[str, Any]) -> str:
    """Loss on general text before and after; empty where it was not measured."""
    if not losses:
        return ""
    lines = []
    for name, known in losses.items():
        loss, base = known["loss"], known["base_loss"]
        rise = "not measured" if loss is None else f"{loss:.4f} | {loss / base - 1:+.2%}"
        verdict = "" if loss is None or loss <= base * (1 + known["max_increase"]) else " **more than the run allowed**"
        lines.append(f"| {name} | {base:.4f} | {rise if loss is not None else 'not measured | '}{verdict} |")
    head = "| general text | loss of the base | loss now | change |\n| --- | --- | --- | --- |\n"
    return "## What it forgot\n\n" + head + "\n".join(lines) + "\n\n"


def _rates_text(origin: Mapping[str, Any]) -> str:
    """What each source gave and received; empty for a checkpoint that was not trained here."""
    rates, peak = origin.get("learning_rate_by_source"), origin.get("decisive", {}).get("optimizer", {}).get("lr")
    if not rates or not peak:
        return ""
    lines = [
        f"| {name} | {rate['trained_tokens']:,} | "
        f"{'-' if rate['mean_learning_rate'] is None else format(rate['mean_learning_rate'] / peak, '.3f')} |"
        for name, rate in rates.items()
    ]
    return "\n".join(
        [
            "## What it was trained on\n",
            f"Learning rates are means over the trained tokens of a source, as shares of the peak of {peak:g}.\n",
            "| source | trained tokens | learning rate received |",
            "| --- | --- | --- |",
            *lines,
            "\n",
        ]
    )


def _scores_text(scores: Sequence[Mapping[str, Any]]) -> str:
    """Exams that the model has sat; empty without any."""
    if not scores:
        return ""
    lines = [
        f"| {score['exam']} | {score['scoring']} | {score['count']} | {score['accuracy']:.1%} "
        f"| {score['interval'][0]:.1%} to {score['interval'][1]:.1%} | {score['chance']:.1%} |"
        for score in scores
    ]
    head = "| exam | scoring | questions | accuracy | 95 % interval | chance |\n| --- | --- | --- | --- | --- | --- |\n"
    return "## Exams\n\n" + head + "\n".join(lines) + "\n\n"


def _parity_text(parity: Parity | None) -> str:
    if parity is None:
        return "Not verified: the export was told to skip the comparison."
    return (
        f"* {parity.tensors} weights equal bit by bit after conversion\n"
        f"* logits at {parity.positions} positions in float32: at most {parity.max_logit_difference:.2e} apart "
        f"(largest logit {parity.max_logit:.1f}; accepted up to {parity.tolerance:.2g} × max(1, largest logit))\n"
        f"* greedy continuations of {parity.continuation_tokens} tokens identical\n"
        f"* token ids {_tokens_text(parity)}"
    )


def _tokens_text(parity: Parity) -> str:
    if not parity.tokenizer_texts + parity.tokenizer_mismatches:
        return "not compared: there is no tokenizer"
    equal = f"of {parity.tokenizer_texts} texts and conversations equal to those of training"
    return equal + (f", of {parity.tokenizer_mismatches} not (accepted)" if parity.tokenizer_mismatches else "")
