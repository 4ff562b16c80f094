"""A user's own functions and classes by name, for YAML: a dotted path, or a file and a name in it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from mmreason.types import ConfigError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name; "" where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else ""


def find_object(entry: str, what: str, known: Iterable[str]) -> Any:
    """What `my_package.module.name` or `path/to/file.py:name` names.

    Args:
        entry: the text.
        what: what it is to be, for errors: "reward", "tool".
        known: names that stand for built-in ones, for errors.

    Raises: ConfigError: no such form, module, file or name; a module that can't be loaded.
    """
    location, _, attribute = entry.rpartition(":")
    if location:
        file = Path(location).expanduser()
        module = _module_of_file(file, what) if location.endswith(".py") else _module(location, entry, what)
    else:
        location, _, attribute = entry.rpartition(".")
        if not location or location.startswith("."):
            raise ConfigError(
                f"unknown {what} {entry!r}; known: {', '.join(known)}, or my_package.module.function, "
                f"or path/to/file.py:function.{did_you_mean(entry, known)}"
            )
        module = _module(location, entry, what)
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(
            f"{what} {entry!r}: {location} has no function {attribute!r}.{did_you_mean(attribute, names)}"
        )
    return getattr(module, attribute)


def _module(name: str, entry: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may fail at import in any way; say what wanted it
        raise ConfigError(f"{what} {entry!r}: can't import {name}: {type(error).__name__}: {error}") from error


def _module_of_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{what} file {path} does not exist")
    # Registered under a name of its own, so that functions of the file can be pickled for worker processes.
    name = "mmreason_user_" + "".join(c if c.isalnum() else "_" for c in str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{what} file {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as in _module
        del sys.modules[name]
        raise ConfigError(f"{what} file {path} can't be loaded: {type(error).__name__}: {error}") from error
    return module
