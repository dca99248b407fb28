"""Prompts in files: one YAML file a language, with a version, replaceable by the user.

Invariant: the hash in every pair's provenance is the hash of the prompt texts that were sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_huatuo.config import read_yaml
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.manifest import fingerprint
from megatron_huatuo.storage.records import LANGUAGES, Document

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
_NEEDED = {
    "question": ("{text}",),
    "answer": ("{text}", "{question}"),
    "reply": ("{question}",),
    "check": ("{text}", "{question}", "{answer}"),
    "check_reply": ("{question}", "{answer}"),
}
_KEYS = {"version", "language", *_NEEDED}


@dataclass(frozen=True)
class Prompt:
    """The prompts of one language, in two parts with a hash each: what writes pairs, and what checks them."""

    language: str
    version: int
    question: str
    answer: str
    reply: str
    check: str
    check_reply: str

    @property
    def sha256(self) -> str:
        """Fingerprint of what the model that writes is sent."""
        return fingerprint([self.language, self.version, self.question, self.answer, self.reply])

    @property
    def check_sha256(self) -> str:
        """Fingerprint of what the model that checks is sent."""
        return fingerprint([self.language, self.version, self.check, self.check_reply])

    def ask_reply(self, query: str) -> str:
        """The only message for a query without a passage."""
        return fill(self.reply, {"{question}": query})

    def ask_check(self, document: Document | None, question: str, answer: str) -> str:
        """The message to the second model: is this pair right, by its passage where there is one."""
        values = {"{question}": question, "{answer}": answer}
        if document is None:
            return fill(self.check_reply, values)
        return fill(self.check, {"{title}": document.title or "", "{text}": document.text, **values})


def load_prompts(files: list[str] | None = None) -> dict[str, Prompt]:
    """{language: prompt}: the bundled ones, each replaced by the user's file for its language.

    Raises: ConfigError naming the file and the key.
    """
    paths = [PROMPTS_FOLDER / f"{language}.yaml" for language in LANGUAGES] + [Path(name) for name in files or []]
    contents = [(path, read_prompt_file(path)) for path in paths]
    found = [_parse(content, path) for path, content in contents if not {"style", "topics"} & content.keys()]
    return {prompt.language: prompt for prompt in found}


def read_prompt_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a prompt file. Raises: ConfigError naming the file."""
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"cannot read prompts: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"wrong keys in prompts: got {type(content).__name__}, need {sorted(_KEYS)} ({path}).")
    return content


def _parse(content: dict[str, Any], path: Path) -> Prompt:
    if set(content) != _KEYS:
        raise ConfigError(f"wrong keys in prompts: got {sorted(content)}, need {sorted(_KEYS)} ({path}).")
    if content["language"] not in LANGUAGES:
        raise ConfigError(f"wrong language of prompts: got {content['language']!r}, need one of {LANGUAGES} ({path}).")
    for key, places in _NEEDED.items():
        for place in places:
            if not isinstance(content[key], str) or place not in content[key]:
                raise ConfigError(f"prompt {key!r} lacks {place}: the model would not see it ({path}). Add it.")
    return Prompt(**content)


def fill(template: str, values: dict[str, str]) -> str:
    """Replace the placeholders in one pass, so that braces in medical text stay what they are."""
    pieces: list[str] = []
    rest = template
    while True:
        position, place = min(((rest.find(name), name) for name in values if name in rest), default=(-1, ""))
        if position < 0:
            return "".join([*pieces, rest]).strip()
        pieces += [rest[:position], values[place]]
        rest = rest[position + len(place) :]
