"""The text of each token of a completion, so that a reader of the samples needs no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what decoding puts for bytes that are no whole character
# A character has at most four bytes, so at most three tokens wait for its last one. Decoders write one mark for all of
# them, or one for each.
_WAITING = 3
_WINDOW = 12  # tokens that are decoded again for those that wait: enough for three marks of three bytes
_KEPT_RUNS = 10_000  # texts of waiting tokens that are remembered: rare characters come again, whatever the language


class TokenTexts:
    """Token ids → their texts, which joined give the completion with its special tokens as they are written.

    Where a character spans several tokens (byte-level BPE, byte fallback) the last of them has it and the others are
    empty: each text is what its token adds to the text decoded up to there. Tokens that are whole characters by
    themselves, which are nearly all, are decoded once and then looked up.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._alone: dict[int, str | None] = {}
        self._together: dict[tuple[int, ...], str] = {}

    def __call__(self, ids: Sequence[int]) -> list[str]:
        texts: list[str] = []
        waiting: list[int] = []  # tokens since the last whole character
        shown = 0  # characters of their text that have been given out
        for token in ids:
            alone = self._text_alone(token)
            if alone is not None:
                if waiting:  # they were no character after all
                    texts[-1] += self._run(waiting)[shown:]
                    waiting, shown = [], 0
                texts.append(alone)
                continue
            if len(waiting) >= _WINDOW:
                waiting = waiting[1:]
                shown = len(_settled(self._run(waiting)))
            waiting.append(token)
            text = self._run(waiting)
            settled = _settled(text)
            texts.append(settled[shown:])
            shown = len(settled)
            if not text.endswith(_BROKEN):
                waiting, shown = [], 0
        if waiting:
            texts[-1] += self._run(waiting)[shown:]
        return texts

    def _run(self, waiting: list[int]) -> str:
        """The text of tokens that wait for each other."""
        key = tuple(waiting)
        if key not in self._together:
            if len(self._together) >= _KEPT_RUNS:
                self._together.clear()
            self._together[key] = self._decode(waiting)
        return self._together[key]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _text_alone(self, token: int) -> str | None:
        """The token's text within a sequence, None where it is no whole character by itself."""
        if token not in self._alone:
            # Some decoders (SentencePiece's) take the space off the first token of a text, so the second of two is
            # looked at.
            once, twice = self._decode([token]), self._decode([token, token])
            whole = _BROKEN not in twice and twice.startswith(once)
            self._alone[token] = twice[len(once) :] if whole else None
        return self._alone[token]


def _settled(text: str) -> str:
    """The text without final marks that further tokens may still turn into a character."""
    end = len(text)
    while end > 0 and len(text) - end < _WAITING and text[end - 1] == _BROKEN:
        end -= 1
    return text[:end]
