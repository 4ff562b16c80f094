"""Held-out accuracy with the verifier that also gives the reward: greedy, and majority vote over k samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

from mmreason.answers import Judgement, majority_vote, verify_many
from mmreason.data.visual import Visuals
from mmreason.rewards.code import judge_programs
from mmreason.rewards.text import completion_text
from mmreason.rollout.types import Completion, Engine, Request, Sampling
from mmreason.tools.code_tests import row_tests

VISUALS_AT_ONCE = 32
"""Problems with pictures that a process gives to its engine in one call."""


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, eq. 4): sound at 0 %, 100 % and for few problems."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Accuracy:
    """A share of n problems with its 95 % interval."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n if self.n else math.nan

    def __str__(self) -> str:
        low, high = wilson_interval(self.correct, self.n)
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] ({self.correct}/{self.n})"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on held-out problems.

    greedy; greedy_strict: only answers with an explicit marker count; majority: maj@k, None unless k > 1; verdicts: of
    the greedy answers; mean_length: tokens of the greedy answers.
    """

    greedy: Accuracy
    greedy_strict: Accuracy
    majority: Accuracy | None
    k: int
    verdicts: dict[str, int] = field(default_factory=dict)
    mean_length: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Numbers and their intervals, for a file."""
        out = asdict(self)
        for name in ("greedy", "greedy_strict", "majority"):
            accuracy: Accuracy | None = getattr(self, name)
            if accuracy is not None:
                low, high = wilson_interval(accuracy.correct, accuracy.n)
                out[name] |= {"value": accuracy.value, "low": low, "high": high}
        return out

    def table(self) -> str:
        lines = [f"  greedy         {self.greedy}", f"  greedy, strict {self.greedy_strict}"]
        if self.majority is not None:
            lines.append(f"  maj@{self.k:<10} {self.majority}")
        verdicts = ", ".join(f"{name} {count}" for name, count in sorted(self.verdicts.items()))
        return "\n".join([*lines, f"  verdicts       {verdicts}; {self.mean_length:.1f} tokens on average"])


@dataclass(frozen=True)
class GreedyAnswer:
    """What the policy answered to one held-out problem.

    row: index in the set. prompt, completion: texts without special tokens. extracted: the answer that was found in the
    completion. length: tokens of the completion.
    """

    row: int
    id: str | None
    prompt: str
    completion: str
    answer: str
    verdict: str
    extracted: str | None
    length: int


def evaluate(
    engine: Engine,
    prompt_ids: Sequence[list[int]],
    examples: Sequence[dict[str, Any]],
    decode: Callable[[list[int]], str],
    sampling: Sampling,
    *,
    k: int,
    seed: int,
    visuals: Visuals | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather_objects: Callable[[list[Any]], list[Any]] = lambda items: items,
    read: Callable[[list[str]], list[str]] | None = None,
) -> tuple[Evaluation, list[GreedyAnswer]]:
    """Answer each problem once greedily and k times at the sampling temperature, and verify.

    Collective: the problems are dealt out to the processes in turn, each of which has the same number (some process
    answers the first problem again where they don't divide evenly; that answer is not counted).

    Args:
        prompt_ids: one per problem. examples: rows with `answer` and `meta`.
        decode: token ids → text.
        k: samples of the vote; below 2 there is no vote.
        visuals: the problems' pictures, where there are any.
        read: completions → the texts that their answers stand in, e.g. what their programs print; None: themselves.

    Returns: (accuracies, the greedy answers in the order of the problems).
    """
    share = math.ceil(len(examples) / world_size)
    mine = [i * world_size + rank for i in range(share)]
    rows = [i if i < len(examples) else 0 for i in mine]
    asked = [(prompt_ids[i], i) for i in rows]
    greedy = draw_answers(engine, asked, examples, visuals, 1, sampling.greedy(), seed)
    votes: list[list[Completion]] = [[] for _ in rows]
    if k > 1:
        votes = draw_answers(engine, asked, examples, visuals, k, sampling, vote_seed(seed))
    records: list[dict[str, Any]] = []
    for position, i in enumerate(mine):
        if i < len(examples):
            answer = greedy[position][0]
            texts = [_text(completion, decode) for completion in (answer, *votes[position])]
            told = texts if read is None else read(texts)
            records.append({"row": i, "texts": texts, "told": told, "length": len(answer.token_ids)})
    records = sorted(gather_objects(records), key=lambda record: record["row"])
    evaluation, judged = _score(records, examples, k)
    answers = [
        GreedyAnswer(
            row=i,
            id=examples[i].get("id"),
            prompt=decode(prompt_ids[i]),
            completion=record["texts"][0],
            answer=examples[i]["answer"] or "",
            verdict=str(judgement.verdict),
            extracted=judgement.answer,
            length=record["length"],
        )
        for i, (record, judgement) in enumerate(zip(records, judged, strict=True))
    ]
    return evaluation, answers


def vote_seed(seed: int) -> int:
    """Seed of the vote's samples in an evaluation with this one."""
    return seed + 1


def draw_answers(
    engine: Engine,
    asked: Sequence[tuple[list[int], int]],
    examples: Sequence[Mapping[str, Any]] | Mapping[int, Mapping[str, Any]],
    visuals: Visuals | None,
    n: int,
    sampling: Sampling,
    seed: int,
) -> list[list[Completion]]:
    """n completions for each (prompt ids, problem), whose row and pictures are `examples` and `visuals` at that place.

    Collective. The same weights, arguments and seed give the same completions.
    """
    if visuals is None:
        return engine.generate([Request(ids, n, example=examples[i]) for ids, i in asked], sampling, seed)
    out: list[list[Completion]] = []
    # Pictures as pixels are large: only some problems' are in memory at a time.
    for start in range(0, len(asked), VISUALS_AT_ONCE):
        part = asked[start : start + VISUALS_AT_ONCE]
        out += engine.generate(
            [Request(ids, n, visuals[i], examples[i]) for ids, i in part], sampling, seed + 2 * start
        )
    return out


def _text(completion: Completion, decode: Callable[[list[int]], str]) -> str:
    """What the policy wrote: of an episode its own turns, since what a tool wrote is no answer."""
    return decode(completion.token_ids) if completion.messages is None else completion_text(completion.messages)


def _judge(
    texts: Sequence[str], golds: Sequence[Any], kinds: Sequence[Any], choices: Sequence[Any], metas: Sequence[Any]
) -> list[Judgement]:
    """By the gold answer; where a row has tests in its place, by those: right is what passes all of them."""
    tested = [i for i, gold in enumerate(golds) if gold is None and row_tests(metas[i]) is not None]
    others = [i for i in range(len(texts)) if i not in set(tested)]

    def pick(part: Sequence[Any]) -> list[Any]:
        return [part[i] for i in others]

    found: dict[int, Judgement] = {}
    if tested:
        judged = judge_programs([texts[i] for i in tested], [metas[i] for i in tested])
        found |= dict(zip(tested, judged, strict=True))
    judged = verify_many(pick(texts), pick(golds), pick(kinds), pick(choices))
    found |= dict(zip(others, judged, strict=True))
    return [found[i] for i in range(len(texts))]


def _score(
    records: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], k: int
) -> tuple[Evaluation, list[Judgement]]:
    golds = [examples[record["row"]]["answer"] for record in records]
    metas = [examples[record["row"]].get("meta") or {} for record in records]
    kinds, choices = [m.get("kind") for m in metas], [m.get("choices") for m in metas]
    judged = _judge([record["told"][0] for record in records], golds, kinds, choices, metas)
    n = len(records)
    majority = None
    if k > 1:
        flat = verify_many(
            [text for record in records for text in record["told"][1:]],
            [gold for gold in golds for _ in range(k)],
            [kind for kind in kinds for _ in range(k)],
            [choice for choice in choices for _ in range(k)],
        )
        winners = [
            majority_vote([j.answer for j in flat[i * k : (i + 1) * k]], kinds[i] or flat[i * k].kind, choices[i])
            for i in range(n)
        ]
        # The winner is judged as one of the samples that gave it, so the vote adds no second way of being right.
        correct = 0
        for i, winner in enumerate(winners):
            group = flat[i * k : (i + 1) * k]
            correct += winner is not None and next(j.correct for j in group if j.answer == winner)
        majority = Accuracy(correct, n)
    evaluation = Evaluation(
        greedy=Accuracy(sum(j.correct for j in judged), n),
        greedy_strict=Accuracy(sum(j.strict_correct for j in judged), n),
        majority=majority,
        k=k,
        verdicts=dict(Counter(str(j.verdict) for j in judged)),
        mean_length=sum(record["length"] for record in records) / n if n else 0.0,
    )
    return evaluation, judged
