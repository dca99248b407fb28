"""What a threshold on the quality score would drop, shown before a corpus is curated and before anything is paid."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from megatron_huatuo.config import at_least
from megatron_huatuo.corpus.account import Item
from megatron_huatuo.corpus.curation_settings import CurationSettings
from megatron_huatuo.corpus.readers.read_files import expand_inputs
from megatron_huatuo.corpus.shard_files import ShardWriter
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines

_DOCUMENTS = 5_000  # looked at, spread evenly over the files
_THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))
_SHOWN_CHARACTERS = 160


class _NoShard(ShardWriter):
    """Counts as a shard does, and writes nothing."""

    def open(self, rank: int, path: str, bad_lines: BadLines) -> None:
        """Nothing is opened."""

    def reject(self, rejected: object) -> None:
        """Nothing is kept of what is rejected."""


def preview_scores(
    inputs: Iterable[str | os.PathLike[str]], settings: CurationSettings, number: int, documents: int = _DOCUMENTS
) -> list[str]:
    """Lines for a person: for each source the share that thresholds from 0.1 to 0.9 would drop, and the `number` passages
    next to `settings.min_score` on each side, with their scores.

    documents: how many are read, the first ones of each file. Duplicates and exams are not looked at. Nothing is written.
    Raises: ConfigError, DataError as `curate`.
    """
    from megatron_huatuo.corpus.steps import build_pipeline  # datatrove takes half a second to import

    at_least("--preview-scores", number, 1)
    files = expand_inputs(inputs)
    scored: list[tuple[float, str, str, str]] = []
    unfiltered = replace(settings, min_score=0.0)
    for rank in range(len(files)):
        steps = build_pipeline(files, _NoShard("", with_signatures=False), unfiltered, show_progress=False)
        read, *others = steps[: [step.name for step in steps].index("score") + 1]
        items: Iterator[Item] = itertools.islice(read.run(None, rank), -(-documents // len(files)))
        for step in others:
            items = step.run(items)
        for item in items:
            assert item.score is not None
            document = item.document
            scored.append((item.score, document.source, document.id, document.text))
    if not scored:
        raise DataError(f"no passage to score: none of {files[:3]} passes the steps before. Check the input.")
    return [*_shares(scored), *_neighbours(sorted(scored), settings.min_score, number)]


def _shares(scored: list[tuple[float, str, str, str]]) -> list[str]:
    sources = sorted({source for _, source, _, _ in scored})
    width = max(map(len, sources))
    lines = [f"share of {len(scored)} passages that --min-score would drop:"]
    lines.append(" ".join([" " * width, "passages", *(f"{one:>6}" for one in _THRESHOLDS)]))
    for source in sources:
        scores = [score for score, of, _, _ in scored if of == source]
        dropped = (sum(score < threshold for score in scores) / len(scores) for threshold in _THRESHOLDS)
        lines.append(" ".join([f"{source:<{width}}", f"{len(scores):>8}", *(f"{share:>6.1%}" for share in dropped)]))
    return lines


def _neighbours(ordered: list[tuple[float, str, str, str]], min_score: float, number: int) -> list[str]:
    below = [one for one in ordered if one[0] < min_score]
    above = ordered[len(below) :]
    lines = [f"--min-score {min_score} drops {len(below)} of {len(ordered)}."]
    for title, passages in (("dropped, next to it", below[-number:]), ("kept, next to it", above[:number])):
        lines.append(f"{title}:" if passages else f"{title}: none")
        for score, _, name, text in passages:
            shown = " ".join(text.split())
            cut = f"{shown[:_SHOWN_CHARACTERS]}…" if len(shown) > _SHOWN_CHARACTERS else shown
            lines.append(f"  {score:.3f} {name}: {cut}")
    return lines
