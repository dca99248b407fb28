"""Near-duplicate texts by MinHash signatures.

Invariant: the outcome depends on the texts and their order alone; of a group of near-duplicates the first stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_huatuo.storage.atomic import open_output

NUM_PERMUTATIONS = 120
_ROWS_A_BAND = 6  # 20 bands: a pair with similarity 0.8 becomes a candidate with probability 0.998
_WORD, _HAN = 1, 2
# Kind of each character of the basic plane: separator, part of a word, or a word by itself.
_KINDS = np.array([_HAN if 0x3400 <= code <= 0x9FFF else chr(code).isalnum() for code in range(0x10000)], np.uint8)
_SHINGLES_AT_ONCE = 128  # 120 KB of products: stays in the cache of a core
_CHUNK = 1 << 16

_U64 = npt.NDArray[np.uint64]
_generator = np.random.Generator(np.random.PCG64(20231116))
# Multiply-shift hashing: an odd multiplier and an offset for each permutation, the top 32 bits of the product count.
_MULTIPLIERS: _U64 = _generator.integers(1, 2**63, NUM_PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS: _U64 = _generator.integers(0, 2**63, NUM_PERMUTATIONS, dtype=np.uint64)


def signature(text: str) -> npt.NDArray[np.uint32]:
    """MinHash of a text: uint32 [NUM_PERMUTATIONS].

    Shingles: three neighbouring tokens; a token is one Han character or one other word, in lower case. Punctuation and
    white space do not count. Cost: linear, about 0.3 ms for 1,000 characters.
    """
    tokens = split_words(text).numbers
    if tokens.size >= 3:
        shingles = _mix(_mix(_mix(tokens[:-2]) + tokens[1:-1]) + tokens[2:])
    else:
        shingles = _mix(np.array([tokens.sum(dtype=np.uint64)], np.uint64))
    shingles = np.unique(shingles)
    lowest = np.full(NUM_PERMUTATIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
        hashed = shingles[start : start + _SHINGLES_AT_ONCE, None] * _MULTIPLIERS
        hashed += _OFFSETS
        np.minimum(lowest, hashed.min(axis=0), out=lowest)
    return (lowest >> np.uint64(32)).astype(np.uint32)


class Words(NamedTuple):
    """The words of a text: a Han character is one, any other run of letters and digits is one, in lower case.

    numbers: uint64 [N], equal for equal words on every machine. is_han: bool [N]. starts, ends: int64 [N], where each word
    begins and ends in `text.lower()`.
    """

    numbers: _U64
    is_han: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def split_words(text: str) -> Words:
    """The words of a text, in linear time. A number sums over the word's characters and their places in it.

    >>> words = split_words("血钾 K+ 3.5")
    >>> words.starts.tolist(), words.ends.tolist(), words.is_han.tolist()
    ([0, 1, 3, 6, 8], [1, 2, 4, 7, 9], [True, True, False, False, False])
    """
    codes = np.frombuffer(text.lower().encode("utf-32-le"), "<u4")
    kinds = _KINDS[np.minimum(codes, len(_KINDS) - 1)]
    before = np.concatenate([np.zeros(1, np.uint8), kinds[:-1]])[: len(kinds)]
    begins = (kinds == _HAN) | ((kinds == _WORD) & (before != _WORD))
    within = kinds > 0
    starts = np.flatnonzero(begins)
    if not len(starts):
        none = np.empty(0, np.int64)
        return Words(np.empty(0, np.uint64), np.empty(0, np.bool_), none, none)
    places = np.arange(len(codes))
    first = np.maximum.accumulate(np.where(begins, places, 0))
    values = _mix(codes.astype(np.uint64) + ((places - first).astype(np.uint64) << np.uint64(32)))[within]
    numbers = np.add.reduceat(values, np.flatnonzero(begins[within]))
    lengths = np.diff(np.append(np.flatnonzero(begins[within]), int(within.sum())))
    return Words(numbers, kinds[starts] == _HAN, starts, starts + lengths)


def _mix(values: _U64) -> _U64:
    """The finaliser of splitmix64: spreads every bit over all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def similarity(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32]) -> float:
    """Estimated Jaccard similarity of two texts' shingles, 0 to 1; standard error below 0.05."""
    return float((first == second).mean())


def first_of_group(signatures: npt.NDArray[np.uint32], threshold: float) -> npt.NDArray[np.int64]:
    """For each text the number of the first text of its group; its own number when it stands alone or first.

    signatures: uint32 [N, NUM_PERMUTATIONS]; a memory map will do. threshold: least similarity, 0 to 1.
    Groups are transitive. Memory: about 40 bytes a text. Cost: N log N for each of 20 bands.
    """
    number = len(signatures)
    parent = np.arange(number, dtype=np.int64)
    for start in range(0, NUM_PERMUTATIONS, _ROWS_A_BAND):
        earlier, later = _candidates(signatures[:, start : start + _ROWS_A_BAND])
        for chunk in range(0, len(earlier), _CHUNK):
            first, second = earlier[chunk : chunk + _CHUNK], later[chunk : chunk + _CHUNK]
            alike = (signatures[first] == signatures[second]).mean(axis=1) >= threshold
            for one, other in zip(first[alike].tolist(), second[alike].tolist(), strict=True):
                _join(parent, one, other)
    # Parents point to smaller numbers, so one pass from the front resolves all chains.
    for index in np.flatnonzero(parent != np.arange(number)).tolist():
        parent[index] = parent[parent[index]]
    return parent


def first_of_group_in_files(paths: Iterable[Path], threshold: float, scratch: Path) -> npt.NDArray[np.int64]:
    """`first_of_group` over files of signatures, in order: int64 [N]; a threshold above 1 leaves every text alone.

    scratch: path of a file that holds them all meanwhile.
    """
    with open_output(scratch) as whole:
        for path in paths:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole)
    number = scratch.stat().st_size // (4 * NUM_PERMUTATIONS)
    if threshold > 1 or not number:
        first = np.arange(number)
    else:
        first = first_of_group(np.memmap(scratch, np.uint32, "r", shape=(number, NUM_PERMUTATIONS)), threshold)
    scratch.unlink()
    return first


def _candidates(band: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs (earlier, later) that agree in a whole band: each text with the one before it in its bucket."""
    keys = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        keys = _mix(keys + band[:, column])
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    return order[same], order[same + 1]


def _join(parent: npt.NDArray[np.int64], one: int, other: int) -> None:
    """Put two texts into one group, named after its smallest number."""
    while parent[one] != one:
        parent[one] = parent[parent[one]]
        one = int(parent[one])
    while parent[other] != other:
        parent[other] = parent[parent[other]]
        other = int(parent[other])
    if one != other:
        parent[max(one, other)] = min(one, other)
