"""Run configuration: a dataclass, filled from a YAML file and then from the command line, in TRL's manner.

    @dataclass
    class Config:
        learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate.", "group": "Optimiser"})

    cfg = parse_config(Config)      # --config run.yaml --learning_rate 1e-5 --no_bf16 --reward_funcs accuracy format

Defaults < YAML < command line. Nothing is ignored: an unknown key, a duplicate key or a value of the wrong type is a
`ConfigError` that names the file and line (or the flag), what was expected and the nearest known name. All problems of
one call are reported together. Types: bool, int, float, str, Path, Literal, Enum, unions with `|`, list[...],
dict[..., ...], Any. The module is light (yaml is its only import from outside), so that `--help` is quick.

A value's *text* decides, not what YAML 1.1 made of it: `1e-6` is a number for a float field (YAML 1.1 reads it as a
string), `no` is the text "no" for a str field and false for a bool field, `007` stays "007" for a str field.

A YAML file may hold `env:`, a mapping of environment variables that are set before the config is built, as TRL does.
A dataclass that declares a field `env: dict[str, str]` also keeps them, so that a saved config can be rerun as it was.
"""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

import yaml

from mmreason._files import write_whole
from mmreason._values import (
    NONE,
    TAG,
    Dumper,
    Loader,
    MismatchError,
    broken_nodes,
    convert,
    describe,
    describe_node,
    first_line,
    is_union,
    nearest,
    plain,
)
from mmreason.types import ConfigError, MMReasonError

T = TypeVar("T")

_FLAG = re.compile(r"--[A-Za-z]")
_RESERVED = ("config", "help", "print_config")


@dataclasses.dataclass(frozen=True)
class _Field:
    """One field of one of the dataclasses: what the parser and the help need to know."""

    name: str
    type: Any
    help: str
    group: str
    default: Any  # dataclasses.MISSING where the field is required
    owner: type

    @property
    def members(self) -> tuple[Any, ...]:
        """The types a value may have: the union's members, or the one type."""
        return typing.get_args(self.type) if is_union(self.type) else (self.type,)

    @property
    def is_flag(self) -> bool:
        return bool in self.members

    @property
    def is_list(self) -> bool:
        return any(typing.get_origin(m) is list or m is list for m in self.members)


# --------------------------------------------------------------------------------------------------------------------
# The public calls


@overload
def parse_config(
    cls: type[T], argv: Sequence[str] | None = None, prog: str | None = None, description: str | None = None
) -> T: ...


@overload
def parse_config(
    cls: tuple[type[Any], ...],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[Any, ...]: ...


def parse_config(
    cls: type[T] | tuple[type[Any], ...],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> T | tuple[Any, ...]:
    """Build the config from the defaults, the file given with `--config`, and the command line, in that order.

    Args:
        cls: a dataclass, or a tuple of dataclasses without a field name in common.
        argv: the command line without the program's name; `sys.argv[1:]` if None.
        prog: name shown by `--help`.
        description: text shown by `--help`.

    Returns:
        An instance of `cls`, or a tuple of instances in the order of `cls`.

    Raises:
        ConfigError: unknown or duplicate key, wrong type, missing value, missing or broken file.
        SystemExit: code 0 after `--help` and after `--print_config` (prints the merged YAML).
    """
    classes = cls if isinstance(cls, tuple) else (cls,)
    fields = _collect_fields(classes)
    args = list(sys.argv[1:] if argv is None else argv)
    if "-h" in args or "--help" in args:
        print(_format_help(fields, prog, description))
        raise SystemExit(0)

    flags = _split_argv(args)
    show = flags.pop("print_config", None)
    values: dict[str, Any] = {}
    problems: list[str] = []
    if "config" in flags:
        (path,) = _exactly_one("--config", flags.pop("config"))
        _read_yaml(Path(path), fields, values, problems)
    _read_flags(flags, fields, values, problems)
    problems += [
        f"{name} has no value: give --{name}, or the key {name} in the YAML file"
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and name not in values
    ]
    if problems:
        raise ConfigError("\n".join(problems))

    instances = tuple(_build(c, fields, values) for c in classes)
    if show is not None:
        print(to_yaml(instances), end="")
        raise SystemExit(0)
    return instances if isinstance(cls, tuple) else instances[0]


def to_yaml(cfg: Any) -> str:
    """The config (a dataclass instance, or a tuple of them) as YAML that `parse_config` reads back to an equal one."""
    merged: dict[str, Any] = {}
    for part in cfg if isinstance(cfg, tuple) else (cfg,):
        merged |= {f.name: plain(getattr(part, f.name)) for f in dataclasses.fields(part) if f.init}
    return yaml.dump(merged, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def save_config(cfg: Any, path: str | os.PathLike[str], header: str | None = None) -> None:
    """Write `to_yaml(cfg)` to `path` atomically: readers see the old file or the whole new one.

    Args:
        cfg: a dataclass instance, or a tuple of them.
        path: the file; its folder is made if missing.
        header: comment for the top, for example the command that runs this config.

    Raises:
        OSError: the folder can't be written to, or the disk is full; an earlier file stays as it was.
    """
    target = Path(path)
    text = "".join(f"# {line}\n" for line in (header or "").splitlines()) + to_yaml(cfg)
    write_whole(target, text)


def run_as_script(main: Callable[[], None]) -> None:
    """Run a script's `main` and end the process as its user expects.

    A `MMReasonError` becomes one message without a traceback and exit code 1; of several processes the others name
    themselves, so that an error of one of them alone is told apart. Ctrl-C where nothing catches it: exit code 130.
    """
    try:
        main()
    except MMReasonError as error:
        rank = os.environ.get("RANK", "0")
        sys.exit(f"error: {error}" if rank == "0" else f"error (process {rank}): {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave()


def _leave() -> NoReturn:
    """End a process that worked together with others, without taking the interpreter apart.

    A thread of gloo may let go of its last tensor while Python is being finalised, which aborts the process after all
    its work is done, in about one of thirty runs of two CPU processes (pytorch/pytorch issue 190489, pull request
    179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


# --------------------------------------------------------------------------------------------------------------------
# Fields, command line, file


def _collect_fields(classes: Sequence[type[Any]]) -> dict[str, _Field]:
    fields: dict[str, _Field] = {}
    for cls in classes:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"parse_config wants dataclasses, got {cls!r}")
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if not f.init:
                continue
            if f.name in _RESERVED:
                raise TypeError(f"{cls.__name__}.{f.name}: the name is taken by the parser's own flag --{f.name}")
            if f.name in fields:
                raise TypeError(f"both {fields[f.name].owner.__name__} and {cls.__name__} have a field {f.name!r}")
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            meta = f.metadata
            fields[f.name] = _Field(
                f.name, hints[f.name], meta.get("help", ""), meta.get("group", cls.__name__), default, cls
            )
    return fields


def _split_argv(args: Sequence[str]) -> dict[str, list[str]]:
    """`--key a b --other=c` → {"key": ["a", "b"], "other": ["c"]}; dashes in a key become underscores; last wins."""
    flags: dict[str, list[str]] = {}
    current: list[str] | None = None
    for token in args:
        if _FLAG.match(token):
            key, equals, value = token[2:].partition("=")
            current = flags[key.replace("-", "_")] = [value] if equals else []
        elif current is None:
            hint = f"; a config file is given with --config {token}" if token.endswith((".yaml", ".yml")) else ""
            raise ConfigError(f"unexpected argument {token!r}: options are given as --name value{hint}")
        else:
            current.append(token)
    return flags


def _read_flags(
    flags: dict[str, list[str]], fields: dict[str, _Field], values: dict[str, Any], problems: list[str]
) -> None:
    for key, tokens in flags.items():
        negated = key.removeprefix("no_")
        if key in fields:
            target, node_tokens = fields[key], tokens
        elif negated != key and negated in fields and fields[negated].is_flag:
            if tokens:
                problems.append(f"--{key} takes no value, got {' '.join(tokens)!r}; or write --{negated} {tokens[0]}")
                continue
            target, node_tokens = fields[negated], ["false"]
        else:
            names = [*fields, *_RESERVED, *(f"no_{n}" for n, f in fields.items() if f.is_flag)]
            problems.append(f"unknown option --{key}{nearest(key, names, prefix='--')}; --help lists all")
            continue
        try:
            values[target.name] = _convert_tokens(target, node_tokens)
        except MismatchError as error:
            problems.append(f"--{key}: {error}")
    if isinstance(values.get("env"), dict) and "env" in flags:
        os.environ.update({k: str(v) for k, v in values["env"].items()})


def _convert_tokens(target: _Field, tokens: list[str]) -> Any:
    if target.is_list and not (len(tokens) == 1 and (tokens[0].startswith("[") or _is_null(tokens[0], target))):
        scalar_ok = any(typing.get_origin(m) is not list and m is not list for m in target.members if m is not NONE)
        if not (scalar_ok and len(tokens) == 1):
            item = next(m for m in target.members if typing.get_origin(m) is list or m is list)
            (item_type,) = typing.get_args(item) or (Any,)
            return [convert(_token_node(t, item_type), item_type) for t in tokens]
    if not tokens and target.is_flag:
        return True
    if len(tokens) != 1:
        got = f"got {len(tokens)}: {' '.join(tokens)!r}" if tokens else "got none"
        raise MismatchError(f"expected one value ({describe(target.type)}), {got}")
    if _is_null(tokens[0], target):
        return None
    return convert(_token_node(tokens[0], target.type), target.type)


def _is_null(token: str, target: _Field) -> bool:
    return token in ("None", "null") and NONE in target.members


def _token_node(token: str, wanted: Any) -> yaml.Node:
    """One command-line word as a YAML node; read as YAML only where a list or a mapping can be meant."""
    members = typing.get_args(wanted) if is_union(wanted) else (wanted,)
    nested = any((typing.get_origin(m) or m) in (list, dict) for m in members) and token.lstrip().startswith(("{", "["))
    if nested or Any in members:
        try:
            node = Loader(token).get_single_node()
        except yaml.YAMLError as error:
            raise MismatchError(f"not readable as JSON or YAML: {token!r} ({first_line(error)})") from None
        if node is not None:
            found = list(broken_nodes(node))
            if found:
                raise MismatchError(found[0][1])
            return node
    return yaml.ScalarNode(Loader("").resolve(yaml.ScalarNode, token, (True, False)) if token else TAG + "str", token)


def _read_yaml(path: Path, fields: dict[str, _Field], values: dict[str, Any], problems: list[str]) -> None:
    try:
        root = Loader(path.read_text(encoding="utf-8")).get_single_node()
    except FileNotFoundError:
        raise ConfigError(f"--config: no such file: {path}{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: can't read {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {first_line(error)}") from None
    if root is None:  # comments only
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level, got {describe_node(root)}")
    broken = list(broken_nodes(root))
    if broken:
        raise ConfigError("\n".join(f"{path}:{line}: {what}" for line, what in broken))
    Loader("").flatten_mapping(root)
    for key_node, value_node in root.value:
        key, where = key_node.value, f"{path}:{key_node.start_mark.line + 1}"
        try:
            if key == "env":
                env = convert(value_node, dict[str, str])
                os.environ.update(env)
                if key in fields:
                    values[key] = env
            elif key in fields:
                values[key] = convert(value_node, fields[key].type)
            else:
                problems.append(f"{where}: unknown key {key!r}{nearest(key, [*fields, 'env'])}")
        except MismatchError as error:
            problems.append(f"{where}: {key}: {error}")


# --------------------------------------------------------------------------------------------------------------------
# Texts


def _nearest_file(path: Path) -> str:
    siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    match = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    return f" (did you mean {path.parent / match[0]}?)" if match else ""


def _exactly_one(flag: str, tokens: list[str]) -> list[str]:
    if len(tokens) != 1:
        raise ConfigError(f"{flag}: expected one path, got {' '.join(tokens) or 'none'}")
    return tokens


def _build(cls: type[Any], fields: dict[str, _Field], values: dict[str, Any]) -> Any:
    own = {name: values[name] for name, f in fields.items() if f.owner is cls and name in values}
    try:
        return cls(**own)
    except (ValueError, TypeError) as error:  # what a dataclass's own __post_init__ says about values that clash
        raise ConfigError(str(error)) from error


def _format_help(fields: dict[str, _Field], prog: str | None, description: str | None) -> str:
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))
    lines = [f"usage: {prog or Path(sys.argv[0]).name} [--config FILE.yaml] [--name value ...]", ""]
    for paragraph in (description or "").strip().split("\n\n"):
        lines += [*textwrap.wrap(paragraph, width), ""] if paragraph else []
    groups: dict[str, list[_Field]] = {}
    for f in fields.values():
        groups.setdefault(f.group, []).append(f)
    own = [
        ("--config FILE.yaml", "YAML file with values for the options below; the command line overrides it."),
        ("--print_config", "Print the merged config as YAML and stop."),
        ("-h, --help", "Show this text and stop."),
    ]
    entries = [("General", own)] + [(title, [_help_entry(f) for f in members]) for title, members in groups.items()]
    for title, rows in entries:
        lines.append(f"{title}:")
        for head, text in rows:
            lines.append(f"  {head}")
            lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines).rstrip()


def _help_entry(f: _Field) -> tuple[str, str]:
    head = f"--{f.name}, --no_{f.name}" if f.members == (bool,) else f"--{f.name} <{describe(f.type)}>"
    if f.default is dataclasses.MISSING:
        default = "required"
    else:
        text = yaml.dump(plain(f.default), Dumper=Dumper, default_flow_style=True, width=10_000, allow_unicode=True)
        default = "default: " + text.removesuffix("\n").removesuffix("\n...")
    return head, f"{f.help} ({default})".strip()
