"""What of a rendered conversation carries loss, and how much."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError, DataError

Kind = Literal["reasoning", "answer", "json", "tool_call"]
KINDS: tuple[Kind, ...] = ("reasoning", "answer", "json", "tool_call")
TURNS = ("last", "all")
_FENCE = re.compile(r"```json[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, stop) of a text and what they are; `said` are those of them that the row brings."""

    kind: Kind
    start: int
    stop: int
    said: tuple[int, int]

    def behind(self, start: int) -> Span:
        """What is left of it from `start` on."""
        return Span(self.kind, max(self.start, start), self.stop, (max(self.said[0], start), self.said[1]))


@dataclass(frozen=True, slots=True)
class LossOn:
    """What carries loss: the YAML option `loss_on`.

    Attributes:
        turns: "last": the completion alone; "all": earlier assistant turns, too.
        reasoning, answer, tool_call: weight of a token of that kind; a turn's end has that of what it ends.
        json: weight of JSON within an answer (a fenced block, or an answer that is nothing else); None: the answer's.
    """

    turns: Literal["last", "all"] = "last"
    reasoning: float = 1.0
    answer: float = 1.0
    json: float | None = None
    tool_call: float = 1.0

    @staticmethod
    def parse(value: str | Mapping[str, Any] | LossOn | None) -> LossOn:
        """`last`, `all`, or a mapping {reasoning: 0.5, answer: 1.0, json: 2.0, turns: all}. Raises ConfigError.

        Kinds that a mapping doesn't name carry no loss, but JSON, which is part of its answer.
        """
        if value is None or isinstance(value, LossOn):
            return value or LossOn()
        if isinstance(value, str):
            if value not in TURNS:
                raise ConfigError(
                    f"loss_on {value!r}: neither last nor all, nor a mapping such as {{answer: 1.0}}."
                    + did_you_mean(value, TURNS)
                )
            return LossOn(turns=value)  # type: ignore[arg-type]
        return _from_mapping(value)


LAST_TURN = LossOn()
"""The completion, all of it alike."""


def _from_mapping(value: Mapping[str, Any]) -> LossOn:
    known = [*KINDS, "turns"]
    for name, given in value.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"loss_on: unknown kind {name!r}; known: {', '.join(known)}.{hint}")
        if name == "turns":
            if given not in TURNS:
                raise ConfigError(f"loss_on: turns is last or all, not {given!r}")
        elif isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < float("inf"):
            raise ConfigError(f"loss_on: {name} is a weight of at least 0, not {given!r}")
    weights = {kind: float(value.get(kind, 0.0)) for kind in ("reasoning", "answer", "tool_call")}
    json = value.get("json")
    loss_on = LossOn(turns=value.get("turns", "last"), json=None if json is None else float(json), **weights)
    if not any((*weights.values(), json)):
        raise ConfigError("loss_on: nothing has a weight over 0, so nothing would be learned")
    return loss_on


def weighted(text: str, spans: Sequence[Span], loss_on: LossOn) -> list[tuple[int, int, float]]:
    """(start, stop, weight) of the characters that carry loss, ascending; JSON is cut out of answers."""
    found: list[tuple[int, int, float]] = []
    for span in spans:
        cuts = list(_json_in(text, span)) if span.kind == "answer" and loss_on.json is not None else []
        start = span.start
        for a, b in cuts:
            found += [(start, a, loss_on.answer), (a, b, float(loss_on.json or 0.0))]
            start = b
        found.append((start, span.stop, getattr(loss_on, span.kind)))
    return [(a, b, weight) for a, b, weight in found if a < b and weight > 0]


def _json_in(text: str, span: Span) -> Iterator[tuple[int, int]]:
    """Where JSON stands in an answer: its fenced blocks, or an answer that is an object or a list as a whole."""
    start, stop = span.said
    fenced = list(_FENCE.finditer(text, start, stop))
    if fenced:
        yield from (match.span(1) for match in fenced)
        return
    said = text[start:stop]
    start += len(said) - len(said.lstrip())
    said = said.strip()
    if said.startswith(("{", "[")) and _is_json(said):
        yield start, start + len(said)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def token_weights(
    offsets: Sequence[tuple[int, int]], regions: Sequence[tuple[int, int, float]], text: str
) -> list[float]:
    """Loss weight of each token.

    A token has the weight of the region that it lies in; one that reaches over the border of two regions that carry
    loss has the first one's. One that begins before all that carries loss stays without: it is a token of the prompt.

    Args:
        offsets: (start, stop) characters of each token. regions: as `weighted` gives them.

    Raises: DataError where such a token takes a character of the answer, not mere white space, with it: the prompt
        alone would then be read in other tokens than here.
    """
    weights = [0.0] * len(offsets)
    covered = 0
    for number, (start, stop) in enumerate(offsets):
        while covered < len(regions) and regions[covered][1] <= start:
            covered += 1
        if covered == len(regions) or start == stop or stop <= regions[covered][0]:
            continue
        a, _, weight = regions[covered]
        if start >= a:
            weights[number] = weight
        elif text[a:stop].strip() and (covered == 0 or regions[covered - 1][1] < a):
            raise DataError(
                f"one token, {text[start:stop]!r}, holds the prompt's end and the answer's beginning, so generation "
                "would read the prompt in other tokens; put a space or a line break between them",
                reason="template",
            )
    return weights
