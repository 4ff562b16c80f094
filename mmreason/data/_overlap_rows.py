"""What is text in a row: the question and choices of a test item, everything a model would be trained on in a row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmreason.data.formats.common import Row, lettered, shorten
from mmreason.types import DataError

_QUESTION = ("question", "problem", "Question", "stem", "prompt", "query", "ctx", "instruction", "input", "text")
_BEFORE_QUESTION = ("context", "passage", "body", "Body")
_CHOICES = ("choices", "options", "endings")
_ID = ("id", "ID", "task_id", "unique_id", "question_id", "item_id")
_NO_TEXT = frozenset({"id", "source", "role", "type", "name", "tool_call_id", "tools", "images", "image"})
_LETTER = re.compile(r"\s*\(?([A-Za-z])\s*[).:]\s*")


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A test question.

    Attributes:
        id: its name within its set.
        question: the question alone, with its passage or body where it has one.
        choices: the texts of its choices, without letters; empty for a free answer.
    """

    id: str
    question: str
    choices: tuple[str, ...] = ()


def eval_item(row: Any, where: str, number: int) -> EvalItem:
    """The test question in a row: an EvalItem, a text, a canonical Example, or a raw row under its usual names.

    Args:
        where: the row's place, for the error.
        number: the item's id where the row has none.

    Raises: DataError where no question is found.
    """
    if isinstance(row, EvalItem):
        return row
    if isinstance(row, str):
        return EvalItem(str(number), row)
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {shorten(row)} is neither a text nor a row", row=where, reason="missing_prompt")
    inner = row["question"] if isinstance(row.get("question"), Mapping) else {}  # CommonsenseQA
    cells = {**row, **inner}
    meta = row.get("meta")
    choices = _choices(meta if isinstance(meta, Mapping) else {}) or _choices(cells)
    name = next((name for name in _QUESTION if _has_text(cells.get(name))), None)
    if name is None:
        raise DataError(
            f"{where}: no question found; looked for {', '.join(_QUESTION)} in the columns {', '.join(map(str, row))}. "
            "Give rows with a 'question' (and 'choices'), or texts",
            row=where,
            reason="missing_prompt",
        )
    parts = [_user_text(cells[name])]
    if name != "prompt":
        parts = [cells[column] for column in _BEFORE_QUESTION if isinstance(cells.get(column), str)] + parts
    question = "\n".join(parts)
    if choices:
        question = question.replace(lettered(choices), "").strip()  # an Example's prompt ends with its choices
    label = next((str(cells[column]) for column in _ID if cells.get(column) is not None), str(number))
    return EvalItem(label, question, choices)


def _has_text(cell: Any) -> bool:
    cell = _plain(cell)
    return bool(cell.strip() if isinstance(cell, str) else isinstance(cell, list | tuple) and _user_text(cell).strip())


def _user_text(cell: Any) -> str:
    """A text, or what the user says in a list of messages."""
    if isinstance(cell, str):
        return cell
    turns = [message for message in cell if isinstance(message, Mapping) and message.get("role") == "user"]
    return "\n".join(_leaves([turn.get("content") for turn in turns]))


def _choices(cells: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of a row: a list of texts, {"text": ...}; {"text": [...]}; {"A": ..., "B": ...}; columns A, B, ..."""
    cell: Any = next((found for name in _CHOICES if (found := _plain(cells.get(name)))), None)
    cell = _lettered_cells(cells) if cell is None else cell
    if isinstance(cell, Mapping):
        cell = _plain(cell["text"]) if "text" in cell else _lettered_cells(cell)
    if not isinstance(cell, list | tuple):
        return ()
    texts = [str(choice["text"] if isinstance(choice, Mapping) else choice) for choice in cell]
    labels = [_LETTER.match(text) for text in texts]  # AQuA: "A)21", "B)24"
    if all(label and label[1].upper() == chr(ord("A") + i) for i, label in enumerate(labels)):
        texts = [text[label.end() :] for text, label in zip(texts, labels, strict=True) if label]
    return tuple(texts)


def _lettered_cells(cells: Mapping[str, Any]) -> list[str] | None:
    """The texts under A, B, C, ..., where there are two and more."""
    found = [cells[letter] for letter in "ABCDEFGHIJ" if isinstance(cells.get(letter), str)]
    return found if all(isinstance(cells.get(letter), str) for letter in "AB") else None


def _plain(cell: Any) -> Any:
    """A cell as Python's own types: rows of a pandas frame hold lists as numpy arrays."""
    return cell.tolist() if hasattr(cell, "tolist") else cell


def row_text(row: Row | str) -> str:
    """All the text of a training row, a line for each cell: messages, thoughts, answers, choices. A text is itself.

    Ids, roles, tool schemas, images, and of `meta` all but the choices, are left out.

    Raises: DataError for what is neither a text nor a row, and for a row without any text.
    """
    if not isinstance(row, str | Mapping | list | tuple):
        raise DataError(f"{shorten(row)} is neither a text nor a row", reason="missing_prompt")
    texts = list(_leaves(row))
    if not texts:  # a row of token ids would pass as clean
        raise DataError(
            f"{shorten(row)} has no text: look for overlap before rows are tokenised", reason="missing_prompt"
        )
    return "\n".join(texts)


def _leaves(value: Any) -> Iterator[str]:
    """The texts in a nested value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, cell in value.items():
            if name == "meta":
                yield from _choices(cell) if isinstance(cell, Mapping) else ()
            elif name not in _NO_TEXT:
                yield from _leaves(cell)
    elif isinstance(value := _plain(value), list | tuple):
        for cell in value:
            yield from _leaves(cell)
