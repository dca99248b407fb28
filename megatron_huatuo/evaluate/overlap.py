"""How much of an exam stands in what a model was trained on, question by question, and where it stands.

A run is what curation takes for contamination: 13 neighbouring tokens where Chinese is among them (a Han character is one
token), 8 words of English, whatever the punctuation, case and spacing. A question overlaps when runs that one document shares
with it cover at least half of its stem, or of the stem with its options as they are printed. Runs made of nothing but the words
that all exams are asked in ("which of the following is the most likely diagnosis") are no evidence.

Invariant: every document of every index is searched, as token ids (`overlap_filter`) or as text; what cannot be found, because a
question is too short for a run, is counted.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.config import at_least
from megatron_huatuo.corpus.contamination import CHARACTERS_ZH, WORDS_EN
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.overlap_filter import FULL_WIDTH, RunFilter, TokenCharacters, characters_of_text
from megatron_huatuo.evaluate.score import count_group
from megatron_huatuo.exams.exam_format import ExamQuestion, filled_options
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.index.workers import available_cores, ordered_map
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.storage.indexed import IndexedReader, index_paths
from megatron_huatuo.storage.manifest import MANIFEST_NAME
from megatron_huatuo.text.minhash import Words, split_words

LEAST_SHARE = 0.5
_DOCUMENTS_AT_ONCE = 512
_DOCUMENTS_COMPARED = 32
_MOST_PLACES = 20
_U64 = NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)
_COMMON_EN = """a all an and answer appropriate are as at based be been best by can case cause condition correct diagnosis does except
expected explains explanation false finding findings following for from has have he her his in incorrect initial is it its
likely management mechanism most next not of on one option or patient patient's s prognosis regarding risk she should
statement statements step symptoms test that the their therapy these this to treatment true underlying was what when which
will with would you"""
_COMMON_ZH = "下列以上关于的说法叙述描述中错误正确不是有哪项一个种些属包括除外符合本题该患者最可能诊断为应首选选择答案对其及和与或者在于何是什么述各都可"


@dataclass(frozen=True)
class OverlapSettings:
    """What the exam is compared with."""

    overlap_index: tuple[str, ...] = ()
    """Indexes (path prefixes) or blend directories that the model was trained on"""
    overlap_workers: int | None = None
    """Processes that read them; by default one for each core"""
    exam_date: str | None = None
    """Day on which the exam was held or published, YYYY-MM-DD"""
    data_date: str | None = None
    """Last day of the training data, YYYY-MM-DD; by default the day on which the youngest index was written"""

    def __post_init__(self) -> None:
        at_least("overlap_workers", self.overlap_workers, 1)
        for name in ("exam_date", "data_date"):
            value = getattr(self, name)
            if value is not None and not self.overlap_index:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} has no effect without --overlap-index. Name what the model was trained on."
                )
            try:
                datetime.date.fromisoformat(value or "2000-01-01")
            except ValueError as error:
                raise ConfigError(f"wrong {name}: got {value!r}, need YYYY-MM-DD.") from error


class OverlapPlace(NamedTuple):
    """A document that shares text with a question.

    share: part of the question's tokens that it covers. text: the longest shared piece, as the question has it. origin: input file
    and line, where the index records it. rows: of the blend, where one was given, the first few.
    """

    prefix: str
    document: int
    share: float
    text: str
    origin: tuple[str, int] | None
    rows: tuple[int, ...]


class _Unit(NamedTuple):
    """One text of a question that is looked for: its stem, or its stem with its options."""

    question: int
    text: str
    words: Words


class ExamRuns:
    """The runs of all questions, ready to be looked up. unfindable: questions without any run that is evidence."""

    def __init__(self, questions: Sequence[ExamQuestion]) -> None:
        self._units: list[_Unit] = []
        self._places: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        common = [split_words(_COMMON_EN).numbers, split_words(_COMMON_ZH).numbers]
        self._common = np.unique(np.concatenate(common))
        found: set[int] = set()
        for number, question in enumerate(questions):
            printed = [question.question, *(f"{k}. {text}" for k, text in filled_options(question.option).items())]
            for text in (question.question, "\n".join(printed)):
                found |= {number} if self._add(number, text) else set()
        self.unfindable = [number for number in range(len(questions)) if number not in found]
        self._hashes = np.array(sorted(self._places), np.uint64)

    def as_characters(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]]:
        """For the filter of documents: (letters and digits of each text, where its runs begin there, where they end)."""
        runs: list[list[tuple[int, int]]] = [[] for _ in self._units]
        for places in self._places.values():
            for unit, start, length in places:
                runs[unit].append((start, length))
        for text, own in zip(self._units, runs, strict=True):
            stream, before = characters_of_text(text.text)
            first, count = np.array(own).T
            yield stream, before[text.words.starts[first]], before[text.words.ends[first + count - 1]]

    def _add(self, question: int, text: str) -> bool:
        """Note the runs of one text that are evidence; whether there is any."""
        words = split_words(text := _plain(text))
        is_common = np.isin(words.numbers, self._common)
        runs = [
            run
            for run in zip(*map(np.ndarray.tolist, _runs(words)), strict=True)
            if not is_common[run[1] : run[1] + run[2]].all()
        ]
        for hashed, start, length in runs:
            self._places[hashed].append((len(self._units), start, length))
        if runs:
            self._units.append(_Unit(question, text.lower(), words))
        return bool(runs)

    def find(self, text: str) -> list[tuple[int, float, str]]:
        """(question, share of its tokens, longest shared piece) of every question that a text overlaps with."""
        hashes = _runs(split_words(_plain(text)))[0]
        if not len(self._hashes) or not len(hashes):
            return []
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        matched = np.unique(hashes[self._hashes[at] == hashes])
        if not len(matched):
            return []
        covered: dict[int, NDArray[np.bool_]] = {}
        for hashed in matched.tolist():
            for unit, start, length in self._places[hashed]:
                mask = covered.setdefault(unit, np.zeros(len(self._units[unit].words.numbers), np.bool_))
                mask[start : start + length] = True
        best: dict[int, tuple[float, str]] = {}
        for unit, mask in covered.items():
            share = float(mask.mean())
            if share >= LEAST_SHARE:
                question = self._units[unit].question
                best[question] = max(best.get(question, (0.0, "")), (share, _longest(self._units[unit], mask)))
        return [(question, share, piece) for question, (share, piece) in sorted(best.items())]


def _plain(text: str) -> str:
    """Full-width letters and digits as plain ones, on both sides."""
    return text if text.isascii() else text.translate(FULL_WIDTH)


def _runs(words: Words) -> tuple[_U64, NDArray[np.int64], NDArray[np.int64]]:
    """(hash, first word, words) of every run of a text: 13 where one of the first 8 is a Han character, else 8."""
    numbers, count = words.numbers, len(words.numbers)
    if count < WORDS_EN:
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    han_before = np.concatenate([[0], np.cumsum(words.is_han)])
    starts = np.arange(count - WORDS_EN + 1)
    has_han = han_before[starts + WORDS_EN] > han_before[starts]
    lengths = np.where(has_han, CHARACTERS_ZH, WORDS_EN)
    kept = starts + lengths <= count
    starts, lengths = starts[kept], lengths[kept]
    # Horner's scheme over each window: equal tokens in equal order give equal hashes, modulo 2^64.
    hashes = np.zeros(len(starts), np.uint64)
    for step in range(CHARACTERS_ZH):
        inside = step < lengths
        following = hashes[inside] * _BASE + numbers[starts[inside] + step]
        hashes[inside] = (following ^ (following >> np.uint64(29))) * _BASE
    return hashes, starts, lengths


def _longest(unit: _Unit, mask: NDArray[np.bool_]) -> str:
    """The longest stretch of covered words, as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    first, end = max(zip(edges[::2], edges[1::2], strict=True), key=lambda pair: pair[1] - pair[0])
    return unit.text[int(unit.words.starts[first]) : int(unit.words.ends[end - 1])]


def find_overlap(
    questions: Sequence[ExamQuestion], paths: Sequence[str | os.PathLike[str]], workers: int | None = None
) -> tuple[dict[int, list[OverlapPlace]], dict[str, Any]]:
    """({number of a question: where it overlaps, the largest share first}, what was read).

    paths: path prefixes of indexes, or blend directories, whose indexes are read and whose rows are named.
    workers: processes; by default one for each core. A question keeps its 20 places of the largest share; `places` of the
    second result counts them all.
    Raises: ConfigError for a path that is neither; IntegrityError for a damaged one; DataError for a lost tokenizer.
    """
    indexes = _open_all(paths)
    runs = ExamRuns(questions)
    chunks = [
        (prefix, start, min(start + _DOCUMENTS_AT_ONCE, count))
        for prefix, (count, _) in indexes.items()
        for start in range(0, count, _DOCUMENTS_AT_ONCE)
    ]
    found: defaultdict[int, list[OverlapPlace]] = defaultdict(list)
    total = sum(count for count, _ in indexes.values())
    search = functools.partial(_search, runs, RunFilter(runs.as_characters()))
    crew = min(workers or available_cores(), max(1, len(chunks) // 4))
    with (
        progress(total=total, description="overlap", unit="document", unit_scale=True) as bar,
        closing(ordered_map(search, chunks, crew)) as results,
    ):
        for (prefix, start, stop), hits in zip(chunks, results, strict=True):
            for question, document, share, text in hits:
                found[question].append(OverlapPlace(prefix, document, share, text, None, ()))
            bar.update(stop - start)
    counts = {question: len(places) for question, places in found.items()}
    kept = {
        question: sorted(places, key=lambda place: -place.share)[:_MOST_PLACES] for question, places in found.items()
    }
    about = {
        "indexes": list(indexes),
        "documents": total,
        "places": sum(counts.values()),
        "unfindable": len(runs.unfindable),
    }
    return _with_origins(kept, indexes), about


def _open_all(paths: Sequence[str | os.PathLike[str]]) -> dict[str, tuple[int, list[tuple[BlendReader, int]]]]:
    """{path prefix: (documents, the blends it is in and its number there)}; every index is opened once, its tokenizer too."""
    indexes: dict[str, tuple[int, list[tuple[BlendReader, int]]]] = {}
    for path in paths:
        blend = BlendReader(path) if (Path(path) / MANIFEST_NAME).is_file() else None
        for number, prefix in enumerate([os.fspath(path)] if blend is None else blend.path_prefixes):
            index = IndexedReader(prefix)
            _tokenizer_of(index)
            _, blends = indexes.setdefault(prefix, (len(index), []))
            if blend is not None:
                blends.append((blend, number))
    return indexes


def _tokenizer_of(index: IndexedReader) -> Tokenizer:
    """The tokenizer that made an index. Raises: DataError when it is gone, or another one lies in its place."""
    if index.manifest is None:
        raise DataError(
            f"no manifest: {index.path_prefix} does not say which tokenizer made it. Build it with tools/preprocess_data.py."
        )
    known = index.manifest["tokenizer"]
    tokenizer = load_tokenizer(known["path"])
    if tokenizer.sha256 != known["sha256"]:
        raise DataError(
            f"another tokenizer lies at {known['path']}: its texts would not be those of {index.path_prefix}. Restore it."
        )
    return tokenizer


@functools.lru_cache(maxsize=4)
def _open(prefix: str) -> tuple[IndexedReader, Tokenizer, TokenCharacters | None]:
    """An index, its tokenizer, and the characters of its tokens: None where those do not make the texts of its documents."""
    index = IndexedReader(prefix)
    tokenizer = _tokenizer_of(index)
    characters = TokenCharacters(tokenizer)
    for document in range(min(_DOCUMENTS_COMPARED, len(index))):
        tokens = index.document(document)[0]
        if not np.array_equal(characters.stream([tokens])[0], characters_of_text(tokenizer.decode(tokens))[0]):
            get_logger(__name__).warning(
                "%s: its tokens one by one do not make the text of document %d, so every document is decoded, which is slow",
                *(prefix, document),
            )
            return index, tokenizer, None
    return index, tokenizer, characters


def _search(runs: ExamRuns, run_filter: RunFilter, chunk: tuple[str, int, int]) -> list[tuple[int, int, float, str]]:
    """(question, document, share, text) of every overlap in documents [start, stop) of an index."""
    prefix, start, stop = chunk
    index, tokenizer, characters = _open(prefix)
    chosen: Iterable[int] = range(start, stop)
    if characters is not None:
        stream = characters.stream([index.document(document)[0] for document in chosen])
        chosen = [start + number for number in run_filter.documents(*stream)]
    hits = []
    for document in chosen:
        text = tokenizer.decode(index.document(document)[0])
        hits += [(question, document, share, piece) for question, share, piece in runs.find(text)]
    return hits


def _with_origins(
    found: Mapping[int, list[OverlapPlace]], indexes: Mapping[str, tuple[int, list[tuple[BlendReader, int]]]]
) -> dict[int, list[OverlapPlace]]:
    readers = {
        prefix: IndexedReader(prefix) for prefix in {place.prefix for places in found.values() for place in places}
    }
    return {
        question: [
            place._replace(
                origin=readers[place.prefix].origin(place.document),
                rows=tuple(_rows(place.document, indexes[place.prefix][1])),
            )
            for place in places
        ]
        for question, places in found.items()
    }


def _rows(document: int, blends: Sequence[tuple[BlendReader, int]]) -> Iterator[int]:
    """The first rows of the blends that hold a document."""
    for blend, source in blends:
        entries = np.flatnonzero((blend.order_document == document) & (blend.order_source == source))[:3]
        yield from (np.searchsorted(blend.row_start, entries, side="right") - 1).tolist()


def add_overlap(
    records: Sequence[dict[str, Any]],
    identifiers: Sequence[str],
    found: Mapping[int, Sequence[OverlapPlace]],
    about: Mapping[str, Any],
    settings: OverlapSettings,
) -> dict[str, Any]:
    """Put `overlap`, the places of each question, into the records, and return the part `overlap` of `scores.json`.

    records: of `replies.jsonl`. identifiers: of the questions that `found` numbers. The part has the scores with and without
    the questions that overlap. fresh: true when the exam's day is after the data's last one; false when it is not; null
    without `exam_date`.
    """
    places = {identifiers[number]: [place._asdict() for place in own] for number, own in found.items()}
    for record in records:
        record["overlap"] = places.get(record["id"], [])
    overlapping = [record for record in records if record["overlap"]]
    rest = [record for record in records if not record["overlap"]]
    until = settings.data_date or max(map(_written, about["indexes"]))
    return {
        **about,
        "overlapping": len(overlapping),
        "least_share": LEAST_SHARE,
        "with_overlap": count_group(overlapping),
        "without_overlap": count_group(rest),
        "exam_date": settings.exam_date,
        "data_date": until,
        "fresh": None if settings.exam_date is None else settings.exam_date > until,
    }


def _written(prefix: str) -> str:
    """The day on which an index was written, by its file's time."""
    return datetime.date.fromtimestamp(index_paths(prefix)[0].stat().st_mtime).isoformat()


def format_overlap(overlap: Mapping[str, Any]) -> str:
    """One line for a terminal."""
    accuracy = overlap["without_overlap"]["accuracy"]
    without = "none is left" if accuracy is None else f"{100 * accuracy:.1f} % without them"
    fresh = {True: "; held after the data end", False: "; NOT held after the data end", None: ""}[overlap["fresh"]]
    return (
        f"overlap with {overlap['documents']:,} documents: {overlap['overlapping']} questions ({without}), "
        f"{overlap['unfindable']} too short to be found{fresh}"
    )
