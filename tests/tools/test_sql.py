"""The sql tool: right answers, and attacks against its database, its files and its host."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmreason.tools.sql import SqlTool
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolResult
from mmreason.types import ConfigError, DataError

SALES = [
    {"region": "north", "amount": 3, "note": "a|b"},
    {"region": "south", "amount": 4.5, "note": None},
    {"region": "north", "amount": 2, "note": "two\nlines"},
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", [(i, f"item {i}", i / 4) for i in range(1000)])
        connection.execute("CREATE VIEW cheap AS SELECT name FROM items WHERE price < 1")
        connection.execute("CREATE TABLE log (text TEXT)")
        connection.execute("CREATE TRIGGER spy AFTER INSERT ON items BEGIN INSERT INTO log VALUES ('x'); END")
    connection.close()
    return path


def run(tool: SqlTool, query: str, timeout_s: float = 5.0) -> ToolResult:
    return Toolbox([tool], timeout_s=timeout_s).run(ToolCall("sql", {"query": query}))


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT region, sum(amount) AS s FROM sales GROUP BY 1", "region | s\nnorth | 5.0\nsouth | 4.5"),
        ("select note from sales;", "note\na\\|b\nNULL\ntwo\\nlines"),
        ("SELECT * FROM sales WHERE amount > 100", "region | amount | note\n(no rows)"),
        ("WITH RECURSIVE t(x) AS (SELECT 1 UNION SELECT x + 1 FROM t LIMIT 4) SELECT count(*) FROM t", "count(*)\n4"),
        ("/* a comment */ SELECT x'00ff', 1e999, 'é中'", "x'00ff' | 1e999 | 'é中'\nx'00ff' | inf | é中"),
        ("SELECT value FROM json_each('[7, 8]')", "value\n7\n8"),
        ("SELECT rank() OVER (ORDER BY amount) AS r FROM sales", "r\n1\n2\n3"),
        ("SELECT name FROM sqlite_master", "name\nsales"),
        ("SELECT replace(upper(region), 'N', 'M') FROM sales LIMIT 1", "replace(upper(region), 'N', 'M')\nMORTH"),
    ],
)  # fmt: skip
def test_answers(query: str, text: str) -> None:
    result = run(SqlTool({"sales": SALES}), query)
    assert (result.error, result.content) == (None, text)


def test_rows_and_cells_are_cut_with_a_note() -> None:
    tool = SqlTool({"t": {"n": list(range(100)), "s": ["x" * 300] * 100}}, max_rows=2)
    lines = run(tool, "SELECT * FROM t").content.splitlines()
    assert lines[1] == "0 | " + "x" * 200 + "...(+100)"
    assert lines[3:] == ["(the first 2 rows; there are more)"]
    assert "more" not in run(tool, "SELECT n FROM t LIMIT 2").content


def test_errors_help() -> None:
    tool = SqlTool({"sales": SALES})
    result = run(tool, "SELECT total FROM sales")
    assert result.error == "failed"
    assert "no such column: total" in result.content and "sales(region TEXT, amount REAL, note TEXT)" in result.content
    assert 'near "FORM"' in run(tool, "SELECT * FORM sales").content


ATTACKS = {
    "stacked": "SELECT 1; DROP TABLE items",
    "insert": "INSERT INTO items VALUES (5000, 'x', 1)",
    "insert returning": "INSERT INTO items VALUES (5000, 'x', 1) RETURNING *",
    "writable cte": "WITH x AS (SELECT 5000) INSERT INTO items SELECT *, 'x', 1 FROM x",
    "update": "UPDATE items SET price = 0",
    "delete": "DELETE FROM items",
    "replace": "REPLACE INTO items VALUES (1, 'x', 1)",
    "upsert": "INSERT INTO items VALUES (1, 'x', 1) ON CONFLICT DO UPDATE SET price = 0",
    "drop": "DROP TABLE items",
    "create": "CREATE TABLE mine (a)",
    "create as": "CREATE TEMP TABLE mine AS SELECT * FROM items",
    "temp view": "CREATE TEMP VIEW items AS SELECT 1",
    "trigger": "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END",
    "index": "CREATE INDEX i ON items (name)",
    "alter": "ALTER TABLE items RENAME TO gone",
    "attach": "ATTACH DATABASE '{folder}/mine.sqlite' AS mine",
    "attach memory": "ATTACH ':memory:' AS mine",
    "attach uri": "ATTACH 'file:{database}?mode=rw' AS mine",
    "detach": "DETACH main",
    "vacuum into": "VACUUM INTO '{folder}/copy.sqlite'",
    "vacuum": "VACUUM",
    "pragma": "PRAGMA query_only = OFF",
    "pragma schema": "PRAGMA writable_schema = ON",
    "pragma function": "SELECT * FROM pragma_query_only",
    "pragma temp": "PRAGMA temp_store_directory = '{folder}'",
    "begin": "BEGIN EXCLUSIVE",
    "savepoint": "SAVEPOINT s",
    "commit": "COMMIT",
    "analyze": "ANALYZE",
    "load_extension": "SELECT load_extension('{folder}/evil.so')",
    "fts3 tokenizer": "SELECT hex(fts3_tokenizer('simple'))",
    "fts3 tokenizer pointer": "SELECT fts3_tokenizer('mine', x'4141414141414141')",
    "virtual table": "CREATE VIRTUAL TABLE v USING fts5(text)",
    "zeroblob": "SELECT length(zeroblob(1000000000))",
    "randomblob": "SELECT length(randomblob(1000000000))",
    "cte bomb": "WITH RECURSIVE t(x) AS (SELECT zeroblob(100000000) UNION ALL SELECT x FROM t) SELECT count(*) FROM t",
    "hex": "SELECT " + "hex(" * 16 + "'aaaaaaaaaaaa'" + ")" * 16,
    "replace bomb": "SELECT replace(printf('%.*c', 100000, 'a'), 'a', printf('%.*c', 100000, 'b'))",
    "memory": (
        "WITH RECURSIVE t(x, y) AS (SELECT 1, 'a' UNION ALL SELECT x + 1, printf('%.*c', 90000, 'x') || x FROM t) "
        "SELECT * FROM t ORDER BY y"
    ),
    "wide rows": "SELECT " + ", ".join(["printf('%.*c', 150000, 'x')"] * 190) + " FROM items",
    "dbstat": "SELECT * FROM dbstat",
    "sqlite_log": "SELECT sqlite_log(1, 'x')",
    "random": "SELECT random()",
    "no statement": "-- nothing",
    "long query": "SELECT '" + "a" * 30_000 + "'",
}  # fmt: skip
FAILED = {
    "schema": "UPDATE sqlite_master SET sql = 'x'",
    "readfile": "SELECT readfile('/etc/passwd')",
    "writefile": "SELECT writefile('{folder}/mine', 'x')",
    "edit": "SELECT edit('x', 'id')",
    "dbpage": "SELECT * FROM sqlite_dbpage",
    "dot command": ".shell id",
    "nul": "SELECT 1\0; DROP TABLE items",
    "deep": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "union bomb": " UNION ALL ".join(["SELECT 1"] * 900),
}
ENDLESS = {
    "recursion": "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t",
    "distinct recursion": "WITH RECURSIVE t(x) AS (SELECT 1 UNION SELECT x + 1 FROM t) SELECT max(x) FROM t",
    "product": "SELECT count(*) FROM items a, items b, items c, items d",
    "one function": "SELECT printf('%.*c', 1000000000, 'x')",
}


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", [*ATTACKS, *FAILED])
def test_attack(name: str, database: Path) -> None:
    before = digest(database.parent)
    query = (ATTACKS | FAILED)[name].format(folder=database.parent, database=database)
    result = run(SqlTool(database=database), query)
    assert result.error == ("refused" if name in ATTACKS else "failed"), result.content
    assert result.seconds < 4
    assert digest(database.parent) == before


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_queries_end(name: str, database: Path) -> None:
    result = run(SqlTool(database=database), ENDLESS[name], timeout_s=0.5)
    # Out of memory before it is out of time: SQLite refuses, or its one function gives NULL.
    null = name == "one function" and result.content.endswith("\nNULL")
    assert null or result.error in ("timeout", "refused")
    assert result.seconds < 3


def test_views_are_read(database: Path) -> None:
    assert run(SqlTool(database=database), "SELECT * FROM cheap LIMIT 1").content == "name\nitem 0"


def test_a_view_with_a_forbidden_function_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("CREATE VIEW bad AS SELECT randomblob(100) FROM t")
    connection.close()
    assert run(SqlTool(database=tmp_path / "a.sqlite"), "SELECT * FROM bad").error == "refused"


def test_the_description_writes_names_as_queries_must() -> None:
    tool = SqlTool({"t": [{"date of sale": "2020", "n": 1}]})
    assert tool.description.endswith('Tables: t("date of sale" TEXT, n INTEGER)')


def test_files_and_types(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("code,n,x,empty\n007,1,1.5,\n010,-2,2e3,\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"k": 1, "deep": [1, 2]}\n{"k": true, "more": "é"}\n', encoding="utf-8")
    tool = SqlTool({"a": tmp_path / "a.csv", "b": str(tmp_path / "b.jsonl")})
    assert "a(code TEXT, n INTEGER, x REAL, empty), b(k INTEGER, deep TEXT, more TEXT)" in tool.description
    assert (
        run(tool, "SELECT * FROM a").content == "code | n | x | empty\n007 | 1 | 1.5 | NULL\n010 | -2 | 2000.0 | NULL"
    )
    assert run(tool, "SELECT * FROM b").content == "k | deep | more\n1 | [1, 2] | NULL\n1 | NULL | é"


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("a\ncaf\xe9\n".encode("latin-1"))
    (tmp_path / "not.sqlite").write_text("hello " * 200)
    with pytest.raises(DataError, match=r"latin\.csv:2: isn't valid UTF-8"):
        SqlTool({"t": tmp_path / "latin.csv"})
    with pytest.raises(DataError, match="no readable SQLite database"):
        SqlTool(database=tmp_path / "not.sqlite")
    with pytest.raises(DataError, match="there is no file"):
        SqlTool(database=tmp_path / "none.sqlite")
    with pytest.raises(DataError, match="several columns"):
        SqlTool({"t": [{"a": 1, "A": 2}]})
    with pytest.raises(DataError, match="more than 64 bits"):
        SqlTool({"t": [{"a": 1 << 70}]})
    with pytest.raises(DataError, match=r"\[1, 2\] cells"):
        SqlTool({"t": {"a": [1], "b": [1, 2]}})
    with pytest.raises(DataError, match="no columns"):
        SqlTool({"t": []})
    with pytest.raises(ConfigError, match="no table name"):
        SqlTool({"t; drop": SALES})
    with pytest.raises(ConfigError, match="either tables"):
        SqlTool()
    with pytest.raises(ConfigError, match="either tables"):
        SqlTool({"t": SALES}, database="x")


def test_calls_of_many_threads_and_of_a_fork() -> None:
    tool = SqlTool({"t": {"n": list(range(50))}})
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: run(tool, f"SELECT n FROM t WHERE n = {n}").content, range(24)))
    assert found == [f"n\n{n}" for n in range(24)]
    child = multiprocessing.get_context("fork").Process(target=gc.collect)  # ends as a forked worker does
    child.start()
    child.join()
    assert run(tool, "SELECT max(n) FROM t").content == "max(n)\n49"


def test_the_stored_tables_go_with_the_tool() -> None:
    tool = SqlTool({"t": SALES})
    path = tool._path
    assert path.is_file()
    del tool
    gc.collect()
    assert not path.parent.exists()


def test_a_call_is_quick() -> None:
    tool = SqlTool({"t": SALES})
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert run(tool, "SELECT 1").error is None
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
