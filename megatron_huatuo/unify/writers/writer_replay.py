"""General text that a model writes itself: what it knew before is replayed in training, so that less of it is forgotten.

Each item is drawn by a seed: a topic, a form and a language. Invariant: an item depends on its number and the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_huatuo.config import at_least
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.manifest import fingerprint
from megatron_huatuo.storage.records import LANGUAGES
from megatron_huatuo.unify.input_documents import Invitation, Task
from megatron_huatuo.unify.writers.writer_prompts import PROMPTS_FOLDER, fill, read_prompt_file
from megatron_huatuo.unify.writers.writer_styles import share_of

SOURCE = "replay"
"""Source of all that a model writes of itself"""
_NEEDED = {"question": ("{topic}", "{form}"), "answer": ("{question}",)}
_KEYS = {"version", "language", "topics", "forms", *_NEEDED}


@dataclass(frozen=True)
class ReplayPrompt:
    """What a model is asked in one language: for a request of a user, and then for the reply to it."""

    language: str
    version: int
    topics: tuple[str, ...]
    forms: tuple[str, ...]
    question: str
    answer: str

    @property
    def sha256(self) -> str:
        """Fingerprint of the prompts, topics and forms."""
        return fingerprint([self.language, self.version, self.topics, self.forms, self.question, self.answer])

    def ask_question(self, invitation: Invitation) -> str:
        """The message that asks for what a user may ask."""
        return fill(self.question, {"{topic}": invitation.topic, "{form}": invitation.form})

    def ask_answer(self, question: str) -> str:
        """The message that asks for the reply: nothing but the user's words, in the bundled prompts."""
        return fill(self.answer, {"{question}": question})


def load_replay(files: list[str] | None = None) -> dict[str, ReplayPrompt]:
    """{language: prompt}: the bundled ones, each replaced by the user's file with a key `topics`.

    Raises: ConfigError naming the file and the key.
    """
    paths = [str(PROMPTS_FOLDER / f"replay.{language}.yaml") for language in LANGUAGES] + list(files or [])
    found = [_parse(content, path) for path in paths if "topics" in (content := read_prompt_file(path))]
    return {prompt.language: prompt for prompt in found}


def _parse(content: Mapping[str, Any], path: str) -> ReplayPrompt:
    if content.keys() != _KEYS or content["language"] not in LANGUAGES:
        raise ConfigError(f"wrong keys of replay prompts: got {sorted(content)}, need {sorted(_KEYS)} ({path}).")
    for key in ("topics", "forms"):
        if not isinstance(content[key], list) or not content[key] or not all(isinstance(x, str) for x in content[key]):
            raise ConfigError(f"wrong value of {key!r}: need a list of texts ({path}).")
    for key, places in _NEEDED.items():
        for place in places:
            if not isinstance(content[key], str) or place not in content[key]:
                raise ConfigError(f"prompt {key!r} lacks {place}: the model would not see it ({path}). Add it.")
    return ReplayPrompt(**{**content, "topics": tuple(content["topics"]), "forms": tuple(content["forms"])})


def invite(
    prompts: Mapping[str, ReplayPrompt], language: str | None, seed: int, start: int, number: int
) -> Iterator[Task]:
    """Items `start` to `start + number` of the endless list that a seed gives."""
    at_least("--seed", seed, 0)
    for index in range(start, start + number):
        name = f"replay:{seed}:{index}"
        chosen = language or LANGUAGES[share_of(f"{name}:language") >= 0.5]
        prompt = prompts[chosen]
        invitation = Invitation(
            language=chosen,
            topic=prompt.topics[int(share_of(f"{name}:topic") * len(prompt.topics))],
            form=prompt.forms[int(share_of(f"{name}:form") * len(prompt.forms))],
            seed=int(share_of(f"{name}:request") * 2**31),
        )
        origin = {"line": index + 1, "seed": invitation.seed, "topic": invitation.topic, "form": invitation.form}
        yield Task(f"{SOURCE}-{index + 1:07d}", SOURCE, origin, invitation)
