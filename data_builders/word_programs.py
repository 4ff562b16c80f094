"""Word problems whose reasoning is a Python program: the steps of data_builders/word_problems.py as assignments.

    python -m data_builders.word_programs --out data/word_programs --n 10000 --level 2 --seed 0

The same problems, splits and options. A result that a later step takes up is taken up by its name.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from data_builders import word_problems
from data_builders.building.cache import keep
from data_builders.building.writing import write_set
from mmreason.types import ConfigError, Example, Message, MMReasonError

VERSION = 1
_STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def program_of(steps: str) -> str:
    """The lines `a op b = c` as a program that prints the last result.

    Raises: ConfigError for a line of another form.
    """
    names: dict[str, str] = {}
    lines = []
    for number, line in enumerate(steps.splitlines()):
        match = _STEP.fullmatch(line)
        if match is None:
            raise ConfigError(f"{line!r} is no step of the form 'a + b = c'")
        left, operator, right, result = match.groups()
        name = "abcdefgh"[number]
        sign = "//" if operator == "/" else operator
        lines.append(f"{name} = {names.pop(left, left)} {sign} {names.pop(right, right)}")
        names[result] = name
    return "\n".join([*lines, f"print({name})"])


def as_program(row: Example) -> Example:
    """The same problem, answered by a program in a ```python block."""
    (solution,) = cast("list[Message]", row["completion"])
    steps = str(solution["reasoning_content"])
    content = f"```python\n{program_of(steps)}\n```"
    source = "word_programs"
    named = str(row["id"]).replace("word_problems", source)
    return {**row, "id": named, "source": source, "completion": [{"role": "assistant", "content": content}]}  # type: ignore[typeddict-item]


def build(out: Path, **options: Any) -> dict[str, object]:
    """Write the splits and manifest.json into `out`; see `word_problems.build`. Returns the manifest."""
    chosen = word_problems.SetOptions.of(options)
    parts = {}
    for split, rows in zip(word_problems.SPLITS, (chosen.n, chosen.n_test, chosen.n_unseen), strict=True):
        if rows:
            made = word_problems.generate(rows, chosen.seed, level=chosen.level, split=split, language=chosen.language)
            parts[split] = [as_program(row) for row in made]
    return write_set(out, parts, builder="data_builders.word_programs", version=VERSION, arguments=chosen.as_json())


def cached(*, say: Callable[[str], None] = print, **options: Any) -> Path:
    """The folder that `build` with these options fills, kept in the user's cache and built only where needed."""
    chosen = word_problems.SetOptions.of(options)
    return keep("word_programs", chosen.as_json(), VERSION, lambda folder: build(folder, **asdict(chosen)), say)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a named error."""
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.word_programs",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files and manifest.json")
    for field in fields(word_problems.SetOptions):
        if field.name not in ("style", "bare_share"):  # programs are all alike
            kind = int if isinstance(field.default, int) and field.name != "level" else str
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help="as in word_problems")
    options = vars(parser.parse_args(argv))
    try:
        manifest = build(options.pop("out"), **options)
    except (MMReasonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(manifest["files"], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
