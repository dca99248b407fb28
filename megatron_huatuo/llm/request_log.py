"""Every request and reply in SQLite: the cache that makes a run resumable, and the ledger of what was spent.

Each task writes a log of its own, since SQLite cannot be shared between machines; `fold_logs` moves them into the log of
all runs, which tasks only read. Invariant: a reply is committed before anyone sees it, so no paid call is ever repeated, whatever is killed. A request
is noted before it is sent: after a kill the ledger knows how many replies may have been paid for and lost. Commits go
to the kernel, not through to the disk: they survive the death of the process at any moment, while a power cut may cost
the last seconds (a flush for each reply would take 7 ms on a busy disk, and halt all other requests meanwhile).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.lock import exclusive

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  key TEXT NOT NULL, attempt INTEGER NOT NULL, model TEXT NOT NULL, sent_at REAL NOT NULL, done_at REAL,
  content TEXT, finish_reason TEXT, prompt_tokens INTEGER, completion_tokens INTEGER,
  counted INTEGER, log TEXT NOT NULL, PRIMARY KEY (key, attempt, log)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (reason TEXT, count INTEGER NOT NULL, log TEXT NOT NULL, PRIMARY KEY (reason, log));
CREATE TABLE IF NOT EXISTS unread (model TEXT NOT NULL, replies INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, log TEXT NOT NULL, PRIMARY KEY (model, log));
CREATE TABLE IF NOT EXISTS log (id TEXT NOT NULL);
INSERT INTO log SELECT lower(hex(randomblob(8))) WHERE NOT EXISTS (SELECT 1 FROM log);
"""
_FIND = """SELECT content, finish_reason, prompt_tokens, completion_tokens, counted FROM requests
WHERE key = ? AND attempt = ? AND done_at IS NOT NULL LIMIT 1"""
_TOTALS = """SELECT model, SUM(replies), SUM(uncounted), SUM(unanswered), SUM(unread), SUM(prompt), SUM(completion) FROM (
SELECT model, COUNT(done_at) AS replies, COALESCE(SUM(counted = 0), 0) AS uncounted, SUM(done_at IS NULL) AS unanswered,
  0 AS unread, COALESCE(SUM(prompt_tokens), 0) AS prompt, COALESCE(SUM(completion_tokens), 0) AS completion
  FROM requests GROUP BY model
UNION ALL SELECT model, 0, 0, 0, SUM(replies), SUM(prompt_tokens), SUM(completion_tokens) FROM unread GROUP BY model
) GROUP BY model ORDER BY model"""


class Reply(NamedTuple):
    """One completion; content is "" when it gave none. `counted`: the endpoint counted the tokens itself."""

    content: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    counted: bool = True


class Totals(NamedTuple):
    """Sums over one model's requests. unread: replies that were no use but counted their tokens: they are paid too."""

    model: str
    replies: int
    uncounted: int
    unanswered: int
    unread: int
    prompt_tokens: int
    completion_tokens: int


class RequestLog:
    """The request log of one task. Used by one process at a time."""

    def __init__(self, path: str | os.PathLike[str], known: str | os.PathLike[str] | None = None) -> None:
        """Open or create. known: the log of all earlier runs, only read, and by nobody written meanwhile.

        Raises: IntegrityError when a file is no request log.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # autocommit: every statement is its own transaction, in the write-ahead log before execute() returns.
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        self._readers = [self._connection]
        try:
            with self._named():
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.executescript(_SCHEMA)
                (self._id,) = self._connection.execute("SELECT id FROM log").fetchone()
            if known is not None and Path(known).exists():
                # immutable: no locks and no shared memory, which network file systems may lack.
                address = f"{Path(known).absolute().as_uri()}?mode=ro&immutable=1"
                self._readers.append(sqlite3.connect(address, uri=True))
        except IntegrityError:
            self.close()
            raise

    def find(self, key: str, attempt: int) -> Reply | None:
        """The committed reply, or None."""
        with self._named():
            for connection in self._readers:
                if row := connection.execute(_FIND, (key, attempt)).fetchone():
                    return Reply(row[0], row[1], row[2], row[3], bool(row[4]))
        return None

    def note_sent(self, key: str, attempt: int, model: str) -> None:
        """Note a request that is about to be sent."""
        with self._named():
            self._connection.execute(
                "INSERT OR IGNORE INTO requests (key, attempt, model, sent_at, log) VALUES (?, ?, ?, ?, ?)",
                (key, attempt, model, time.time(), self._id),
            )

    def note_reply(self, key: str, attempt: int, reply: Reply) -> None:
        """Commit a reply."""
        with self._named():
            self._connection.execute(
                "UPDATE requests SET done_at = ?, content = ?, finish_reason = ?, prompt_tokens = ?, "
                "completion_tokens = ?, counted = ? WHERE key = ? AND attempt = ? AND log = ?",
                (time.time(), *reply, key, attempt, self._id),
            )

    def note_unread(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of a reply that cannot be used; the request stays without a reply."""
        with self._named():
            self._connection.execute(
                "INSERT INTO unread VALUES (?, 1, ?, ?, ?) ON CONFLICT (model, log) DO UPDATE SET replies = replies + 1, "
                "prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?",
                (model, prompt_tokens, completion_tokens, self._id, prompt_tokens, completion_tokens),
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
                "INSERT INTO failures VALUES (?, 1, ?) ON CONFLICT (reason, log) DO UPDATE SET count = count + 1",
                (reason, self._id),
            )

    def sums(self) -> tuple[list[Totals], dict[str, int]]:
        """(sums by model, failed tries by reason) over all runs."""
        return _sums(self._connection)

    def take_in(self, path: Path) -> None:
        """Copy all requests and failures of another log; doing it twice changes nothing."""
        RequestLog(path).close()  # one that was killed while it was created gets its tables
        with self._named():
            self._connection.execute("ATTACH DATABASE ? AS other", (str(path),))
            self._connection.execute("BEGIN")
            for table in ("requests", "failures", "unread"):
                self._connection.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM other.{table}")
            self._connection.execute("COMMIT")
            self._connection.execute("DETACH DATABASE other")

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        for connection in self._readers:
            connection.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of SQLite (disk full, torn file) with the file's name."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise IntegrityError(
                f"cannot use the request log: {error} ({self.path}). Check the disk; replies committed so far are safe. "
                "If it is no request log, move it away."
            ) from error


def peek(path: Path) -> tuple[list[Totals], dict[str, int]]:
    """The sums of a log that another process of this machine may be writing; empty where there is none to read."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(address, uri=True)) as connection:
        return _sums(connection)
    return [], {}


def _sums(connection: sqlite3.Connection) -> tuple[list[Totals], dict[str, int]]:
    totals = [Totals(*row) for row in connection.execute(_TOTALS)]
    return totals, dict(connection.execute("SELECT reason, SUM(count) FROM failures GROUP BY reason ORDER BY reason"))


def known_log(folder: Path) -> Path:
    """The log of all runs below the folder of an output's requests."""
    return folder / "known.sqlite"


def task_log(folder: Path, rank: int) -> Path:
    """The log that task `rank` writes."""
    return folder / f"task-{rank:05d}.sqlite"


def fold_logs(folder: Path) -> None:
    """Move what tasks logged into the log of all runs. Killed at any moment, the next call finishes the work.

    Raises: DataError when a task is still writing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = RequestLog(known_log(folder))
    try:
        for path in sorted(folder.glob("task-*.sqlite")):
            with exclusive(path):
                known.take_in(path)
                for leftover in folder.glob(f"*{path.name}*"):  # write-ahead log and lock file too
                    leftover.unlink(missing_ok=True)
    finally:
        known.close()


def read_totals(requests: Path) -> tuple[list[Totals], dict[str, int]]:
    """(sums by model, failed tries by reason) of all runs. Raises DataError while a task is writing its log."""
    fold_logs(requests)
    with closing(RequestLog(known_log(requests))) as log:
        return log.sums()
