"""Helpers that the row formats share: the row error, cell access, gold numbers, message building."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.types import Example, Message

Row = Mapping[str, Any]

_OWN_FIELDS = frozenset({"id", "source", "images", "image", "decoded_image", "kind", "choices"})

REASONS: dict[str, str] = {
    "missing_prompt": "the question is missing or empty",
    "missing_answer": "the answer is missing or empty",
    "bad_gold": "the answer can't be used as a gold",
    "bad_choices": "the choices are missing, malformed, or don't hold the answer",
    "bad_messages": "the messages are malformed",
    "unreadable_line": "the line isn't a readable row",
    "bad_encoding": "the text isn't valid UTF-8",
    "bad_unicode": "the text holds lone surrogates, which UTF-8 and Arrow can't store",
    "duplicate_id": "another row has the same id",
    "images_unused": "the prompt has images, but images weren't asked for",
    "image_count": "the prompt has another number of image places than the row has images",
    "missing_image": "the image is not there",
    "bad_image": "the image can't be read",
    "truncated_image": "the image's data ends too early",
    "too_many_pixels": "the image is too large",
    "outside_root": "the image's path leads out of the data's folder",
    "image_url": "the image stands at a network address that is not or may not be read",
    "prompt_too_long": "the prompt is longer than max_prompt_length",
    "missing_completion": "there is no completion to learn from",
    "too_long": "prompt and completion are longer than max_length",
    "template": "the chat template doesn't render the row as it is",
    "unknown_role": "a message has a role that isn't known",
    "empty_turn": "a turn says nothing",
    "role_order": "the turns don't alternate as this format demands it",
    "bad_tool_call": "a tool call has no name, or arguments that are no JSON object",
    "tool_result": "a tool's result answers no call",
    "bad_tools": "the tools are no list of function schemas",
    "tools_unused": "the row has tools, but tools weren't asked for",
    "bad_pair": "chosen and rejected are not two different answers to one prompt",
    "bad_label": "the label is neither true nor false",
    "missing_pair": "there is no pair of a chosen and a rejected answer",
    "missing_label": "there is no label of the completion",
    "missing_text": "the document is missing or empty",
    "two_image_columns": "both 'image' and 'images' hold something",
    "image_not_list": "'images' is a text, not a list",
    "null_bytes": "the text holds null bytes",
    "nan_value": "a number is NaN or infinite",
    "mixed_types": "the cell has another type than its column has elsewhere",
    "no_loss": "no token of the row carries loss",
}
"""Reason codes of bad rows: the keys of the drop counts."""


class RowError(ValueError):
    """A row that can't become an Example.

    Args:
        reason: a key of REASONS.
        detail: what exactly was seen, in one line.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason code {reason!r}")
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {REASONS[reason]}" + (f" ({detail})" if detail else ""))


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which raw rows come.

    Attributes:
        name: the registry name, also the ``source`` of its examples (see `many_sets`).
        parse: (row, index) -> Example; raises RowError. Pure: the same row gives the same Example. The images of
            columns called so are put in afterwards (mmreason.data.formats.pictures).
        detect: (column names, a few of the first rows) -> does this set look like mine?
        own_template: True where rows bring finished prompts, so that no default prompt template is applied.
        split: for sets whose rows hold several questions: a row -> one row each, which `parse` then takes.
        many_sets: True for a form in which many sets come: the ``source`` of its examples is then the name of the file
            or hub set instead of the format's.
        mapped: the columns that a column map may name for this format; () where it takes none.
        bare_marks: True where ``<image>`` in a row without images is mere text.
    """

    name: str
    parse: Callable[[Row, int], Example]
    detect: Callable[[frozenset[str], Sequence[Row]], bool]
    own_template: bool = False
    split: Callable[[Row], list[Row]] | None = None
    many_sets: bool = False
    mapped: tuple[str, ...] = ()
    bare_marks: bool = False


def shorten(value: object, limit: int = 80) -> str:
    """repr of a value, cut to `limit` characters, safe to print (lone surrogates escaped)."""
    text = repr(value)
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def text_cell(row: Row, name: str, reason: str) -> str:
    """The stripped text of a cell; RowError(reason) where it is missing, empty or no text."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(reason, f"{name!r} is {shorten(value)}")
    return value.strip()


def number_text(value: object) -> str | None:
    """The plain text of a number cell: 51.0 -> "51", "51.0" -> "51", 0.5 -> "0.5"; None for what is no finite number.

    Only a zero fraction is cut off; every other text stays as it was written.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value == int(value) else repr(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    return re.sub(r"^([-+]?[\d,]+)\.0+$", r"\1", text) or None


def user_message(text: str) -> list[Message]:
    """The prompt of a single question."""
    return [{"role": "user", "content": text}]


def worked_completion(reasoning: str | None, answer: str) -> list[Message]:
    """The reference completion: the rationale as ``reasoning_content``, the final answer as ``content``."""
    message: Message = {"role": "assistant", "content": answer}
    if reasoning and reasoning.strip():
        message["reasoning_content"] = reasoning.strip()
    return [message]


def extras(row: Row, used: Container[str]) -> dict[str, Any]:
    """The plain cells (texts, numbers, true/false) that a format has no use for: they travel in ``meta``."""
    return {
        name: cell
        for name, cell in row.items()
        if name not in used and name not in _OWN_FIELDS and isinstance(cell, (str, int, float))
    }


def take_name(example: Example, row: Row, *names: str) -> None:
    """Give an Example its row's own id, from the first of `names` ("id" without any) that has one, and its source."""
    found = next((row[name] for name in names or ("id",) if isinstance(row.get(name), (str, int))), None)
    if found is not None and found != "":
        example["id"] = str(found)
    if isinstance(row.get("source"), str) and row["source"]:
        example["source"] = row["source"]


def take_label(example: Example, row: Row) -> None:
    """Give an Example the truth in the row's ``label`` (LLaMA-Factory: ``kto_tag``); other labels go to ``meta``."""
    for name in ("label", "kto_tag"):
        if isinstance(row.get(name), bool):
            example["label"] = row[name]
        elif isinstance(row.get(name), (str, int, float)):
            example["meta"][name] = row[name]


def lettered(choices: Sequence[str]) -> str:
    """Choices as they stand under a question: one line each, "(A) text"."""
    return "\n".join(f"({letter_of(i)}) {choice}" for i, choice in enumerate(choices))


def choice_cell(row: Row, name: str = "choices") -> list[str]:
    """The stripped texts of a list of at least two choices; RowError where it is something else."""
    cell = row.get(name)
    if not isinstance(cell, list) or len(cell) < 2 or not all(isinstance(text, str) and text.strip() for text in cell):
        raise RowError("bad_choices", f"{name!r} is {shorten(cell)}")
    return [text.strip() for text in cell]


def letter_of(index: int) -> str:
    """0 -> "A". Raises RowError past "Z"."""
    if not 0 <= index < 26:
        raise RowError("bad_choices", f"no letter for choice number {index + 1}")
    return chr(ord("A") + index)
