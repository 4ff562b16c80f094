"""Run data → the JSON that the page's script draws: rounded, thinned, columns instead of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mmreason.report.data import AnswerSet, Completion, Limits, Metrics, Rollouts, RolloutStep, RunData
from mmreason.report.values import rounded

VERDICTS = ("correct", "wrong", "unparseable", "timeout", "bad_gold")
_VERDICT = "verdict/"
_MIX_STEPS = 240  # columns of the verdict picture: about one for three pixels of a wide screen
_WINDOW = 0.1  # share of the run that "start", "middle" and "end" of the reward histogram cover
_BINS = 24
_DISCRETE = 12  # rewards with at most so many different values get a bar for each value
LOGP_UNITS = 100  # log-probs travel as whole hundredths of a nat
ADVANTAGE_UNITS = 1000

Numbers = Sequence[float | None]


def page_data(runs: Sequence[RunData], limits: Limits) -> dict[str, Any]:
    """What the page draws at once; the texts follow in `browser_data` and `answers_data`."""
    histograms = reward_histograms(runs)
    return {
        "runs": [_run(run, histogram, limits) for run, histogram in zip(runs, histograms, strict=True)],
        "limits": {"tokens_per_completion": limits.tokens_per_completion},
        "units": {"logp": LOGP_UNITS, "advantage": ADVANTAGE_UNITS},
    }


def _run(run: RunData, histogram: dict[str, Any] | None, limits: Limits) -> dict[str, Any]:
    metrics = with_derived(run.metrics, run.rollouts)
    steps, series, every = thinned(metrics, limits.points)
    rollouts = run.rollouts
    counts = None
    if rollouts is not None:
        counts = {
            "files": len(rollouts.steps),
            "groups": rollouts.total_groups,
            "completions": rollouts.total_completions,
            "shown_groups": len(rollouts.groups),
            "shown": rollouts.shown,
            "has_tokens": rollouts.has_tokens,
        }
    return {
        "name": run.name,
        "path": str(run.path),
        "last_step": run.last_step,
        "seconds": rounded(run.seconds, 4),
        "finished": run.finished,
        "steps": steps,
        "series": series,
        "every": every,
        "measurements": [{"name": m.name, "step": m.step, "sets": m.sets} for m in run.measurements],
        "verdicts": verdict_mix(metrics, rollouts),
        "histogram": histogram,
        "rollouts": counts,
        "answers": [{"name": s.name, "steps": [sheet.step for sheet in s.sheets]} for s in run.answers],
        "settings": {key: flat(value) for key, value in run.settings.items()},
        "record": {key: flat(value) for key, value in flattened(run.record).items()},
        "problems": run.problems,
        "notes": run.notes,
        "events": run.events,
        "bill": run.bill,
    }


# --------------------------------------------------------------------------------------------------------------------
# Curves


def with_derived(metrics: Metrics, rollouts: Rollouts | None) -> Metrics:
    """The recorded metrics, plus tokens per second, plus what the rollouts tell where metrics.jsonl doesn't."""
    steps, series = list(metrics.steps), _without_gaps(metrics.series)
    if "num_tokens" in series and "time/step" in series:
        rate = _rate(steps, series["num_tokens"], series["time/step"])
        if any(value is not None for value in rate):
            series["tokens_per_second"] = rate
    for name, measure in _FROM_ROLLOUTS.items() if rollouts is not None else ():
        if rollouts is None or name in series:
            continue
        found = {step.step: value for step in rollouts.steps if (value := measure(step)) is not None}
        if found:
            known = sorted({*steps, *found})
            series = {key: _on(known, dict(zip(steps, values, strict=True))) for key, values in series.items()}
            steps = known
            series[name] = _on(steps, found)
    return Metrics(steps, series)


def _without_gaps(series: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """A verdict that nobody got is not recorded for that step: its share is 0 where another verdict's is known."""
    names = [name for name in series if name.startswith(_VERDICT)]
    judged = [any(value is not None for value in row) for row in zip(*(series[n] for n in names), strict=True)]
    filled: dict[str, list[float | None]] = {
        name: [0.0 if value is None and known else value for value, known in zip(series[name], judged, strict=True)]
        for name in names
    }
    return series | filled


_FROM_ROLLOUTS: dict[str, Callable[[RolloutStep], float | None]] = {
    "reward": lambda step: step.mean_reward,
    "completions/mean_length": lambda step: step.mean_length,
    "completions/clipped_ratio": lambda step: step.truncated,
}


def _on(steps: Sequence[int], values: dict[int, Any]) -> list[Any]:
    return [values.get(step) for step in steps]


def _rate(steps: Sequence[int], total: Numbers, seconds: Numbers) -> list[float | None]:
    """Growth of a running total per second; a step whose predecessor isn't there gives nothing."""
    out: list[float | None] = []
    for i, (now, time) in enumerate(zip(total, seconds, strict=True)):
        before = total[i - 1] if i and steps[i - 1] == steps[i] - 1 else 0.0 if steps[i] == 1 else None
        known = now is not None and before is not None and time is not None and time > 0 and now > before
        out.append((now - before) / time if known else None)  # type: ignore[operator]
    return out


def thinned(metrics: Metrics, points: int) -> tuple[list[int], dict[str, list[float | int | None]], int]:
    """(steps, series, n): each point is the mean of n neighbouring rows, which is 1 for all but long runs."""
    every = max(1, math.ceil(len(metrics.steps) / points))
    starts = range(0, len(metrics.steps), every)
    steps = [metrics.steps[min(i + every, len(metrics.steps)) - 1] for i in starts]
    series = {}
    for name, values in metrics.series.items():
        if every > 1 and sum(v is not None for v in values) <= points:  # rare values, such as evaluations, stay exact
            steps_of = {metrics.steps[i]: i // every for i, v in enumerate(values) if v is not None}
            sparse: list[float | int | None] = [None] * len(steps)
            for step, place in steps_of.items():
                sparse[place] = rounded(values[metrics.steps.index(step)])
            series[name] = sparse
        else:
            series[name] = [rounded(_mean(values[i : i + every])) for i in starts]
    return steps, series, every


def _mean(values: Numbers) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --------------------------------------------------------------------------------------------------------------------
# Verdicts and rewards


def verdict_mix(metrics: Metrics, rollouts: Rollouts | None) -> dict[str, Any] | None:
    """Share of each verdict over the steps: from metrics.jsonl, or from the rollouts where it has none."""
    found: dict[int, dict[str, float]] = {}
    for name, values in metrics.series.items():
        for step, value in zip(metrics.steps, values, strict=True):
            if name.startswith(_VERDICT) and value is not None:
                found.setdefault(step, {})[name.removeprefix(_VERDICT)] = value
    for rollout in rollouts.steps if rollouts is not None else ():
        total = rollout.verdicts.total()
        if total and rollout.step not in found:
            found[rollout.step] = {name: n / total for name, n in rollout.verdicts.items()}
    if not found:
        return None
    names = {name for shares in found.values() for name in shares}
    ordered = [name for name in VERDICTS if name in names] + sorted(names - set(VERDICTS))
    steps = sorted(found)
    every = max(1, math.ceil(len(steps) / _MIX_STEPS))
    parts = [steps[i : i + every] for i in range(0, len(steps), every)]
    shares = [
        [rounded(sum(found[step].get(name, 0.0) for step in part) / len(part), 4) for part in parts] for name in ordered
    ]
    return {"names": ordered, "steps": [part[-1] for part in parts], "shares": shares, "every": every}


def reward_histograms(runs: Sequence[RunData]) -> list[dict[str, Any] | None]:
    """Rewards at start, middle and end of each run, over all completions, with the same bins for all runs."""
    windows = [_windows(run.rollouts.steps) if run.rollouts is not None else [] for run in runs]
    rewards = [r for run in windows for _, part in run for step in part for r in step.rewards if math.isfinite(r)]
    if not rewards:
        return [None] * len(runs)
    values = sorted({round(r, 4) for r in rewards})
    discrete = len(values) <= _DISCRETE
    low, high = values[0], values[-1]
    width = (high - low) / _BINS

    def bin_of(reward: float) -> int:
        if discrete:
            return values.index(round(reward, 4))
        return min(_BINS - 1, int((reward - low) / width))

    bins = values if discrete else [low + i * width for i in range(_BINS + 1)]
    out: list[dict[str, Any] | None] = []
    for run in windows:
        parts: list[dict[str, Any]] = []
        for name, part in run:
            counts = [0] * (len(values) if discrete else _BINS)
            for step in part:
                for reward in step.rewards:
                    if math.isfinite(reward):
                        counts[bin_of(reward)] += 1
            parts.append({"name": name, "first": part[0].step, "last": part[-1].step, "counts": counts})
        parts = [part for part in parts if any(part["counts"])]
        out.append({"discrete": discrete, "bins": [rounded(b, 4) for b in bins], "parts": parts} if parts else None)
    return out


def _windows(steps: Sequence[RolloutStep]) -> list[tuple[str, Sequence[RolloutStep]]]:
    n = len(steps)
    size = max(1, round(n * _WINDOW))
    middle = (n - size) // 2
    parts = [("start", steps[:size]), ("middle", steps[middle : middle + size]), ("end", steps[n - size :])]
    if n < 3:
        parts = [parts[0], parts[2]][:n]
    return [part for part in parts if part[1]]


# --------------------------------------------------------------------------------------------------------------------
# Texts


def browser_data(rollouts: Rollouts) -> dict[str, Any]:
    """The rollout browser's groups and completions; each token text is written once."""
    vocabulary: dict[str, int] = {}
    groups, rows = [], []
    for group in rollouts.groups:
        groups.append(
            [group.step, group.rollout, group.group, group.id, group.prompt, group.answer, len(group.completions)]
        )
        rows += [_completion(completion, vocabulary) for completion in group.completions]
    names = ("reward", "advantage", "verdict", "length", "truncated", "text", "tokens", "logps", "extra")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return {"groups": groups, "vocabulary": list(vocabulary), "rows": columns}


def _completion(c: Completion, vocabulary: dict[str, int]) -> tuple[Any, ...]:
    tokens = None if c.tokens is None else [vocabulary.setdefault(token, len(vocabulary)) for token in c.tokens]
    logps = None
    if c.logps is not None:
        logps = [None if value is None else round(-value * LOGP_UNITS) for value in c.logps]
    advantage: Any = c.advantage
    if isinstance(advantage, list):
        advantage = [None if value is None else round(value * ADVANTAGE_UNITS) for value in advantage]
    elif advantage is not None:
        advantage = round(advantage * ADVANTAGE_UNITS)
    # The tokens joined begin with the completion (special tokens follow), so mostly its length says it all.
    whole = c.tokens is not None and "".join(c.tokens).startswith(c.text)
    text: str | int = len(c.text.encode("utf-16-le", "surrogatepass")) // 2 if whole else c.text  # as JavaScript counts
    reward = rounded(c.reward)
    return reward, advantage, c.verdict, c.length, int(c.truncated), text, tokens, logps, c.extra or None


def answers_data(sets: Sequence[AnswerSet]) -> list[dict[str, Any]]:
    """The held-out problems and their answers over the evaluations."""
    return [
        {
            "name": found.name,
            "with_text": found.with_text,
            "problems": [[p["row"], p["id"], p["prompt"], p["answer"]] for p in found.problems],
            "sheets": [
                {
                    "step": sheet.step,
                    "completion": sheet.completion,
                    "verdict": sheet.verdict,
                    "extracted": sheet.extracted,
                    "length": sheet.length,
                }
                for sheet in found.sheets
            ],
        }
        for found in sets
    ]


# --------------------------------------------------------------------------------------------------------------------
# Settings


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"versions": {"torch": "2"}} → {"versions.torch": "2"}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            out |= flattened(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def flat(value: Any) -> str | int | float | bool | None:
    """A setting as one line."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_inside(item) for item in value) or "[]"
    return _inside(value)


def _inside(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_inside(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inside(item) for item in value) + "]"
    return str(value)
