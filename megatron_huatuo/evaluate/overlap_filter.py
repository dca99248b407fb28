"""Which documents can overlap with an exam at all, found on token ids, so that hardly any document becomes text.

A document is taken as the stream of its letters and digits: lower case, no punctuation, no spaces. A run that it shares with a
question is there as the same characters in the same order. Prefix sums of a polynomial hash modulo 2^64 give the hash of every
window in a few passes over an array; a window whose hash begins a run is followed by a comparison of the whole run.

Invariant: no document that shares a run with a question is left out. One that is kept by chance costs time and nothing else.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.index.tokenizer import Tokenizer
from megatron_huatuo.text.minhash import split_words
from megatron_huatuo.text.normal_form import HALF_WIDTH

FULL_WIDTH = {code: plain for code, plain in HALF_WIDTH.items() if chr(plain).isalnum()}
"""Full-width letters and digits, and the plain ones that they count as."""
_CODES = 0x40000  # no letter or digit lies above
_BYTE = np.uint32(_CODES)  # a token that is not a whole character gives its bytes, each plus this
_BEGINNINGS = (24, 13, 8)  # characters by which a run is looked up: the longest that it has
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_U32 = NDArray[np.uint32]
_U64 = NDArray[np.uint64]


@functools.cache
def _normal_characters() -> _U32:
    """[_CODES]: the lower-case, plain form of each letter and digit; 0 for all other characters."""
    codes = [code for code in range(_CODES) if not 0xD800 <= code < 0xE000]
    lower = [chr(FULL_WIDTH.get(code, code)).lower()[:1].replace("ς", "σ") for code in codes]
    is_word = split_words(" ".join(lower)).starts // 2
    normal = np.zeros(_CODES, np.uint32)
    normal[np.array(codes)[is_word]] = [ord(lower[place]) for place in is_word.tolist()]
    return normal


def characters_of_text(text: str) -> tuple[_U32, NDArray[np.int64]]:
    """(stream of a text, how many of its characters stand before each place of the text, [len(text) + 1])."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), "<u4")
    normal = _normal_characters()[np.minimum(codes, _CODES - 1)]
    return normal[normal > 0], np.concatenate([[0], np.cumsum(normal > 0)])


class TokenCharacters:
    """The letters and digits of every token of a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [_characters_of_piece(piece) for piece in tokenizer.token_bytes()]
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._flat = np.concatenate([*pieces, np.zeros(1, np.uint32)])
        self._has_bytes = bool((self._flat >= _BYTE).any())

    def stream(self, documents: Sequence[NDArray[np.integer]]) -> tuple[_U32, NDArray[np.int64]]:
        """(streams of the documents one behind the other, where each begins, [documents + 1])."""
        tokens = np.concatenate(documents)
        lengths = self._lengths[tokens]
        before = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self._starts[tokens] - before[:-1], lengths) + np.arange(before[-1])
        codes = self._flat[places]
        bounds = before[np.concatenate([[0], np.cumsum([len(document) for document in documents])])]
        if self._has_bytes and (codes >= _BYTE).any():
            codes = _join_bytes(codes)
            kept = codes > 0
            bounds = np.concatenate([[0], np.cumsum(kept)])[bounds]
            codes = codes[kept]
        return codes, bounds


def _characters_of_piece(piece: bytes) -> _U32:
    try:
        return characters_of_text(piece.decode("utf-8"))[0]
    except UnicodeDecodeError:
        return np.frombuffer(piece, np.uint8) + _BYTE


def _join_bytes(codes: _U32) -> _U32:
    """Bytes of UTF-8 among the codes become the character that they make, in the place of its first byte; 0 elsewhere."""
    at = np.flatnonzero(codes >= _BYTE)
    byte = np.concatenate([codes[at] - _BYTE, np.zeros(3, np.uint32)])
    lead, rest = byte[:-3], [byte[k : len(byte) - 3 + k] & 0x3F for k in (1, 2, 3)]
    two = (lead & 0x1F) << 6 | rest[0]
    three = (lead & 0x0F) << 12 | rest[0] << 6 | rest[1]
    four = (lead & 0x07) << 18 | rest[0] << 12 | rest[1] << 6 | rest[2]
    whole = np.select(
        [lead < 0x80, lead < 0xC0, lead < 0xE0, lead < 0xF0], [lead, np.zeros_like(lead), two, three], four
    )
    joined = codes.copy()
    joined[at] = _normal_characters()[np.minimum(whole, _CODES - 1)]
    return joined


class RunFilter:
    """The runs of an exam as strings of letters and digits."""

    def __init__(self, texts: Iterable[tuple[_U32, NDArray[np.int64], NDArray[np.int64]]]) -> None:
        """texts: (stream of a text, where each of its runs begins there, where it ends); 8 characters per run at least."""
        self._whole: dict[int, defaultdict[int, set[tuple[int, int]]]] = {}
        for stream, starts, ends in texts:
            sums, sizes = _prefix_sums(stream), ends - starts
            lengths = np.select([sizes >= length for length in _BEGINNINGS], _BEGINNINGS)
            beginnings, wholes = (_windows(sums, length, starts) for length in (lengths, sizes))
            for length, beginning, size, whole in zip(
                lengths.tolist(), beginnings.tolist(), sizes.tolist(), wholes.tolist(), strict=True
            ):
                self._whole.setdefault(length, defaultdict(set))[beginning].add((size, whole))
        self._tables = {length: _BitTable(np.array(list(found), np.uint64)) for length, found in self._whole.items()}

    def documents(self, codes: _U32, bounds: NDArray[np.int64]) -> list[int]:
        """Numbers of the documents that hold a run, ascending; codes, bounds: as `TokenCharacters.stream` gives them."""
        found: set[int] = set()
        sums = _prefix_sums(codes)
        for length, table in self._tables.items():
            if len(codes) < length:
                continue
            hashes = _windows(sums, length)
            places = table.find(hashes)
            documents = np.searchsorted(bounds, places, side="right") - 1
            for place, document, hashed in zip(
                places.tolist(), documents.tolist(), hashes[places].tolist(), strict=True
            ):
                if document not in found and self._is_run(sums, place, int(bounds[document + 1]), length, hashed):
                    found.add(document)
        return sorted(found)

    def _is_run(self, sums: _U64, place: int, end: int, length: int, beginning: int) -> bool:
        """Whether a whole run stands at a place of the stream, before the end of its document."""
        at = np.array([place])
        return any(
            place + size <= end and int(_windows(sums, size, at)[0]) == whole
            for size, whole in self._whole[length].get(beginning, ())
        )


class _BitTable:
    """A set of hashes that is asked for many at a time: a table of flags first, the sorted hashes for what passes it."""

    def __init__(self, hashes: _U64) -> None:
        self._sorted = np.sort(hashes)
        bits = max(16, int(64 * len(hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._flags = np.zeros(1 << bits, np.bool_)
        self._flags[hashes >> self._shift] = True

    def find(self, hashes: _U64) -> NDArray[np.int64]:
        """Places of the hashes that are in the set."""
        places = np.flatnonzero(self._flags[hashes >> self._shift])
        at = np.minimum(np.searchsorted(self._sorted, hashes[places]), len(self._sorted) - 1)
        return places[self._sorted[at] == hashes[places]]


@functools.lru_cache(maxsize=2)
def _powers(count: int) -> tuple[_U64, _U64]:
    """_BASE to the powers 0 … count - 1, and their inverses, modulo 2^64."""
    with np.errstate(over="ignore"):
        powers, inverses = np.ones(count, np.uint64), np.ones(count, np.uint64)
        powers[1:], inverses[1:] = np.uint64(_BASE), np.uint64(_BASE_INVERSE)
        return np.multiply.accumulate(powers), np.multiply.accumulate(inverses)


def _power_table(count: int) -> tuple[_U64, _U64]:
    """At least `count` of them; sizes are powers of two, so that they are computed once."""
    return _powers(1 << max(16, count.bit_length()))


def _prefix_sums(codes: _U32) -> _U64:
    """[n + 1]: sum of code · base^place over the first characters."""
    sums = np.empty(len(codes) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(codes * _power_table(len(codes))[0][: len(codes)], out=sums[1:])
    return sums


def _windows(sums: _U64, length: int | NDArray[np.int64], at: NDArray[np.int64] | None = None) -> _U64:
    """Hash of the `length` characters from each place on, or from the places `at`: equal characters, equal hash."""
    inverses = _power_table(len(sums))[1]
    if at is not None:
        found: _U64 = (sums[at + length] - sums[at]) * inverses[at] * _SPREAD
        return found
    hashes: _U64 = sums[length:] - sums[:-length]
    hashes *= inverses[: len(hashes)]
    hashes *= _SPREAD
    return hashes
