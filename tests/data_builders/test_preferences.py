"""The preference builder in this process: sets, verifier, orders, logged rollouts, forms of rows, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_builders._preferences.options import PreferenceOptions
from data_builders.building.runner import run
from data_builders.preferences import Preferences
from mmreason.clients.agreement import cohen_kappa
from mmreason.types import ConfigError, DataError, MMReasonError
from tests.data_builders.teaching import rows_in, write_rows

QUESTION = "What is 6 * 7?"
TEXTS = ["6 * 7 = 42. A: 42", "6 * 7 = 36. A: 36", "So A: 42", "I don't know."]


def build(
    tmp_path: Path, data: Any, *completers: Any, out: str = "out", **given: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows, manifest) of a run over rows or a path."""
    if isinstance(data, list):
        data = write_rows(tmp_path / f"{out}-data.jsonl", data)
    settings: dict[str, Any] = {"decontaminate": [], "report": False, "license": "mit"} | given
    options = PreferenceOptions(source=[str(data)], out=tmp_path / out, **settings)
    manifest = run(Preferences(options), completers=completers or None, say=lambda _: None)
    return rows_in(tmp_path / out), manifest


def solutions(texts: list[str] = TEXTS, **cells: Any) -> list[dict[str, Any]]:
    """A completion a row, all of one prompt."""
    return [
        {"prompt": QUESTION, "completion": [{"role": "assistant", "content": t}], "answer": "42"} | cells for t in texts
    ]


def said(side: Any) -> str:
    return str(side[-1]["content"])


def couples(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(said(row["chosen"]), said(row["rejected"])) for row in rows}


# --------------------------------------------------------------------------------------------------------------------
# Verifier


def test_right_completions_beat_wrong_ones(tmp_path: Path) -> None:
    rows, manifest = build(tmp_path, solutions(), rank_by="verifier")
    right, wrong = (TEXTS[0], TEXTS[2]), (TEXTS[1], TEXTS[3])
    assert couples(rows) == {(a, b) for a in right for b in wrong}
    assert list(rows[0]) == ["prompt", "chosen", "rejected", "answer", "id", "source", "meta"]
    assert rows[0]["prompt"] == [{"role": "user", "content": QUESTION}] and rows[0]["source"] == "preferences"
    assert rows[0]["meta"]["chosen"]["verdict"] == "correct" and rows[0]["meta"]["gap"] == 1
    assert len({row["id"] for row in rows}) == 4
    assert manifest["told"]["lengths"]["pairs"] == 4
    assert manifest["counts"]["extra"]["verdict:unparseable"] == 1


def test_what_cannot_be_read_may_be_left_out(tmp_path: Path) -> None:
    rows, _ = build(tmp_path, solutions(), rank_by="verifier", unreadable="drop")
    assert {said(row["rejected"]) for row in rows} == {TEXTS[1]}


def test_agreement_of_verifier_and_labels_is_told(tmp_path: Path) -> None:
    labels = [True, False, False, False]
    data = [row | {"label": label} for row, label in zip(solutions(), labels, strict=True)]
    rows, manifest = build(tmp_path, data, rank_by="verifier", form="unpaired")
    assert [(said(row["completion"]), row["label"]) for row in rows] == list(
        zip(TEXTS, [True, False, True, False], strict=True)
    )
    figures = manifest["told"]["agreement"]["verifier~label"]
    assert figures["items"] == 4 and figures["percent"] == 0.75
    assert figures["kappa"] == pytest.approx(cohen_kappa([1, 0, 1, 0], labels))
    assert figures["kappa_interval"][0] <= figures["kappa"] <= figures["kappa_interval"][1]
    assert manifest["told"]["labels"]["true"]["rows"] == 2


@pytest.mark.parametrize(
    ("texts", "reason"), [(TEXTS[::2], "all_good"), (TEXTS[1::2], "all_bad"), (TEXTS[:1], "one_candidate")]
)
def test_prompts_without_a_contrast_are_counted(tmp_path: Path, texts: list[str], reason: str) -> None:
    other = [row | {"prompt": "6 * 7 = ?"} for row in solutions()]
    rows, manifest = build(tmp_path, [*solutions(texts), *other], rank_by="verifier")
    assert len(rows) == 4 and manifest["counts"]["dropped"] == {reason: 1}


def test_hard_negatives_are_the_wrong_answers_most_alike(tmp_path: Path) -> None:
    texts = ["6 * 7 = 42 so A: 42", "6 * 7 = 43 so A: 43", "6 * 7 = 99 so A: 99", "Nothing at all can be said, I fear"]
    rows, _ = build(tmp_path, solutions(texts), rank_by="verifier", negatives="hard", per_chosen=1)
    assert couples(rows) == {(texts[0], texts[1])}
    assert rows[0]["meta"]["near_answer"] and rows[0]["meta"]["likeness"] > 0.8
    drawn = {
        said(
            build(tmp_path, solutions(texts), out=f"any{seed}", rank_by="verifier", per_chosen=1, seed=seed)[0][0][
                "rejected"
            ]
        )
        for seed in range(8)
    }
    assert len(drawn) > 1  # any: the seed draws


def test_corrupted_rationales_are_rejected(tmp_path: Path) -> None:
    gold = {
        "question": "3 hens lay 8 eggs each, sold at $2. How much is that?",
        "answer": "3 * 8 = <<3*8=24>>24 eggs.\n24 * 2 = $<<24*2=48>>48.\n#### 48",
    }
    told = {"question": "And 4 of 5 eggs?", "answer": "Nobody knows.\n#### 20"}
    rows, manifest = build(tmp_path, [gold, told], candidates=["corruptions"], rank_by="verifier", corruptions=3)
    assert len(rows) == 3 and manifest["counts"]["dropped"] == {"no_steps": 1}
    for row in rows:
        assert row["chosen"] == [
            {"role": "assistant", "content": "48", "reasoning_content": "3 * 8 = 24 eggs.\n24 * 2 = $48."}
        ]
        assert (
            said(row["rejected"]) != "48"
            and row["rejected"][0]["reasoning_content"] != row["chosen"][0]["reasoning_content"]
        )
        assert (
            row["meta"]["rejected"]["origin"].startswith("corrupted ") and row["meta"]["rejected"]["verdict"] == "wrong"
        )
    ranked, _ = build(tmp_path, tmp_path / "out", out="ranked", group_by="prompt", form="rankings")
    origins = [entry["origin"] for entry in ranked[0]["meta"]["ranking"]]
    assert origins == ["reference", *(row["meta"]["rejected"]["origin"] for row in rows)]
    flat, _ = build(
        tmp_path, [gold], out="flat", candidates=["corruptions"], rank_by="verifier", completion_template="gsm8k"
    )
    assert said(flat[0]["chosen"]) == "3 * 8 = 24 eggs.\n24 * 2 = $48.\n#### 48"


def test_corrupted_completions_differ_in_nothing_but_the_mistake(tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "prompt": "3 hens lay 8 eggs each, sold at $2. How much is that?",
        "answer": "48",
        "meta": {},
    }
    message = {"role": "assistant", "content": "So she gets $48."}
    apart = told | {"completion": [message | {"reasoning_content": "3 * 8 = 24, 24 * 2 = 48"}]}
    whole = told | {
        "prompt": "Again: 3 hens, 8 eggs, $2?",
        "completion": [message | {"content": "3 * 8 = 24. 24 * 2 = 48. #### 48"}],
    }
    letter = {"prompt": "Which?", "answer": "B", "meta": {"choices": ["red", "green", "blue"], "kind": "choice"}}
    letter |= {"completion": [message | {"content": "The answer is (B)."}]}
    rows, _ = build(tmp_path, [apart, whole, letter], candidates=["corruptions"], rank_by="verifier")
    for row in rows:
        right, wrong = row["chosen"][0], row["rejected"][0]
        assert set(right) == set(wrong)
        assert len({re.sub(r"[-+*/\d]+|[ABC](?=\))", "", str(side["content"])) for side in (right, wrong)}) == 1
    assert {said(row["rejected"]) for row in rows[4:]} == {"The answer is (A).", "The answer is (C)."} and len(
        rows
    ) == 6


# --------------------------------------------------------------------------------------------------------------------
# What the source says, rankings


RANKING = ["best", "good", "also good", "poor"]


def pairs_of_four() -> list[dict[str, Any]]:
    """best > good = also good > poor, as pairs of one prompt."""
    better = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    return [{"prompt": "Q", "chosen": RANKING[i], "rejected": RANKING[j]} for i, j in better]


def test_pairs_to_a_ranking_and_back(tmp_path: Path) -> None:
    ranked, _ = build(tmp_path, pairs_of_four(), out="ranked", group_by="prompt", form="rankings")
    assert len(ranked) == 1 and said(ranked[0]["completion"]) == "best"
    assert [(said(e["completion"]), e["rank"]) for e in ranked[0]["meta"]["ranking"]] == list(
        zip(RANKING, [0, 1, 1, 2], strict=True)
    )
    back, _ = build(tmp_path, tmp_path / "ranked", out="pairs")
    assert couples(back) == {(row["chosen"], row["rejected"]) for row in pairs_of_four()}
    near, _ = build(tmp_path, tmp_path / "ranked", out="near", pair_mode="adjacent")
    assert couples(near) == {("best", "good"), ("best", "also good"), ("good", "poor"), ("also good", "poor")}
    ends, _ = build(tmp_path, tmp_path / "ranked", out="ends", pair_mode="best_worst")
    assert couples(ends) == {("best", "poor")} and ends[0]["meta"]["gap"] == 2
    again, _ = build(tmp_path, tmp_path / "pairs", out="again", group_by="prompt", form="rankings")
    assert again[0]["meta"]["ranking"] and [e["rank"] for e in again[0]["meta"]["ranking"]] == [0, 1, 1, 2]


def test_pairs_that_only_follow_are_made_on_request(tmp_path: Path) -> None:
    chain = [{"prompt": "Q", "chosen": a, "rejected": b} for a, b in (("x", "y"), ("y", "z"))]
    rows, _ = build(tmp_path, chain, out="direct", group_by="prompt")
    assert couples(rows) == {("x", "y"), ("y", "z")}
    rows, _ = build(tmp_path, chain, out="inferred", group_by="prompt", inferred=True)
    assert couples(rows) == {("x", "y"), ("y", "z"), ("x", "z")}


def test_cycles_are_reported(tmp_path: Path) -> None:
    cycle = [{"prompt": "Q", "chosen": a, "rejected": b} for a, b in (("x", "y"), ("y", "z"), ("z", "x"), ("x", "w"))]
    other = [{"prompt": "P", "chosen": "x", "rejected": "y"}]
    rows, manifest = build(tmp_path, [*cycle, *other], out="dropped", group_by="prompt")
    assert len(rows) == 1 and manifest["told"]["cycles"] == 1 and manifest["counts"]["dropped"] == {"cycle": 1}
    rows, manifest = build(tmp_path, cycle, out="tied", group_by="prompt", drop_cycles=False)
    assert couples(rows) == {("x", "w")} and manifest["counts"]["extra"]["pairs_against_the_ranking"] == 3


def test_columns_with_scores_and_margins(tmp_path: Path) -> None:
    data = [{"q": "Q?", "one": "a", "two": "b", "three": "c", "s1": 9.0, "s2": 7.5, "s3": 7.0}]
    columns, scores = ["one", "two", "three"], ["s1", "s2", "s3"]
    given: dict[str, Any] = {"column_map": {"prompt": "q"}, "candidate_columns": columns, "score_columns": scores}
    rows, _ = build(tmp_path, data, **given)
    assert couples(rows) == {("a", "b"), ("a", "c"), ("b", "c")} and rows[0]["meta"]["margin"] == 1.5
    rows, _ = build(tmp_path, data, out="wide", min_margin=1.5, **given)
    assert couples(rows) == {("a", "b"), ("a", "c")}
    rows, _ = build(tmp_path, data, out="gap", min_gap=2, **given)
    assert couples(rows) == {("a", "c")}
    labels, _ = build(tmp_path, data, out="labels", form="unpaired", **given)
    assert [(said(row["completion"]), row["label"]) for row in labels] == [("a", True), ("c", False)]


def test_lengths_are_told_matched_and_balanced(tmp_path: Path) -> None:
    data = [
        {"prompt": f"Q{i}", "chosen": "x" * n, "rejected": "y" * m}
        for i, (n, m) in enumerate([(9, 3), (8, 4), (6, 5), (2, 8), (4, 4)])
    ]
    _, manifest = build(tmp_path, data)
    told = manifest["told"]["lengths"]
    assert (told["mean_chosen"], told["mean_rejected"], told["chosen_is_longer"]) == (5.8, 4.8, 0.7)
    rows, manifest = build(tmp_path, data, out="matched", max_length_ratio=2.0)
    assert [row["prompt"][0]["content"] for row in rows] == ["Q1", "Q2", "Q4"]
    assert manifest["counts"]["dropped"] == {"length_ratio": 2}
    rows, manifest = build(tmp_path, data, out="balanced", balance_lengths=True)
    assert [row["prompt"][0]["content"] for row in rows] == ["Q0", "Q3", "Q4"]
    assert manifest["counts"]["dropped"] == {"length_balance": 2}


# --------------------------------------------------------------------------------------------------------------------
# Logged rollouts


def logged(tmp_path: Path, rows: list[dict[str, Any]], number: int = 1) -> Path:
    """A run's folder with one more rollout, in the columns that the trainer writes."""
    from mmreason.trainers.records import write_rows as write_rollout

    base = {"rollout": number, "step": number - 1, "group": 0, "id": "q1", "answer": "42", "truncated": False}
    base |= {
        "prompt": f"user\n{QUESTION}\nassistant\n",
        "verdict": None,
        "completion_ids": [1],
        "sampling_logps": [-0.5],
    }
    write_rollout(tmp_path / "run" / "rollouts" / f"rollout-{number:06d}.parquet", [base | row for row in rows])
    return tmp_path / "run"


def test_logged_rollouts_become_on_policy_pairs(tmp_path: Path) -> None:
    logged(
        tmp_path,
        [
            {"completion": "A: 42", "reward": 1.0, "verdict": "correct"},
            {"completion": "A: 41", "reward": 0.0, "verdict": "wrong"},
            {"completion": "A: 42", "reward": 1.0, "verdict": "correct"},
            {"completion": "A: 4", "reward": 0.0, "truncated": True},
            {"completion": "A: 7", "reward": 0.5, "group": 1},
            {"completion": "A: 8", "reward": float("nan"), "group": 1},
        ],
    )
    run_folder = logged(tmp_path, [{"completion": "A: 40", "reward": 0.2, "verdict": "wrong"}], number=2)
    prompts = write_rows(tmp_path / "train.jsonl", [{"question": QUESTION, "answer": "42", "id": "q1"}])
    given: dict[str, Any] = {"candidates": ["rollouts"], "prompts": str(prompts)}
    rows, manifest = build(tmp_path, run_folder, **given)
    assert couples(rows) == {("A: 42", "A: 41")}
    assert rows[0]["prompt"] == [{"role": "user", "content": QUESTION}] and rows[0]["meta"]["margin"] == 1.0
    assert rows[0]["meta"]["rejected"]["rollout"] == 1
    assert manifest["told"]["left_out"][str(run_folder)] == {"repeated_completion": 1, "truncated": 1}
    assert manifest["sources"][0]["rows"] == 7
    rows, _ = build(tmp_path, run_folder, out="across", across_rollouts=True, rank_by="verifier", **given)
    assert couples(rows) == {("A: 42", f"A: {n}") for n in (41, 7, 8, 40)}
    with pytest.raises(DataError, match="give the run's prompt_template"):
        build(tmp_path, run_folder, out="boxed", prompt_template="boxed", **given)
    other = write_rows(tmp_path / "other.jsonl", [{"question": QUESTION, "answer": "42", "id": "q7"}])
    with pytest.raises(DataError, match="'q1' is not in the set given as `prompts`"):
        build(tmp_path, run_folder, out="other", candidates=["rollouts"], prompts=str(other))
    with pytest.raises(DataError, match="none of the rollouts 1 to 2"):
        build(tmp_path, run_folder, out="none", first_rollout=7, **given)


def test_the_logged_text_stands_in_for_a_set(tmp_path: Path) -> None:
    run_folder = logged(
        tmp_path,
        [{"completion": "yes", "reward": 2.0, "prompt": "Q"}, {"completion": "no", "reward": 1, "prompt": "Q"}],
    )
    rows, _ = build(tmp_path, run_folder / "rollouts", candidates=["rollouts"], prompts="logged")
    assert couples(rows) == {("yes", "no")} and rows[0]["prompt"] == [{"role": "user", "content": "Q"}]


def test_rollouts_without_answers_cannot_be_verified(tmp_path: Path) -> None:
    run_folder = logged(
        tmp_path, [{"completion": "yes", "reward": 2.0, "answer": None}, {"completion": "no", "reward": 1}]
    )
    with pytest.raises(DataError, match="no answer to verify with; rank by something else"):
        build(tmp_path, run_folder, candidates=["rollouts"], prompts="logged", rank_by="verifier")


def test_rankings_with_the_same_best_completion_are_no_duplicates(tmp_path: Path) -> None:
    data = [{"prompt": "Q", "chosen": "best", "rejected": worse} for worse in ("x", "y", "x")]
    rows, manifest = build(tmp_path, data, form="rankings")
    assert len(rows) == 2 and manifest["counts"]["dropped"] == {"duplicate": 1}


def test_damaged_rollouts_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "rollouts"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="no rollouts: looked for rollout-"):
        build(tmp_path, tmp_path / "run", candidates=["rollouts"], prompts="logged")
    (folder / "rollout-000001.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="rollout-000001.parquet: can't be read"):
        build(tmp_path, tmp_path / "run", candidates=["rollouts"], prompts="logged")
    pq.write_table(pa.table({"prompt": ["a"]}), folder / "rollout-000001.parquet")
    with pytest.raises(DataError, match="no column completion, reward"):
        build(tmp_path, tmp_path / "run", candidates=["rollouts"], prompts="logged")


# --------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank_by": "votes"}, "give the people's votes"),
        ({"rank_by": "none"}, "use form: rankings"),
        ({"candidates": ["samples"]}, "nothing says which of the samples are better"),
        ({"candidates": ["rollouts"]}, "prompts: name the set"),
        ({"candidates": ["rollouts", "columns"], "prompts": "logged"}, "use two builds"),
        ({"candidates": []}, "at least one"),
        ({"judges": {"model": "m"}}, "judges belong to rank_by: judge"),
        ({"rank_by": "judge", "judge_rubric": True}, "judge_criteria"),
        ({"judge_criteria": ["beauty"]}, "unknown beauty; there are correctness"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"max_length_ratio": 0.5}, "max_length_ratio must be at least 1"),
        ({"score_columns": ["a", "b"]}, "one for each of candidate_columns"),
        ({"form": "rankings", "balance_lengths": True}, "belongs to form: pairs"),
    ],
)  # fmt: skip
def test_settings_that_exclude_each_other(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PreferenceOptions(source=["x"], out=tmp_path / "o", **given)


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        ([], {}, "the dataset is empty|the file is empty"),
        ([{"prompt": "Q", "completion": "a"}], {}, "no prompt has two different completions"),
        ([{"prompt": "Q", "chosen": "a", "rejected": "a"}], {}, "bad_pair"),
        ([{"prompt": "Q", "completion": "a"}], {"rank_by": "verifier"}, "missing_answer"),
        ([{"prompt": "Q", "completion": "a", "s": "x"}], {"score_columns": ["s"]}, "column 's' is 'x', no number"),
        ([{"prompt": "Q", "completion": "a", "meta": {"ranking": [1]}, "id": "r"}], {}, "meta.ranking is a list of"),
    ],
)
def test_bad_sets_are_named_before_anything_is_asked(
    tmp_path: Path, data: list[dict[str, Any]], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(MMReasonError, match=message):
        build(tmp_path, data, **given)
    assert not list((tmp_path / "out").glob("*.parquet"))
