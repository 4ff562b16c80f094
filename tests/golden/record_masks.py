"""Golden masks: what each conversation becomes through each chat template, and which of it carries loss.

    python -m tests.golden.record_masks            # all templates; look at the difference before keeping it
    python -m tests.golden.record_masks qwen3

A file holds, for each shape of tests/data/mask_cases.py, the rows as [weight, tokens, text] from the first token to the
last, a run of equal weight each; or the reason why the row is refused. Long texts without loss are shortened, with a
digest of what is left out. tests/data/test_masks.py compares.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from mmreason.data.loss_spans import LossOn
from mmreason.data.supervised import SupervisedRow, render_supervised
from mmreason.types import DataError
from tests.data.mask_cases import example, frozen, processor_for, shapes_for, templates

FOLDER = Path(__file__).parent / "masks"
ALL_TURNS = LossOn(turns="all")
_LONG = 200


def observe(name: str) -> dict[str, Any]:
    """What a golden file holds."""
    return {
        "template": _digest(templates()[name]),
        **{shape: _rows(name, shape) for shape in shapes_for(name)},
    }


def _rows(name: str, shape: str) -> Any:
    processor = processor_for(name)
    try:
        rows = render_supervised(example(shape), processor, loss_on=ALL_TURNS, chat_template_kwargs=frozen(name))
    except DataError as error:
        return f"{error.reason}: {error}"
    return [runs(row, processor) for row in rows]


def runs(row: SupervisedRow, processor: Any) -> list[list[Any]]:
    """A row as [weight, tokens, text] of its runs of equal weight."""
    tokenizer = getattr(processor, "tokenizer", processor)
    found = []
    for weight, pairs in groupby(zip(row.weights, row.ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in pairs]
        text = tokenizer.decode(ids)
        short = len(text) <= _LONG or weight
        found.append([weight, len(ids), text if short else f"{text[:60]}…{_digest(text)}…{text[-80:]}"])
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write(path: Path, found: dict[str, Any]) -> None:
    """One line per run, so that a difference can be read."""
    lines = []
    for key, value in found.items():
        if isinstance(value, str):
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
            continue
        rows = [",\n".join(f"   {json.dumps(run, ensure_ascii=False)}" for run in row) for row in value]
        body = ",\n".join(f"  [\n{row}\n  ]" for row in rows)
        lines.append(f" {json.dumps(key)}: [\n{body}\n ]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in sys.argv[1:] or templates():
        write(FOLDER / f"{case}.json", observe(case))
        print(f"{case}: recorded")
