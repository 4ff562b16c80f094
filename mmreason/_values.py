"""YAML nodes to typed values: the half of `mmreason.config` that knows types and no flags or files.

A value's text decides, together with the type that is wanted; see `mmreason.config`.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

import yaml

NONE = type(None)
TAG = "tag:yaml.org,2002:"
_BOOLS = dict.fromkeys(("true", "yes", "y", "t", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "n", "f", "off", "0"), False
)
_INT = re.compile(r"[-+]?\d(_?\d)*")


class MismatchError(Exception):
    """A value that doesn't fit its type; the text says what was expected."""


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-6 and 1E5 as numbers, as YAML 1.2 and every other tool does."""


class Dumper(yaml.SafeDumper):
    """SafeDumper that writes each value out (no anchors), so that a saved config can be read and edited."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# The dumper quotes a text that the loader would read as a number.
for _class in (Loader, Dumper):
    _class.add_implicit_resolver(
        TAG + "float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line separators in single quotes, where they come back as a space; in double quotes it escapes.
    style = '"' if any(c in text for c in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(TAG + "str", text, style=style)


Dumper.add_representer(str, _represent_text)


def is_union(tp: Any) -> bool:
    return typing.get_origin(tp) in (Union, types.UnionType)


def convert(node: yaml.Node, tp: Any) -> Any:
    """The node's value as `tp`.

    Raises:
        MismatchError: it doesn't fit.
    """
    if tp is Any:
        return _construct(node)
    if is_union(tp):
        return _convert_union(node, tp)
    origin = typing.get_origin(tp) or tp
    if origin is list and isinstance(node, yaml.SequenceNode):
        (item,) = typing.get_args(tp) or (Any,)
        return [convert(n, item) for n in node.value]
    if origin is dict and isinstance(node, yaml.MappingNode):
        key, value = typing.get_args(tp) or (Any, Any)
        Loader("").flatten_mapping(node)
        return {convert(k, key): convert(v, value) for k, v in node.value}
    if origin in (list, dict) or not isinstance(node, yaml.ScalarNode):
        hint = f"; write [{node.value}]" if origin is list and isinstance(node, yaml.ScalarNode) else ""
        raise MismatchError(f"expected {describe(tp)}, got {describe_node(node)}{hint}")
    return _convert_scalar(node, tp, origin)


def _convert_scalar(node: yaml.ScalarNode, tp: Any, origin: Any) -> Any:
    text: str = node.value
    null = node.tag == TAG + "null"
    if origin is Literal:
        for choice in typing.get_args(tp):
            if choice is None and null:
                return None
            if choice is not None and _text_equals(text, choice):
                return choice
        texts = [str(c) for c in typing.get_args(tp)]
        raise MismatchError(f"expected {describe(tp)}, got {text!r}{nearest(text, texts)}")
    if isinstance(tp, type) and issubclass(tp, Enum):
        for option in tp:
            if text in (str(option.value), option.name):
                return option
        texts = [str(o.value) for o in tp]
        raise MismatchError(f"expected {describe(tp)}, got {text!r}{nearest(text, texts)}")
    if tp is NONE and null:
        return None
    if not null:
        if tp is str:
            return text
        if tp is Path:
            return Path(text)
        if tp is bool and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        if tp in (int, float) and (number := _number(text, tp)) is not None:
            return number
    if tp not in (str, bool, int, float, Path, NONE):
        raise TypeError(f"mmreason.config can't read fields of type {tp!r}")
    raise MismatchError(f"expected {describe(tp)}, got {'null' if null else repr(text)}")


def _convert_union(node: yaml.Node, tp: Any) -> Any:
    """The first member that takes the value: null, then choices, bool, int, float (where the text looks so), str."""
    members = typing.get_args(tp)
    quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"', "|", ">")
    if quoted and str in members:
        return node.value

    def order(member: Any) -> int:
        if typing.get_origin(member) is Literal or (isinstance(member, type) and issubclass(member, Enum)):
            return 1
        ranked = (NONE, Literal, bool, int, float, list, dict, Path, str, Any)
        base = typing.get_origin(member) or member
        return ranked.index(base) if base in ranked else 5

    for member in sorted(members, key=order):
        # `1` is a number before it is a truth value.
        if member is bool and (int in members or float in members) and node.tag != TAG + "bool":
            continue
        try:
            return convert(node, member)
        except MismatchError:
            continue
    raise MismatchError(f"expected {describe(tp)}, got {describe_node(node)}")


def _number(text: str, tp: type) -> int | float | None:
    """The text as an int or float; `1e3` is a whole number too. None where it isn't one."""
    if _INT.fullmatch(text):
        return tp(int(text))  # type: ignore[no-any-return]
    try:
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return None
    if tp is float:
        return value
    return int(value) if value == value and abs(value) != float("inf") and value == int(value) else None


def _text_equals(text: str, choice: Any) -> bool:
    if isinstance(choice, bool):
        return _BOOLS.get(text.lower()) is choice
    return text == str(choice)


def _construct(node: yaml.Node) -> Any:
    return Loader("").construct_document(node)


def broken_nodes(
    node: yaml.Node, above: tuple[int, ...] = (), seen: set[int] | None = None
) -> Iterable[tuple[int, str]]:
    """(line, what) of duplicate keys, keys that aren't plain text, unknown tags, and anchors inside themselves."""
    seen = set() if seen is None else seen
    line = node.start_mark.line + 1
    if id(node) in above:
        yield line, "a YAML anchor that contains itself"
        return
    if id(node) in seen:
        return
    seen.add(id(node))
    if not node.tag.startswith(TAG) or node.tag.startswith(TAG + "python"):
        yield line, f"the YAML tag {node.tag} is not allowed"
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from broken_nodes(item, (*above, id(node)), seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            key_line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield key_line, f"a key must be a plain word, got {describe_node(key)}"
            elif key.value in first and key.tag != TAG + "merge":
                yield key_line, f"duplicate key {key.value!r} (first given in line {first[key.value]})"
            else:
                first[key.value] = key_line
            yield from broken_nodes(value, (*above, id(node)), seen)


def describe(tp: Any) -> str:
    """A type in words that a user of the command line knows."""
    if is_union(tp):
        return " or ".join(describe(m) for m in typing.get_args(tp))
    origin = typing.get_origin(tp) or tp
    if origin is Literal:
        return "{" + ",".join(str(c) for c in typing.get_args(tp)) + "}"
    if isinstance(origin, type) and issubclass(origin, Enum):
        return "{" + ",".join(str(o.value) for o in origin) + "}"
    if origin is list:
        args = typing.get_args(tp)
        return f"list of {describe(args[0])}" if args else "list"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true/false", NONE: "null", Path: "path"}
    return names.get(origin, "any value")


def describe_node(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "null" if node.tag == TAG + "null" else repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f" (did you mean {prefix}{match[0]}?)" if match else ""


def first_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    return str(problem).splitlines()[0]


def plain(value: Any) -> Any:
    """Value for YAML: enums as their values, paths as text, tuples as lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
