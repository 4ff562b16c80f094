"""Answers that programs print, in the real sandbox."""

from __future__ import annotations

import pytest

from mmreason.rewards import load_rewards, program_answers, program_reward
from mmreason.types import ConfigError

PROGRAMS = [
    "```python\na = 38 + 18\nb = a - 5\nprint(b)\n```",  # right
    "So:\n```python\nprint('working')\nprint(50)\n```",  # wrong, but a number
    "```python\nprint('fifty one?')\n```",  # no number
    "```python\nprint(1 / 0)\n```",
    "```python\nwhile True: pass\n```",
    "The answer is 51.",  # no program
    "```python\na = 51\n```",  # prints nothing
]


def test_a_program_is_judged_by_what_it_prints_last() -> None:
    rewards = program_reward(PROGRAMS, ["51"] * len(PROGRAMS), timeout_s=1.0)
    assert rewards == [1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_answers_are_texts_for_the_verifier() -> None:
    assert program_answers(PROGRAMS[:2] + PROGRAMS[3:4]) == ["The answer is 51.", "The answer is 50.", ""]
    assert program_answers([]) == []


def test_parameters_and_golds() -> None:
    (bound,) = load_rewards([{"name": "program", "parseable": 0.2}])
    assert bound(completions=PROGRAMS[:2], answer=["51", None]) == [1.0, None]
    with pytest.raises(ConfigError, match="partial credit needs"):
        program_reward(PROGRAMS[:1], ["51"], parseable=1.0)
