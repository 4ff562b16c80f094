"""Cut a held-out part off a set, so that no question stands on both sides."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.data.images import ImageError, encoded_digest
from mmreason.data.sources import undecoded
from mmreason.types import ConfigError, Message

if TYPE_CHECKING:
    from datasets import Dataset


def question_key(prompt: Sequence[Message] | str, images: Sequence[Mapping[str, Any]] = ()) -> str:
    """A prompt's user text, normalised (NFKC, case, white space, final punctuation), and its images' encoded bytes.

    Equal keys are duplicates. Args: images: the cells of the row's images (see mmreason.data.images).
    """
    if isinstance(prompt, str):
        text = prompt
    else:
        texts: list[str] = []
        for message in prompt:
            content = message["content"] if message["role"] == "user" else ""
            texts += [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
        text = " ".join(texts)
    key = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip().rstrip(".?! ")
    return "\0".join([key, *(_digest(image) for image in images)])


def split_holdout(dataset: Dataset, n: int, seed: int) -> tuple[Dataset, Dataset]:
    """(train, held-out) with n held-out rows; rows with the same question, and the same images, stay on one side.

    Which questions are held out depends on the seed and the question (text, images) alone, not on row order or on the
    other rows' number, so a set that grows keeps most of its held-out questions. Both parts keep the row order.

    Raises: ConfigError where n rows can't be cut off (n < 0, n >= rows, or groups of duplicates that don't fit).
    """
    if not 0 <= n < max(len(dataset), 1):
        raise ConfigError(
            f"can't hold out {n} of {len(dataset)} rows: n must be at least 0 and leave a row to train on"
        )
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(_keys(dataset)):
        groups.setdefault(key, []).append(index)
    held: set[int] = set()
    for key in sorted(groups, key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "replace")).digest()):
        if len(held) + len(groups[key]) <= n:
            held.update(groups[key])
        if len(held) == n:
            break
    if len(held) < n:
        raise ConfigError(f"can't hold out exactly {n} rows: {len(groups)} different questions in {len(dataset)} rows")
    return dataset.select([i for i in range(len(dataset)) if i not in held]), dataset.select(sorted(held))


def _keys(dataset: Dataset) -> Iterator[str]:
    """The key of each row's question."""
    if "images" not in dataset.column_names:
        yield from map(question_key, dataset["prompt"])
        return
    for row in undecoded(dataset.select_columns(["prompt", "images"])):
        yield question_key(row["prompt"], row["images"] or ())


def _digest(cell: Mapping[str, Any]) -> str:
    try:
        return encoded_digest(cell)
    except ImageError:  # a file that can't be read is named, with its row, when all images are opened
        return str(cell.get("path"))
