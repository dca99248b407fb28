"""The metadata of a model card, as the Hub reads them: base model, license, language, data sets, scores.

Invariant: nothing is guessed. What neither the caller nor the base model's own card says is left out, and scores are only
those of exams that this very directory has sat.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.log import get_logger
from megatron_huatuo.storage.exam_results import directory_fingerprint, read_exam

_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")  # where huggingface_hub keeps downloads
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """What a person knows about a model and its weights do not say."""

    base_model: str | None = None
    """Name of the base model on the Hub, ORG/NAME; by default from its directory in the Hub's cache"""
    license: str | None = None
    """License identifier of the Hub, such as apache-2.0; by default that of the base model's card"""
    license_name: str | None = None
    """With license other: its name"""
    license_link: str | None = None
    """With license other: where its text is"""
    language: tuple[str, ...] = ()
    """Codes of the languages, such as zh en; by default those of the base model's card"""
    datasets: tuple[str, ...] = ()
    """Names on the Hub of the data sets trained on, ORG/NAME"""

    def __post_init__(self) -> None:
        for name in (*((self.base_model,) if self.base_model else ()), *self.datasets):
            if not _HUB_NAME.fullmatch(name):
                raise ConfigError(f"wrong name on the Hub: got {name!r}, need ORG/NAME (--base-model, --datasets).")


def complete_facts(given: CardFacts, base: Path | None) -> CardFacts:
    """The facts given, and for those that are not what the base model's directory says. Warns when no license is known."""
    found: dict[str, Any] = {}
    if base is not None and (match := _CACHED.search(os.fspath(base.resolve()))):
        found["base_model"] = "/".join(match.groups())
    if base is not None and (base / "README.md").is_file():
        found |= _facts_of_card(base / "README.md")
    facts = CardFacts(**{f.name: getattr(given, f.name) or found.get(f.name, f.default) for f in fields(CardFacts)})
    if facts.license is None:
        get_logger(__name__).warning(
            "the model card names no license: the base model has no card here that does. Give it with --license"
        )
    return facts


def _facts_of_card(path: Path) -> dict[str, Any]:
    """License and languages of a card; a card that the Hub's parser refuses says nothing."""
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except ValueError as error:
        get_logger(__name__).warning("the base model's card cannot be read: %s (%s)", error, path)
        return {}
    languages = data.language if isinstance(data.language, list) else [data.language] if data.language else []
    return {
        "license": data.license,
        "license_name": data.license_name,
        "license_link": data.license_link,
        "language": tuple(map(str, languages)),
    }


def read_scores_of(hf_directory: Path, evaluations: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """What each exam of finished result directories scored: {exam, accuracy, interval, chance, count, scoring}.

    Raises: IntegrityError for an unfinished directory; DataError when another model sat the exam.
    """
    own = directory_fingerprint(hf_directory) if evaluations else ""
    scores = []
    for directory in evaluations:
        manifest, content = read_exam(directory)
        found = manifest["model"].get("model_fingerprint")
        if found != own:
            raise DataError(
                f"exam of another model: {directory} was sat by {manifest['model'].get('model')!r} with fingerprint "
                f"{str(found)[:12]}, need {own[:12]} ({hf_directory}). Run tools/evaluate.py exam --model {hf_directory}."
            )
        for exam, group in content["by_exam"].items():
            if group["accuracy"] is not None:
                kept = {key: group[key] for key in ("accuracy", "interval", "chance", "count")}
                scores.append({"exam": exam, **kept, "scoring": manifest["settings"]["scoring"]})
    return scores


def card_data(facts: CardFacts, name: str, scores: Sequence[Mapping[str, Any]]) -> ModelCardData:
    """The metadata. name: of the model, in `model-index`."""
    results = [
        EvalResult(
            task_type="multiple-choice",
            dataset_type=score["exam"],
            dataset_name=score["exam"],
            metric_type="accuracy",
            metric_value=score["accuracy"],
            metric_name=f"accuracy by {score['scoring']}",
            metric_args={key: score[key] for key in ("interval", "chance", "count")},
        )
        for score in scores
    ]
    return ModelCardData(
        base_model=facts.base_model,
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        language=list(facts.language) or None,
        datasets=list(facts.datasets) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["medical", "megatron_huatuo"],
        model_name=name if results else None,
        eval_results=results or None,
    )
