"""What one task, or a whole run, kept and dropped: by step, source and reason, in counts and bytes.

Invariant: documents in + parts made by segmentation = passages out + rejections of documents and passages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from megatron_huatuo.corpus.item import Rejected
from megatron_huatuo.storage.records import Document


class Account:
    """Counts that add up over tasks. Everything in `counts` is deterministic; `seconds` is not."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: Counter[str] = Counter()
        self.bytes_by_step: Counter[str] = Counter()

    def add_in(self, document: Document) -> None:
        """A document as it was read."""
        self._add("in", document)

    def add_out(self, document: Document) -> None:
        """A passage that is kept."""
        self._add("out", document)

    def add_parts(self, source: str, more: int) -> None:
        """A document that became `more` + 1 passages."""
        self.counts["parts"][source] += more

    def add_rejected(self, rejected: Rejected) -> None:
        """A rejection, under its source and its reason without details."""
        self.counts["rejected"][f"{rejected.source or 'unknown'}\t{rejected.reason.split(':')[0]}"] += 1

    def add_repairs(self, repairs: Mapping[str, int]) -> None:
        """Characters that cleaning touched, by kind of repair."""
        self.counts["repairs"].update(repairs)

    def add_time(self, step: str, seconds: float, number_bytes: int) -> None:
        """Time that a step took for so much text."""
        self.seconds[step] += seconds  # type: ignore[assignment]
        self.bytes_by_step[step] += number_bytes

    def _add(self, where: str, document: Document) -> None:
        self.counts[f"documents {where}"][document.source] += 1
        self.counts[f"bytes {where}"][document.source] += len(document.text.encode())

    def merge(self, record: Mapping[str, Any]) -> None:
        """Add what another account's `to_record` says."""
        for name, counter in record["counts"].items():
            self.counts[name].update(counter)
        self.seconds.update(record["seconds"])
        self.bytes_by_step.update(record["bytes_by_step"])

    def to_record(self) -> dict[str, Any]:
        """Plain JSON for `merge`."""
        return {
            "counts": {name: dict(counter) for name, counter in self.counts.items()},
            "seconds": dict(self.seconds),
            "bytes_by_step": dict(self.bytes_by_step),
        }

    def report(self) -> dict[str, Any]:
        """The deterministic part of `report.json`."""
        by_reason: Counter[str] = Counter()
        by_source: dict[str, Counter[str]] = defaultdict(Counter)
        for key, number in self.counts["rejected"].items():
            source, reason = key.split("\t")
            by_reason[reason] += number
            by_source[source][reason] += number
        sources = sorted({*self.counts["documents in"], *by_source})
        return {
            "documents_in": self.counts["documents in"].total(),
            "documents_out": self.counts["documents out"].total(),
            "bytes_in": self.counts["bytes in"].total(),
            "bytes_out": self.counts["bytes out"].total(),
            "parts_made": self.counts["parts"].total(),
            "rejected": by_reason.total(),
            "rejected_by_reason": dict(sorted(by_reason.items())),
            "by_source": {
                source: {
                    "documents_in": self.counts["documents in"][source],
                    "documents_out": self.counts["documents out"][source],
                    "bytes_in": self.counts["bytes in"][source],
                    "bytes_out": self.counts["bytes out"][source],
                    "rejected": dict(sorted(by_source[source].items())),
                }
                for source in sources
            },
            "repairs": dict(sorted(self.counts["repairs"].items())),
        }

    def rates(self) -> dict[str, Any]:
        """MB/s of each step in one process, for `rates.json`."""
        return {
            step: {
                "seconds": round(seconds, 3),
                "megabytes": round(self.bytes_by_step[step] / 1e6, 3),
                "mb_per_s": round(self.bytes_by_step[step] / 1e6 / seconds, 2) if seconds else None,
            }
            for step, seconds in self.seconds.items()
        }
