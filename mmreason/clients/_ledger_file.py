"""The SQLite file of a ledger: its tables, its version, its transactions, and its errors in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mmreason.types import ConfigError, DataError

APPLICATION_ID = 0x6D6D724C
"""Marks the file as a ledger ("mmrL")."""
VERSION = 1

# `spending` is kept by triggers, so that no sum over all replies is needed and no code path can forget it.
_TIMEOUT_S = 60
"""Seconds that a ledger waits for others who write."""
_TABLES = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, endpoint TEXT NOT NULL, reply TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, cost INTEGER,
    created REAL NOT NULL);
CREATE TABLE owners (id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE batches (
    name TEXT PRIMARY KEY, base_url TEXT NOT NULL, server_id TEXT, owner INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, endpoint TEXT NOT NULL, amount INTEGER,
    state TEXT NOT NULL CHECK (state IN ('in_flight', 'doubtful', 'wasted')),
    owner INTEGER, batch TEXT REFERENCES batches (name), created REAL NOT NULL);
CREATE INDEX attempts_by_key ON attempts (key, state);
CREATE INDEX attempts_by_batch ON attempts (batch) WHERE batch IS NOT NULL;
CREATE TABLE spending (
    state TEXT PRIMARY KEY, requests INTEGER NOT NULL, amount INTEGER NOT NULL, unpriced INTEGER NOT NULL);
INSERT INTO spending VALUES ('paid', 0, 0, 0), ('wasted', 0, 0, 0), ('in_flight', 0, 0, 0), ('doubtful', 0, 0, 0);
CREATE TRIGGER reply_in AFTER INSERT ON replies BEGIN
    UPDATE spending SET requests = requests + 1, amount = amount + coalesce(new.cost, 0),
        unpriced = unpriced + (new.cost IS NULL) WHERE state = 'paid'; END;
CREATE TRIGGER attempt_in AFTER INSERT ON attempts BEGIN
    UPDATE spending SET requests = requests + 1, amount = amount + coalesce(new.amount, 0),
        unpriced = unpriced + (new.amount IS NULL) WHERE state = new.state; END;
CREATE TRIGGER attempt_out AFTER DELETE ON attempts BEGIN
    UPDATE spending SET requests = requests - 1, amount = amount - coalesce(old.amount, 0),
        unpriced = unpriced - (old.amount IS NULL) WHERE state = old.state; END;
CREATE TRIGGER attempt_moved AFTER UPDATE OF state, amount ON attempts BEGIN
    UPDATE spending SET requests = requests - 1, amount = amount - coalesce(old.amount, 0),
        unpriced = unpriced - (old.amount IS NULL) WHERE state = old.state;
    UPDATE spending SET requests = requests + 1, amount = amount + coalesce(new.amount, 0),
        unpriced = unpriced + (new.amount IS NULL) WHERE state = new.state; END;
"""


class LedgerFile:
    """An open ledger file, for the threads of one process.

    Args: path: made, with its tables, if it isn't there.

    Raises:
        DataError: the file is damaged, of another program, or of a newer version.
        ConfigError: no file can be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"the ledger {path} can't be opened: {error}") from None
        try:
            self._prepare()
        except BaseException:
            self.db.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction with the write lock; nothing in it waits for anything but the disk."""
        with self.reading():
            if self.db.in_transaction:
                yield
                return
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """The connection for this thread alone; SQLite's errors as DataError."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"the ledger {self.path} was opened before a fork: open it in the child")
        with self._mutex, self._explained():
            yield

    def close(self) -> None:
        with self._mutex:
            self.db.close()

    def _prepare(self) -> None:
        with self._explained():
            self.db.execute("BEGIN")  # both as they are at one moment, whoever makes the tables meanwhile
            try:
                (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                (application,) = self.db.execute("PRAGMA application_id").fetchone()
            finally:
                self.db.execute("COMMIT")
            if application != APPLICATION_ID and (application or tables):
                raise DataError(
                    f"{self.path} is an SQLite file of another program, not a ledger: name another file", path=self.path
                )
            self._write_ahead()
            self.db.execute("PRAGMA synchronous = NORMAL")
        with self.transaction():
            (version,) = self.db.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise DataError(
                    f"{self.path} was written by a newer mmreason (ledger version {version}, known here: {VERSION}): "
                    "upgrade, or name another file",
                    path=self.path,
                )
            if version == 0:
                for statement in _statements(_TABLES):
                    self.db.execute(statement)
                self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self.db.execute(f"PRAGMA user_version = {VERSION}")

    def _write_ahead(self) -> None:
        """Switch to write-ahead logging. SQLite doesn't wait for others there: whoever opens the same new file at the
        same moment finds it locked at once."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self.db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            advice = "make room and permission there"
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                advice = "it is damaged or no ledger; name another file, or restore it (sqlite3 FILE .recover)"
            elif "locked" in str(error):
                advice = "another program keeps it locked"
            raise DataError(f"the ledger {self.path} can't be used ({error}): {advice}", path=self.path) from None


def _statements(script: str) -> Iterator[str]:
    """The single statements of a script (`executescript` would end the transaction around it)."""
    held = ""
    for line in script.splitlines():
        held += line + "\n"
        if sqlite3.complete_statement(held):
            yield held
            held = ""
