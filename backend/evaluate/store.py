"""The SQLite file of a run, which holds every finished item as rows of plain values and arrays."""

import base64
import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backend.errors import UserError

Row = dict[str, Any]  # column to str, int, float, bool, None, or a numpy array
State = Literal["done", "skipped", "failed"]

RUN_FILE = "run.sqlite"
_ARRAY = "__array__"
_FOLDERS = re.compile(r"(?<![\w.])(~|\.{0,2})/([^/\s\"',\]]+/)*")  # the path before a file's name
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
    number INTEGER PRIMARY KEY, started TEXT NOT NULL, engine TEXT NOT NULL, versions TEXT NOT NULL,
    seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    key TEXT PRIMARY KEY, state TEXT NOT NULL, rows TEXT NOT NULL, reason TEXT NOT NULL, seconds REAL NOT NULL,
    worker TEXT NOT NULL);
"""


def encode_rows(rows: Sequence[Row]) -> str:
    """Return rows as JSON; NaN and infinity are refused, because tables cannot show them."""
    return json.dumps(list(rows), default=_plain_value, allow_nan=False)


def decode_rows(text: str) -> list[Row]:
    return json.loads(text, object_hook=_read_array)


def is_timing(column: str) -> bool:
    """Return whether a column holds seconds, which differ from run to run."""
    return column == "seconds" or column.endswith("_seconds")


def without_timings(row: Row) -> Row:
    """Return the part of a row that must be equal in two runs."""
    return {column: value for column, value in row.items() if not is_timing(column)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        content = base64.b64encode(value.tobytes()).decode()
        return {_ARRAY: content, "dtype": str(value.dtype), "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a row cannot hold a {type(value).__name__}")


def _read_array(value: dict[str, Any]) -> Any:
    if _ARRAY not in value:
        return value
    flat = np.frombuffer(base64.b64decode(value[_ARRAY]), dtype=value["dtype"])
    return flat.reshape(value["shape"])


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    key: str
    state: State  # the picture is the reason for `skipped`; `failed` is tried again when the run is resumed
    rows: str  # as `encode_rows` writes them
    reason: str  # why it was skipped or failed, one sentence; empty if it is done
    seconds: float
    worker: str


def make_run_folder(folder: Path) -> None:
    """Create a run's folder, or raise a UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise UserError("The run's folder cannot be used.", "Choose another folder with --out.") from None


class Store:
    """A run's file, open for writing, in a folder that is created if necessary."""

    def __init__(self, folder: Path) -> None:
        make_run_folder(folder)
        try:
            # The app continues a run in whichever thread is free, one at a time.
            self._connection = sqlite3.connect(folder / RUN_FILE, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error):
            raise UserError("The run's folder cannot be used.", "Choose another folder with --out.") from None

    def close(self) -> None:
        self._connection.close()

    def about(self) -> dict[str, Any]:
        """Return the description from the start of the run; empty for a new one."""
        rows = self._connection.execute("SELECT key, value FROM about ORDER BY key")
        return {key: json.loads(value) for key, value in rows}

    def describe(self, about: dict[str, Any]) -> None:
        """Store the description of a new run, in one transaction."""
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO about VALUES (?, ?)", [(key, json.dumps(value)) for key, value in about.items()]
            )

    def begin_session(self, started: str, engine: str, versions: dict[str, str]) -> int:
        """Store a new session of work on the run, and return its number."""
        cursor = self._connection.execute(
            "INSERT INTO sessions (started, engine, versions, seconds) VALUES (?, ?, ?, 0)",
            (started, engine, json.dumps(versions, sort_keys=True)),
        )
        return int(cursor.lastrowid or 0)

    def sessions(self) -> list[dict[str, Any]]:
        rows = self._connection.execute("SELECT started, engine, versions, seconds FROM sessions ORDER BY number")
        return [
            {"started": started, "engine": engine, "versions": json.loads(versions), "seconds": seconds}
            for started, engine, versions, seconds in rows
        ]

    def add(self, outcome: Outcome, session: int, seconds: float) -> None:
        """Store an item and the seconds that the session has taken so far.

        Raises:
            UserError: The file cannot be written; what it holds is safe.
        """
        try:
            with self._connection:
                self._connection.execute("BEGIN")
                self._connection.execute(
                    "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
                    (outcome.key, outcome.state, outcome.rows, outcome.reason, outcome.seconds, outcome.worker),
                )
                self._connection.execute("UPDATE sessions SET seconds = ? WHERE number = ?", (seconds, session))
        except sqlite3.Error:
            raise UserError(
                "A finished item could not be written to the run's file.",
                "Check that the disk has room and that nothing else uses this run, then resume it.",
            ) from None

    def finished(self) -> set[str]:
        """Return the keys of the items that are done or skipped."""
        return {key for (key,) in self._connection.execute("SELECT key FROM items WHERE state != 'failed'")}

    def rows(self) -> Iterator[Row]:
        """Yield all rows, in the order of the items' keys."""
        for (text,) in self._connection.execute("SELECT rows FROM items WHERE state = 'done' ORDER BY key"):
            yield from decode_rows(text)

    def reasons(self, state: State) -> list[tuple[str, str]]:
        """Return key and reason of the items in a state, sorted by key."""
        return list(self._connection.execute("SELECT key, reason FROM items WHERE state = ? ORDER BY key", (state,)))

    def count(self, state: State) -> int:
        return int(self._connection.execute("SELECT count(*) FROM items WHERE state = ?", (state,)).fetchone()[0])


def read_rows(folder: Path) -> Iterator[Row]:
    """Yield all rows of the run in a folder."""
    with contextlib.closing(Store(folder)) as store:
        yield from store.rows()


def without_folders(text: str) -> str:
    """Return a text without the folders of file names, because reports are shown to others."""
    return _FOLDERS.sub("", text)
