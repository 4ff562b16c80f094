"""What the report says of the rows, gathered as they pass: lengths of all, and a sample that order doesn't change."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Mapping
from typing import Any

from mmreason.types import Example

SAMPLE = 2000
"""Rows of which the report counts distinct n-grams."""
SHOWN = 24
"""Rows that it shows."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")  # a character of Chinese is one
_PARTS = ("prompt", "reasoning", "answer", "chosen", "rejected", "text")


class RowStats:
    """Lengths in words of each part of the rows, and the rows whose ids have the smallest hashes.

    Args: sample: rows kept for distinct n-grams, which take several times as long to count as a row takes to add.
    """

    def __init__(self, sample: int = SAMPLE) -> None:
        self.rows = 0
        self.lengths: dict[str, list[int]] = {}
        self._texts = _Smallest(sample)
        self._shown = _Smallest(SHOWN)

    def add(self, row: Example) -> None:
        """A kept row."""
        self.rows += 1
        for name, text in parts(row).items():
            self.lengths.setdefault(name, []).append(len(_WORD.findall(text)))
        rank = int.from_bytes(hashlib.blake2b(str(row.get("id")).encode(), digest_size=8).digest(), "big")
        self._shown.add(rank, self.rows, row)
        if "images" in row:
            row = {name: cell for name, cell in row.items() if name != "images"}  # type: ignore[assignment]
        self._texts.add(rank, self.rows, row)

    def sample(self) -> list[Example]:
        """At most `sample` rows, without their images."""
        return self._texts.rows()

    def shown(self) -> list[Example]:
        """At most SHOWN rows, with their images."""
        return self._shown.rows()


class _Smallest:
    """The rows with the smallest ranks."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, int, Example]] = []

    def add(self, rank: int, number: int, row: Example) -> None:
        """Args: number: of the row, for equal ranks."""
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (-rank, -number, row))
        elif -self._heap[0][0] > rank:
            heapq.heapreplace(self._heap, (-rank, -number, row))

    def rows(self) -> list[Example]:
        return [row for *_, row in sorted(self._heap, key=lambda held: (-held[0], -held[1]))]


def parts(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a row: prompt, reasoning and answer of the completion, both sides of a pair, a document."""
    found: dict[str, list[str]] = {}
    for name in ("prompt", "completion", "chosen", "rejected", "text"):
        cell = row.get(name)
        target = "answer" if name == "completion" else name
        if isinstance(cell, str):
            found.setdefault(target, []).append(cell)
        for message in cell if isinstance(cell, list) else ():
            thoughts = message.get("reasoning_content")
            if thoughts and name == "completion":
                found.setdefault("reasoning", []).append(thoughts)
            found.setdefault(target, []).append(_content(message.get("content")))
    return {name: "\n".join(found[name]) for name in _PARTS if name in found}


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))
