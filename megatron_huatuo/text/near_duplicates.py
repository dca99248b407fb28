"""Groups of near-duplicates among texts whose MinHash signatures lie in files, one folder for each task that wrote them.

A signature is cut into bands; texts that agree in a whole band are compared, each with the one before it. A band needs
only its own keys, and so does a range of a band's keys: pairs can be looked for in tasks of their own, and `Groups`
joins what they found.
Invariant: the outcome depends on signatures, their order and the threshold alone, not on how the search was divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_huatuo.storage.atomic import open_output
from megatron_huatuo.text.minhash import NUM_PERMUTATIONS, spread_bits

_ROWS_A_BAND = 6
NUM_BANDS = NUM_PERMUTATIONS // _ROWS_A_BAND
"""20: a pair with similarity 0.8 becomes a candidate with probability 0.998"""
SIGNATURES, _KEYS = "signatures.bin", "band_keys.bin"
_CHUNK = 1 << 16
_PAIRS_AT_ONCE = 1 << 12  # compared while they are in the processor's cache
_TEXTS_A_PART = 1 << 25

_I64 = npt.NDArray[np.int64]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]


def write_band_keys(folder: Path) -> None:
    """Write the keys of the signatures in `folder`, band by band: uint64 [NUM_BANDS, texts]. Memory is bounded."""
    number = _count(folder)
    with open_output(folder / _KEYS) as handle:
        for start in range(0, number, _CHUNK):
            bands = _map_signatures(folder, number)[start : start + _CHUNK].reshape(-1, NUM_BANDS, _ROWS_A_BAND)
            keys = np.zeros(bands.shape[:2], np.uint64)
            for column in range(_ROWS_A_BAND):
                keys = spread_bits(keys + bands[:, :, column].astype(np.uint64))
            for band in range(NUM_BANDS):
                handle.seek(keys.itemsize * (band * number + start))
                handle.write(keys[:, band].tobytes())


class SignatureFiles:
    """The texts of all folders, numbered through in the order of the folders.

    parts: into how many ranges of keys a band is divided, so that a search takes about 1 GiB at most.
    """

    def __init__(self, folders: Sequence[Path], texts_a_part: int = _TEXTS_A_PART) -> None:
        self._folders = folders
        self._counts = [_count(folder) for folder in folders]
        self._starts = np.cumsum([0, *self._counts], dtype=np.int64)
        self.parts = max(1, -(-len(self) // texts_a_part))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find_pairs(self, band: int, part: int, threshold: float, groups: Groups | None = None) -> _I64:
        """Pairs that agree in one band with at least this similarity, earlier text first: int64 [pairs, 2].

        part: of the band's keys, below `parts`. groups: whose members need no comparing.
        Cost: N log N in the part's texts, and a kilobyte to read for each pair that agrees in the band.
        """
        pairs = _pair_neighbours(*self._read_keys(band, part))
        if groups is not None:
            pairs = pairs[groups.are_apart(pairs)]
        # Memory that is used again: the system clears fresh pages, which takes longer than reading into them.
        room = np.empty((2 * min(_CHUNK, len(pairs)), NUM_PERMUTATIONS), np.uint32)
        alike = np.zeros(len(pairs), np.bool_)
        for at in range(0, len(pairs), _CHUNK):
            alike[at : at + _CHUNK] = self._are_similar(pairs[at : at + _CHUNK], threshold, room)
        return pairs[alike]

    def _read_keys(self, band: int, part: int) -> tuple[_U64, _I64]:
        """Keys of one part of a band, uint64 [M], and the numbers of their texts, ascending, int64 [M]."""
        keys, numbers = np.empty(len(self), np.uint64), np.empty(len(self), np.int64)
        filled = 0
        for folder, count, start in zip(self._folders, self._counts, self._starts[:-1].tolist(), strict=True):
            own = np.fromfile(folder / _KEYS, np.uint64, count, offset=8 * band * count)
            ours = np.flatnonzero((own >> np.uint64(32)) * np.uint64(self.parts) >> np.uint64(32) == part)
            here = slice(filled, filled := filled + len(ours))
            keys[here], numbers[here] = own[ours], start + ours
        return keys[:filled], numbers[:filled]

    def _are_similar(self, pairs: _I64, threshold: float, room: _U32) -> npt.NDArray[np.bool_]:
        """bool [pairs]. room: uint32 [at least 2 * pairs, NUM_PERMUTATIONS], overwritten."""
        texts, ends = np.unique(pairs, return_inverse=True)
        self._read_signatures(texts, room[: len(texts)])
        alike = np.empty(len(pairs), np.bool_)
        for at in range(0, len(pairs), _PAIRS_AT_ONCE):
            one, other = ends.reshape(-1, 2)[at : at + _PAIRS_AT_ONCE].T
            equal = (room[one] == room[other]).view(np.uint8).sum(axis=1, dtype=np.uint8)
            alike[at : at + _PAIRS_AT_ONCE] = equal / NUM_PERMUTATIONS >= threshold
        return alike

    def _read_signatures(self, texts: _I64, out: _U32) -> None:
        """texts: their numbers, ascending, [N]. out: uint32 [N, NUM_PERMUTATIONS]. Files are opened one at a time."""
        bounds = np.searchsorted(texts, self._starts)
        for file in np.flatnonzero(np.diff(bounds)).tolist():
            here = slice(bounds[file], bounds[file + 1])
            signatures = _map_signatures(self._folders[file], self._counts[file])
            np.take(signatures, texts[here] - self._starts[file], axis=0, out=out[here], mode="clip")


class Groups:
    """Texts in groups, each named after its first text; at the start every text is alone.

    first: int64 [texts], the number of the first text of the group of each.
    """

    def __init__(self, number: int) -> None:
        self.first: _I64 = np.arange(number, dtype=np.int64)

    def are_apart(self, pairs: _I64) -> npt.NDArray[np.bool_]:
        """Whether the two of a pair are in different groups, bool [pairs]."""
        return np.asarray(self.first[pairs[:, 0]] != self.first[pairs[:, 1]])

    def join(self, pairs: _I64) -> None:
        """Put the two of each pair into one group. pairs: int64 [pairs, 2]."""
        pairs = pairs[self.are_apart(pairs)]
        if not len(pairs):
            return
        named, places = np.unique(self.first[pairs], return_inverse=True)
        ends = places.reshape(-1, 2)
        least = np.arange(len(named))
        while len(ends):  # each name takes the least of its neighbours', and then that one's, to the end of the chain
            np.minimum.at(least, ends.max(axis=1), ends.min(axis=1))
            while not np.array_equal(least, shorter := least[least]):
                least = shorter
            ends = least[ends]
            ends = ends[ends[:, 0] != ends[:, 1]]
        self.first[named] = named[least]
        self.first = self.first[self.first]


def group_near_duplicates(files: SignatureFiles, threshold: float) -> Groups:
    """Look at all bands here, one after the other. threshold: least similarity, 0 to 1.

    Groups are transitive. Memory: about 40 bytes a text.
    """
    groups = Groups(len(files))
    for band in range(NUM_BANDS):
        for part in range(files.parts):
            groups.join(files.find_pairs(band, part, threshold, groups))
    return groups


def _pair_neighbours(keys: _U64, numbers: _I64) -> _I64:
    """Each text with the one before it among those of its key: int64 [pairs, 2], in the order of the earlier text.

    keys: uint64 [M]. numbers: int64 [M], ascending.
    """
    # A sort of numbers is several times quicker than one that keeps their places, so the places ride in the low bits. The
    # few texts whose high bits are not alone are then looked at exactly. What is not kept is made in pieces: as a whole it
    # would lie in fresh memory.
    low_bits = np.uint64(max(1, len(keys).bit_length()))
    ordered = np.empty_like(keys)
    for at in range(0, len(keys), _CHUNK):
        here = keys[at : at + _CHUNK]
        ordered[at : at + _CHUNK] = here >> low_bits << low_bits | np.arange(at, at + len(here), dtype=np.uint64)
    ordered.sort()
    same = np.empty(max(0, len(keys) - 1), np.bool_)
    for at in range(0, len(same), _CHUNK):
        here = ordered[at : at + _CHUNK + 1] >> low_bits
        same[at : at + _CHUNK] = here[1:] == here[:-1]
    members = ordered[np.append(same, False) | np.append(False, same)] if len(keys) else ordered
    places = (members & ((np.uint64(1) << low_bits) - np.uint64(1))).astype(np.int64)
    places = places[np.argsort(keys[places], kind="stable")]
    agree = np.flatnonzero(keys[places[1:]] == keys[places[:-1]])
    pairs = np.stack([numbers[places[agree]], numbers[places[agree + 1]]], axis=1)
    return pairs[np.argsort(pairs[:, 0])]  # no text is the earlier one twice


def _count(folder: Path) -> int:
    return (folder / SIGNATURES).stat().st_size // (4 * NUM_PERMUTATIONS)


def _map_signatures(folder: Path, number: int) -> npt.NDArray[np.uint32]:
    mapped: np.memmap[Any, Any] = np.memmap(folder / SIGNATURES, np.uint32, "r", shape=(number, NUM_PERMUTATIONS))
    return mapped
