"""One query in a process of its own: `python -I -S _sql_worker.py`, a JSON request on stdin, a JSON reply on stdout.

Started by `sql.py`. Standard library only; it imports nothing of mmreason, so that it is up in some 20 ms. What keeps a
query within bounds, each on its own:

- the authorizer: SELECT, columns of the database's own tables, functions of a list; all else is refused;
- the file is opened read-only, with `query_only`;
- limits of SQLite on lengths, and of the kernel on memory, file size, CPU time and open files;
- the progress handler ends the query at the deadline, the parent kills the process a little later.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from typing import Any

FUNCTIONS = frozenset({
    "->", "->>", "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "avg", "ceil", "ceiling", "char",
    "coalesce", "concat", "concat_ws", "cos", "cosh", "count", "cume_dist", "current_date", "current_time",
    "current_timestamp", "date", "datetime", "degrees", "dense_rank", "exp", "first_value", "floor", "format", "glob",
    "group_concat", "hex", "ifnull", "iif", "instr", "json", "json_array", "json_array_length", "json_extract",
    "json_group_array", "json_group_object", "json_insert", "json_object", "json_patch", "json_quote", "json_remove",
    "json_replace", "json_set", "json_type", "json_valid", "julianday", "lag", "last_value", "lead", "length", "like",
    "likelihood", "likely", "ln", "log", "log10", "log2", "lower", "ltrim", "max", "min", "mod", "nth_value", "ntile",
    "nullif", "octet_length", "percent_rank", "pi", "pow", "power", "printf", "quote", "radians", "rank", "replace",
    "round", "row_number", "rtrim", "sign", "sin", "sinh", "soundex", "sqrt", "strftime", "string_agg", "substr",
    "substring", "sum", "tan", "tanh", "time", "timediff", "total", "trim", "trunc", "typeof", "unhex", "unicode",
    "unixepoch", "unlikely", "upper",
})  # fmt: skip
"""Functions a query may call: none that reads or writes files, loads code, or makes long blobs."""
OWN_TABLES = frozenset({"sqlite_master", "sqlite_schema", "json_each", "json_tree"})
MAX_LENGTH = 200_000
"""Bytes of a text, a blob or a row."""
MAX_SQL = 20_000
MAX_CELL = 200
MEMORY_BYTES = 512 << 20
SCRATCH_BYTES = 256 << 20
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_LENGTH,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_SQL,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_ACTIONS = {
    getattr(sqlite3, name): name.removeprefix("SQLITE_").replace("_", " ")
    for name in dir(sqlite3)
    if name.startswith(("SQLITE_CREATE_", "SQLITE_DROP_", "SQLITE_ALTER_"))
} | {
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
    sqlite3.SQLITE_DELETE: "DELETE",
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_TRANSACTION: "a transaction",
    sqlite3.SQLITE_SAVEPOINT: "a savepoint",
    sqlite3.SQLITE_REINDEX: "REINDEX",
    sqlite3.SQLITE_ANALYZE: "ANALYZE",
}


class Authorizer:
    """What SQLite asks for each step of a query while it compiles it. refused: what was denied first, in words."""

    def __init__(self, tables: frozenset[str]) -> None:
        self.tables = tables | OWN_TABLES
        self.refused: str | None = None

    def __call__(self, action: int, first: str | None, second: str | None, base: str | None, source: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            # A read of no column (count(*)) is reported for the names of common table expressions, too.
            if not second or (first is not None and first.lower() in self.tables):
                return sqlite3.SQLITE_OK
            what = f"the table {first!r}"
        elif action == sqlite3.SQLITE_FUNCTION:
            if second is not None and second.lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            what = f"the function {second}()"
        elif first in ("sqlite_master", "sqlite_temp_master"):
            what = "a change of the schema"
        else:
            what = _ACTIONS.get(action, "this statement")
        self.refused = self.refused or what
        return sqlite3.SQLITE_DENY


def answer(request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Run the query. Request: uri, sql, max_rows. Reply: the rows as text; or error (its kind) and message."""
    connection = sqlite3.connect(request["uri"], uri=True, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")  # counted by the limit on memory, and nothing is left on the disk
    names = frozenset(row[0].lower() for row in connection.execute("SELECT name FROM sqlite_master"))
    # Their first use writes to the schema, which the authorizer refuses.
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    authorizer = Authorizer(names)
    connection.set_authorizer(authorizer)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        cursor = connection.execute(request["sql"])
        if cursor.description is None:
            return {"error": "refused", "message": "only one SELECT statement is run"}
        rows = cursor.fetchmany(request["max_rows"] + 1)
    except (sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, ValueError) as error:
        return failure(error, authorizer, deadline)
    columns = [column[0] for column in cursor.description]
    return {"text": as_text(columns, rows[: request["max_rows"]], len(rows) > request["max_rows"])}


def failure(error: Exception, authorizer: Authorizer, deadline: float) -> dict[str, Any]:
    """The reply for an error of SQLite."""
    text = str(error)
    if authorizer.refused is not None:
        message = f"{authorizer.refused} is refused: only SELECT on the database's own tables is run"
        return {"error": "refused", "message": message}
    if "one statement at a time" in text:
        return {"error": "refused", "message": "only one statement is run at a time"}
    if time.monotonic() > deadline:
        return {"error": "timeout", "message": "the query was not done in time"}
    if isinstance(error, MemoryError) or "out of memory" in text or "disk is full" in text:
        return {"error": "refused", "message": "the query needs more memory than it may have"}
    if "too big" in text:
        return {"error": "refused", "message": f"a text, blob or row of the query is longer than {MAX_LENGTH} bytes"}
    return {"error": "failed", "message": text}


def as_text(columns: list[str], rows: list[tuple[Any, ...]], more: bool) -> str:
    """A header, a line for each row, cells parted by ` | `."""
    lines = [" | ".join(map(cell, values)) for values in (columns, *rows)]
    if more:
        lines.append(f"(the first {len(rows)} rows; there are more)")
    elif not rows:
        lines.append("(no rows)")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value on one line; `|` and line ends in it are escaped, what is too long is cut with a note."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        value = f"x'{value.hex()}'"
    text = value if isinstance(value, str) else repr(value)
    if len(text) > MAX_CELL:
        text = f"{text[:MAX_CELL]}...(+{len(text) - MAX_CELL})"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "\\r").replace("\n", "\\n")


def main() -> None:
    start = time.monotonic()
    request = json.load(sys.stdin)
    seconds = request["timeout_s"]
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, SCRATCH_BYTES),
        (resource.RLIMIT_CPU, int(seconds) + 2),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    json.dump(answer(request, start + seconds), sys.stdout)


if __name__ == "__main__":
    main()
