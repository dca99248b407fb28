"""Every request and reply in one SQLite file: the cache that makes a run resumable, and the ledger of what was spent.

Invariant: a reply is committed before anyone sees it, so no paid call is ever repeated, whatever is killed. A request
is noted before it is sent: after a kill the ledger knows how many replies may have been paid for and lost. Commits go
to the kernel, not through to the disk: they survive the death of the process at any moment, while a power cut may cost
the last seconds (a flush for each reply would take 7 ms on a busy disk, and halt all other requests meanwhile).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from megatron_huatuo.errors import IntegrityError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  key TEXT NOT NULL, attempt INTEGER NOT NULL, model TEXT NOT NULL, sent_at REAL NOT NULL, done_at REAL,
  content TEXT, finish_reason TEXT, prompt_tokens INTEGER, completion_tokens INTEGER,
  counted INTEGER, PRIMARY KEY (key, attempt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (reason TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""


class Reply(NamedTuple):
    """One completion; content is "" when it gave none. `counted`: the endpoint counted the tokens itself."""

    content: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    counted: bool = True


class Totals(NamedTuple):
    """Sums over one model's requests."""

    model: str
    replies: int
    uncounted: int
    unanswered: int
    prompt_tokens: int
    completion_tokens: int


class RequestLog:
    """The request log of one output. Used by one process at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create. Raises IntegrityError when the file is no request log."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # autocommit: every statement is its own transaction, in the write-ahead log before execute() returns.
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise IntegrityError(f"no request log: {error} ({path}). Move the file away and start again.") from error

    def find(self, key: str, attempt: int) -> Reply | None:
        """The committed reply, or None."""
        with self._named():
            row = self._connection.execute(
                "SELECT content, finish_reason, prompt_tokens, completion_tokens, counted FROM requests "
                "WHERE key = ? AND attempt = ? AND done_at IS NOT NULL",
                (key, attempt),
            ).fetchone()
        return Reply(row[0], row[1], row[2], row[3], bool(row[4])) if row else None

    def note_sent(self, key: str, attempt: int, model: str) -> None:
        """Note a request that is about to be sent."""
        with self._named():
            self._connection.execute(
                "INSERT OR IGNORE INTO requests (key, attempt, model, sent_at) VALUES (?, ?, ?, ?)",
                (key, attempt, model, time.time()),
            )

    def note_reply(self, key: str, attempt: int, reply: Reply) -> None:
        """Commit a reply."""
        with self._named():
            self._connection.execute(
                "UPDATE requests SET done_at = ?, content = ?, finish_reason = ?, prompt_tokens = ?, "
                "completion_tokens = ?, counted = ? WHERE key = ? AND attempt = ?",
                (time.time(), *reply, key, attempt),
            )

    def note_unpaid(self, key: str, attempt: int) -> None:
        """Forget a request that the endpoint answered with an error: nothing was paid, nothing is in flight."""
        with self._named():
            self._connection.execute(
                "DELETE FROM requests WHERE key = ? AND attempt = ? AND done_at IS NULL", (key, attempt)
            )

    def note_failure(self, reason: str) -> None:
        """Count one failed try."""
        with self._named():
            self._connection.execute(
                "INSERT INTO failures VALUES (?, 1) ON CONFLICT (reason) DO UPDATE SET count = count + 1", (reason,)
            )

    def failures(self) -> dict[str, int]:
        """{reason: failed tries} over all runs."""
        return dict(self._connection.execute("SELECT reason, count FROM failures ORDER BY reason"))

    def totals(self) -> list[Totals]:
        """Sums by model over all runs."""
        rows = self._connection.execute(
            "SELECT model, COUNT(done_at), COALESCE(SUM(counted = 0), 0), "
            "SUM(done_at IS NULL), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) "
            "FROM requests GROUP BY model ORDER BY model"
        )
        return [Totals(*row) for row in rows]

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        self._connection.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of SQLite (disk full, torn file) with the file's name."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise IntegrityError(
                f"cannot use the request log: {error} ({self.path}). Check the disk; replies committed so far are safe."
            ) from error
