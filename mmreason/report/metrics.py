"""metrics.jsonl, guards.jsonl and evaluation.json: small files that a run appends to or replaces while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmreason.report.data import Measurement, Metrics
from mmreason.report.values import number, whole, why

_NAMED = 3  # line numbers that a problem names before it only counts


def read_metrics(path: Path) -> tuple[Metrics, list[str], list[str]]:
    """One column per metric name, over the steps of all rows.

    A step that is there twice counts once, the later row wins (a run that was continued from an earlier checkpoint
    does steps again). What isn't a finite number becomes None.

    Returns: (metrics, problems, notes).
    """
    if not path.is_file():
        return Metrics(), [], []
    try:
        content = path.read_bytes()
    except OSError as error:
        return Metrics(), [f"{path.name} can't be read ({why(error)})"], []
    rows: dict[int, dict[str, Any]] = {}
    bad: list[int] = []
    notes: list[str] = []
    lines = content.split(b"\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        row = _row(line)
        if row is not None:
            rows[row[0]] = row[1]
        elif i == len(lines) - 1:  # no line break after it: a write that is under way, or was cut off by a kill
            notes.append(f"the last line of {path.name} is cut off and was left out")
        else:
            bad.append(i + 1)
    problems = []
    if bad:
        named = ", ".join(map(str, bad[:_NAMED])) + (", …" if len(bad) > _NAMED else "")
        problems.append(
            f"{path.name}: {len(bad)} {'line is' if len(bad) == 1 else 'lines are'} no metrics (line {named}), skipped"
        )
    return _columns(rows), problems, notes


def read_events(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """guards.jsonl as {"step", "guard", "message"} each; its last line may still be under way, and is left out then."""
    if not path.is_file():
        return [], []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        return [], [f"{path.name} can't be read ({why(error)})"]
    found, bad = [], []
    for number_of_line, line in enumerate(lines[:-1], 1):
        row = _row(line)
        if row is None:
            bad.append(number_of_line)
        else:
            step, event = row
            found.append({"step": step, "guard": str(event.get("guard")), "message": str(event.get("message"))})
    problems = [f"{path.name}: {len(bad)} lines are no events (line {bad[0]} first), skipped"] if bad else []
    return found, problems


def _row(line: bytes) -> tuple[int, dict[str, Any]] | None:
    try:
        row = json.loads(line)
    except ValueError:  # covers bytes that are no UTF-8
        return None
    step = whole(row.get("step")) if isinstance(row, dict) else None
    return None if step is None else (step, row)


def _columns(rows: dict[int, dict[str, Any]]) -> Metrics:
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step] if name != "step")
    series = {name: [_number(rows[step].get(name)) for step in steps] for name in names}
    return Metrics(steps, {name: values for name, values in series.items() if any(v is not None for v in values)})


def _number(value: Any) -> float | None:
    return None if isinstance(value, str) else number(value)


def read_measurements(path: Path) -> tuple[list[Measurement], list[str]]:
    """evaluation.json, ordered by step.

    Runs of mmreason 0.1.0 have one set and no "sets" level; they are read as the set "held_out".
    """
    if not path.is_file():
        return [], []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [], [f"{path.name} can't be read ({why(error)})"]
    found: list[Measurement] = []
    problems: list[str] = []
    for name, entry in entries.items() if isinstance(entries, dict) else []:
        step = whole(entry.get("step")) if isinstance(entry, dict) else None
        sets = entry.get("sets", {"held_out": entry}) if step is not None else None
        if step is None or not isinstance(sets, dict):
            problems.append(f"{path.name}: {name!r} is no measurement, skipped")
            continue
        found.append(Measurement(str(name), step, {str(k): _measured(v) for k, v in sets.items()}))
    if not isinstance(entries, dict):
        problems.append(f"{path.name} holds no measurements")
    return sorted(found, key=lambda m: m.step), problems


_BILL = ("parameters", "disk_bytes", "memory_bytes", "peak_bytes", "latency_s", "tokens_per_s", "vllm_tokens_per_s")


def read_bill(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """bill.json of a distillation: its models in their order, with the numbers that can be shown."""
    if not path.is_file():
        return [], []
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
            raise ValueError("no list of models")
    except (OSError, ValueError) as error:
        return [], [f"{path.name} can't be read ({why(error)})"]
    return [
        {"name": str(line.get("name")), "accuracy": _measured(line.get("accuracy"))}
        | {key: number(line.get(key)) for key in _BILL}
        for line in lines
    ], []


def _measured(entry: Any) -> dict[str, Any]:
    """The parts of a measurement that have the form a report can show."""
    out: dict[str, Any] = {}
    for key, value in entry.items() if isinstance(entry, dict) else []:
        if key == "verdicts" and isinstance(value, dict):
            out[key] = {str(k): n for k, v in value.items() if (n := whole(v)) is not None}
        elif key == "reliability" and isinstance(value, list):
            bins = [[number(cell) for cell in one] for one in value if isinstance(one, list)]
            out[key] = [one for one in bins if len(one) == 3 and None not in one]
        elif isinstance(value, dict):
            numbers = {k: number(value.get(k)) for k in ("correct", "n", "value", "low", "high")}
            if numbers["value"] is not None:
                out[str(key)] = numbers
        elif key in ("k", "mean_length"):
            out[key] = number(value)
    return out
