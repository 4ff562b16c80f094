"""What a judge's comparisons come to: win rates of what could be read, and the pair that is learned from."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from mmreason.clients.judge_prompts import digest
from mmreason.rollout.types import Completion
from mmreason.trainers.preference_arguments import OnlineOptions
from mmreason.trainers.preference_online import JudgeGrader, Question, _answers
from mmreason.types import ConfigError
from tests.clients.server import running_server

WHY = "Why is the sky blue?"
ANSWERS = ["beta", "alpha", "gamma", "mute"]
# Of each two answers the better one; of all others the judge says nothing that can be read.
BETTER = {("alpha", "beta"): "alpha", ("beta", "gamma"): "beta"}


def replies() -> dict[str, str]:
    """What the judge says of each two answers in each order, by the hash that marks their place in its prompt."""
    found = {}
    for one, other in permutations(ANSWERS, 2):
        better = BETTER.get((one, other)) or BETTER.get((other, one))
        said = "I can't say." if better is None else f"Verdict: [[{'A' if better == one else 'B'}]]"
        found[f"</answer-B-{digest({'question': WHY, 'answer-A': one, 'answer-B': other})}>"] = said
    return found


def test_a_comparison_that_cannot_be_read_is_not_a_lost_one(tmp_path: Path) -> None:
    """alpha won its only readable comparison, beta one of two: counted by wins they would be equals."""
    with running_server(replies=replies()) as server:
        judge = {"base_url": server.base_url, "model": "judge", "api_key_env": None, "max_retries": 0}
        options = OnlineOptions(judge=judge, ask={"answer_form": "text"}, how="compare")
        judged = JudgeGrader(options, tmp_path).score([Question("q", WHY)], [ANSWERS])
    assert judged.scores == {("q", 0): 0.5, ("q", 1): 1.0, ("q", 2): 0.0} and not judged.waiting
    completions = [Completion([number], [0.0], truncated=False) for number in range(4)]
    answers = _answers(0, completions, ANSWERS, "q", judged.scores)
    assert [(answer.role, answer.score) for answer in answers] == [
        ("", 0.5), ("chosen", 1.0), ("rejected", 0.0), ("", None),
    ]  # fmt: skip


BAD = [
    ({"top_p": 5}, "online.top_p=5 .* at most 1"),
    ({"top_p": 0}, "online.top_p=0 must be a number above 0"),
    ({"temperature": float("nan")}, "online.temperature=nan must be a number above 0"),
    ({"give_up_s": -1}, "online.give_up_s=-1 must be a number above 0, or null for never"),
    ({"give_up_s": "1h"}, "online.give_up_s='1h' must be a number above 0, or null for never"),
    ({"criteria": []}, r"online.criteria=\[\] must be a list with at least one criterion"),
    ({"criteria": "correctness"}, "online.criteria='correctness' must be a list"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OnlineOptions.parse({"judge": {"base_url": "http://localhost:1/v1", "model": "m"}} | changes)


def test_settings_at_their_bounds_pass() -> None:
    given = {"judge": {"base_url": "http://localhost:1/v1", "model": "m"}, "top_p": 1, "give_up_s": None}
    assert OnlineOptions.parse(given).criteria is None
    assert OnlineOptions.parse(given | {"give_up_s": 0.5, "criteria": ["correctness"]}).give_up_s == 0.5
