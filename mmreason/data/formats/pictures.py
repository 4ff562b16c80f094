"""Where the images of a row stand in its prompt: ``<image>`` marks in the text, or else before the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats.common import Row, RowError, shorten
from mmreason.types import ContentPart, Example, Message

MARK = "<image>"
COLUMNS = ("images", "decoded_image", "image")
"""Names under which images are commonly found; the first that holds any wins (MathVista's ``image`` is but a name)."""


def count_image_parts(messages: Sequence[Message] | str) -> int:
    """Number of ``{"type": "image"}`` parts in a prompt."""
    if isinstance(messages, str):
        return 0
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return sum(part.get("type") == "image" for content in contents for part in content) if contents else 0


def has_image(row: Row) -> bool:
    """Does a column of images hold any?"""
    return any(as_list(row[name]) for name in COLUMNS if name in row)


def place_images(example: Example, row: Row, *, finished: bool = False, expected: bool = False) -> None:
    """Give an Example the images of its row, and its messages their places.

    Image parts that the messages bring are kept; those that hold their image themselves, as chat templates and OpenAI's
    API take them, hand it over. Else each ``<image>`` in the text of a user or a tool becomes a part where it stands,
    first in the prompt, then in the completion (results of tools), and without such marks the images go before the
    first user message's text. A mark in a row without images, but of a set with them, gets its part too, which the
    count of images then catches; in a `finished` prompt (canonical rows) it is mere text.

    Args:
        expected: the set has images, though this row may have no column for them.

    Raises: RowError.
    """
    prompt, completion = example["prompt"], example.get("completion", [])
    assert not isinstance(prompt, str) and not isinstance(completion, str)  # formats give messages
    cells = [_checked_cell(example["images"])] if "images" in example else _cells(row)
    images = next((held for held in map(as_list, cells) if held), [])
    messages = [*prompt, *completion] if completion else prompt
    marked = bool(images) or ((expected or bool(cells)) and not finished)
    example.pop("images", None)
    if "chosen" in example:
        _refuse_in_pair(example)
    if not marked and all(isinstance(message["content"], str) for message in messages):
        return
    messages, inline = _take_inline(messages)
    if inline and images:
        raise RowError(
            "image_count", f"{len(inline)} images in the messages and {len(images)} in a column of their own"
        )
    images = images or inline
    if not count_image_parts(messages) and marked:
        messages = [_split_marks(message) if message["role"] in ("user", "tool") else message for message in messages]
    if images and not count_image_parts(messages):
        messages = _images_first(messages, len(images))
    example["prompt"] = messages[: len(prompt)]
    if completion:
        example["completion"] = messages[len(prompt) :]
    if images:
        example["images"] = images


def _cells(row: Row) -> list[Any]:
    """The row's cells of images. Raises: RowError where two columns hold some, and no one can say which are meant."""
    cells = [row[name] for name in COLUMNS if name in row]
    if len(cells) > 1 and "image" in row and "images" in row and as_list(row["image"]) and as_list(row["images"]):
        raise RowError("two_image_columns", "leave one of the two out")
    if "images" in row:
        _checked_cell(row["images"])
    return cells


def _checked_cell(cell: Any) -> Any:
    if isinstance(cell, str) and cell.strip():
        raise RowError("image_not_list", f"{shorten(cell)}: write a list of it, or call the column 'image'")
    return cell


def _refuse_in_pair(example: Example) -> None:
    """Models answer in text: an image in an answer would stand in one side of a pair only."""
    for side in ("chosen", "rejected"):
        if count_image_parts(example.get(side, [])):  # type: ignore[arg-type]
            raise RowError("image_count", f"{side!r} has images; only the prompt of a pair may have some")


def as_list(value: Any) -> list[Any]:
    """The images in a cell: one, a list of them, or none. A list with a gap can't be told from a shifted one."""
    images = list(value) if isinstance(value, (list, tuple)) else [] if _is_empty(value) else [value]
    for number, image in enumerate(images, 1):
        if _is_empty(image):
            raise RowError("missing_image", f"image {number} of {len(images)} is empty")
    return images


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("bytes") is None and not value.get("path")
    return value is None or (isinstance(value, str) and not value.strip())


def _take_inline(messages: list[Message]) -> tuple[list[Message], list[Any]]:
    """(messages whose image parts are bare, the images that those parts held)."""
    images: list[Any] = []

    def bare(part: ContentPart) -> ContentPart:
        if part.get("type") not in ("image", "image_url"):
            return part
        held = next((part.get(key) for key in ("image", "image_url", "url", "path", "base64") if part.get(key)), None)
        if isinstance(held, Mapping) and "url" in held:
            held = held["url"]
        images.extend([] if held is None else [held])
        return {"type": "image"}

    taken: list[Message] = []
    for message in messages:
        content = message["content"]
        taken.append(message if isinstance(content, str) else {**message, "content": [bare(part) for part in content]})
    return taken, images


def _split_marks(message: Message) -> Message:
    content = message["content"]
    parts: list[ContentPart] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not any(MARK in part.get("text", "") for part in parts):
        return message
    split: list[ContentPart] = []
    for part in parts:
        if part.get("type") != "text":
            split.append(part)
            continue
        first, *rest = part["text"].split(MARK)
        split += _text(first)
        for text in rest:
            split += [{"type": "image"}, *_text(text)]
    return {**message, "content": split}


def _text(text: str) -> list[ContentPart]:
    """The text as a part; white space alone (between two images, at the ends) is none."""
    return [{"type": "text", "text": text}] if text.strip() else []


def _images_first(messages: list[Message], count: int) -> list[Message]:
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise RowError("bad_messages", "there are images, but no user message to put them into")
    content = messages[first]["content"]
    text: list[ContentPart] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    images: list[ContentPart] = [{"type": "image"} for _ in range(count)]
    return [*messages[:first], {**messages[first], "content": [*images, *text]}, *messages[first + 1 :]]
