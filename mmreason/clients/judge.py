"""A model as judge: rubric scores, and pairwise choices in both orders. A committee of judges is in `judge_committee`.

Each comparison is asked twice, with the answers exchanged, since judges lean to one place (MT-Bench, arXiv 2306.05685,
sections 3.3 and 3.4): a verdict that holds in both orders counts, any other pair of verdicts is a tie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mmreason.clients.judge_calls import UnreadableError, ask, in_order, json_explanation, json_object, last_fields
from mmreason.clients.judge_length import (
    LENGTH_RATIOS,
    LengthBucket,
    LengthControlled,
    length_controlled_win_rate,
    win_rate_by_length,
)
from mmreason.clients.judge_prompts import pair_request, question_text, rating_labels, rubric_request, verdict_label
from mmreason.clients.judge_types import (
    Call,
    Criterion,
    JudgeSettings,
    PairItem,
    RubricItem,
    Status,
    Usage,
    Verdict,
    check_ids,
    count_reasons,
    total_usage,
)
from mmreason.clients.types import Completer, Reply
from mmreason.types import ConfigError

Orders = Literal["both", "shuffled"]
"""Both orders of each pair, or one that the item's id decides: half the price, and position bias can't be seen."""
_OUTCOME: dict[Verdict, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
_EXCHANGED: dict[Verdict, Verdict] = {"A": "B", "B": "A", "tie": "tie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricResult:
    """Attributes:
    id: the item's.
    scores: criterion -> rating; None unless the call is ok.
    call: the judge's answer.
    """

    id: str
    scores: dict[str, int] | None
    call: Call[dict[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricReport:
    """Results in the order of the items."""

    results: list[RubricResult]
    usage: Usage

    @property
    def unreadable(self) -> dict[str, int]:
        """Reason -> answers that couldn't be read."""
        return count_reasons([result.call for result in self.results], "unreadable")

    @property
    def errors(self) -> dict[str, int]:
        """Error kind -> calls without an answer."""
        return count_reasons([result.call for result in self.results], "error")

    @property
    def means(self) -> dict[str, float]:
        """Criterion -> mean rating over the items that could be read."""
        read = [result.scores for result in self.results if result.scores is not None]
        return {name: sum(scores[name] for scores in read) / len(read) for name in (read[0] if read else ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Attributes:
    id: the item's.
    verdict: None unless every order could be read.
    status: "error" if a call has no answer, else "unreadable" if an answer can't be read.
    first: which answer each call showed first.
    calls: one or two; their values are verdicts about the item's A and B, whatever the order shown.
    lengths: characters of A and B.
    """

    id: str
    verdict: Verdict | None
    status: Status
    first: tuple[Literal["A", "B"], ...]
    calls: tuple[Call[Verdict], ...]
    lengths: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """What exchanging the answers did, over the items read in both orders.

    Attributes:
        consistent: the same verdict both times.
        first, second: the answer shown first (second) preferred both times.
        mixed: a preference once, a tie once.
    """

    consistent: int
    first: int
    second: int
    mixed: int

    @property
    def items(self) -> int:
        return self.consistent + self.first + self.second + self.mixed

    @property
    def rate(self) -> float | None:
        """Share of items in which the place decided; None without items."""
        return (self.first + self.second) / self.items if self.items else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """Results in the order of the items."""

    results: list[PairResult]
    usage: Usage

    @property
    def unreadable(self) -> dict[str, int]:
        """Reason -> answers that couldn't be read (an item has two)."""
        return count_reasons([call for result in self.results for call in result.calls], "unreadable")

    @property
    def errors(self) -> dict[str, int]:
        """Error kind -> calls without an answer."""
        return count_reasons([call for result in self.results for call in result.calls], "error")

    def count(self, verdict: Verdict | None) -> int:
        """Items with this verdict; None: items without one."""
        return sum(result.verdict == verdict for result in self.results)

    @property
    def win_rate(self) -> float | None:
        """A's share, ties as half, over the items with a verdict; None without any."""
        outcomes = self._read()[0]
        return sum(outcomes) / len(outcomes) if outcomes else None

    @property
    def position_bias(self) -> PositionBias:
        counts = dict.fromkeys(("consistent", "first", "second", "mixed"), 0)
        for result in self.results:
            if result.verdict is not None and len(result.calls) == 2:
                counts[_shift(result)] += 1
        return PositionBias(**counts)

    def by_length(self, ratios: Sequence[float] = LENGTH_RATIOS) -> list[LengthBucket]:
        """A's win rate by len(A) / len(B); see `win_rate_by_length`."""
        return win_rate_by_length(*self._read(), ratios)

    def length_controlled(self, l2: float = 1.0) -> LengthControlled:
        """A's win rate at equal lengths; see `length_controlled_win_rate`."""
        return length_controlled_win_rate(*self._read(), l2=l2)

    def _read(self) -> tuple[list[float], list[int], list[int]]:
        read = [(result.verdict, *result.lengths) for result in self.results if result.verdict is not None]
        return [_OUTCOME[verdict] for verdict, _, _ in read], [a for _, a, _ in read], [b for _, _, b in read]


class Judge:
    """One model as judge.

    Args:
        completer: an endpoint; its own retries are the only ones.
        name: of the judge, in reports and committees.
        settings: how it is asked.
    """

    def __init__(self, completer: Completer, *, name: str = "judge", settings: JudgeSettings | None = None) -> None:
        self.completer = completer
        self.name = name
        self.settings = settings or JudgeSettings()

    async def score(self, items: Sequence[RubricItem], criteria: Sequence[Criterion]) -> RubricReport:
        """Rates each answer by all criteria in one call.

        Raises: ConfigError for no criteria, or a criterion or an item id that stands twice.
        """
        if not criteria:
            raise ConfigError("judge: no criteria; mmreason.clients.judge_prompts.CRITERIA has some")
        check_ids([c.name for c in criteria], "criteria")
        if any(c.name == "explanation" for c in criteria):
            raise ConfigError("criterion 'explanation': the judge's reasons have this name; take another")
        check_ids([item.id for item in items], "items to judge")
        read = self._rating_reader(criteria)

        async def rate(item: RubricItem) -> RubricResult:
            parts = _parts(item, answer=item.answer)
            call = await ask(self.completer, rubric_request(parts, criteria, item.images, self.settings, item.id), read)
            return RubricResult(id=item.id, scores=call.value, call=call)

        results = await in_order(rate, items, self.settings.concurrency)
        return RubricReport(results=results, usage=total_usage([result.call for result in results]))

    async def compare(
        self, items: Sequence[PairItem], criteria: Sequence[Criterion] = (), *, orders: Orders = "both"
    ) -> PairReport:
        """Compares the two answers of each item.

        Args:
            items: the pairs.
            criteria: what to weigh; without any the judge decides what makes an answer better.
            orders: see `Orders`.

        Raises: ConfigError for an item id that stands twice or unknown orders.
        """
        if orders not in get_args(Orders):
            raise ConfigError(f"judge: orders {orders!r}; there are {', '.join(get_args(Orders))}")
        check_ids([item.id for item in items], "items to judge")
        wanted = [(item, exchanged) for item in items for exchanged in _orders(item, orders)]

        async def compare(job: tuple[PairItem, bool]) -> Call[Verdict]:
            item, exchanged = job
            first, second = (item.answer_b, item.answer_a) if exchanged else (item.answer_a, item.answer_b)
            parts = _parts(item, **{"answer-A": first, "answer-B": second})
            request = pair_request(parts, criteria, item.images, self.settings, item.id)
            return await ask(self.completer, request, self._verdict_reader(exchanged))

        calls = await in_order(compare, wanted, self.settings.concurrency)
        size = 2 if orders == "both" else 1
        results = [
            _pair_result(item, wanted[i * size : (i + 1) * size], tuple(calls[i * size : (i + 1) * size]))
            for i, item in enumerate(items)
        ]
        return PairReport(results=results, usage=total_usage(calls))

    def _rating_reader(self, criteria: Sequence[Criterion]) -> Callable[[Reply], tuple[dict[str, int], str]]:
        def from_json(reply: Reply) -> tuple[dict[str, int], str]:
            value = json_object(reply)
            scores: dict[str, int] = {}
            for c in criteria:
                score = value.get(c.name)
                if isinstance(score, float) and score.is_integer():  # an integer of JSON Schema, too: 7.0
                    score = int(score)
                if isinstance(score, bool) or not isinstance(score, int):
                    raise UnreadableError("no_verdict")
                scores[c.name] = _in_range(score, c)
            return scores, json_explanation(value)

        def from_text(reply: Reply) -> tuple[dict[str, int], str]:
            labels = rating_labels(criteria, self.settings.language)
            found, explanation = last_fields(reply.text, list(labels.values()))
            return {c.name: _in_range(_whole(found[labels[c.name]]), c) for c in criteria}, explanation

        return from_json if self.settings.answer_form == "json" else from_text

    def _verdict_reader(self, exchanged: bool) -> Callable[[Reply], tuple[Verdict, str]]:
        def read(reply: Reply) -> tuple[Verdict, str]:
            if self.settings.answer_form == "json":
                value = json_object(reply)
                word, explanation = value.get("verdict"), json_explanation(value)
            else:
                label = verdict_label(self.settings.language)
                found, explanation = last_fields(reply.text, [label])
                word = {"a": "A", "b": "B"}.get(found[label], found[label])
            if word not in _OUTCOME:
                raise UnreadableError("unknown_verdict")
            return _EXCHANGED[word] if exchanged else word, explanation

        return read


def _parts(item: RubricItem | PairItem, **answers: str) -> dict[str, str]:
    parts = {"question": question_text(item.question)}
    if item.reference is not None:
        parts["reference"] = item.reference
    return parts | answers


def _orders(item: PairItem, orders: Orders) -> tuple[bool, ...]:
    """For each call, whether the answers are exchanged."""
    if orders == "both":
        return (False, True)
    return (hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).digest()[0] % 2 == 1,)


def _pair_result(
    item: PairItem, wanted: Sequence[tuple[PairItem, bool]], calls: tuple[Call[Verdict], ...]
) -> PairResult:
    states = {call.status for call in calls}
    status: Status = "error" if "error" in states else "unreadable" if "unreadable" in states else "ok"
    verdict = None
    if status == "ok":
        verdict = calls[0].value if len({call.value for call in calls}) == 1 else "tie"
    return PairResult(
        id=item.id,
        verdict=verdict,
        status=status,
        first=tuple("B" if exchanged else "A" for _, exchanged in wanted),
        calls=calls,
        lengths=(len(item.answer_a), len(item.answer_b)),
    )


def _shift(result: PairResult) -> str:
    values = [call.value for call in result.calls]
    if values[0] == values[1]:
        return "consistent"
    if "tie" in values:
        return "mixed"
    return "first" if tuple(values) == result.first else "second"


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,6}", text):
        raise UnreadableError("no_number")
    return int(text)


def _in_range(score: int, criterion: Criterion) -> int:
    if not criterion.low <= score <= criterion.high:
        raise UnreadableError("out_of_range")
    return score
