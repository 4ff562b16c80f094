"""A builder's command line: `--key value` as everywhere, and `key=value`, each also with dots into settings."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmreason._values import Loader, MismatchError, broken_nodes, convert, is_union, nearest
from mmreason.config import parse_config
from mmreason.types import ConfigError

O = TypeVar("O")  # noqa: E741 - an options class

_WORD = re.compile(r"(?P<name>[A-Za-z][\w-]*)(?P<path>(?:\.[A-Za-z][\w-]*)*)=(?P<value>.*)", re.S)
_DOTTED = re.compile(r"--(?P<name>[A-Za-z][\w-]*)(?P<path>(?:\.[A-Za-z][\w-]*)+)(?:=(?P<value>.*))?", re.S)


def parse_options(cls: type[O], argv: Sequence[str], prog: str, description: str) -> O:
    """The options.

    Args:
        argv: `--key value`, `key=value`, and `teacher.model=value` or `--teacher.model value`, which changes one of
            the settings that a mapping holds, also of one that the file of `--config` gives.

    Raises: ConfigError; SystemExit after --help.
    """
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    words, dotted = split_words(argv, names, _flags(cls), _lists(cls))
    for name, settings in dotted.items():
        merged = _given(words, name)
        for path, value in settings:
            place = merged
            for key in path[:-1]:
                held = place.setdefault(key, {})
                if not isinstance(held, dict):
                    raise ConfigError(f"--{name}.{'.'.join(path)}: {key} holds {held!r}, which has no settings")
                place = held
            place[path[-1]] = _value(value)
        words = [*_without(words, name), f"--{name}", json.dumps(merged, ensure_ascii=False)]
    return parse_config(cls, words, prog, description)


Dotted = dict[str, list[tuple[list[str], str]]]


def split_words(
    argv: Sequence[str], names: Sequence[str], flags: Sequence[str], lists: Sequence[str]
) -> tuple[list[str], Dotted]:
    """(words in the form `--key value`, the dotted ones by their first name).

    A word `a=b` is an option where `a` is one's name, but not right behind an option that waits for its value:
    `--decontaminate seed=seeds.jsonl` names a set.

    Args: names: of all options; flags: of those without a value; lists: of those with several.
    Raises: ConfigError: `a=b` where `a` is no option's name, and no list goes on there.
    """
    words: list[str] = []
    dotted: Dotted = {}
    rest = list(argv)
    is_list = False
    while rest:
        word = rest.pop(0)
        waits = bool(words) and words[-1].startswith("--") and "=" not in words[-1] and _bare(words[-1]) not in flags
        match = _DOTTED.fullmatch(word) or (None if waits else _WORD.fullmatch(word))
        name = "" if match is None else match["name"].replace("-", "_")
        if match is None or name not in names:
            if match is not None and not is_list:
                raise ConfigError(f"unknown option {name!r}{nearest(name, names)}; --help lists all")
            is_list = _bare(word) in lists if word.startswith("--") else is_list
            words.append(word)
            continue
        is_list = False
        value = match["value"]
        if value is None:
            if not rest:
                raise ConfigError(f"{word}: expected a value")
            value = rest.pop(0)
        if match["path"]:
            dotted.setdefault(name, []).append((match["path"][1:].split("."), value))
        else:
            words += [f"--{name}", value]
    return words, dotted


def _bare(flag: str) -> str:
    return flag[2:].replace("-", "_")


def _flags(cls: type[Any]) -> list[str]:
    """Names of options that stand without a value."""
    bools = [name for name, kind in typing.get_type_hints(cls).items() if kind is bool]
    return ["help", "print_config", *bools, *(f"no_{name}" for name in bools)]


def _lists(cls: type[Any]) -> list[str]:
    """Names of options that take several values."""
    kinds = typing.get_type_hints(cls).items()
    return [
        name
        for name, kind in kinds
        if any(typing.get_origin(one) is list for one in (kind, *(typing.get_args(kind) if is_union(kind) else ())))
    ]


def _given(words: Sequence[str], name: str) -> dict[str, Any]:
    """What the words before, or the file of `--config`, give for an option, as a mapping to be changed."""
    values: dict[str, str] = {}
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            key, equals, own = word.partition("=")
            values[_bare(key)] = own if equals else value
    held = _value(values[name]) if name in values else None
    if held is None and "config" in values:
        try:
            loaded = _value(Path(values["config"]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ConfigError):
            return {}  # parse_config says what is wrong with the file
        held = loaded.get(name) if isinstance(loaded, dict) else None
    if isinstance(held, list):
        raise ConfigError(f"--{name}.…: {name} is a list of {len(held)}; change it in the YAML file")
    return dict(held) if isinstance(held, dict) else {}


def _without(words: Sequence[str], name: str) -> list[str]:
    """The words without an option and its value."""
    kept: list[str] = []
    is_skipped = False
    for word in words:
        if word.startswith("--"):
            is_skipped = _bare(word.partition("=")[0]) == name
        if not is_skipped:
            kept.append(word)
    return kept


def _value(text: str) -> Any:
    """A text as YAML. Raises: ConfigError."""
    import yaml

    try:
        node = Loader(text).get_single_node()
        broken = [] if node is None else list(broken_nodes(node))
        if broken:
            raise ConfigError(broken[0][1])
        return None if node is None else convert(node, Any)
    except (yaml.YAMLError, MismatchError) as error:
        raise ConfigError(f"not readable as YAML: {text!r} ({str(error).splitlines()[0]})") from None
