"""The sql tool: one SELECT on given tables, in SQLite.

A query runs in a process of its own (`_sql_worker.py`, some 20 ms to start), so that no query, whatever it does to
SQLite, can harm or stall the program that called: it is killed at the deadline and has limits on memory and files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmreason.tools._sql_worker import MAX_LENGTH, MAX_SQL
from mmreason.tools.types import ErrorKind, ToolError
from mmreason.types import ConfigError, DataError

Table = str | Path | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""A file (csv, tsv, jsonl, json, parquet), rows, or columns."""

_WORKER = Path(__file__).with_name("_sql_worker.py")
_GRACE_S = 1.0
_MAX_SCHEMA = 2000
_NAME = re.compile(r"[A-Za-z_]\w{0,62}")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})")
_REAL = re.compile(r"[-+]?(?:0|[1-9]\d*)?(?:\.\d+)?(?:[eE][-+]?\d{1,2})?(?<=\d)")


class SqlTool:
    """SQL queries on given tables, read-only.

    Args:
        tables: name -> file, rows (mappings) or columns. Texts that are all numbers become numbers in columns of files
            without types (csv), except where one has a leading zero.
        database: an SQLite file instead of tables; it is opened read-only.
        max_rows: of a result.

    Raises: ConfigError unless exactly one of tables and database is given, and for a bad table name; DataError for a
        file that can't be read, rows without columns, a cell over 200,000 bytes or an integer over 64 bits.
    """

    name = "sql"

    def __init__(
        self, tables: Mapping[str, Table] | None = None, database: str | Path | None = None, max_rows: int = 50
    ) -> None:
        if (tables is None) == (database is None):
            raise ConfigError("sql needs either tables (name: file or rows) or database (an SQLite file)")
        if max_rows < 1:
            raise ConfigError(f"sql: max_rows must be at least 1, not {max_rows}")
        self.max_rows = max_rows
        if tables is not None:
            self._path = self._store(tables)
            self._uri = f"{self._path.as_uri()}?mode=ro&immutable=1"
        else:
            self._path = Path(str(database)).resolve()
            self._uri = f"{self._path.as_uri()}?mode=ro"
        self._schema = _describe(self._path, self._uri)
        self.description = (
            f"Runs one SQLite SELECT statement, read-only; shows at most {max_rows} rows. Tables: {self._schema}"
        )
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "one SELECT statement"}},
            "required": ["query"],
            "additionalProperties": False,
        }

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """The rows as text: a header, a line each, cells parted by ` | `.

        Raises: ToolError: refused, timeout, or failed with what SQLite says.
        """
        sql = arguments["query"]
        if len(sql) > MAX_SQL:
            raise ToolError("refused", f"the query has {len(sql)} characters; at most {MAX_SQL} are run")
        request = {"uri": self._uri, "sql": sql, "max_rows": self.max_rows, "timeout_s": timeout_s}
        reply = _ask(request, timeout_s + _GRACE_S)
        if "error" in reply:
            kind: ErrorKind = reply["error"]
            hint = f". Tables: {self._schema}" if "no such" in reply["message"] else ""
            message = f"{reply['message']} (limit {timeout_s:g} s)" if kind == "timeout" else reply["message"]
            raise ToolError(kind, message + hint)
        text: str = reply["text"]
        return text

    def _store(self, tables: Mapping[str, Table]) -> Path:
        """An SQLite file of the tables in a private folder, which goes with this object."""
        if not isinstance(tables, Mapping) or not tables:
            raise ConfigError(f"sql: tables maps names to files or rows, as {{sales: sales.csv}}, not {tables!r:.80}")
        folder = tempfile.TemporaryDirectory(prefix="mmreason-sql-")
        # A forked child shares the folder and must not take it away when it ends.
        weakref.finalize(self, _remove, folder, os.getpid())
        path = Path(folder.name) / "tables.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            for name, table in tables.items():
                if _NAME.fullmatch(name) is None or name.lower().startswith("sqlite_"):
                    raise ConfigError(f"sql: {name!r} is no table name: letters, digits and _, not sqlite_...")
                _fill(connection, name, table)
        return path


def _remove(folder: tempfile.TemporaryDirectory[str], owner: int) -> None:
    if os.getpid() == owner:
        folder.cleanup()
    else:
        folder._finalizer.detach()  # type: ignore[attr-defined]


def _ask(request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The worker's reply. Raises: ToolError where it gave none."""
    command = [sys.executable, "-I", "-S", str(_WORKER)]
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise ToolError("timeout", f"the query was not done within {request['timeout_s']:g} s") from None
    try:
        reply: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        # No reply at all: the kernel ended it (memory, CPU time), or SQLite crashed.
        raise ToolError(
            "refused", "the query ended its process; it needs more memory or time than it may have"
        ) from None
    return reply


# --------------------------------------------------------------------------------------------------------------------
# Tables in


def _fill(connection: sqlite3.Connection, name: str, table: Table) -> None:
    rows, typed = _rows(name, table)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        raise DataError(f"sql: the table {name!r} has no columns", reason="empty")
    folded = [str(column).lower() for column in columns]
    twice = next((column for column in columns if folded.count(str(column).lower()) > 1), None)
    if twice is not None:
        raise DataError(f"sql: the table {name!r} has several columns {twice!r}; SQL doesn't tell case apart")
    cells = {column: [_plain(row.get(column), name, str(column)) for row in rows] for column in columns}
    kinds = {}
    for column in columns:
        if not typed:
            cells[column] = _numbers(cells[column])
        kinds[column] = _kind(cells[column])
    quoted = ", ".join(f"{_quote(str(column))} {kinds[column]}".rstrip() for column in columns)
    connection.execute(f"CREATE TABLE {_quote(name)} ({quoted})")
    marks = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO {_quote(name)} VALUES ({marks})", zip(*cells.values(), strict=True))


def _rows(name: str, table: Table) -> tuple[list[Mapping[str, Any]], bool]:
    """The rows of a table, and whether their cells have types already (a csv's don't)."""
    if isinstance(table, (str, Path)):
        from mmreason.data.formats.common import RowError
        from mmreason.data.reader import read_rows, suffix_of

        path, rows = Path(table), []
        for where, row in read_rows(path):
            if isinstance(row, RowError):
                raise DataError(f"sql: table {name!r}: {where}: {row}", path=path, row=where, reason=row.reason)
            rows.append(row)
        return rows, suffix_of(path) not in (".csv", ".tsv")
    if not isinstance(table, Iterable):
        raise ConfigError(f"sql: table {name!r} is a file, a list of rows or columns, not {table!r:.80}")
    if isinstance(table, Mapping):
        if not all(hasattr(column, "__len__") and not isinstance(column, str) for column in table.values()):
            raise ConfigError(f"sql: the columns of table {name!r} must be lists of cells; a row goes into a list")
        lengths = {len(column) for column in table.values()}
        if len(lengths) > 1:
            raise DataError(f"sql: the columns of table {name!r} have {sorted(lengths)} cells; all need as many")
        return [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)], True
    if not all(isinstance(row, Mapping) for row in table):
        raise DataError(f"sql: the rows of table {name!r} must be mappings of column -> cell")
    return list(table), True


def _plain(value: Any, table: str, column: str) -> Any:
    """A cell as SQLite stores it; lists and mappings as JSON."""
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise DataError(f"sql: table {table!r}, column {column!r}: {value} has more than 64 bits; give it as a text")
    if isinstance(value, (list, tuple, Mapping)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if value is not None and not isinstance(value, (int, float, str, bytes)):
        value = str(value)
    if isinstance(value, (str, bytes)) and len(value if isinstance(value, bytes) else value.encode()) > MAX_LENGTH // 2:
        raise DataError(f"sql: table {table!r}, column {column!r}: a cell is longer than {MAX_LENGTH // 2} bytes")
    return value


def _numbers(cells: list[Any]) -> list[Any]:
    """A column of texts as numbers where all of them are, whole numbers before decimals."""
    texts = [cell for cell in cells if cell is not None]
    for pattern, number in ((_INTEGER, int), (_REAL, float)):
        if texts and all(isinstance(text, str) and pattern.fullmatch(text) for text in texts):
            return [None if cell is None else number(cell) for cell in cells]
    return cells


def _kind(cells: Iterable[Any]) -> str:
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds <= {int}:
        return "INTEGER" if kinds else ""
    return "REAL" if kinds <= {int, float} else "TEXT" if kinds <= {str} else ""


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_written(name: str) -> str:
    """A name as a query has to write it: in double quotes unless it is a plain word."""
    return name if _NAME.fullmatch(name) else _quote(name)


def _describe(path: Path, uri: str) -> str:
    """The tables and columns of a database in one line. Raises: DataError where it is none."""
    if not path.is_file():
        raise DataError(f"sql: there is no file {path}", path=path)
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
            tables = [row[0] for row in found if not row[0].startswith("sqlite_")]
            lines = []
            for table in tables:
                columns = connection.execute(f"PRAGMA table_info({_quote(table)})").fetchall()
                shown = ", ".join(f"{_as_written(column[1])} {column[2]}".strip() for column in columns)
                lines.append(f"{_as_written(table)}({shown})")
    except sqlite3.Error as error:
        raise DataError(f"sql: {path} is no readable SQLite database: {error}", path=path) from None
    if not lines:
        raise DataError(f"sql: {path} has no tables", path=path, reason="empty")
    text = ", ".join(lines)
    if len(text) > _MAX_SCHEMA:
        text = f"{text[:_MAX_SCHEMA]} ... ({len(lines)} tables; see sqlite_master)"
    return text
