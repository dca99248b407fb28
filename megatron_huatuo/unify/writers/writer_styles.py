"""Styles of conversations: one YAML file per style and language, and the rule that draws a style for a passage.

Invariant: the style of a passage depends on its id, the weights and the seed alone, so every executor and every rerun
draws the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.storage.manifest import fingerprint
from megatron_huatuo.storage.records import LANGUAGES, Document
from megatron_huatuo.unify.gates import Demands
from megatron_huatuo.unify.writers.writer_prompts import PROMPTS_FOLDER, Prompt, fill, read_prompt_file

QUESTION_ANSWER = "question-answer"
"""The style of the recipe, and the default; its prompts are those of {zh,en}.yaml"""
_NEEDED = {
    "question": ("{text}",),
    "answer": ("{text}", "{question}"),
    "pairs": ("{text}",),
    "first_turn": ("{question}",),
}
_MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class Style:
    """How a conversation about a passage is asked for, and what it must be.

    question, answer: prompts of the two requests; or pairs: the prompt of one request for a list of pairs.
    """

    style: str
    language: str
    version: int
    question: str = ""
    answer: str = ""
    pairs: str = ""
    first_turn: str = "{question}"
    """The first turn of the human: a style that shows the passage has {text} in it"""
    least_pairs: int = 1
    """Fewer pairs in one reply are refused"""
    most_pairs: int = 1
    """More pairs in one reply are refused"""
    follow_up: bool = False
    """Later questions may lean on earlier turns"""
    table: bool = False
    """The answer must hold a table"""
    max_question_characters: int | None = None
    """Instead of the general limit, where questions of this style are longer"""
    sha256: str = ""

    @property
    def demands(self) -> Demands:
        """What the gates ask of its questions and answers."""
        return Demands(self.max_question_characters, "{text}" in self.first_turn, self.table)

    def ask_question(self, document: Document) -> str:
        """The message that asks for a question, or for all pairs at once."""
        return fill(self.pairs or self.question, {"{title}": document.title or "", "{text}": document.text})

    def ask_answer(self, document: Document, question: str) -> str:
        """The message that asks for the answer, with the passage at hand."""
        values = {"{title}": document.title or "", "{text}": document.text, "{question}": question}
        return fill(self.answer, values)

    def open_with(self, document: Document, question: str) -> str:
        """The human's first turn."""
        values = {"{title}": document.title or "", "{text}": document.text, "{question}": question}
        return fill(self.first_turn, values)


def load_styles(base: Mapping[str, Prompt], files: Sequence[str] = ()) -> dict[str, dict[str, Style]]:
    """{style: {language: style}}: the bundled ones, and those of the user's files that have a key `style`.

    base: the prompts of the default style. Raises: ConfigError naming the file and the key.
    """
    found = {
        QUESTION_ANSWER: {
            language: Style(
                QUESTION_ANSWER, language, prompt.version, prompt.question, prompt.answer, sha256=prompt.sha256
            )
            for language, prompt in base.items()
        }
    }
    bundled = sorted(str(path) for path in (PROMPTS_FOLDER / "styles").glob("*.yaml"))
    for path in [*bundled, *files]:
        content = read_prompt_file(path)
        if "style" in content:
            style = _parse(content, path)
            found.setdefault(style.style, {})[style.language] = style
    return found


def _parse(content: Mapping[str, Any], path: str) -> Style:
    types: dict[str, type] = {"style": str, "language": str, "version": int, "follow_up": bool, "table": bool}
    types |= dict.fromkeys(("question", "answer", "pairs", "first_turn"), str)
    types |= dict.fromkeys(("least_pairs", "most_pairs", "max_question_characters"), int)
    names = [field.name for field in fields(Style) if field.name != "sha256"]
    for name, value in content.items():
        if name not in names:
            raise ConfigError(f"unknown key {name!r} of a style: need one of {', '.join(names)} ({path}).")
        if not isinstance(value, types[name]):
            raise ConfigError(f"wrong value of {name!r}: got {value!r}, need {types[name].__name__} ({path}).")
        for place in _NEEDED.get(name, ()):
            if place not in str(value):
                raise ConfigError(f"prompt {name!r} lacks {place}: the model would not see it ({path}). Add it.")
    steps = {"question", "answer", "pairs"} & content.keys()
    if steps not in ({"question", "answer"}, {"pairs"}) or not {"language", "version"} <= content.keys():
        raise ConfigError(
            f"wrong keys of a style: got {sorted(content)}, need style, language, version, and either question and answer "
            f"or pairs ({path})."
        )
    if content["language"] not in LANGUAGES:
        raise ConfigError(f"wrong language of a style: got {content['language']!r}, need one of {LANGUAGES} ({path}).")
    style = Style(**content, sha256=fingerprint(dict(content)))
    if not re.fullmatch(r"[a-z][a-z0-9-]*", style.style):
        raise ConfigError(
            f"wrong name of a style: got {style.style!r}, need small letters, digits and dashes ({path})."
        )
    if not 1 <= style.least_pairs <= style.most_pairs:
        raise ConfigError(
            f"wrong number of pairs: got least_pairs={style.least_pairs} and most_pairs={style.most_pairs}, "
            f"need 1 <= least <= most ({path})."
        )
    return style


def parse_weights(
    chosen: Sequence[str], known: Mapping[str, Mapping[str, Style]], language: str | None
) -> dict[str, float]:
    """{style: weight} of `NAME` or `NAME=WEIGHT`; the default style alone where nothing is chosen.

    language: of the conversations, None for each passage's own. Raises: ConfigError naming the known styles.
    """
    names = sorted(known)
    weights: dict[str, float] = {}
    for text in chosen or [QUESTION_ANSWER]:
        name, given, number = text.partition("=")
        if name not in names:
            raise ConfigError(f"unknown style: got {name!r}, need one of {', '.join(names)}.")
        if name in weights:
            raise ConfigError(f"style {name!r} is named twice in --styles. Name it once, with a weight: {name}=2.")
        try:
            weights[name] = float(number) if given else 1.0
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] <= _MOST_WEIGHT:
            raise ConfigError(f"wrong weight of style {name!r}: got {number!r}, need a number above 0, at most 1e6.")
        missing = [one for one in ((language,) if language else LANGUAGES) if one not in known[name]]
        if missing:
            raise ConfigError(
                f"style {name!r} has no prompts in {', '.join(missing)}: give a file of it with --prompts, or choose --language."
            )
    return weights


def draw_style(weights: Mapping[str, float], seed: int, name: str) -> str:
    """The style of the passage called `name`: each with a chance in proportion to its weight.

    >>> draw_style({"case": 1.0, "table": 1.0}, 0, "d1") == draw_style({"case": 1.0, "table": 1.0}, 0, "d1")
    True
    """
    share = share_of(f"style:{seed}:{name}") * sum(weights.values())
    for style, weight in weights.items():
        share -= weight
        if share < 0:
            return style
    return list(weights)[-1]


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, evenly spread over texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
