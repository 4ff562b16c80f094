"""What mkdocs puts into the pages when it builds them: tables made from the code, files of the repository, pictures.

In a page, on a line of its own:

    <!-- options -->                     every option of every recipe, from the dataclasses
    <!-- from-trl: grpo_math -->         TRL's fields and ours, see _from_trl.py
    <!-- file: recipes/configs/X.yaml --> the file itself as a code block
    <!-- rewards -->                     the built-in rewards with their parameters

Pictures are linked as they lie in the repository (`../benchmarks/results/NAME.png`), so that they also show where the
Markdown is read without a build; the site gets its own copy.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

import yaml
from _from_trl import from_trl  # a sibling: mkdocs loads a hook with its own folder on the path
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))  # `recipes` and `data_builders` are importable from a checkout only

_MARKER = re.compile(r"^<!-- ([a-z-]+)(?:: (.+?))? -->$", re.M)
_PICTURE = re.compile(r"\]\(\.\./benchmarks/results/([\w.-]+\.png)\)")
_LANGUAGES = {".yaml": "yaml", ".py": "python", ".sbatch": "bash"}


# ---- called by mkdocs


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures under `pictures/`."""
    for path in sorted(PICTURES.glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Fill the markers and point pictures at the site's copies."""

    def fill(match: re.Match[str]) -> str:
        try:
            return render(match[1], match[2])
        except (KeyError, OSError, ValueError) as error:
            raise PluginError(f"{page.file.src_uri}: {match[0]}: {error}") from error

    return _MARKER.sub(fill, _PICTURE.sub(r"](pictures/\1)", markdown))


# ---- markers


def render(marker: str, argument: str | None) -> str:
    """The Markdown that a marker stands for. Raises ValueError for an unknown one, OSError for a missing file."""
    if marker == "options":
        return options_page()
    if marker == "rewards":
        return rewards_table()
    if marker == "from-trl":
        return from_trl(str(argument), recipes()[str(argument)])
    if marker == "file":
        path = ROOT / str(argument)
        text = path.read_text(encoding="utf-8").rstrip()
        return f"```{_LANGUAGES[path.suffix]}\n{text}\n```"
    raise ValueError(f"no marker of the name {marker!r}")


def recipes() -> dict[str, tuple[type, ...]]:
    """Recipe name -> the dataclasses that its call of `parse_config` names."""
    found: dict[str, tuple[type, ...]] = {}
    for path in sorted((ROOT / "recipes").glob("[!_]*.py")):
        module = importlib.import_module(f"recipes.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "parse_config":
                names = node.args[0].elts if isinstance(node.args[0], ast.Tuple) else [node.args[0]]
                values = [getattr(module, name.id) for name in names if isinstance(name, ast.Name)]
                found[path.stem] = tuple(c for v in values for c in (v if isinstance(v, tuple) else (v,)))
    return found


# ---- options


def options_page() -> str:
    """One part per dataclass: what it is, which recipes take it, its fields by section."""
    users: dict[type, list[str]] = {}
    for recipe, classes in recipes().items():
        for cls in classes:
            users.setdefault(cls, []).append(f"`recipes/{recipe}.py`")
    parts = []
    for cls, names in users.items():
        about = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
        parts.append(f"## {cls.__name__}\n\n{cell(about)} Taken by {', '.join(names)}.\n\n{options_tables(cls)}")
    return "\n\n".join(parts)


def options_tables(cls: type) -> str:
    """Name, type, default and help of each field; a heading where the source has a comment above a group of fields."""
    from mmreason._values import describe

    hints, groups = typing.get_type_hints(cls), sections(cls)
    rows: dict[str, list[str]] = {}
    for field in dataclasses.fields(cls):
        title = field.metadata.get("group") or groups.get(field.name, "")
        kind = describe(hints[field.name]).replace(",", ", ")  # so that a narrow column can break it
        row = (f"`{field.name}`", kind, default_of(field), field.metadata.get("help", ""))
        rows.setdefault(title, []).append("| " + " | ".join(map(cell, row)) + " |")
    head = "| option | type | default | what it does |\n|---|---|---|---|\n"
    return "\n\n".join((f"### {title}\n\n" if title else "") + head + "\n".join(lines) for title, lines in rows.items())


def sections(cls: type) -> dict[str, str]:
    """Field -> the comment that stands on a line of its own above it or above the fields before it."""
    found: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        title = ""
        for line in inspect.getsource(base).splitlines():
            if comment := re.fullmatch(r"    # (.+)", line):
                title = comment[1].capitalize() if comment[1].islower() else comment[1]
            elif name := re.match(r"    (\w+): ", line):
                found[name[1]] = title
            elif line.startswith("    def "):
                break
    return found


def default_of(field: Any) -> str:
    """The default as it is written in a YAML file, in code font."""
    from mmreason._values import Dumper, plain

    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "required"
    text = yaml.dump(plain(value), Dumper=Dumper, default_flow_style=True, width=10_000, allow_unicode=True)
    return f"`{text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


def cell(text: str) -> str:
    """Text that may stand in a table cell; what is in code font stays as it is."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [html.escape(part, quote=False).replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


# ---- rewards


def rewards_table() -> str:
    """Name, what it gives (its docstring's first sentence), parameters with defaults."""
    from mmreason.rewards.registry import REWARDS

    lines = ["| name | what it gives | parameters |", "|---|---|---|"]
    for name, func in REWARDS.items():
        about = inspect.cleandoc(func.__doc__ or "").split("\n\n")[0]
        parameters = [
            f"`{p.name}`" + (" (needed)" if p.default is p.empty else f" = `{p.default!r}`")
            for p in inspect.signature(func).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
        lines.append("| " + " | ".join(map(cell, (f"`{name}`", about, ", ".join(parameters) or "none"))) + " |")
    return "\n".join(lines)
