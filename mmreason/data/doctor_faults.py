"""The kinds of damage that the doctor knows, and one finding of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from mmreason.data.formats.common import REASONS

Severity = Literal["error", "warning"]
Found = Literal["reading", "images", "texts", "set", "model"]


class FaultKind(NamedTuple):
    """What a kind of damage is.

    severity: "error": a training stops at it, leaves the row out, or learns what the row doesn't say. "warning": it
        trains, and should be looked at.
    found: by which check. "reading": of raw rows; "images": opening them; "texts": of each row; "set": of rows against
        each other and against test sets; "model": rendering with --model.
    meaning: one line.
    """

    severity: Severity
    found: Found
    meaning: str


FAULTS: dict[str, FaultKind] = {
    "unreadable_line": FaultKind("error", "reading", "the line is no row: broken JSON, or another number of cells"),
    "bad_encoding": FaultKind("error", "reading", "the line isn't valid UTF-8"),
    "bad_unicode": FaultKind("error", "reading", "lone surrogates, which UTF-8 and Arrow can't store"),
    "null_bytes": FaultKind("error", "reading", "null bytes in a text"),
    "mixed_types": FaultKind("error", "reading", "a cell of another type than the rest of its column"),
    "nan_value": FaultKind("error", "reading", "a score or another number is NaN or infinite"),
    "missing_prompt": FaultKind("error", "reading", "the question is missing or empty"),
    "missing_answer": FaultKind("error", "reading", "no answer, where other rows have one"),
    "missing_completion": FaultKind("error", "reading", "nothing to learn, where other rows have a completion"),
    "missing_pair": FaultKind("error", "reading", "no chosen and rejected answer, where other rows have them"),
    "missing_label": FaultKind("error", "reading", "no label, where other rows have one"),
    "missing_text": FaultKind("error", "reading", "the document is missing or empty"),
    "bad_gold": FaultKind("error", "reading", "the answer can't be parsed as a gold of its kind"),
    "bad_choices": FaultKind("error", "reading", "choices that are malformed or don't hold the gold"),
    "bad_messages": FaultKind("error", "reading", "messages that are no list of roles and contents"),
    "unknown_role": FaultKind("error", "reading", "a message of a role that isn't known"),
    "role_order": FaultKind("error", "reading", "turns in an order that their format doesn't have"),
    "empty_turn": FaultKind("error", "reading", "a turn of user or assistant that says nothing"),
    "bad_tool_call": FaultKind("error", "reading", "a tool call without a name, or whose arguments are no JSON object"),
    "tool_result": FaultKind("error", "reading", "a tool's result that answers no call"),
    "bad_tools": FaultKind("error", "reading", "tools that are no list of function schemas"),
    "bad_pair": FaultKind("error", "reading", "chosen and rejected are the same, or answer different prompts"),
    "bad_label": FaultKind("error", "reading", "a label that is neither true nor false"),
    "two_image_columns": FaultKind("error", "reading", "`image` and `images` both hold something"),
    "image_not_list": FaultKind("error", "reading", "`images` is a text where a list is due"),
    "image_count": FaultKind("error", "reading", "another number of image places than of images"),
    "duplicate_id": FaultKind("error", "reading", "another row has the same id"),
    "missing_image": FaultKind("error", "images", "the image file isn't there, or the cell is empty"),
    "bad_image": FaultKind("error", "images", "the image can't be read"),
    "truncated_image": FaultKind("error", "images", "the image's data ends too early"),
    "too_many_pixels": FaultKind("error", "images", "an image bomb: too many pixels"),
    "outside_root": FaultKind("error", "images", "the image's path leads out of the data's folder"),
    "image_url": FaultKind("error", "images", "an image at a network address that isn't or may not be read"),
    "mojibake": FaultKind("warning", "texts", "UTF-8 that was read as another encoding (Ã©, â€™), or U+FFFD"),
    "control_characters": FaultKind("warning", "texts", "control or direction-changing characters in a text"),
    "stray_thought_mark": FaultKind("warning", "texts", "<think> without </think>, or the reverse, in an answer"),
    "wrong_answer": FaultKind("warning", "texts", "the completion's own answer isn't the row's gold"),
    "duplicate_row": FaultKind("warning", "set", "the same prompt, images and answer as an earlier row"),
    "conflicting_answers": FaultKind("warning", "set", "the same prompt and images as an earlier row, another gold"),
    "constant_label": FaultKind("error", "set", "every label is the same: nothing to tell apart (KTO)"),
    "eval_overlap": FaultKind("error", "set", "an item of a test set stands in the row"),
    "too_long": FaultKind("error", "model", "the row is longer than max_length"),
    "prompt_too_long": FaultKind("error", "model", "the prompt is longer than max_prompt_length"),
    "no_loss": FaultKind("error", "model", "no token of the row carries loss"),
    "template": FaultKind("error", "model", "the chat template doesn't render the row as it is"),
    "unknown_tokens": FaultKind("warning", "model", "the tokenizer has no tokens for some of the text"),
}
"""Code -> kind. Codes of reading are those of mmreason.data.formats.REASONS."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One finding.

    Attributes:
        code: key of FAULTS. row: the row's id. where: its file and line, or row number. detail: what was seen.
    """

    code: str
    row: str
    where: str
    detail: str

    @property
    def kind(self) -> FaultKind:
        """What is known of it; a code that only the reader knows is an error."""
        return FAULTS.get(self.code) or FaultKind("error", "reading", REASONS.get(self.code, self.code))

    @property
    def severity(self) -> Severity:
        return self.kind.severity
