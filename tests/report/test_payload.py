"""What the page gets: derived curves, thinning, verdict shares, histograms, packed texts."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from pathlib import Path

import pytest

from mmreason.report import read_run
from mmreason.report.data import Completion, Group, Limits, Metrics, Rollouts, RolloutStep, RunData
from mmreason.report.payload import (
    LOGP_UNITS,
    browser_data,
    flat,
    flattened,
    page_data,
    reward_histograms,
    thinned,
    verdict_mix,
    with_derived,
)


def rollouts(*rewards: list[float], verdicts: list[dict[str, int]] | None = None) -> Rollouts:
    steps = [
        RolloutStep(i + 1, i + 1, array("d", values), Counter(verdicts[i]) if verdicts else Counter(), 3.0, 0.5)
        for i, values in enumerate(rewards)
    ]
    return Rollouts(steps, [], 0, 0, False)


def run_of(found: Rollouts | None, metrics: Metrics | None = None) -> RunData:
    return RunData(Path("x"), "x", metrics or Metrics(), [], [], found, {}, {}, [], [])


# ---- curves


def test_tokens_per_second_come_from_the_running_total() -> None:
    metrics = Metrics([1, 2, 4, 5], {"num_tokens": [100.0, 300.0, 500.0, 400.0], "time/step": [2.0, 4.0, 1.0, 1.0]})
    # Step 3 is missing, so step 4 has no growth of its own; a total that falls (another run) gives nothing.
    assert with_derived(metrics, None).series["tokens_per_second"] == [50.0, 50.0, None, None]
    late = Metrics([7, 8], {"num_tokens": [100.0, None], "time/step": [2.0, 4.0]})
    assert "tokens_per_second" not in with_derived(late, None).series


def test_a_verdict_that_nobody_got_counts_as_zero_where_others_are_known() -> None:
    metrics = Metrics([1, 2, 3], {"verdict/correct": [0.5, None, None], "verdict/wrong": [0.5, 1.0, None]})
    assert with_derived(metrics, None).series == {
        "verdict/correct": [0.5, 0.0, None],
        "verdict/wrong": [0.5, 1.0, None],
    }


def test_rollouts_stand_in_for_metrics_that_are_not_recorded() -> None:
    found = with_derived(Metrics([2, 3], {"loss": [5.0, 6.0]}), rollouts([0.0, 1.0], [1.0, math.nan]))
    assert found.steps == [1, 2, 3]
    assert found.series["loss"] == [None, 5.0, 6.0]
    assert found.series["reward"] == [0.5, 1.0, None]
    assert found.series["completions/mean_length"] == [3.0, 3.0, None]
    recorded = with_derived(Metrics([1], {"reward": [9.0]}), rollouts([0.0], [1.0]))
    assert recorded.series["reward"] == [9.0, None]


def test_long_runs_are_averaged_and_short_ones_are_not() -> None:
    metrics = Metrics(
        list(range(1, 11)), {"loss": [float(i) for i in range(10)], "gap": [None] * 5 + [1.0, 3.0] + [None] * 3}
    )
    assert thinned(metrics, 10)[2] == 1
    steps, series, every = thinned(metrics, 5)
    assert every == 2 and steps == [2, 4, 6, 8, 10]
    assert series["loss"] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert thinned(Metrics(), 5) == ([], {}, 1)


def test_rare_values_of_a_long_run_stay_as_they_are() -> None:
    values: list[float | None] = [None] * 10
    values[3], values[9] = 0.25, 0.75
    metrics = Metrics(list(range(1, 11)), {"loss": [1.0] * 10, "eval/held_out/greedy": values})
    assert thinned(metrics, 5)[1]["eval/held_out/greedy"] == [None, 0.25, None, None, 0.75]


def test_numbers_are_rounded() -> None:
    _, series, _ = thinned(Metrics([1, 2, 3], {"a": [0.123456789, 2.0, 1.23456789e-9]}), 10)
    assert series["a"] == [0.12346, 2, 1.2346e-09]


# ---- verdicts and rewards


def test_verdict_shares_come_from_metrics_and_else_from_rollouts() -> None:
    metrics = Metrics([1, 2], {"verdict/wrong": [0.75, None], "verdict/odd": [0.25, None]})
    mix = verdict_mix(metrics, rollouts([0.0], [0.0], verdicts=[{"correct": 9}, {"correct": 1, "wrong": 3}]))
    assert mix == {
        "names": ["correct", "wrong", "odd"],
        "steps": [1, 2],
        "every": 1,
        "shares": [[0, 0.25], [0.75, 0.75], [0.25, 0]],
    }
    assert verdict_mix(Metrics(), rollouts([1.0])) is None
    assert verdict_mix(Metrics(), None) is None


def test_verdict_shares_of_a_long_run_are_averaged() -> None:
    n = 1000
    mix = verdict_mix(Metrics(list(range(1, n + 1)), {"verdict/correct": [i / n for i in range(n)]}), None)
    assert mix is not None
    assert (mix["every"], len(mix["steps"]), mix["steps"][-1]) == (5, 200, n)
    assert mix["shares"][0][0] == 0.002


def test_few_different_rewards_get_a_bar_each() -> None:
    (found,) = reward_histograms([run_of(rollouts(*[[0.0, 0.1, 1.0, math.nan]] * 20))])
    assert found is not None and found["discrete"] and found["bins"] == [0, 0.1, 1]
    assert [(p["name"], p["first"], p["last"], p["counts"]) for p in found["parts"]] == [
        ("start", 1, 2, [2, 2, 2]),
        ("middle", 10, 11, [2, 2, 2]),
        ("end", 19, 20, [2, 2, 2]),
    ]


def test_many_different_rewards_are_binned_alike_in_all_runs() -> None:
    first, second = run_of(rollouts([i / 50 for i in range(51)])), run_of(rollouts([2.0, 3.0], [2.5, -1.0]))
    one, two = reward_histograms([first, second])
    assert one is not None and two is not None and not one["discrete"]
    assert one["bins"] == two["bins"] and (one["bins"][0], one["bins"][-1]) == (-1, 3)
    assert sum(one["parts"][0]["counts"]) == 51
    assert [(p["name"], sum(p["counts"])) for p in two["parts"]] == [("start", 2), ("end", 2)]
    assert two["parts"][0]["counts"][-1] == 1 and two["parts"][1]["counts"][0] == 1


def test_runs_without_rewards_have_no_histogram() -> None:
    assert reward_histograms([run_of(None), run_of(rollouts([math.nan]))]) == [None, None]
    assert reward_histograms([run_of(None), run_of(rollouts([1.0]))])[0] is None


# ---- texts


def completion(text: str, tokens: list[str] | None, logps: list[float | None] | None, **changes: object) -> Completion:
    return Completion(**{
        "reward": 1.0, "advantage": 0.12345, "verdict": "correct", "length": 2, "truncated": False,
        "text": text, "tokens": tokens, "logps": logps, "extra": {},
    } | changes)  # fmt: skip


def test_tokens_are_written_once_and_texts_only_where_tokens_do_not_tell() -> None:
    members = [
        completion("ab", ["a", "b", "<end>"], [-0.12345, None, -0.0]),
        completion("😀b", ["😀", "b"], [-3.0, -0.001]),
        completion("other", ["b"], None, advantage=[0.5, None]),
        completion("plain", None, None, advantage=None, reward=None),
    ]
    packed = browser_data(Rollouts([], [Group(3, 3, 0, "id", "p", None, members)], 1, 4, True))
    assert packed["groups"] == [[3, 3, 0, "id", "p", None, 4]]
    assert packed["vocabulary"] == ["a", "b", "<end>", "😀"]
    rows = packed["rows"]
    assert rows["tokens"] == [[0, 1, 2], [3, 1], [1], None]
    assert rows["text"] == [2, 3, "other", "plain"]  # JavaScript counts the emoji as two
    assert rows["logps"] == [[12, None, 0], [300, 0], None, None]
    assert LOGP_UNITS == 100
    assert rows["advantage"] == [123, 123, [500, None], None]
    assert rows["reward"] == [1, 1, 1, None]


def test_settings_become_single_lines() -> None:
    assert flattened({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}
    assert flat([1, {"name": "x", "k": [1, 2]}]) == "1, {name: x, k: [1, 2]}"
    assert [flat(v) for v in (None, True, 0.5, math.inf, [], {})] == [None, True, 0.5, "inf", "[]", "{}"]


def test_page_data_of_a_whole_run(run: Path) -> None:
    data = page_data([read_run(run, limits=Limits(completions=20))], Limits())["runs"][0]
    assert data["last_step"] == 12 and data["finished"]
    assert data["rollouts"] == {
        "files": 12, "groups": 36, "completions": 144, "shown_groups": 5, "shown": 20, "has_tokens": True,
    }  # fmt: skip
    assert data["series"]["loss"][2] is None
    assert data["record"]["versions.torch"] == "2.13.0"
    assert data["settings"]["reward_funcs"] == "{name: accuracy}"
    assert data["answers"][0] == {"name": "held_out", "steps": [0, 6, 12]}


@pytest.mark.parametrize(
    ("wanted", "measured", "finished"), [(12, 12, True), (20, 12, False), (-1, 12, True), (12, 9, False)]
)
def test_a_run_is_finished_when_its_last_step_was_measured(
    run: Path, wanted: int, measured: int, finished: bool
) -> None:
    found = read_run(run)
    found.settings["max_steps"] = wanted
    found.measurements = [type(m)(m.name, measured, m.sets) if m.name == "after" else m for m in found.measurements]
    assert found.finished is finished
    found.measurements = found.measurements[:-1]
    assert not found.finished
