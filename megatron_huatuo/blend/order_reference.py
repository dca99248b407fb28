"""The priority order in plain Python: the judge of the C++ and CUDA kernels, and the fallback where neither is built.

Invariant: same inputs, same bytes as csrc/. Written to be read beside docs/blending.md; about 300 times slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.blend.order_draws import Draws
from megatron_huatuo.blend.order_tables import (
    HIGHEST_EXPONENT,
    HIGHEST_SPECIAL_EXPONENT,
    LOWEST_EXPONENT,
    mantissa_and_exponent,
    split_and_special,
)

SPECIAL_STREAM, SHUFFLE_STREAM = 0xFFFFF, 0xFFFFE
PERMUTATION_LEVEL = 0xFFF
SMALL_SOURCE = 1024
"""Up to so many documents per epoch is a stored shuffle; above it a Feistel network."""
_MASK = 2**64 - 1


class Sequence:
    """One sequence of random numbers: Philox4x32-10 under the seed, counter {block, level|stream, cell}."""

    def __init__(self, seed: int, level: int, stream: int, cell: int) -> None:
        self.key = (seed & 0xFFFFFFFF, seed >> 32)
        self.counter = (level << 20 | stream, cell & 0xFFFFFFFF, cell >> 32 & 0xFFFFFFFF)
        self.numbers = np.empty(0, dtype=np.uint32)
        self.blocks = 0
        self.position = 0
        """In bits."""

    def next32(self) -> int:
        """The next 32-bit number."""
        number = self.position // 32
        self.position += 32
        return int(self._numbers(number, number + 1)[0])

    def next64(self) -> int:
        """The next whole 64-bit word (two numbers, low half first); bits that `heads` left over are skipped."""
        number = -(-self.position // 64) * 2
        self.position = (number + 2) * 32
        low, high = self._numbers(number, number + 2).tolist()
        return int(low | high << 32)

    def below32(self, bound: int) -> int:
        """Uniform in [0, bound), bound <= 2^32, without bias (Lemire 2019)."""
        product = self.next32() * bound
        while product & 0xFFFFFFFF < (2**32 - bound) % bound:
            product = self.next32() * bound
        return product >> 32

    def below64(self, bound: int) -> int:
        """Uniform in [0, bound), bound < 2^64, without bias."""
        product = self.next64() * bound
        while product & _MASK < (2**64 - bound) % bound:
            product = self.next64() * bound
        return product >> 64

    def heads(self, coins: int) -> int:
        """Ones among `coins` fair coins: the next bits, from the lowest of each number."""
        first = self.position // 32
        numbers = self._numbers(first, (self.position + coins + 31) // 32)
        bits = np.unpackbits(numbers.astype("<u4").view(np.uint8), bitorder="little")
        start = self.position - 32 * first
        self.position += coins
        return int(bits[start : start + coins].sum())

    def binomial(self, trials: int, probability: int) -> int:
        """How many of `trials` uniform 64-bit numbers are below `probability`, their bits drawn only while they matter."""
        successes, undecided = 0, trials
        while undecided and probability:
            ones = self.heads(undecided)
            if probability >> 63:
                successes += undecided - ones
                undecided = ones
            else:
                undecided -= ones
            probability = probability << 1 & _MASK
        return successes

    def _numbers(self, first: int, last: int) -> NDArray[np.uint32]:
        if last > len(self.numbers):
            self._extend(max(4, self.blocks, (last - len(self.numbers)) // 4 + 1))
        return self.numbers[first:last]

    def _extend(self, count: int) -> None:
        block = np.arange(self.blocks, self.blocks + count, dtype=np.uint64)
        x = [block, *(np.full(count, word, dtype=np.uint64) for word in self.counter)]
        k0, k1 = self.key
        for _ in range(10):
            p0, p1 = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
            low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
            x = [(p1 >> shift) ^ x[1] ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ x[3] ^ np.uint64(k1), p0 & low]
            k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
        self.numbers = np.concatenate([self.numbers, np.stack(x, axis=1).reshape(-1).astype(np.uint32)])
        self.blocks += count


def max_cell_draws(num_sources: int) -> int:
    """Most draws of a cell that is ordered as a whole: 8,192, and more for many sources, so that cells stay full."""
    return min(max(8192, 1 << (128 * num_sources - 1).bit_length()), 2**17)


def max_specials(num_sources: int) -> int:
    """A cell is ordered as a whole when at most so many of its documents are expected to be out of the ordinary."""
    return min(max(num_sources // 4, 16), 1024)


class PriorityRace:
    """Source of every draw, by halving the time axis down to cells whose order is (nearly) a plain shuffle."""

    def __init__(self, draws: Draws) -> None:
        self.seed = draws.seed
        parts = [mantissa_and_exponent(float(priority)) for priority in draws.priorities]
        self.tables = [split_and_special(mantissa) for mantissa, _ in parts]
        self.counts = {i: int(n) for i, n in enumerate(draws.num_draws) if n > 0}
        self.max_cell = max_cell_draws(draws.num_sources)
        self.max_specials = max_specials(draws.num_sources)
        # The race is over before time 2^T: the slowest source survives it with probability exp(-64) at most.
        lowest = min((parts[i][1] for i in self.counts), default=0)
        self.root_exponent = [exponent + 5 - lowest for _, exponent in parts]

    def order(self) -> Iterator[int]:
        """Source numbers in drawing order.

        Cell number `cell` of a level is [cell, cell + 1) * 2^(T - level); counts: draws of each source in it, > 0.
        """
        waiting = [(0, 0, self.counts)]
        while waiting:
            level, cell, counts = waiting.pop()
            if len(counts) <= 1:
                for source, count in counts.items():
                    yield from [source] * count
            elif self._is_whole(level, counts):
                yield from self._whole_cell(level, cell, counts)
            else:
                first = {source: self._split(level, cell, source, count) for source, count in counts.items()}
                second = {source: counts[source] - first[source] for source in counts}
                waiting.append((level + 1, 2 * cell + 1, {s: c for s, c in second.items() if c}))
                waiting.append((level + 1, 2 * cell, {s: c for s, c in first.items() if c}))

    def _split(self, level: int, cell: int, source: int, count: int) -> int:
        exponent = self.root_exponent[source] - level
        if exponent > HIGHEST_EXPONENT:
            return count
        return Sequence(self.seed, level, source, cell).binomial(count, self._split_probability(source, exponent))

    def _split_probability(self, source: int, exponent: int) -> int:
        return self.tables[source][0][max(exponent - LOWEST_EXPONENT, 0)]

    def _special_probability(self, source: int, exponent: int) -> int:
        return self.tables[source][1][max(exponent - LOWEST_EXPONENT, 0)]

    def _is_whole(self, level: int, counts: dict[int, int]) -> bool:
        total = sum(counts.values())
        exponents = {source: self.root_exponent[source] - level for source in counts}
        if total > self.max_cell or max(exponents.values()) > HIGHEST_SPECIAL_EXPONENT:
            return False
        return total * max(self._special_probability(s, e) for s, e in exponents.items()) <= self.max_specials << 64

    def _whole_cell(self, level: int, cell: int, counts: dict[int, int]) -> list[int]:
        """Regular documents are shuffled; the few special ones go to the places that their arrival times have."""
        random = Sequence(self.seed, level, SPECIAL_STREAM, cell)
        times = sorted(
            ((self._special_time(random, source, self.root_exponent[source] - level), number, source)
             for number, source in enumerate(self._specials(random, level, counts))),
            key=lambda item: item[:2],
        )  # fmt: skip
        regular = dict(counts)
        for _, _, source in times:
            regular[source] -= 1
        places: list[int] = []
        self._place(random, [time for time, _, _ in times], sum(regular.values()), 0, 0, places)
        shuffled = [source for source, count in sorted(regular.items()) for _ in range(count)]
        shuffle(shuffled, Sequence(self.seed, level, SHUFFLE_STREAM, cell))
        for place, (_, _, source) in reversed(list(zip(places, times, strict=True))):
            shuffled.insert(place, source)
        return shuffled

    def _specials(self, random: Sequence, level: int, counts: dict[int, int]) -> list[int]:
        """Sources of the special documents: each document is one with its own probability `special`."""
        probability = {s: self._special_probability(s, self.root_exponent[s] - level) for s in counts}
        zeros = 64 - max(probability.values()).bit_length()
        if zeros == 64:
            return []
        candidates = total = sum(counts.values())
        for _ in range(zeros):  # a candidate has the leading zero bits that every special one needs
            candidates -= random.heads(candidates)
            if candidates == 0:
                return []
        chosen: set[int] = set()
        specials = []
        while len(chosen) < candidates:
            pick = random.below64(total)
            if pick in chosen:
                continue
            chosen.add(pick)
            source = self._source_of(pick, counts)
            if random.next64() < probability[source] << zeros:
                specials.append(source)
        return specials

    @staticmethod
    def _source_of(pick: int, counts: dict[int, int]) -> int:
        for source, count in sorted(counts.items()):
            if pick < count:
                return source
            pick -= count
        raise AssertionError("pick is beyond the cell")

    def _special_time(self, random: Sequence, source: int, exponent: int) -> int:
        """Arrival time of a special document inside its cell, in units of 2^-64 of the cell.

        Bit by bit: a bit of a truncated exponential time is a fair coin, except that with probability tanh(y / 2) =
        2 split - 1 it is forced to 0. A document is special when at least one of its bits is forced.
        """
        time = 0
        for bit in range(64):
            special = self._special_probability(source, exponent - bit)
            forced = 2 * self._split_probability(source, exponent - bit) - 2**64
            if special == 0:
                return time | random.next64() >> bit
            if random.below64(special) >= forced:
                time |= random.next64() >> 63 << (63 - bit)
            elif random.next64() >= self._special_probability(source, exponent - bit - 1) and bit < 63:
                return time | random.next64() >> (bit + 1)
        return time

    def _place(
        self, random: Sequence, times: list[int], regular: int, before: int, bit: int, places: list[int]
    ) -> None:
        """Append, for each special time in order, how many regular documents come before it."""
        if not times:
            return
        if regular == 0 or bit == 64:
            places.extend([before] * len(times))
            return
        late = random.heads(regular)
        first = [time for time in times if not time >> (63 - bit) & 1]
        self._place(random, first, regular - late, before, bit + 1, places)
        self._place(random, times[len(first) :], late, before + regular - late, bit + 1, places)


def shuffle(items: list[int], random: Sequence) -> None:
    """Fisher-Yates shuffle in place, from the end."""
    for last in range(len(items) - 1, 0, -1):
        other = random.below32(last + 1)
        items[last], items[other] = items[other], items[last]


class Permutation:
    """Random order of n documents for one source and epoch, any place of it by itself."""

    def __init__(self, num_documents: int, seed: int, stream: int, epoch: int) -> None:
        self.n = num_documents
        random = Sequence(seed, PERMUTATION_LEVEL, stream, epoch)
        if self.n <= SMALL_SOURCE:
            self.table = list(range(self.n))
            shuffle(self.table, random)
            return
        self.rows = math.isqrt(self.n - 1) + 1
        self.columns = -(-self.n // self.rows)
        self.keys = [(random.next32(), random.next32()) for _ in range(8 if self.n <= 2**16 else 6)]

    def __getitem__(self, place: int) -> int:
        if self.n <= SMALL_SOURCE:
            return self.table[place]
        while True:
            place = self._network(place)
            if place < self.n:
                return place

    def _network(self, place: int) -> int:
        """Feistel network on [0, rows) x [0, columns)."""
        row, column = divmod(place, self.columns)
        for number, (key0, key1) in enumerate(self.keys):
            if number % 2 == 0:
                row = (row + (_mix(column, key0, key1) * self.rows >> 32)) % self.rows
            else:
                column = (column + (_mix(row, key0, key1) * self.columns >> 32)) % self.columns
        return row * self.columns + column


def _mix(half: int, key0: int, key1: int) -> int:
    word = (half + key0) & 0xFFFFFFFF
    word = ((word ^ word >> 16) * 0x7FEB352D) & 0xFFFFFFFF
    return ((word ^ word >> 15 ^ key1) * 0x846CA68B) & 0xFFFFFFFF


class ReferencePlan:
    """Same interface as `_C.OrderPlan`; draws the whole order once, so it serves small orders only."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.total = draws.total
        self._source = np.fromiter(PriorityRace(draws).order(), dtype=np.int64, count=self.total)
        self._document = np.empty(self.total, dtype=np.int64)
        for source in range(draws.num_sources):
            places = np.flatnonzero(self._source == source)
            self._document[places] = [*_documents(draws, source)]

    def order(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source and document of the draws [start, stop)."""
        return self._source[start:stop], self._document[start:stop]

    def counts_before(self, position: int) -> NDArray[np.int64]:
        """Draws of each source among the first `position` ones [S]."""
        return np.bincount(self._source[:position], minlength=self.draws.num_sources).astype(np.int64)


def _documents(draws: Draws, source: int) -> Iterator[int]:
    """Documents of one source in its own drawing order."""
    held = draws.held(source)
    yield from held.tolist()
    n, first = int(draws.num_documents[source]), int(draws.first_draw[source])
    permutation, epoch = None, -1
    for k in range(first, first + int(draws.num_draws[source]) - len(held)):
        if permutation is None or k // n != epoch:
            epoch = k // n
            seed, stream = int(draws.permutation_seeds[source]), int(draws.permutation_streams[source])
            permutation = Permutation(n, seed, stream, epoch)
        yield permutation[k % n]
