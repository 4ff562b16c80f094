"""Committees of judges by rule: majority, mean, quorum, agreement, every judge's own values kept."""

from __future__ import annotations

import asyncio

import pytest

from mmreason.clients.agreement import krippendorff_alpha
from mmreason.clients.judge import Judge
from mmreason.clients.judge_committee import JudgeCommittee, majority
from mmreason.clients.judge_prompts import CRITERIA
from mmreason.clients.judge_types import PairItem, RubricItem
from mmreason.clients.types import EndpointError
from mmreason.types import ConfigError
from tests.clients.scripted_judges import Scripted, prefers_first, prefers_longer, shown

PAIRS = [PairItem(id=f"q{i}", question="Why?", answer_a="a" * (i + 1), answer_b="b" * (10 - i)) for i in range(10)]
ANSWERS = [RubricItem(id=f"q{i}", question="Why?", answer=f"because {i}") for i in range(6)]
CRITERION = CRITERIA["en"]["correctness"]


def prefers_shorter(request):
    a, b = len(shown(request, "answer-A")), len(shown(request, "answer-B"))
    return {"explanation": "", "verdict": "A" if a < b else "B"}


def test_the_majority_decides_and_each_judge_keeps_its_verdict():
    judges = [Judge(Scripted(rule), name=name) for name, rule in
              {"long": prefers_longer, "long too": prefers_longer, "first": prefers_first}.items()]  # fmt: skip
    report = asyncio.run(JudgeCommittee(judges).compare(PAIRS))
    assert [result.verdict for result in report.results] == ["B"] * 5 + ["A"] * 5
    assert report.results[0].by_judge == {"long": "B", "long too": "B", "first": "tie"}
    assert report.reports["first"].position_bias.rate == 1.0 and report.reports["long"].position_bias.rate == 0.0
    assert report.usage.calls == 60 and report.usage.cost == pytest.approx(0.12)
    table = [["B", "B", "tie"]] * 5 + [["A", "A", "tie"]] * 5
    assert report.agreement.alpha == pytest.approx(krippendorff_alpha(table))
    assert report.agreement.percent == pytest.approx(1 / 3)


def test_judges_that_contradict_each_other_give_a_tie():
    judges = [Judge(Scripted(prefers_longer), name="long"), Judge(Scripted(prefers_shorter), name="short")]
    report = asyncio.run(JudgeCommittee(judges).compare(PAIRS))
    assert {result.verdict for result in report.results} == {"tie"}
    assert report.agreement.percent == 0.0


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [(["A"], "A"), (["A", "B"], "tie"), (["A", "B", "tie"], "tie"), (["A", "A", "B", "B", "tie"], "tie"),
     (["B", "B", "A", "tie"], "B"), (["tie", "tie", "A"], "tie")],
)  # fmt: skip
def test_majority(verdicts, expected):
    assert majority(verdicts) == expected


def test_scores_are_means_over_the_judges_that_could_be_read():
    def half_broken(request):
        return EndpointError("server", "500") if request.id == "q1" else {"explanation": "", "correctness": 8}

    judges = [Judge(Scripted(lambda request: {"explanation": "", "correctness": 5}), name="five"),
              Judge(Scripted(half_broken), name="eight"),
              Judge(Scripted(lambda request: "garbage"), name="broken")]  # fmt: skip
    report = asyncio.run(JudgeCommittee(judges).score(ANSWERS, [CRITERION]))
    assert report.results[0].scores == {"correctness": 6.5}
    assert report.results[0].by_judge == {"five": {"correctness": 5}, "eight": {"correctness": 8}, "broken": None}
    assert report.results[1].scores is None  # one of three is below the quorum of two
    assert report.reports["broken"].unreadable == {"no_json": 6} and report.reports["eight"].errors == {"server": 1}
    assert (report.agreement["correctness"].items, report.agreement["correctness"].single) == (5, 1)
    lenient = asyncio.run(JudgeCommittee(judges, quorum=1).score(ANSWERS, [CRITERION]))
    assert lenient.results[1].scores == {"correctness": 5.0}


def test_wrong_committees_are_refused():
    judge = Judge(Scripted(prefers_first), name="x")
    with pytest.raises(ConfigError, match="two or more"):
        JudgeCommittee([judge])
    with pytest.raises(ConfigError, match="'x' stands twice"):
        JudgeCommittee([judge, judge])
    with pytest.raises(ConfigError, match="quorum 3 of 2"):
        JudgeCommittee([judge, Judge(Scripted(prefers_first), name="y")], quorum=3)
