"""The toolbox, function tools and the registry: right calls, and everything a model or a user may do wrong."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.tools.calculator import Calculator
from mmreason.tools.functions import MAX_OVERDUE, function_tool
from mmreason.tools.registry import TOOLS, load_tools
from mmreason.tools.schemas import ArgumentSchema, sole_text, standard_tool
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolError
from mmreason.types import ConfigError, MMReasonError


class Scripted:
    """A tool that ends as it is told to."""

    name = "scripted"
    description = "Ends as told."

    def __init__(self, ending: str | Exception, parameters: dict[str, Any] | None = None, name: str = "scripted"):
        self.ending, self.name = ending, name
        self.parameters = parameters or {"type": "object"}

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        if isinstance(self.ending, Exception):
            raise self.ending
        return self.ending


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", where: list[str] | None = None) -> str:
    """Tell the weather.

    Args:
        city: name of the
            city
        days (int): days ahead
        unit: of the temperature
    Returns:
        a sentence
    """
    return f"{city} {days!r} {unit} {where}"


BOX = Toolbox([Calculator(), function_tool(weather)])


def test_run_and_schemas() -> None:
    box = BOX
    assert box.names == ["calculator", "weather"]
    assert [schema["function"]["name"] for schema in box.schemas] == box.names
    json.dumps(box.schemas)
    call = ToolCall("calculator", {"expression": "3*4"}, "id-1")
    result = box.run(call)
    assert (result.call, result.content, result.error) == (call, "12", None)
    assert 0 < result.seconds < 1


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (ToolCall("calculater", {}), "unknown_tool", "no tool 'calculater'; the tools are: calculator, weather"),
        (ToolCall("calculater", {}), "unknown_tool", "did you mean calculator?"),
        (ToolCall("", "{oops"), "bad_arguments", "no JSON at line 1, column 2"),
        (ToolCall("", '{"x": 1}'), "bad_arguments", "the call can't be read (other keys)"),
        (ToolCall("calculator", "3*4"), "bad_arguments", "Extra data"),
        (ToolCall("calculator", '{"a": 1, "a": 2}'), "bad_arguments", "the key 'a' stands there twice"),
        (ToolCall("calculator", '{"a": NaN}'), "bad_arguments", "NaN is no JSON"),
        (ToolCall("calculator", "[1]"), "bad_arguments", "a list and no object"),
        (ToolCall("calculator", "[" * 100_000), "bad_arguments", "must be one JSON object"),
        (ToolCall("calculator", {}), "bad_arguments", "'expression' is missing. calculator takes expression (string)"),
        (ToolCall("calculator", {"expresion": "1"}), "bad_arguments", "'expresion' (did you mean expression?)"),
        (ToolCall("calculator", {"expression": 3}), "bad_arguments", "'expression' must be of type string, but is 3"),
        (ToolCall("calculator", {"expression": "\ud800"}), "bad_arguments", "lone surrogates"),
        (ToolCall("calculator", {"expression": "1/0"}), "failed", "division by zero"),
        (ToolCall("calculator", {"expression": "9**9**9"}), "refused", "more than 2000 digits"),
        (ToolCall("weather", {"city": "x", "unit": "K"}), "bad_arguments", "'unit': 'K' is not one of ['C', 'F']"),
        (ToolCall("weather", {"city": "x", "days": True}), "bad_arguments", "'days' must be of type integer"),
        (ToolCall("weather", {"city": "x", "where": [1]}), "bad_arguments", "'where'"),
    ],
)  # fmt: skip
def test_what_a_model_does_wrong(call: ToolCall, kind: str, says: str) -> None:
    result = BOX.run(call)
    assert result.error == kind
    assert result.content.startswith("Error: ") and says in result.content
    assert len(result.content) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.text() | st.just("weather"), st.text() | st.dictionaries(st.text() | st.just("city"), json_values))
def test_run_never_raises(name: str, arguments: Any) -> None:
    result = BOX.run(ToolCall(name, arguments))
    assert (result.error is None) == (not result.content.startswith("Error: "))


def test_how_tools_end(caplog: pytest.LogCaptureFixture) -> None:
    refused = Toolbox([Scripted(ToolError("refused", "no"))]).run(ToolCall("scripted", {}))
    assert (refused.error, refused.content) == ("refused", "Error: no")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        failed = Toolbox([Scripted(KeyError("city"))]).run(ToolCall("scripted", {}))
    assert (failed.error, failed.content) == ("failed", "Error: KeyError: 'city'")
    assert caplog.records[0].exc_info is not None
    with pytest.raises(MMReasonError, match="no isolation"):
        Toolbox([Scripted(MMReasonError("no isolation here"))]).run(ToolCall("scripted", {}))


def test_long_results_are_cut_with_a_note() -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(10_000))
    content = Toolbox([Scripted(text)], max_chars=500).run(ToolCall("scripted", {})).content
    assert len(content) <= 500
    head, note, tail = content.split("\n")
    assert text.startswith(head) and text.endswith(tail)
    assert note == f"[... {10_000 - len(head) - len(tail):,} of 10,000 characters left out ...]"
    assert Toolbox([Scripted("x" * 500)], max_chars=500).run(ToolCall("scripted", {})).content == "x" * 500


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"type": "dict"}, 'must be a JSON Schema with "type": "object"'),
        ({"type": "object", "properties": {"x": {"type": "float"}}}, "isn't valid at properties/x/type: 'float'"),
        ({"type": "object", "properties": {"x": {"pattern": "("}}}, "isn't valid at properties/x/pattern"),
        ({"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:9/x.json"}}}, "leads nowhere"),
        ({"type": "object", "default": float("nan")}, "no JSON"),
        ({"type": "object", "default": object()}, "no JSON"),
    ],
)
def test_invalid_schemas(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="tool 'scripted'") as caught:
        Toolbox([Scripted("x", parameters)])
    assert says in str(caught.value)


def test_invalid_toolboxes() -> None:
    with pytest.raises(ConfigError, match="two tools are called 'calculator'"):
        Toolbox([Calculator(), Calculator()])
    with pytest.raises(ConfigError, match="no name for a tool"):
        Toolbox([Scripted("x", name="a.b")])
    with pytest.raises(ConfigError, match="at least one tool"):
        Toolbox([])
    with pytest.raises(ConfigError, match="timeout_s"):
        Toolbox([Calculator()], timeout_s=0)
    with pytest.raises(ConfigError, match="timeout_s"):
        Toolbox([Calculator()], timeout_s=float("nan"))
    with pytest.raises(ConfigError, match=r"'calculator' is no tool; load_tools"):
        Toolbox(["calculator"])  # type: ignore[list-item]


def test_references_within_a_schema() -> None:
    schema = ArgumentSchema(
        "t",
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/point"}}, "$defs": {"point": {"type": "integer"}}},
    )
    assert schema.problems({"x": 1}) == []
    assert schema.problems({"x": "1"}) == ["'x' must be of type integer, but is \"1\""]


def test_sole_text() -> None:
    assert sole_text(Calculator().parameters) == "expression"
    assert sole_text(function_tool(weather).parameters) == "city"
    assert sole_text({"type": "object", "properties": {"n": {"type": "integer"}}}) is None
    assert sole_text({"type": "object"}) is None


def test_standard_tool() -> None:
    found = standard_tool(
        {
            "name": "geo.distance",
            "description": "d",
            "parameters": {
                "type": "dict",
                "properties": {
                    "type": {"type": "str", "enum": ["dict"]},
                    "points": {"type": "tuple", "items": {"type": "float"}},
                    "any": {"type": "any", "description": "x"},
                },
            },
        }
    )
    assert found == {
        "type": "function",
        "function": {
            "name": "geo_distance",
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {
                    "type": {"type": "string", "enum": ["dict"]},
                    "points": {"type": "array", "items": {"type": "number"}},
                    "any": {"description": "x"},
                },
            },
        },
    }
    with pytest.raises(ConfigError, match=r"tool 'f', x: the type 'HashMap' isn't known"):
        standard_tool({"name": "f", "parameters": {"type": "dict", "properties": {"x": {"type": "HashMap"}}}})
    with pytest.raises(ConfigError, match="has no name"):
        standard_tool({"parameters": {}})


def test_the_signature_names_the_choices() -> None:
    """A model that is shown tools as text has no other way to know them."""
    schema = {"properties": {"unit": {"enum": ["c", "f"]}, "n": {"type": ["integer", "null"]}}, "required": ["unit"]}
    signature = ArgumentSchema("f", {"type": "object", **schema}).signature()
    assert signature == 'unit ("c" or "f"), n (integer or null, optional)'


# --------------------------------------------------------------------------------------------------------------------
# Functions


def test_function_schema() -> None:
    tool = function_tool(weather)
    assert tool.description == "Tell the weather."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "name of the city"},
            "days": {"type": "integer", "description": "days ahead"},
            "unit": {"enum": ["C", "F"], "description": "of the temperature"},
            "where": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_function_schema_agrees_with_transformers() -> None:
    from transformers.utils import get_json_schema

    def area(width: float, height: int, names: list[str], table: dict[str, int], exact: bool = True) -> str:
        """Compute an area.

        Args:
            width: the width
            height: the height,
                in whole metres
            names: some names
            table: a table
            exact: whether it's exact
        """
        return ""

    theirs = get_json_schema(area)["function"]
    ours = function_tool(area)
    assert ours.name == theirs["name"] and ours.description == theirs["description"]
    parameters = {key: value for key, value in ours.parameters.items() if key != "additionalProperties"}
    theirs["parameters"]["properties"]["height"]["description"] = "the height, in whole metres"  # they keep line ends
    assert parameters == theirs["parameters"]


def test_function_calls() -> None:
    def half(x: float, n: int = 2) -> dict[str, Any]:
        """Halve."""
        return {"x": x / 2, "types": [type(x).__name__, type(n).__name__], "é": Path("a")}

    box = Toolbox([function_tool(half), function_tool(weather)])
    assert box.run(ToolCall("half", {"x": 3, "n": 4.0})).content == '{"x": 1.5, "types": ["float", "int"], "é": "a"}'
    assert box.run(ToolCall("weather", {"city": "Rome"})).content == "Rome 1 C None"

    def letters(n: int | None = None) -> str:
        """Write."""
        return "a" * (n or 1)

    box = Toolbox([function_tool(letters)])
    assert [box.run(ToolCall("letters", {"n": n})).content for n in (3.0, None)] == ["aaa", "a"]


def test_function_past_its_deadline() -> None:
    def slow(s: float) -> str:
        """Sleep."""
        time.sleep(s)
        return "done"

    box = Toolbox([function_tool(slow)], timeout_s=0.05)
    results = [box.run(ToolCall("slow", {"s": 1})) for _ in range(MAX_OVERDUE + 1)]
    assert all(result.error == "timeout" and result.seconds < 0.5 for result in results)
    assert f"still runs {MAX_OVERDUE} earlier calls" in results[-1].content
    time.sleep(1.1)
    assert box.run(ToolCall("slow", {"s": 0})).content == "done"


def test_function_errors() -> None:
    def lookup(key: str) -> str:
        """Look up."""
        if key == "secret":
            raise ToolError("refused", "that is not shown")
        return {"a": "1"}[key]

    def leaves(code: int) -> str:
        """Leave."""
        raise SystemExit(code)

    left = Toolbox([function_tool(leaves)]).run(ToolCall("leaves", {"code": 3}))
    assert (left.error, left.content) == ("failed", "Error: leaves left with SystemExit")
    box = Toolbox([function_tool(lookup)])
    assert box.run(ToolCall("lookup", {"key": "secret"})).content == "Error: that is not shown"
    assert box.run(ToolCall("lookup", {"key": "b"})).error == "failed"


def test_functions_that_are_no_tools() -> None:
    def bare(x) -> str:  # type: ignore[no-untyped-def]
        """Doc."""

    def undocumented(x: str) -> str:
        return x

    def star(*x: str) -> str:
        """Doc."""
        return ""

    def strange(x: Path) -> str:
        """Doc."""
        return ""

    async def later(x: str) -> str:
        """Doc."""
        return x

    for func, says in (
        (bare, "the parameter 'x' has no annotation"),
        (undocumented, "has no docstring"),
        (star, "can't be given by name"),
        (strange, "parameter 'x': no JSON value fills"),
        (later, "not a coroutine function"),
        (str, "its parameters can't be read"),
        (3, "not int 3"),
    ):
        with pytest.raises(ConfigError, match=says):
            function_tool(func)


# --------------------------------------------------------------------------------------------------------------------
# Registry


def test_load_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_tools.py").write_text(
        'def double(x: int) -> int:\n    """Double a number."""\n    return 2 * x\n', encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_tools", raising=False)
    tools = load_tools(
        [
            "calculator",
            {"name": "search", "corpus": ["a", "b"], "k": 1},
            {"name": "sql", "tables": {"t": [{"a": 1}]}},
            "python",
            "my_own_tools.double",
            weather,
            Scripted("x"),
        ]
    )
    box = Toolbox(tools)
    assert box.names == ["calculator", "search", "sql", "python", "double", "weather", "scripted"]
    assert box.run(ToolCall("double", {"x": 4})).content == "8"
    assert set(TOOLS) == {"calculator", "python", "search", "sql"}


def test_a_tool_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my_tools.py"
    file.write_text('def double(x: int) -> str:\n    """Twice a number."""\n    return str(2 * x)\n')
    box = Toolbox(load_tools([f"{file}:double"]))
    assert box.run(ToolCall("double", {"x": 4})).content == "8"
    with pytest.raises(ConfigError, match=r"tool file .*none\.py does not exist"):
        load_tools([f"{tmp_path / 'none.py'}:double"])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("calculater", "unknown tool 'calculater'.*Did you mean 'calculator'"),
        ({"name": "search", "corpora": "x"}, "no parameter 'corpora'.*Did you mean 'corpus'"),
        ("search", "tool 'search' needs corpus"),
        ({"corpus": "x"}, "has no 'name'"),
        ("no_such_module.tool", "can't import no_such_module"),
        ("json.lods", "json has no function 'lods'.*Did you mean 'loads'"),
        (3, "a tool is a name"),
        ({"name": "json.dumps", "x": 1}, "takes no parameters"),
        ({"name": "search", "corpus": ["a"], "k": "3"}, "tool 'search' can't take the parameters.*'k': '3'"),
        ({"name": "search", "corpus": 3}, "a corpus is a file, a folder or a list"),
        ({"name": "python", "preload": "sympy"}, r"preload is a list of modules: \[sympy\]"),
        ({"name": "sql", "tables": ["a.csv"]}, "tables maps names to files or rows"),
        ({"name": "sql", "tables": {"t": None}}, "table 't' is a file, a list of rows or columns, not None"),
        ({"name": "sql", "tables": {"t": {"a": 1}}}, "columns of table 't' must be lists"),
    ],
)
def test_entries_that_are_no_tools(entry: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_tools([entry])


@pytest.mark.parametrize("entries", ["calculator", {"name": "calculator"}, 3])
def test_tools_come_as_a_list(entries: Any) -> None:
    with pytest.raises(ConfigError, match=r"as a list, such as \[calculator\]"):
        load_tools(entries)
