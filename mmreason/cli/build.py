"""`mmreason build NAME …`: runs a module of `data_builders`, from the checkout or from the copy inside the wheel.

`mmreason build FILE.py …` runs a builder of the user's own, which finds `data_builders` in the same place."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mmreason
from mmreason.types import ConfigError

FOLDER = "data_builders"


def find_root() -> Path:
    """The folder that holds `data_builders`: `mmreason/_bundled` in an installed wheel, else the checkout.

    Raises:
        ConfigError: neither has it.
    """
    package = Path(mmreason.__file__).resolve().parent
    for root in (package / "_bundled", package.parent):
        if (root / FOLDER).is_dir():
            return root
    raise ConfigError(f"no {FOLDER} folder beside or inside {package}: reinstall mmreason, or run from a checkout")


def list_builders(root: Path) -> dict[str, str]:
    """Builder name → first line of its docstring. Reads the files, imports none of them."""
    found: dict[str, str] = {}
    for path in sorted((root / FOLDER).glob("*.py")):
        if not path.name.startswith("_"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = docstring.split("\n")[0]
    return found


def run_builder(name: str | None, arguments: Sequence[str]) -> int:
    """Run the builder as `python -m data_builders.NAME ARGUMENTS` would; list the builders for no name or `--help`.

    Args: name: of a builder, or a Python file with one.

    Raises:
        ConfigError: no builder of that name, no such file.
    """
    root = find_root()
    builders = list_builders(root)
    if name in (None, "-h", "--help"):
        print("usage: mmreason build NAME|FILE.py [--help] [ARGUMENTS ...]\n")
        width = max(map(len, builders), default=0)
        print("\n".join(f"  {builder:<{width}}  {line}" for builder, line in builders.items()))
        return 0
    is_file = name is not None and name.endswith(".py")
    if is_file and not Path(str(name)).is_file():
        raise ConfigError(f"no such file: {name}")
    if name not in builders and not is_file:
        near = difflib.get_close_matches(str(name), builders, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"no builder {name!r}{hint}; there are: {', '.join(builders)}")
    # In this process only: an installed wheel has no top-level `data_builders`.
    sys.path.insert(0, str(root))
    sys.argv = [f"mmreason build {name}", *arguments]
    if is_file:
        runpy.run_path(str(name), run_name="__main__")
    else:
        runpy.run_module(f"{FOLDER}.{name}", run_name="__main__", alter_sys=True)
    return 0
