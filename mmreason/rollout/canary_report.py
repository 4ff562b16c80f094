"""The verdict about each path that was tried: do pictures reach the model there, and do the true ones help?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

from mmreason.answers import verify_many
from mmreason.rollout.canary import AGAIN, TRAINING, PathRecord, RowRecord
from mmreason.rollout.canary_rows import KINDS, CanaryRows, Kind
from mmreason.rollout.evaluate import Accuracy, wilson_interval
from mmreason.rollout.paired import PairedMean, paired_mean

Status = Literal["pass", "warn", "fail"]

REACTS_ABOVE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""Least change of a token's log-probability, in nats, that counts as a reaction to other pictures."""

AGREES_WITHIN = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest mean difference of a row's log-probabilities, in nats, between two computations of the same thing."""

NOISE_FACTOR = 10
"""A reaction is at least this many times what the same input, given twice, changes."""

TITLES = {TRAINING: "training", "hf": "rollout, HF", "vllm_colocate": "rollout, vLLM", "vllm_server": "rollout, vLLM"}


@dataclass(frozen=True)
class PathReport:
    """One path's numbers and verdict.

    status, verdict: in a word, and in words.
    logp: by kind of picture, mean over rows; in training of the whole completion, else per token of the greedy answers.
    accuracy: of greedy answers by kind; None in training.
    reacting, n: rows that react to other pictures, of how many. reaction: median over rows of the largest change of a
        token's log-probability where pictures become blank or noise. repeat: the same where nothing changes.
    floor: what counts as a reaction.
    gap, gap_max: largest difference to what should be the same, a row's mean and a token's.
    gain: log p(gold | true) - log p(gold | shuffled), nats; only in training, with gold completions.
    """

    name: str
    status: Status
    verdict: str
    logp: dict[str, float]
    accuracy: dict[str, Accuracy] | None
    reacting: int
    n: int
    reaction: float
    repeat: float
    floor: float
    gap: float
    gap_max: float
    gain: PairedMean | None = None

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name)


@dataclass(frozen=True)
class CanaryReport:
    """All paths' reports. notes: what else has to be said."""

    paths: list[PathReport]
    dtype: str
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The worst of the paths'."""
        return max((path.status for path in self.paths), key=("pass", "warn", "fail").index)

    def table(self) -> str:
        """Numbers of each path and kind of picture, then the verdicts."""
        rows = [("path", "images", "log-prob", "accuracy of greedy answers")]
        for path in self.paths:
            for kind in KINDS:
                accuracy = "" if path.accuracy is None else str(path.accuracy[kind])
                rows.append((path.title if kind == "true" else "", kind, f"{path.logp[kind]:.3f}", accuracy))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        unit = "log-prob: nats; in training of the whole completion, in rollouts per token of the greedy answer"
        return "\n".join([*lines, unit, "", *self.verdicts(), *self.notes])

    def verdicts(self) -> list[str]:
        """A line for each path."""
        return [f"{path.status.upper()}  {path.title}: {path.verdict}" for path in self.paths]

    def to_json(self) -> dict[str, Any]:
        """For a file: everything, with Wilson intervals beside the accuracies and null for infinite numbers."""
        out = asdict(self) | {"status": self.status}
        for written, path in zip(out["paths"], self.paths, strict=True):
            for kind, accuracy in (path.accuracy or {}).items():
                low, high = wilson_interval(accuracy.correct, accuracy.n)
                written["accuracy"][kind] |= {"value": accuracy.value, "low": low, "high": high}
        finite: dict[str, Any] = _finite(out)
        return finite

    def metrics(self) -> dict[str, float]:
        """Finite numbers under `canary/…`, for a run's metrics."""
        out: dict[str, float] = {}
        for path in self.paths:
            start = f"canary/{path.name}"
            out |= {f"{start}/logp_{kind}": path.logp[kind] for kind in KINDS}
            out |= {f"{start}/accuracy_{kind}": accuracy.value for kind, accuracy in (path.accuracy or {}).items()}
            out |= {f"{start}/reacting": path.reacting / path.n, f"{start}/reaction": path.reaction}
            out |= {f"{start}/difference": path.gap, f"{start}/difference_max": path.gap_max}
            if path.gain is not None:
                out |= {f"{start}/gain": path.gain.mean, f"{start}/gain_low": path.gain.low}
        return {name: value for name, value in out.items() if math.isfinite(value)}


def judge_paths(
    rows: CanaryRows, records: Sequence[RowRecord], *, dtype: str, gold: bool, decode: Callable[[list[int]], str]
) -> CanaryReport:
    """Verdicts from what `observe` saw.

    Args:
        dtype: that the model computes in: "float32", "float16" or "bfloat16"; it sets the tolerances.
        gold: completions of the training path were the gold ones. decode: token ids → text.
    """
    paths: list[PathReport] = []
    training_sees = True
    for name in records[0].paths:
        seen = [record.paths[name] for record in records]
        accuracy = None if name == TRAINING else _accuracy(rows, seen, decode)
        gain = _gain(rows, seen) if name == TRAINING and gold else None
        path = _measured(name, seen, dtype, accuracy, gain)
        failure = _failure(path, dtype, training_sees)
        training_sees = training_sees and not (name == TRAINING and failure)
        status, verdict = _success(path, gold) if failure is None else ("fail", failure)
        paths.append(replace(path, status=status, verdict=verdict))
    notes = []
    alone = sum(partner is None for partner in rows.partners)
    if alone:
        notes.append(
            f"{alone} of {len(rows)} rows keep their own pictures where they should be shuffled: no other row has as "
            "many that differ from theirs"
        )
    return CanaryReport(paths, dtype, notes)


def change(first: PathRecord, kind: str, other: str) -> float:
    """Largest change of a log-probability, in nats, between two kinds of pictures, as far as the texts are the same.

    Where greedy texts part, the first differing tokens count too: both are the likeliest there, and the probability of
    the likeliest moves no more than the logits do, so that a tie which rounding decides is no reaction.
    """
    tokens, others = first.tokens[kind], first.tokens[other]
    largest = 0.0
    for a, b, p, q in zip(tokens, others, first.logps[kind], first.logps[other], strict=False):
        largest = max(largest, abs(p - q))
        if a != b:
            break
    return largest


def _measured(
    name: str,
    seen: Sequence[PathRecord],
    dtype: str,
    accuracy: dict[str, Accuracy] | None,
    gain: PairedMean | None,
) -> PathReport:
    """The numbers of a path, without a verdict."""
    # Blank and noisy pictures leave the prompt and its neighbours as they are, token for token: what changes then, does
    # so because of what the model sees. Shuffled ones may have other sizes, and so other prompts.
    reactions = [max(change(record, "true", "blank"), change(record, "true", "noise")) for record in seen]
    repeat = median(change(record, "true", AGAIN) for record in seen)
    floor = max(REACTS_ABOVE[dtype], NOISE_FACTOR * repeat)
    gaps = [[abs(a - b) for a, b in zip(r.logps["true"], r.expected, strict=True)] for r in seen]
    return PathReport(
        name=name,
        status="pass",
        verdict="",
        logp={kind: _mean_logp(seen, kind, per_token=name != TRAINING) for kind in KINDS},
        accuracy=accuracy,
        reacting=sum(reaction > floor for reaction in reactions),
        n=len(seen),
        reaction=median(reactions),
        repeat=repeat,
        floor=floor,
        gap=max(sum(row) / len(row) for row in gaps),
        gap_max=max(max(row) for row in gaps),
        gain=gain,
    )


def _failure(path: PathReport, dtype: str, training_sees: bool) -> str | None:
    """What is wrong with a path, in words; None: nothing is."""
    allowed = AGREES_WITHIN[dtype]
    by = f"by {path.gap:.2g} nats on average in one row, allowed are {allowed:g} in {dtype}"
    if path.repeat > allowed:
        return (
            f"the same input gives other log-probabilities each time ({path.repeat:.2g} nats), so nothing can be said"
        )
    if 2 * path.reacting < path.n:
        return (
            f"images don't reach the model: {path.n - path.reacting} of {path.n} rows don't react to blank pictures or "
            f"noise (no token's log-probability moves by more than {path.floor:.1g} nats)"
        )
    if path.name == TRAINING and path.gap > allowed:
        return f"a row's log-probabilities depend on its neighbours in the batch ({by}): pictures may go to other rows"
    if path.name != TRAINING and training_sees and path.gap > allowed:
        return (
            f"images reach the model, but engine and training disagree about the engine's own answers ({by}): they "
            "don't see the same pictures, or don't have the same weights"
        )
    return None


def _success(path: PathReport, gold: bool) -> tuple[Status, str]:
    """Status and verdict of a path with which nothing is wrong."""
    sees = "sees the images"
    if path.reacting < path.n:
        sees += f" ({path.n - path.reacting} of {path.n} rows don't react)"
    if path.name != TRAINING or not gold:
        return "pass", sees
    if path.gain is None or math.isinf(path.gain.low):
        pairs = 0 if path.gain is None else path.gain.n
        return (
            "warn",
            f"{sees}; whether the true ones help can't be said from {pairs} rows with others (6 at least)",
        )
    numbers = f"log p(gold) - log p(gold | shuffled): {path.gain} nats, 95 % interval over {path.gain.n} rows"
    if path.gain.low <= 0:
        return "warn", f"images reach the model, but the true ones help no more than others ({numbers})"
    return "pass", f"{sees} and uses them ({numbers})"


def _gain(rows: CanaryRows, seen: Sequence[PathRecord]) -> PairedMean | None:
    pairs = [
        sum(record.logps["true"]) - sum(record.logps["shuffled"])
        for record, partner in zip(seen, rows.partners, strict=True)
        if partner is not None
    ]
    return paired_mean(pairs, seed=rows.seed) if pairs else None


def _mean_logp(seen: Sequence[PathRecord], kind: str, *, per_token: bool) -> float:
    sums = [sum(r.logps[kind]) / (len(r.logps[kind]) if per_token else 1) for r in seen]
    return sum(sums) / len(sums)


def _accuracy(
    rows: CanaryRows, seen: Sequence[PathRecord], decode: Callable[[list[int]], str]
) -> dict[str, Accuracy] | None:
    metas = [example.get("meta") or {} for example in rows.examples]
    golds = [example["answer"] for example in rows.examples]
    kinds, choices = [meta.get("kind") for meta in metas], [meta.get("choices") for meta in metas]
    out: dict[str, Accuracy] = {}
    kind: Kind
    for kind in KINDS:
        judged = verify_many([decode(record.tokens[kind]) for record in seen], golds, kinds, choices)
        out[kind] = Accuracy(sum(judgement.correct for judgement in judged), len(judged))
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
