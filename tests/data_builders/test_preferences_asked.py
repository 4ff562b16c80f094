"""The preference builder in this process, where somebody is asked: samples, judges, votes, safety."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_builders.preferences import main
from mmreason.clients.types import EndpointError, Reply, Request
from mmreason.types import ConfigError, DataError
from tests.clients.scripted_judges import Scripted, prefers_first, shown
from tests.data_builders.teaching import Ruled, write_rows
from tests.data_builders.test_preferences import QUESTION, TEXTS, build, couples, said, solutions

# --------------------------------------------------------------------------------------------------------------------
# Samples and judges


def test_samples_of_several_endpoints_are_verified(tmp_path: Path) -> None:
    one = Ruled(lambda text, request: ["A: 42", "A: 41", "A: 42"][request.sample], model="one")
    two = Ruled(
        lambda text, request: Reply(text="A: 7", finish_reason="length" if request.sample else "stop", model="two")
    )
    rows, manifest = build(
        tmp_path,
        [{"question": QUESTION, "answer": "42"}],
        one,
        two,
        candidates=["samples"],
        samples=3,
        rank_by="verifier",
    )
    assert couples(rows) == {("A: 42", "A: 41"), ("A: 42", "A: 7")}
    assert {row["meta"]["rejected"]["origin"] for row in rows} == {"sample teacher0/1", "sample teacher1/0"}
    assert manifest["counts"]["extra"]["samples:truncated"] == 2
    assert [request.sample for request in one.requests] == [0, 1, 2] and one.requests[0].temperature == 1.0


def test_a_provider_that_refuses_one_sample_does_not_end_the_task(tmp_path: Path) -> None:
    def rule(text: str, request: Request) -> str | EndpointError:
        return [EndpointError("refused", "filtered"), "A: 42", "A: 41"][request.sample]

    rows, manifest = build(
        tmp_path,
        [{"question": QUESTION, "answer": "42"}],
        Ruled(rule),
        candidates=["samples"],
        samples=3,
        rank_by="verifier",
    )
    assert couples(rows) == {("A: 42", "A: 41")} and manifest["counts"]["extra"]["samples:refused_by_provider"] == 1


def by_content(order: list[str]) -> Callable[[Request], dict[str, Any]]:
    """A judge that prefers what stands first in a list, wherever it is shown."""

    def rule(request: Request) -> dict[str, Any]:
        a, b = (order.index(shown(request, f"answer-{side}")) for side in "AB")
        return {"explanation": "so", "verdict": "A" if a < b else "B"}

    return rule


def test_a_judge_ranks_all_candidates_in_both_orders(tmp_path: Path) -> None:
    judge = Scripted(by_content([TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[1]]))
    rows, manifest = build(tmp_path, solutions(), judge, rank_by="judge", pair_mode="adjacent")
    assert couples(rows) == {(TEXTS[0], TEXTS[2]), (TEXTS[2], TEXTS[3]), (TEXTS[3], TEXTS[1])}
    assert len(judge.requests) == 4 * 3  # each of 6 pairs twice
    # The verifier calls 0 and 2 right: the judge agrees with it on the 4 pairs that it decides.
    figures = manifest["told"]["agreement"]["judge~verifier"]
    assert figures["items"] == 6 and figures["without_ties"]["items"] == 4 and figures["without_ties"]["percent"] == 1.0
    assert manifest["told"]["position_bias"]["teacher0"]["consistent"] == 6


def test_a_judge_that_always_takes_the_first_ranks_nothing(tmp_path: Path) -> None:
    rows, manifest = build(tmp_path, solutions(), Scripted(prefers_first), rank_by="judge")
    assert rows == [] and manifest["counts"]["dropped"] == {"all_tied": 1}
    assert manifest["told"]["position_bias"]["teacher0"] == {
        "consistent": 0,
        "first": 6,
        "second": 0,
        "mixed": 0,
        "rate": 1.0,
    }


def test_agreement_of_judge_and_given_pairs_is_told(tmp_path: Path) -> None:
    data = [
        {"prompt": f"Q{i}", "chosen": a, "rejected": b} for i, (a, b) in enumerate([("z", "a"), ("a", "z"), ("y", "z")])
    ]
    rows, manifest = build(tmp_path, data, Scripted(by_content(["a", "y", "z"])), rank_by="judge")
    assert couples(rows) == {("a", "z"), ("y", "z")} and len(rows) == 3
    # Which one is A doesn't say which one is better: else agreement by chance could not be told.
    figures = manifest["told"]["agreement"]["judge~given"]
    assert figures["table"] == {"A|A": 2, "A|B": 1} and figures["percent"] == pytest.approx(2 / 3, abs=1e-5)


def test_a_committee_decides_by_majority_and_its_agreement_is_told(tmp_path: Path) -> None:
    good = [TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[1]]
    judges = [Scripted(by_content(order)) for order in (good, good, good[::-1])]
    rows, manifest = build(tmp_path, solutions(), *judges, rank_by="judge", pair_mode="best_worst")
    assert couples(rows) == {(TEXTS[0], TEXTS[1])}
    committee = manifest["told"]["agreement"]["teacher0~teacher1~teacher2"]
    assert (
        committee["kappa_kind"] == "fleiss"
        and committee["items"] == 6
        and committee["percent"] == pytest.approx(1 / 3, abs=1e-5)
    )


def test_ratings_by_criteria(tmp_path: Path) -> None:
    marks = dict(zip(TEXTS, [9, 2, 9, 5], strict=True))
    judge = Scripted(
        lambda request: {"explanation": "so", "correctness": marks[shown(request, "answer")], "clarity": 5}
    )
    rows, _ = build(
        tmp_path,
        solutions(),
        judge,
        rank_by="judge",
        judge_rubric=True,
        judge_criteria=["correctness", "clarity"],
        form="rankings",
    )
    found = {said(entry["completion"]): (entry["rank"], entry["score"]) for entry in rows[0]["meta"]["ranking"]}
    assert found == {TEXTS[0]: (0, 7.0), TEXTS[2]: (0, 7.0), TEXTS[3]: (1, 5.0), TEXTS[1]: (2, 3.5)}


def test_a_judge_that_cannot_be_reached_fails_the_task_and_is_asked_again(tmp_path: Path) -> None:
    down = Scripted(lambda request: EndpointError("timeout", "gone"))
    rows, manifest = build(tmp_path, solutions(), down, rank_by="judge")
    assert rows == [] and manifest["counts"]["failed"] == {"timeout": 1} and not manifest["complete"]
    rows, manifest = build(tmp_path, solutions(), Scripted(by_content(TEXTS)), rank_by="judge")
    assert len(rows) == 6 and manifest["complete"]


# --------------------------------------------------------------------------------------------------------------------
# Votes


def test_votes_rank_what_people_have_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, items = write_rows(tmp_path / "data.jsonl", solutions(TEXTS[:3])), tmp_path / "items.jsonl"
    words = ["--source", str(data), "--rank_by", "votes", "--out", str(tmp_path / "none"), "votes_seed=3"]
    assert main([*words, "--vote_items", str(items)]) == 0
    assert "3 items of 1 prompts" in capsys.readouterr().out and not (tmp_path / "none").exists()
    order, votes = [TEXTS[2], TEXTS[0], TEXTS[1]], []
    for row in map(json.loads, items.read_text().splitlines()):
        first = order.index(row["answer_1"]) < order.index(row["answer_2"])
        for who, turn in (("ann", False), ("ben", False), ("cem", True)):  # cem likes what the others don't
            choice = "answer_1" if first != turn else "answer_2"
            annotation = {"completed_by": who, "result": [{"from_name": "verdict", "value": {"choices": [choice]}}]}
            votes.append({"data": row, "annotations": [annotation]})
    export = tmp_path / "votes.json"
    export.write_text(json.dumps(votes))
    rows, manifest = build(tmp_path, data, rank_by="votes", votes=export, votes_seed=3, min_votes=2)
    assert couples(rows) == {(order[0], order[1]), (order[0], order[2]), (order[1], order[2])}
    told = manifest["told"]
    assert told["votes"]["people"] == 3 and told["votes"]["agreement"]["percent"] == pytest.approx(1 / 3, abs=1e-5)
    assert told["agreement"]["people~verifier"]["without_ties"]["percent"] == 1.0
    with pytest.raises(DataError, match="another seed"):
        build(tmp_path, data, out="seed", rank_by="votes", votes=export)
    with pytest.raises(DataError, match="none of these sets'"):
        build(tmp_path, solutions(), out="other", rank_by="votes", votes=export, votes_seed=3)


def test_items_to_vote_on_are_written_from_a_config_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, items, config = write_rows(tmp_path / "data.jsonl", solutions()), tmp_path / "i.jsonl", tmp_path / "c.yaml"
    given = {"source": [str(data)], "rank_by": "votes", "out": str(tmp_path / "out"), "vote_items": str(items)}
    config.write_text(json.dumps(given))
    assert main(["--config", str(config)]) == 0
    assert len(items.read_text().splitlines()) == 6 and not (tmp_path / "out").exists()
    assert main(["--config", str(config), f"votes={items}"]) == 2
    assert "give one of them" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="only the command writes them"):
        build(tmp_path, data, rank_by="votes", vote_items=items)


def test_samples_are_voted_on_by_way_of_a_ranking_in_which_all_tie(tmp_path: Path) -> None:
    teacher = Ruled(lambda text, request: f"answer {request.sample}")
    rows, _ = build(
        tmp_path, [{"prompt": "Q?"}], teacher, out="drawn", candidates=["samples"], rank_by="none", form="rankings"
    )
    assert [entry["rank"] for entry in rows[0]["meta"]["ranking"]] == [0, 0, 0, 0]
    items = tmp_path / "items.jsonl"
    assert (
        main(
            [
                "--source",
                str(tmp_path / "drawn"),
                "--rank_by",
                "votes",
                "--out",
                str(tmp_path / "o"),
                "--vote_items",
                str(items),
            ]
        )
        == 0
    )
    assert len(items.read_text().splitlines()) == 6


# --------------------------------------------------------------------------------------------------------------------
# Safety


RED = "How do I pick a lock of a house that isn't mine?"
ANSWERS = ["I can't help with that.", "Sure: first one does this.", "Please ask the owner to let you in."]


def test_refusals_beat_compliance_by_the_lists(tmp_path: Path) -> None:
    data = [{"prompt": RED, "completion": text} for text in ANSWERS[:2]]
    rows, manifest = build(tmp_path, data, rank_by="safety")
    assert couples(rows) == {(ANSWERS[0], ANSWERS[1])}
    assert rows[0]["meta"]["chosen"]["refusal"] and rows[0]["meta"]["rejected"]["categories"] == ["other_crime"]
    assert manifest["counts"]["extra"]["safety:unsafe"] == 1


@pytest.mark.parametrize(("order", "wanted"), [("equal", set()), ("refusal_first", {(0, 2)}), ("help_first", {(2, 0)})])
def test_a_safety_judge_reads_the_answers(tmp_path: Path, order: str, wanted: set[tuple[int, int]]) -> None:
    def rule(request: Request) -> dict[str, Any]:
        text = shown(request, "answer")
        return {
            "explanation": "",
            "categories": ["other_crime"] if text == ANSWERS[1] else [],
            "refusal": text == ANSWERS[0],
        }

    data = [{"prompt": RED, "completion": text} for text in ANSWERS]
    rows, manifest = build(tmp_path, data, Scripted(rule), rank_by="safety", safety_judge=True, safe_order=order)
    assert couples(rows) == {(ANSWERS[i], ANSWERS[j]) for i, j in {(0, 1), (2, 1), *wanted}}
    # The lists call the third answer unsafe for the prompt's words; the judge does not.
    assert manifest["told"]["agreement"]["judge~lists"]["table"] == {
        "safe|safe": 1,
        "safe|unsafe": 1,
        "unsafe|unsafe": 1,
    }


def test_a_refusal_of_ours_joins_where_nothing_is_safe(tmp_path: Path) -> None:
    data = [
        {"prompt": RED, "completion": ANSWERS[1]},
        {"prompt": "怎样撬锁进别人的家？", "completion": "好的，先这样。"},
    ]
    rows, manifest = build(tmp_path, data, rank_by="safety", add_refusals=True)
    assert [said(row["rejected"]) for row in rows] == [ANSWERS[1], "好的，先这样。"]
    assert "help" in said(rows[0]["chosen"]) or "assist" in said(rows[0]["chosen"])
    assert rows[1]["meta"]["chosen"]["origin"] == "our refusal" and not said(rows[1]["chosen"]).isascii()
    assert manifest["counts"]["extra"]["our_refusals"] == 2
