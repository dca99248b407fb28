"""Several questions with their answers in one reply: JSON in the layouts that models choose, or lines under labels."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from megatron_huatuo.llm.thoughts import peel_reply
from megatron_huatuo.llm.wrapping import MOST_CHARACTERS, parse_json, peel_answer, peel_question

_ASKING_KEYS = (
    "question",
    "query",
    "q",
    "问题",
    "提问",
    "问",
    "task",
    "任务",
    "instruction",
    "human",
    "user",
    "patient",
    "患者",
    "病人",
)
_ANSWERING_KEYS = (
    "answer",
    "response",
    "reply",
    "a",
    "回答",
    "答案",
    "答",
    "解答",
    "output",
    "assistant",
    "gpt",
    "doctor",
    "医生",
)
_SPEAKER_KEYS, _SPOKEN_KEYS = ("role", "from", "speaker", "角色"), ("content", "value", "text", "内容")
_UTTERANCE = re.compile(
    r"^[ \t]*(?:\*\*|[#>*-]+[ \t]*)?(?:(?P<asking>患者|病人|问题|问|任务|Q|Question|Task|Patient|User|Human)|"
    r"(?:医生|大夫|回答|答案|答|A|Answer|Doctor|Physician|Assistant))[ \t]*\d{0,2}[ \t]*(?:\*\*)?[ \t]*[:：][ \t]*(?:\*\*)?",
    re.MULTILINE,
)


class PeeledPairs(NamedTuple):
    """Questions with their answers, in order. problem: why they cannot be used, as a reason for a report, or None."""

    pairs: tuple[tuple[str, str], ...]
    problem: str | None = None


def peel_pairs(text: str) -> PeeledPairs:
    """The list of pairs in a reply: JSON of several layouts, or lines under labels (问：, 答：, 患者：, 医生：).

    >>> peel_pairs('```json\\n[{"question": "什么是痛风？", "answer": "一种代谢病。"}]\\n```').pairs
    (('什么是痛风？', '一种代谢病。'),)
    >>> peel_pairs("患者：痛风能治吗？\\n医生：可以控制。").pairs
    (('痛风能治吗？', '可以控制。'),)
    """
    peeled = peel_reply(text)
    if peeled.problem is not None:
        return PeeledPairs((), peeled.problem)
    if len(peeled.text) > MOST_CHARACTERS:
        return PeeledPairs((), f"reply too long: {len(peeled.text)} characters")
    found = _pairs_of(_find_json(peeled.text)) or _labelled_pairs(peeled.text)
    if not found:
        return PeeledPairs((), "wrapping: no list of questions and answers")
    pairs = []
    for question, answer in found:
        asked, answered = peel_question(question), peel_answer(answer)
        if problem := asked.problem or answered.problem:
            return PeeledPairs((), problem)
        pairs.append((asked.text, answered.text))
    return PeeledPairs(tuple(pairs))


def _find_json(text: str) -> Any:
    """The JSON value in a text, whatever stands before and after it; None without one."""
    starts = [position for bracket in "[{" if (position := text.find(bracket)) >= 0]
    for start in sorted(starts):
        end = text.rfind("]" if text[start] == "[" else "}")
        if end > start and (content := parse_json(text[start : end + 1])) is not None:
            return content
    return None


def _pairs_of(content: Any) -> list[tuple[str, str]]:
    """Pairs in a JSON value: a list of pairs or of turns, perhaps under one key; empty for anything else."""
    if isinstance(content, dict):
        if (pair := _pair_of(content)) is not None:
            return [pair]
        lists = [value for value in content.values() if isinstance(value, list)]
        return _pairs_of(lists[0]) if len(lists) == 1 else []
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        return []
    pairs = [_pair_of(item) for item in content]
    if all(pair is not None for pair in pairs):
        return [pair for pair in pairs if pair is not None]
    turns = [(_value(item, _SPEAKER_KEYS), _value(item, _SPOKEN_KEYS)) for item in content]
    speakers = [(speaker or "").lower() for speaker, _ in turns]
    alternate = all(
        speaker in (_ANSWERING_KEYS if index % 2 else _ASKING_KEYS) for index, speaker in enumerate(speakers)
    )
    texts = [text for _, text in turns if text]
    if not alternate or len(texts) != len(turns) or len(texts) % 2:
        return []
    return list(zip(texts[::2], texts[1::2], strict=True))


def _pair_of(item: dict[Any, Any]) -> tuple[str, str] | None:
    question, answer = _value(item, _ASKING_KEYS), _value(item, _ANSWERING_KEYS)
    return (question, answer) if question and answer else None


def _value(item: dict[Any, Any], names: tuple[str, ...]) -> str | None:
    """The text under the first of several keys."""
    keys = {str(key).strip().lower(): value for key, value in item.items()}
    return next((keys[name] for name in names if isinstance(keys.get(name), str)), None)


def _labelled_pairs(text: str) -> list[tuple[str, str]]:
    """Pairs of utterances under labels that alternate; empty where they do not."""
    labels = list(_UTTERANCE.finditer(text))
    if (
        not labels
        or len(labels) % 2
        or any((label["asking"] is None) != (index % 2 == 1) for index, label in enumerate(labels))
    ):
        return []
    ends = [label.start() for label in labels[1:]] + [len(text)]
    texts = [text[label.end() : end].strip() for label, end in zip(labels, ends, strict=True)]
    return list(zip(texts[::2], texts[1::2], strict=True)) if all(texts) else []
