"""Prompt/answer rows under the names people use, or under the names that a column map gives.

Columns are looked for in the order of `NAMES`; a dotted name reaches into a struct (``reward_model.ground_truth``).
A column map names our field -> their column: ``{"prompt": "Body", "answer": "reward_model.ground_truth"}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats import pictures
from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    letter_of,
    lettered,
    number_text,
    shorten,
    user_message,
    worked_completion,
)
from mmreason.data.formats.conversations import check_messages
from mmreason.types import Example, Message

NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "problem", "prompt", "query", "instruction", "input"),
    "answer": (
        "answer",
        "final_answer",
        "ground_truth",
        "reward_model.ground_truth",
        "target",
        "label",
        "gold",
        "answer_value",
        "expected_answer",
        "solution",
    ),
    "completion": ("completion", "rationale", "answer_cot", "solution", "response", "output"),
    "choices": ("choices", "options"),
    "images": pictures.COLUMNS,
    "id": ("id", "ID", "item_id", "unique_id", "uid", "question_id"),
    "source": ("source", "data_source"),
}
"""Our field -> names under which it is commonly found, the first present one wins."""

EXTRA = ("score", "level", "difficulty", "subject")
"""Cells that go to ``meta`` as they stand: what a curriculum may sort by."""
ABSENT: Any = object()
"""What `lookup` gives where there is no cell; null is one."""


def lookup(row: Row, path: str) -> Any:
    """The cell at a dotted path, or `ABSENT`. A column whose own name has the dots is preferred."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def has_path(row: Row, path: str) -> bool:
    """Does the row have a cell at this dotted path (null counts as a cell)?"""
    return lookup(row, path) is not ABSENT


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    def found(field: str) -> bool:
        return any(has_path(row, name) for row in rows for name in NAMES[field])

    return found("prompt") and found("answer")


def parse(row: Row, index: int) -> Example:
    return parse_with({}, row, index)


def parse_with(column_map: Mapping[str, str], row: Row, index: int) -> Example:
    """One row under a column map; fields that the map leaves out are looked for under their usual names."""
    choices = _choices(_field(row, "choices", column_map)[1])
    example: Example = {"prompt": _prompt(row, column_map, choices)}
    answer_name, raw = _field(row, "answer", column_map)
    gold, kind = _gold(answer_name, raw, choices)
    example["answer"] = gold
    example["meta"] = {"kind": kind, "choices": choices} | {
        name: row[name] for name in EXTRA if isinstance(row.get(name), (str, int, float))
    }
    worked = _field(row, "completion", column_map)[1]
    if isinstance(worked, list) and worked:
        example["completion"] = check_messages(worked, "completion")
    elif isinstance(worked, str) and worked.strip() and (gold is not None or "completion" in column_map):
        # Without a gold, what the map calls the completion is all that is to be said.
        example["completion"] = worked_completion(worked, gold) if gold is not None else worked_completion(None, worked)
    elif isinstance(raw, str) and gold is not None and gold != raw.strip():
        example["completion"] = worked_completion(raw, gold)  # the gold was cut out of a worked solution
    if "images" in column_map:
        example["images"] = pictures.as_list(
            lookup(row, column_map["images"]) if has_path(row, column_map["images"]) else None
        )
    for name in ("id", "source"):
        value = _field(row, name, column_map)[1]
        if value is not ABSENT and value is not None and not isinstance(value, (Mapping, list)):
            example[name] = str(value)  # type: ignore[literal-required]
    return example


def _field(row: Row, field: str, column_map: Mapping[str, str]) -> tuple[str, Any]:
    """(column name, cell) of our field; cell `ABSENT` where there is none."""
    if field in column_map:
        return column_map[field], lookup(row, column_map[field])
    for name in NAMES[field]:
        value = lookup(row, name)
        if value is not ABSENT:
            return name, value
    return NAMES[field][0], ABSENT


def _prompt(row: Row, column_map: Mapping[str, str], choices: list[str] | None) -> list[Message]:
    name, value = _field(row, "prompt", column_map)
    if isinstance(value, list):
        return check_messages(value, name)
    if not isinstance(value, str) or not value.strip():
        raise RowError("missing_prompt", f"{name!r} is {'absent' if value is ABSENT else shorten(value)}")
    text = value.strip()
    if name == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        text += "\n\n" + row["input"].strip()  # Alpaca's form: the instruction, then what it is about
    if choices:
        text += "\n" + lettered(choices)
    return user_message(text)


def _choices(value: Any) -> list[str] | None:
    """Choices as a list of texts; also ARC's {"text": [...], "label": [...]} and [{"label": .., "text": ..}]."""
    if value is ABSENT or value is None:
        return None
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if not isinstance(value, list) or len(value) < 2:
        raise RowError("bad_choices", shorten(value))
    texts = [item.get("text") if isinstance(item, Mapping) else item for item in value]
    if not all(isinstance(text, (str, int, float)) and str(text).strip() for text in texts):
        raise RowError("bad_choices", shorten(value))
    return [str(text).strip() for text in texts]


def _gold(name: str, value: Any, choices: list[str] | None) -> tuple[str | None, str | None]:
    """(gold, kind or None for "to be inferred"). None where the row has no answer."""
    if value is ABSENT or value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return ("yes" if value else "no"), "yesno"
    if choices and isinstance(value, int):
        if not 0 <= value < len(choices):
            raise RowError("bad_gold", f"{name!r} is {value} with {len(choices)} choices")
        return letter_of(value), "choice"
    if isinstance(value, (int, float)):
        gold = number_text(value)
        if gold is None:
            raise RowError("bad_gold", f"{name!r} is {value}")
        return gold, "number"
    if not isinstance(value, str):
        raise RowError("bad_gold", f"{name!r} is {shorten(value)}, not a text or number")
    if choices:
        return value.strip(), "choice"
    from mmreason.answers import gold_answer

    # "answer" and "solution" columns often hold a worked solution: its marked answer is the gold.
    return gold_answer(value) or value.strip(), None


FORMAT = Format("generic", parse, detect, many_sets=True, mapped=tuple(NAMES))
