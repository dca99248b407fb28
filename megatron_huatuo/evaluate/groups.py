"""Join mentions that form one list: "A、C和E", "C. 血电解质", "腹水(A)和清蛋白(B)", options line by line.

Invariant: groups follow one another and never overlap; what a group leaves open ("A或C") is marked as undecided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megatron_huatuo.evaluate.mentions import Mention

_NEGATED_BEFORE = re.compile(
    r"(?:不是|不选|不应选|不该选|不能选|不能是|不会是|不为|不应是|并非|而非|排除(?:了|掉)?|除了?|除外|既非|非"
    r"|\bnot|n't|rather than|instead of|except(?: for)?|excluding|exclude[ds]?|eliminate[ds]?|ruled? out|neither|nor)"
    r"\s?(?:be |choose |pick |select )?(?:the )?(?:答案|选项|选|option |answer |choice )?[:\s(]*$",
    re.IGNORECASE,
)
_UNDECIDED = re.compile(r"\)?\s?,?\s?(?:或者?|还是|\bor\b|\beither\b)\s?(?:选项|选|option )?\s?\(?", re.IGNORECASE)
_LISTED = re.compile(
    r"[)\s]*(?:选?项)?\s?(?:[、,/&+;]\s?(?:和|与|以及|及|and\b)?|和|与|以?及|还有|\band\b|\s)\s?(?:选项|选|option )?[(\s]*"
)
_LABEL = re.compile(r" ?(?:[.、:),-]|,?即|也就是)? ?[(:]?")
_LIST_GOES_ON = re.compile(r"\s*(?:选?项)?\s*(?:[、,;。.!?:)(\n]|$|和|与|及|或|以及|均|都|三|四|and\b|are\b)")
_OPTION_LINE = re.compile(r"\(?[A-Z](?:[.、:) ]\s?[^,。:]{0,60})?[)。;,]?")
_MAX_LINE = 80


class Group(NamedTuple):
    """Mentions that form one list ("A、C和E", "C. 血电解质"). decided: no "or" joins them."""

    start: int
    end: int
    letters: str
    by_text: bool
    decided: bool


def group_mentions(text: str, mentions: Sequence[Mention]) -> Iterator[Group]:
    """The groups of all mentions in a normalised reply, in order."""
    index = 0
    while index < len(mentions):
        first = mentions[index]
        group = Group(first.start, first.end, first.letters, first.by_text, True)
        previous, index = first, index + 1
        while index < len(mentions) and (joined := _join(text, group, previous, mentions[index])):
            group, previous, index = joined, mentions[index], index + 1
        yield group


def _join(text: str, group: Group, previous: Mention, following: Mention) -> Group | None:
    """The group with one more mention, or None when the mention opens something new."""
    gap = text[previous.end : following.start]
    aside = re.sub(r"^\s?\([^()\n]*\)", "", gap)
    longer = group._replace(end=following.end)
    if _UNDECIDED.fullmatch(gap):
        return longer._replace(letters=union(group.letters, following.letters), decided=False)
    is_label = _LABEL.fullmatch(gap) is not None and "\n" not in gap
    if is_label and following.by_text and not previous.by_text:
        return longer  # "C. 血电解质": the letter counts, whatever its text says
    if is_label and previous.by_text and not following.by_text and following.letters in group.letters:
        return longer  # "血电解质(C)"
    if is_label and previous.by_text and not following.by_text and gap.strip().startswith("("):
        return longer._replace(letters=following.letters)
    if not (_LISTED.fullmatch(gap) or (aside != gap and _LISTED.fullmatch(aside))):
        return None
    if gap.endswith("选") and (text[group.start - 1 : group.start] != "选" or is_put_aside(text, group)):
        return None
    if "\n" in gap and not _line_is_option(text, following):
        return None
    if re.search(r"[,;\s]", gap) and not re.search("[和与及]|and", gap) and _is_subject(text, following):
        return None
    return longer._replace(letters=union(group.letters, following.letters))


def union(letters: str, more: str) -> str:
    """Letters of both, each once, in order."""
    return "".join(sorted(set(letters) | set(more)))


def _line_is_option(text: str, mention: Mention) -> bool:
    """Whether the mention opens a line as a label ("C. 血电解质") and the line above is an option, too."""
    line = text[mention.start : mention.start + _MAX_LINE].split("\n", 1)[0]
    above = text[max(0, mention.start - _MAX_LINE) : mention.start].rstrip().rsplit("\n", 1)[-1]
    return all(_OPTION_LINE.fullmatch(part.strip()) for part in (line, above))


def _is_subject(text: str, mention: Mention) -> bool:
    """Whether a clause goes on after the mention ("…,A错误") instead of the list ending there."""
    return _LIST_GOES_ON.match(text, mention.end) is None


def is_put_aside(text: str, group: Group) -> bool:
    """Whether the words before the group put it aside: "不选A", "排除A", "rather than A"."""
    return _NEGATED_BEFORE.search(text[max(0, group.start - 32) : group.start]) is not None
