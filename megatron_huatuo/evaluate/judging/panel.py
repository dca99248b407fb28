"""The judges: one model behind an endpoint, or several from a file, each asked the same and logged apart.

Invariant: a rerun asks, and pays, only for what a judge has not answered yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from megatron_huatuo.config import at_least, read_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.replies import check_failed, collect_replies, is_failed, open_generator
from megatron_huatuo.evaluate.generate import (
    EndpointOptions,
    GeneratedReply,
    GenerationSettings,
    ModelEndpoint,
    Request,
    refuse_ignored,
)
from megatron_huatuo.llm.endpoint_settings import PatienceSettings
from megatron_huatuo.storage.jsonl import write_jsonl
from megatron_huatuo.storage.manifest import MANIFEST_NAME, write_json, write_manifest


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how long."""

    base_url: str | None = None
    """The judge's endpoint, up to /v1"""
    model: str | None = None
    """The judge's name there"""
    judges: str | None = None
    """YAML file of several judges instead: a list of base_url, model, and where needed api_key_env and request_options"""
    max_new_tokens: int = 1024
    """Longest reply of a judge, in tokens; a reasoning model needs more"""
    max_failed: int = 0
    """Requests that a judge may leave without a reply"""

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("max_failed", self.max_failed, 0)


def choose_judges(settings: JudgeSettings, options: EndpointOptions, patience: PatienceSettings) -> list[ModelEndpoint]:
    """The judges that the settings name. Raises: ConfigError when they name none, or one and a file of several."""
    if settings.judges is not None:
        if settings.base_url or settings.model:
            raise ConfigError("--base-url and --model have no effect with --judges. Put that judge into the file, too.")
        refuse_ignored([options], "with --judges, whose file says it for each judge")
        return read_judges(settings.judges, patience)
    if not settings.base_url or not settings.model:
        raise ConfigError("no judge: need --base-url and --model, or --judges FILE.")
    return [ModelEndpoint(settings.base_url, settings.model, options, patience)]


def read_judges(path: str | os.PathLike[str], patience: PatienceSettings) -> list[ModelEndpoint]:
    """Judges of a YAML file: a list of `{base_url, model, api_key_env?, max_concurrency?, token_limit_key?, request_options?}`.

    Raises: ConfigError naming the entry and the key.
    """
    content = read_yaml(path)
    if not isinstance(content, list) or not content:
        raise ConfigError(f"wrong judges: got {type(content).__name__}, need a list of judges ({path}).")
    known = {entry.name for entry in fields(EndpointOptions)}
    judges = []
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, dict) or not {"base_url", "model"} <= entry.keys():
            raise ConfigError(f"wrong judge {number}: got {entry!r}, need base_url and model ({path}).")
        if unknown := entry.keys() - known - {"base_url", "model"}:
            allowed = ", ".join(["base_url", "model", *sorted(known)])
            raise ConfigError(f"unknown key {min(unknown)!r} of judge {number}: need one of {allowed} ({path}).")
        options = EndpointOptions(**{key: value for key, value in entry.items() if key in known})
        judges.append(ModelEndpoint(str(entry["base_url"]), str(entry["model"]), options, patience))
    return judges


class Panel:
    """Judges with names of their own. names: the models', with their addresses where two are called alike."""

    def __init__(
        self, judges: ModelEndpoint | Sequence[ModelEndpoint], directory: Path, settings: JudgeSettings
    ) -> None:
        self._judges = [judges] if isinstance(judges, ModelEndpoint) else list(judges)
        models = [judge.model for judge in self._judges]
        self.names = [
            judge.model if models.count(judge.model) == 1 else f"{judge.model} at {judge.base_url}"
            for judge in self._judges
        ]
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"two judges are the same: {', '.join(self.names)}. Leave one out.")
        generation = GenerationSettings(max_new_tokens=settings.max_new_tokens)
        self._generators = [open_generator(judge, directory, generation) for judge in self._judges]
        self._directory, self._max_failed = directory, settings.max_failed
        self.description: list[dict[str, Any]] = [generator.description for generator in self._generators]
        self.failed = 0

    def ask(self, prompts: Sequence[str], description: str) -> dict[str, list[GeneratedReply]]:
        """{judge: one reply to each prompt}. Raises: EndpointError when a judge left more than allowed unanswered."""
        requests = [Request(prompt) for prompt in prompts]
        replies: dict[str, list[GeneratedReply]] = {}
        for name, generator in zip(self.names, self._generators, strict=True):
            label = description if len(self.names) == 1 else f"{description}, {name}"
            replies[name] = collect_replies(generator, requests, description=label)
            check_failed(requests, replies[name], self._max_failed)
            self.failed += sum(map(is_failed, replies[name]))
        return replies

    def publish(
        self, kind: str, name: str, records: Sequence[dict[str, Any]], scores: dict[str, Any], about: dict[str, Any]
    ) -> None:
        """Write what was judged as `name`, its `scores.json`, and the manifest last. about: who judged, and which files."""
        (self._directory / MANIFEST_NAME).unlink(missing_ok=True)
        write_jsonl(self._directory / name, records)
        write_json(self._directory / "scores.json", scores)
        write_manifest(self._directory, kind, {**about, "failed": self.failed}, [name, "scores.json"])
