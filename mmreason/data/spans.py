"""Two tokenizations of one text, cut where both have a border: spans that can be compared.

A teacher with another tokenizer gives other tokens another probability, but what it gives to a stretch of text is the
product over its tokens, whatever they are. Spans are the shortest stretches that begin and end between tokens on both
sides (as in multi-level and GOLD-class distillation across tokenizers, arXiv 2402.12030 and TRL's GOLD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmreason.types import DataError

_UNKNOWN = "�"


def token_borders(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[int]]:
    """(the text of some tokens, without special ones; for each token the characters up to its end).

    A token that ends inside a character ends where the last whole one before it does, as far as borders go: -1.
    """
    special = set(tokenizer.all_special_ids)
    text = str(tokenizer.decode([i for i in ids if i not in special]))
    borders: list[int] = []
    kept: list[int] = []
    for token in ids:
        if token not in special:
            kept.append(token)
        so_far = str(tokenizer.decode(kept)) if kept else ""
        whole = text.startswith(so_far) and not (so_far.endswith(_UNKNOWN) and not text.startswith(so_far + _UNKNOWN))
        borders.append(len(so_far) if whole and not _is_cut(so_far, text) else -1)
    return text, borders


def _is_cut(so_far: str, text: str) -> bool:
    """Whether the last character of a prefix stands for bytes that are not whole yet."""
    return so_far.endswith(_UNKNOWN) and text[len(so_far) - 1 : len(so_far)] != _UNKNOWN


def align(
    first: Sequence[int], second: Sequence[int], tokenizers: tuple[Any, Any], where: str
) -> tuple[list[int], list[int]]:
    """The number of the span that each token is in, from 0, for both tokenizations of one text.

    Special tokens behind the text, such as the end of a turn, are a last span of their own where both have some; where
    only one has, they are in no span: -1.

    Raises: DataError naming the row, where the texts differ.
    """
    texts, borders = zip(
        *(token_borders(ids, one) for ids, one in zip((first, second), tokenizers, strict=True)), strict=True
    )
    if texts[0].strip() != texts[1].strip():
        at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        raise DataError(
            f"{where}: student and teacher are to learn different texts, from character {at} on "
            f"({texts[0][at : at + 20]!r} and {texts[1][at : at + 20]!r})",
            row=where,
            reason="alignment",
        )
    shift = [len(text) - len(text.lstrip()) for text in texts]
    length = len(texts[0].strip())
    ends = [
        [-1 if border < 0 else min(max(border - moved, 0), length) for border in each]
        for each, moved in zip(borders, shift, strict=True)
    ]
    shared = sorted((set(ends[0]) & set(ends[1]) & set(range(1, length))) | ({length} if length else set()))
    found = [_numbers(each, shared, length) for each in ends]
    tails = [sum(number == len(shared) for number in each) for each in found]
    if not all(tails):  # the end of a turn on one side only
        found = [[-1 if number == len(shared) else number for number in each] for each in found]
    return found[0], found[1]


def _numbers(ends: Sequence[int], shared: Sequence[int], length: int) -> list[int]:
    """A token belongs to the span in which it ends; what comes when the text is over, to the one behind the last."""
    numbers: list[int] = []
    reached = 0
    current = 0
    for end in ends:
        if length == 0 or (reached >= length and (end < 0 or end >= length)):
            numbers.append(len(shared))
            continue
        numbers.append(current)
        if end >= 0:
            reached = max(reached, end)
            while current < len(shared) and shared[current] <= reached:
                current += 1
    return numbers
