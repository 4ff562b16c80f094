"""Names -> tools, for YAML: registry names, dotted paths, files, each with parameters where wanted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmreason._functions import did_you_mean, find_object
from mmreason.tools.calculator import Calculator
from mmreason.tools.functions import function_tool
from mmreason.tools.python import PythonTool
from mmreason.tools.search import SearchTool
from mmreason.tools.sql import SqlTool
from mmreason.tools.types import TOOL_PARTS, Tool
from mmreason.types import ConfigError

TOOLS: dict[str, Callable[..., Tool]] = {
    "calculator": Calculator,
    "python": PythonTool,
    "search": SearchTool,
    "sql": SqlTool,
}
"""Registry name -> class of a tool. The class's arguments are its parameters."""


def load_tools(entries: Sequence[str | Mapping[str, Any] | Tool | Callable[..., Any]]) -> list[Tool]:
    """Tools in the given order.

    Args:
        entries: each a key of TOOLS, a dotted path "my_package.module.name" or a file "path/to/file.py:name" of a typed
            function or of a tool, such an object itself, or a mapping {"name": one of those, **parameters}.

    Raises: ConfigError for an unknown name (with the nearest match) and for an unknown, missing or wrong parameter;
        what the tool's class raises, such as a DataError for its files.
    """
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Iterable):
        raise ConfigError(f"tools are given as a list, such as [calculator], not {entries!r}")
    return [_load(entry) for entry in entries]


def _load(entry: Any) -> Tool:
    params: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        params = dict(entry)
        if "name" not in params:
            raise ConfigError(f"the tool entry {dict(entry)!r} has no 'name'")
        entry = params.pop("name")
    label = entry if isinstance(entry, str) else getattr(entry, "__name__", type(entry).__name__)
    found: Any = _find(entry) if isinstance(entry, str) else entry
    if inspect.isclass(found):
        return _construct(found, params, label)
    if params:
        raise ConfigError(f"the tool {label!r} takes no parameters, but {', '.join(params)} is given")
    if all(hasattr(found, part) for part in TOOL_PARTS):
        tool: Tool = found
        return tool
    if not callable(found):
        raise ConfigError(f"a tool is a name, a mapping with 'name', a typed function or a tool, not {found!r}")
    return function_tool(found)


def _construct(cls: Any, params: Mapping[str, Any], label: str) -> Tool:
    known = inspect.signature(cls).parameters
    for name in params:
        if name not in known:
            has = ", ".join(known) or "none"
            raise ConfigError(f"tool {label!r} has no parameter {name!r}; it has: {has}.{did_you_mean(name, known)}")
    missing = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in params]
    if missing:
        raise ConfigError(f"tool {label!r} needs {', '.join(missing)}: {{name: {label}, {missing[0]}: ...}}")
    try:
        tool: Tool = cls(**params)
    except (TypeError, ValueError, AttributeError) as error:  # a value of a wrong type, such as k: "3"
        raise ConfigError(f"tool {label!r} can't take the parameters {params!r:.200}: {error}") from error
    return tool


def _find(name: str) -> Any:
    return TOOLS[name] if name in TOOLS else find_object(name, "tool", TOOLS)
