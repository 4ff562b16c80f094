"""A plain typed Python function as a tool."""

from __future__ import annotations

import inspect
import json
import re
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from mmreason._values import is_union
from mmreason.tools.schemas import ArgumentSchema
from mmreason.tools.types import ToolError
from mmreason.types import ConfigError

MAX_OVERDUE = 8
"""Calls past their deadline that may still run; with so many, further calls are refused."""
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
_ARGS = re.compile(r"^[ \t]*Args:[ \t]*\n(?P<body>(?:[ \t]+\S.*\n?|[ \t]*\n)*)", re.MULTILINE)
_ARG = re.compile(r"(?P<name>\w+)\s*(?:\([^)]*\))?:\s*(?P<text>.*)")


class FunctionTool:
    """A function as a tool; `function_tool` makes it."""

    def __init__(
        self,
        func: Callable[..., Any],
        name: str,
        description: str,
        parameters: dict[str, Any],
        numbers: dict[str, type],
    ) -> None:
        self.name, self.description, self.parameters = name, description, parameters
        self._func, self._numbers = func, numbers
        self._overdue: list[threading.Thread] = []

    def call(self, arguments: Mapping[str, Any], *, timeout_s: float) -> str:
        """Run the function in a thread. Past the deadline the call is over, but no thread can be stopped: it goes on.

        Raises: ToolError: timeout; what the function raises as one, which is its way to tell the model something. Any
            other exception of the function as it is.
        """
        self._overdue = [thread for thread in self._overdue if thread.is_alive()]
        if len(self._overdue) >= MAX_OVERDUE:
            raise ToolError("timeout", f"{self.name} still runs {MAX_OVERDUE} earlier calls and takes no more")
        outcome: list[tuple[Any, Exception | None]] = []
        # JSON has one kind of number: 3.0 is a valid integer there, and 3 a valid float.
        values = {
            key: value if value is None or key not in self._numbers else self._numbers[key](value)
            for key, value in arguments.items()
        }

        def target() -> None:
            try:
                outcome.append((self._func(**values), None))
            except Exception as error:
                outcome.append((None, error))
            except BaseException as error:  # SystemExit must end neither this process nor the wait with a wrong reason
                outcome.append((None, ToolError("failed", f"{self.name} left with {type(error).__name__}")))

        thread = threading.Thread(target=target, name=f"tool-{self.name}", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if not outcome:
            self._overdue.append(thread)
            raise ToolError("timeout", f"{self.name} was not done within {timeout_s:g} s")
        value, error = outcome[0]
        if error is not None:
            raise error
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def function_tool(func: Callable[..., Any], *, name: str | None = None) -> FunctionTool:
    """A tool from a function with annotations and a docstring.

    The description is the docstring down to its `Args:`, each argument's description its entry there (Google style).
    Annotations: str, int, float, bool, None, Any, Literal, list[T], dict[str, T] and unions of them. A parameter
    without a default is required. The result is shown as it is where it is a str, else as JSON.

    The function is trusted: it runs in this process, in a thread of its own, possibly several calls at once. What
    models write as code belongs into the `python` tool.

    Raises: ConfigError for a function without annotations or docstring, a parameter that no JSON object can fill, and a
        coroutine function.
    """
    name = name or str(getattr(func, "__name__", type(func).__name__))
    if not callable(func) or inspect.iscoroutinefunction(func):
        kind = "a coroutine function" if callable(func) else f"{type(func).__name__} {func!r}"
        raise ConfigError(f"tool {name!r} must be a plain function, not {kind}")
    summary, described = _docstring(func, name)
    try:
        hints = typing.get_type_hints(func)
    except Exception as error:  # annotations are a user's code: a missing import there may raise anything
        raise ConfigError(f"tool {name!r}: its annotations can't be read: {error}") from error
    properties: dict[str, Any] = {}
    required: list[str] = []
    numbers: dict[str, type] = {}
    try:
        signature = inspect.signature(func)
    except ValueError as error:  # a class or function written in C
        raise ConfigError(f"tool {name!r}: its parameters can't be read: {error}") from error
    for key, parameter in signature.parameters.items():
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {name!r}: {parameter} can't be given by name; tools take named arguments only")
        if key not in hints:
            raise ConfigError(f"tool {name!r}: the parameter {key!r} has no annotation, such as `{key}: str`")
        schema = _schema(hints[key], f"tool {name!r}, parameter {key!r}")
        properties[key] = schema | ({"description": described[key]} if key in described else {})
        if (number := _number_type(hints[key])) is not None:
            numbers[key] = number
        if parameter.default is inspect.Parameter.empty:
            required.append(key)
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    ArgumentSchema(name, parameters)
    return FunctionTool(func, name, summary, parameters, numbers)


def _docstring(func: Callable[..., Any], name: str) -> tuple[str, dict[str, str]]:
    """The text before `Args:`, and the entries of `Args:`."""
    text = inspect.getdoc(func) or ""
    match = _ARGS.search(text)
    summary = " ".join(
        re.split(r"^\s*(?:Args|Returns|Raises|Yields):", text, maxsplit=1, flags=re.MULTILINE)[0].split()
    )
    if not summary:
        raise ConfigError(f"tool {name!r} has no docstring; its first lines tell the model what the tool does")
    described: dict[str, str] = {}
    last = indent = None
    for line in match["body"].splitlines() if match else []:
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        entry = _ARG.match(line.strip()) if depth == indent else None
        if entry is not None:
            last = entry["name"]
            described[last] = entry["text"].strip()
        elif last is not None and line.strip():
            described[last] = f"{described[last]} {line.strip()}".strip()
    return summary, described


def _schema(annotation: Any, place: str) -> dict[str, Any]:
    """The JSON Schema of a type."""
    if annotation in _SIMPLE:
        return dict(_SIMPLE[annotation])
    origin, members = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is Literal:
        return {"enum": list(members)}
    if is_union(annotation):
        schemas = [_schema(member, place) for member in members]
        if all(list(schema) == ["type"] for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": schemas}
    if origin is list:
        return {"type": "array"} | ({"items": _schema(members[0], place)} if members else {})
    if origin is dict and (not members or members[0] is str):
        return {"type": "object"} | ({"additionalProperties": _schema(members[1], place)} if members else {})
    raise ConfigError(
        f"{place}: no JSON value fills {annotation!r}; use str, int, float, bool, None, Any, Literal, list[...], "
        "dict[str, ...] or a union of them"
    )


def _number_type(annotation: Any) -> type | None:
    """int or float where numbers of that type fill a parameter, alone or beside None; None for all others."""
    members = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    found = [member for member in members if member is not type(None)]
    return found[0] if len(found) == 1 and found[0] in (int, float) else None
