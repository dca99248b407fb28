"""What a run under the harness reached, counted by name."""

from __future__ import annotations

import collections
import json
from pathlib import Path

_COUNTS: collections.Counter[tuple[str, ...]] = collections.Counter()


def note(*what: object) -> None:
    """Count one occurrence."""
    _COUNTS[tuple(map(str, what))] += 1


def write(path: Path) -> None:
    """Leave the counts as JSON: [[*what, count], …]."""
    path.write_text(json.dumps([[*what, count] for what, count in sorted(_COUNTS.items())], indent=0))
