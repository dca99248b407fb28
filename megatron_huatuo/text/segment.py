"""Long texts become passages that fit the rewriting window.

Invariant: nothing is dropped. The passages, white space aside, hold every character of the text in its order; each is
at most `max_size` long; breaks fall between sentences if possible, else between clauses, else anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from megatron_huatuo.text.language import count_size
from megatron_huatuo.text.sentences import split_clauses, split_sentences


def segment(text: str, language: str, max_size: int) -> list[str]:
    """Passages of nearly equal size.

    max_size: in characters (Han plus Latin words) for "zh", in words for "en"; see `count_size`. Since a single word
    or a run without letters may be arbitrarily long, a passage is also at most 12 × max_size characters.
    Cost: linear in the text.

    >>> segment("一二三。四五六。七八九。", "zh", 6)
    ['一二三。四五六。', '七八九。']
    """
    if _size(text, language) <= max_size:
        return [text.strip()] if text.strip() else []
    units = [(unit, _size(unit, language)) for unit in _units(text, language, max_size)]
    # Filling every passage leaves a crumb at the end; as many passages with equal shares do not.
    number = len(_pack_units(units, max_size, max_size))
    share = sum(size for _, size in units) / number
    passages = ["".join(passage).strip() for passage in _pack_units(units, max_size, share)]
    return [passage for passage in passages if passage]


def _pack_units(units: list[tuple[str, int]], max_size: int, share: float) -> list[list[str]]:
    """Neighbouring units in passages of about `share`, none over `max_size`."""
    passages: list[list[str]] = [[]]
    filled = 0
    for unit, size in units:
        if passages[-1] and (filled + size > max_size or filled + size / 2 > share):
            passages.append([])
            filled = 0
        passages[-1].append(unit)
        filled += size
    return passages


def _size(text: str, language: str) -> int:
    """`count_size`, but never less than a twelfth of the characters: guards against runs without letters."""
    return max(count_size(text, language), -(-len(text.strip()) // 12))


def _units(text: str, language: str, max_size: int) -> Iterator[str]:
    """Pieces of at most `max_size`, as coarse as possible: sentences, clauses, then cuts."""
    for sentence in split_sentences(text):
        if _size(sentence, language) <= max_size:
            yield sentence
            continue
        yield from _pack(split_clauses(sentence), language, max_size)


def _pack(clauses: list[str], language: str, max_size: int) -> Iterator[str]:
    """Neighbouring clauses joined up to `max_size`; a clause that is longer is cut by characters."""
    current: list[str] = []
    size = 0
    for piece in _cut_long(clauses, lambda text: _size(text, language), max_size):
        piece_size = _size(piece, language)
        if current and size + piece_size > max_size:
            yield "".join(current)
            current, size = [], 0
        current.append(piece)
        size += piece_size
    if current:
        yield "".join(current)


def _cut_long(clauses: list[str], size: Callable[[str], int], max_size: int) -> Iterator[str]:
    for clause in clauses:
        if size(clause) <= max_size:
            yield clause
        else:
            # At least one character counts at most one, so max_size characters are at most max_size long.
            yield from (clause[start : start + max_size] for start in range(0, len(clause), max_size))
