"""What curation kept and dropped, by source and reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from megatron_huatuo.corpus.passages import Rejected
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Document


class CurationReport:
    """Counts of one run, filled as it goes."""

    def __init__(self) -> None:
        self.read: dict[str, Counter[str]] = defaultdict(Counter)
        self.kept: dict[str, Counter[str]] = defaultdict(Counter)
        self.rejected: dict[str, Counter[str]] = defaultdict(Counter)
        self.repairs: Counter[str] = Counter()

    def add_read(self, document: Document) -> None:
        """Count a document as it came in."""
        _add(self.read[document.source], document)

    def add_kept(self, passage: Document) -> None:
        """Count a passage that goes out."""
        _add(self.kept[passage.source], passage)

    def add_rejected(self, rejected: Rejected) -> None:
        """Count a rejection under its source and its reason without details."""
        self.rejected[rejected.source or "unknown"][rejected.reason.split(":")[0]] += 1

    def to_record(self, bad_lines: BadLines) -> dict[str, Any]:
        """The content of `report.json`."""
        reasons: Counter[str] = sum(self.rejected.values(), Counter())
        return {
            "documents_in": sum(counts["documents"] for counts in self.read.values()),
            "documents_out": sum(counts["documents"] for counts in self.kept.values()),
            "bytes_in": sum(counts["bytes"] for counts in self.read.values()),
            "bytes_out": sum(counts["bytes"] for counts in self.kept.values()),
            "rejected": sum(reasons.values()),
            "rejected_by_reason": dict(sorted(reasons.items())),
            "by_source": {
                source: {
                    "in": dict(self.read[source]),
                    "out": dict(self.kept[source]),
                    "rejected": dict(sorted(self.rejected[source].items())),
                }
                for source in sorted({*self.read, *self.kept, *self.rejected})
            },
            "repairs": dict(sorted(self.repairs.items())),
            "bad_lines": bad_lines.count_by_reason(),
            "tolerated": dict(sorted(bad_lines.tolerated.items())),
        }


def _add(counts: Counter[str], document: Document) -> None:
    counts["documents"] += 1
    counts["bytes"] += len(document.text.encode())
