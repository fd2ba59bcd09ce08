"""What black boxes have answered, and what that cost: one SQLite file a model, kept whatever happens to a run."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd.errors import StoreError

FOLDER = "answers"
SETUP = (
    "PRAGMA journal_mode = WAL",  # with the next line: a kill loses nothing, a power cut the last seconds at most
    "PRAGMA synchronous = NORMAL",
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (one INTEGER PRIMARY KEY CHECK (one = 1), requests INTEGER, cost REAL)",
    "INSERT OR IGNORE INTO spent VALUES (1, 0, 0.0)",
)
BATCH = 500  # keys in one query: SQLite takes so many variables in every build


def key(request: Mapping[str, object]) -> str:
    """The SHA-256 of a request's canonical JSON: equal questions have one answer."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Answers:
    """The answers of one model, by the keys of the requests, and its bill; safe among threads and processes.

    Every change is a transaction that outlives the process. ``StoreError`` where the file cannot be used.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / FOLDER / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.sqlite"
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot make {self.path} ({error}); choose another folder with --store") from error
        with self._using() as change:
            for statement in SETUP:
                change(statement)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Those of ``keys`` that are answered, with their answers."""
        found: dict[str, Any] = {}
        for i in range(0, len(keys), BATCH):
            part = keys[i : i + BATCH]
            places = ",".join("?" * len(part))
            with self._using():
                rows = self._db.execute(f"SELECT key, answer FROM answers WHERE key IN ({places})", part).fetchall()
            found |= {name: json.loads(answer) for name, answer in rows}
        return found

    def spent(self) -> tuple[int, float]:
        """Requests that were or may have been billed, and their cost."""
        with self._using():
            requests, cost = self._db.execute("SELECT requests, cost FROM spent").fetchone()
        return int(requests), float(cost)

    def reserve(self, cost: float, max_requests: int | None, max_cost: float | None) -> bool:
        """Book one request of at most ``cost`` before it is made; false, and nothing booked, where that is too much.

        A process that dies meanwhile leaves it booked: what was asked may be billed.
        """
        most = (float("inf") if limit is None else limit for limit in (max_requests, max_cost))
        with self._using() as change:
            return change(
                "UPDATE spent SET requests = requests + 1, cost = cost + ? WHERE requests + 1 <= ? AND cost + ? <= ?",
                (cost, next(most), cost, next(most)),
            )

    def release(self, cost: float) -> None:
        """Take back a booking whose request was refused, and so costs nothing."""
        with self._using() as change:
            change("UPDATE spent SET requests = requests - 1, cost = cost - ?", (cost,))

    def keep(self, key: str, answer: object, booked: float = 0.0, cost: float = 0.0) -> None:
        """Keep an answer, and correct what was booked for it to what it did cost."""
        with self._using() as change:
            # All of it in ASCII: half a character, which some endpoints list as a token, has no UTF-8 to be written in.
            change("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
            change("UPDATE spent SET cost = cost + ?", (cost - booked,))

    @contextmanager
    def _using(self) -> Iterator[Callable[..., bool]]:
        """Within: a function that changes rows, and says whether it did; all of it happens or nothing."""

        def change(statement: str, values: tuple[object, ...] = ()) -> bool:
            return self._db.execute(statement, values).rowcount == 1

        try:
            with self._lock, self._db:  # as a context, a connection commits or rolls back
                yield change
        except sqlite3.Error as error:
            raise StoreError(
                f"the answers in {self.path} cannot be read or written ({error}); free some space, or move a damaged "
                "file away: what it holds would then be asked again"
            ) from error
