"""Which problems are asked: the band of pass rates, a curriculum, replay of hard ones, priority; the way back."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.prompt_order import PromptOrder, PromptStream, open_prompts
from mmreason.trainers.rewarding import Rewarder
from mmreason.trainers.selection import PromptSelection, SelectionOptions
from mmreason.trainers.state import RunState
from mmreason.types import ConfigError

NAN = float("nan")
BLOCKS: list[dict[str, Any]] = [
    {},
    {"min_pass_rate": 0.1, "max_pass_rate": 0.9},
    {"min_pass_rate": 0.2, "max_pass_rate": 0.6, "after": 2, "return_after": 1, "curriculum": "easy_first"},
    {"curriculum": "hard_first", "replay_hard": 0.25},
    {"replay_hard": 0.5, "hard_pass_rate": 0.5, "max_pass_rate": 0.8},
    {"priority": True},
]


def make(rows: int, shuffle: bool = True, seed: int = 5, **block: Any) -> PromptSelection:
    return PromptSelection(SelectionOptions.of(block), rows, seed, shuffle)


def epoch(selection: PromptSelection, rate: dict[int, float], drawn: int) -> list[int]:
    """Ask everything of one epoch, one row at a time, each row solved as often as `rate` says."""
    asked = [selection.draw(1, drawn)[0]]
    selection.observe(asked, [rate[asked[0]]])
    while selection._left:
        (row,) = selection.draw(1, drawn + len(asked))
        asked.append(row)
        selection.observe([row], [rate[row]])
    return asked


def test_rows_outside_the_band_are_out_from_the_next_epoch_on_and_come_back() -> None:
    rate = {0: 0.0, 1: 0.5, 2: 1.0, 3: 0.3, 4: 0.05}
    selection = make(5, min_pass_rate=0.1, max_pass_rate=0.9, return_after=2, ema=1.0)
    assert sorted(epoch(selection, rate, 0)) == [0, 1, 2, 3, 4]
    assert sorted(epoch(selection, rate, 5)) == [1, 3]
    told = selection.metrics()
    assert (told["prompts/active"], told["prompts/too_hard"], told["prompts/too_easy"]) == (2, 2, 1)
    assert sorted(epoch(selection, rate, 7)) == [1, 3]
    rate[0] = 0.4  # the policy learned to solve it in the meantime
    assert sorted(epoch(selection, rate, 9)) == [0, 1, 2, 3, 4], "after two epochs they are asked once more"
    assert sorted(epoch(selection, rate, 14)) == [0, 1, 3]


def test_a_row_is_judged_by_as_many_groups_as_are_asked_for() -> None:
    selection = make(2, min_pass_rate=0.5, after=2, ema=1.0, return_after=0)
    rate = {0: 0.0, 1: 1.0}
    assert len(epoch(selection, rate, 0)) == 2 and len(epoch(selection, rate, 2)) == 2
    for turn in range(4):
        assert epoch(selection, rate, 4 + turn) == [1], "return_after 0: for good"


def test_pass_rates_are_moving_averages_of_group_means() -> None:
    selection = make(3, ema=0.25)
    selection.observe([0, 0, 1, 1, 2], [1.0, 0.0, 1.0, NAN, NAN])
    assert selection._rate(0) == 0.5 and selection._rate(1) == 1.0
    selection.observe([0, 0, 1], [1.0, 7.0, -3.0])  # rewards beyond 0 … 1 count as solved, or not
    assert selection._rate(0) == pytest.approx(0.75 * 0.5 + 0.25 * 1.0)
    assert selection._rate(1) == pytest.approx(0.75)
    assert selection.metrics()["prompts/unseen"] == 1.0, "a row without a judgement was taken for seen"


def test_curriculum_by_observed_and_by_given_difficulty() -> None:
    rate = {0: 0.2, 1: 0.9, 2: 0.5, 3: 0.7}
    selection = make(4, curriculum="easy_first", ema=1.0)
    epoch(selection, rate, 0)
    assert epoch(selection, rate, 4) == [1, 3, 2, 0]
    hard = make(4, curriculum="hard_first", ema=1.0)
    epoch(hard, rate, 0)
    assert epoch(hard, rate, 4) == [0, 2, 3, 1]
    options = SelectionOptions.of({"curriculum": "easy_first", "difficulty": "level"})
    given_ = PromptSelection(options, 4, 0, True, difficulty=[3.0, 1.0, 2.0, 0.5])
    assert given_.draw(4, 0) == [3, 1, 2, 0], "a given difficulty holds from the first epoch on"


def test_replay_takes_a_share_of_hard_rows_that_are_solved_sometimes() -> None:
    selection = make(40, replay_hard=0.25, hard_pass_rate=0.3, ema=1.0)
    first = selection.draw(8, 0)
    assert len(set(first)) == 8, "nothing is known to be hard yet, so fresh rows fill the rollout"
    rates = dict(zip(first, [0.0, 0.1, 0.3, 0.31, 1.0, 0.2, 0.0, 0.9], strict=True))
    selection.observe(first, [rates[row] for row in first])
    hard = {row for row, rate in rates.items() if 0 < rate <= 0.3}
    asked = selection.draw(8, 8)
    assert len(asked) == 8 and len(set(asked)) == 8
    assert set(asked[-2:]) <= hard and not set(asked[:6]) & set(first)
    assert selection.metrics()["prompts/replayed"] == 2
    # A quarter of all prompts in the long run, also where a rollout is too small for a whole one each time.
    small = make(10_000, replay_hard=0.1, hard_pass_rate=1.0)
    small.observe(range(9_000, 9_050), [0.5] * 50)
    counts = [sum(row in range(9_000, 9_050) for row in small.draw(4, drawn)) for drawn in range(0, 400, 4)]
    assert 38 <= sum(counts) <= 44 and set(counts) <= {0, 1, 2}


def test_priority_asks_undecided_rows_more_often() -> None:
    """Frequencies over many draws are those of √(p (1 - p)) + floor."""
    selection = make(4, priority=True)
    rates = {0: 0.0, 1: 0.5, 2: 0.9, 3: 1.0}
    selection.observe(list(rates), list(rates.values()))
    counts = Counter(selection.draw(1, drawn)[0] for drawn in range(6000))
    weights = {row: math.sqrt(p * (1 - p)) + 0.05 for row, p in rates.items()}
    for row in rates:
        assert counts[row] / 6000 == pytest.approx(weights[row] / sum(weights.values()), abs=0.02)
    assert sorted(selection.draw(4, 0)) == [0, 1, 2, 3], "no row twice while there are others"
    assert len(selection.draw(11, 3)) == 11
    other = PromptSelection(SelectionOptions.of({"priority": True}), 2, 0, True, value=lambda row: [0.5, 1.0][row])
    assert Counter(other.draw(1, drawn)[0] for drawn in range(500))[0] > 400, "SPO's values are not used"


def test_nothing_left_to_ask_is_said_and_all_are_asked(caplog: pytest.LogCaptureFixture) -> None:
    selection = make(3, min_pass_rate=0.5, ema=1.0, return_after=0)
    with caplog.at_level(logging.WARNING):
        epoch(selection, {0: 0.0, 1: 0.0, 2: 0.0}, 0)
        assert not caplog.text
        assert sorted(epoch(selection, {0: 0.0, 1: 0.0, 2: 0.0}, 3)) == [0, 1, 2]
    assert "no row's pass rate is between 0.5 and 1.0" in caplog.text


@settings(max_examples=120, deadline=None)
@given(
    block=st.sampled_from(BLOCKS),
    rows=st.integers(1, 12),
    n=st.integers(1, 7),
    cut=st.integers(0, 10),
    results=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, NAN]), min_size=12, max_size=12),
    shuffle=st.booleans(),
)
def test_interrupted_is_unbroken(
    block: dict[str, Any], rows: int, n: int, cut: int, results: list[float], shuffle: bool
) -> None:
    """At any point the state, as JSON, is all that the rest depends on; and every draw is full of rows that exist."""
    whole, parts = make(rows, shuffle, **block), make(rows, shuffle, **block)
    for step in range(10):
        if step == cut:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = make(rows, shuffle, **block)
            parts.load_state_dict(state)
        asked = whole.draw(n, step * n)
        assert asked == parts.draw(n, step * n)
        assert len(asked) == n and all(0 <= row < rows for row in asked)
        passes = [results[(row + step) % 12] for row in asked]
        whole.observe(asked, passes)
        parts.observe(asked, passes)
        assert whole.metrics() == pytest.approx(parts.metrics(), nan_ok=True)


def accuracy_reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def format_reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def stream(rows: dict[str, list[Any]], **block: Any) -> PromptStream:
    args = PolicyConfig(prompt_selection=block, shuffle_dataset=False)
    dataset = Dataset.from_dict({"prompt": ["x"] * 3, **rows})
    return open_prompts(
        args, dataset, Rewarder(dataset, [format_reward, accuracy_reward], [0.5, 1.0], RunState()), None
    )


def test_difficulty_is_a_column_or_a_key_of_meta() -> None:
    easy = {"curriculum": "easy_first", "difficulty": "level"}
    assert stream({"level": [3, 1, 2]}, **easy).draw(3) == [1, 2, 0]
    assert stream({"meta": [{"level": 2.5}, {"level": 1.0}, {"level": 2.0}]}, **easy).draw(3) == [1, 2, 0]
    with pytest.raises(ConfigError, match="no column 'level', nor one of that name in meta; there are prompt, size"):
        stream({"size": [1, 2, 3]}, **easy)
    with pytest.raises(ConfigError, match="row 1 has level=None, which is no number"):
        stream({"level": [1, None, 3]}, **easy)


def test_a_pass_is_the_accuracy_or_the_reward_that_is_named() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [NAN, NAN]], dtype=torch.float64)
    for block, expected in (({}, [0.0, 1.0]), ({"reward": "format"}, [1.0, 0.0])):
        found = stream({}, **block, max_pass_rate=1.0)
        found.observe([0, 1, 2], rewards)
        assert found.selection is not None and [found.selection._rate(row) for row in (0, 1)] == expected
        assert found.metrics()["prompts/unseen"] == 1.0
    with pytest.raises(ConfigError, match="prompt_selection: reward: 'frmat' is none of"):
        stream({}, reward="frmat")


def test_a_stream_goes_on_from_its_state() -> None:
    plain = PromptStream(PromptOrder(5, 0, shuffle=True))
    assert plain.draw(3) + plain.draw(4) == PromptStream(PromptOrder(5, 0, shuffle=True)).draw(7)
    one, other = stream({}, replay_hard=0.5), stream({}, replay_hard=0.5)
    one.draw(4)
    one.observe([0, 1, 2, 0], torch.tensor([[0.0, 0.2]] * 4))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.drawn == 4 and [other.draw(3) for _ in range(4)] == [one.draw(3) for _ in range(4)]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"min_pass_rat": 0.1}, "unknown key 'min_pass_rat' Did you mean 'min_pass_rate'"),
        ({"min_pass_rate": 0.9, "max_pass_rate": 0.1}, "must hold"),
        ({"min_pass_rate": "low"}, "must be of type float"),
        ({"after": 1.5}, "after=1.5 must be of type int"),
        ({"priority": 1}, "priority=1 must be of type bool"),
        ({"reward": 3}, "must be of type text"),
        ({"replay_hard": 1.5}, "replay_hard=1.5 must be from 0 to 1"),
        ({"ema": 0.0}, "ema=0.0 must be above 0"),
        ({"curriculum": "easy"}, "none, easy_first, hard_first"),
        ({"priority": True, "replay_hard": 0.1}, "leave out"),
        ({"difficulty": "level"}, "set curriculum"),
    ],
)
def test_a_wrong_block_is_refused(block: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SelectionOptions.of(block)
