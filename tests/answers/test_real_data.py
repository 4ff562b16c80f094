"""The numbers to reach on real labelled data, side by side with math-verify's defaults."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mmreason.answers import Verdict, check_gold, gold_answer, infer_kind, verify_many
from mmreason.answers.normalize import canonical
from tests.answers.rewrites import mismatched_pairs, rewritings


def rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def math_verify_says(gold: str, text: str) -> bool:
    """math-verify's verdict with its defaults."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return bool(verify(parse(f"${gold}$"), parse(text)))


@pytest.fixture(scope="module")
def math_golds(shared_data: Path) -> list[str]:
    found = rows(shared_data / "math" / "train_answers.jsonl") + rows(shared_data / "math" / "math500.jsonl")
    return [row["answer"] for row in found if row["answer"] is not None]


def test_all_gsm8k_golds_are_extracted(shared_data: Path) -> None:
    found = rows(shared_data / "gsm8k" / "train.jsonl") + rows(shared_data / "gsm8k" / "test.jsonl")
    assert len(found) == 8792
    golds = [gold_answer(row["answer"]) for row in found]
    assert [gold for gold in golds if gold is None or check_gold(gold, "number") is not None] == []
    judged = verify_many([row["answer"] for row in found], [str(gold) for gold in golds])
    assert all(judgement.strict_correct for judgement in judged)


def test_labelled_gsm8k_solutions(shared_data: Path) -> None:
    found = rows(shared_data / "gsm8k" / "model_solutions_labeled.jsonl")
    judged = verify_many([row["solution"] for row in found], [row["gold"] for row in found])
    assert [
        row["idx"] for row, judgement in zip(found, judged, strict=True) if judgement.correct != row["is_correct"]
    ] == []
    peer = [math_verify_says(row["gold"], row["solution"]) == row["is_correct"] for row in found[::12]]
    assert sum(peer) <= len(peer)  # ours is 100 %: no peer can be above


def test_math_golds_equal_themselves(math_golds: list[str]) -> None:
    assert [gold for gold in set(math_golds) if check_gold(gold) is not None] == []
    unique = sorted(set(math_golds))
    for template in ("%s", "\\boxed{%s}", "The answer is $%s$.", "<answer>%s</answer>", "**Final Answer:** $$%s$$"):
        judged = verify_many([template % gold for gold in unique], unique)
        assert [gold for gold, judgement in zip(unique, judged, strict=True) if not judgement.correct] == [], template


def test_equivalent_rewritings_are_accepted(math_golds: list[str]) -> None:
    pairs = sorted({(gold, text) for gold in math_golds for _, text in rewritings(gold)})
    assert len(pairs) > 8000
    judged = verify_many([f"\\boxed{{{text}}}" for _, text in pairs], [gold for gold, _ in pairs])
    accepted = sum(judgement.correct for judgement in judged)
    assert accepted / len(pairs) >= 0.995, accepted / len(pairs)


@pytest.mark.slow
def test_mismatched_pairs_are_refused(math_golds: list[str]) -> None:
    for golds, count, limit in (
        (math_golds, 10_000, 0.001),
        ([gold for gold in math_golds if infer_kind(gold) == "math"], 1500, 0.001),
        (sorted(set(math_golds)), 1500, 0.001),
    ):
        pairs = mismatched_pairs(golds, canonical, count, seed=11)
        judged = verify_many([f"\\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs])
        accepted = [pair for pair, judgement in zip(pairs, judged, strict=True) if judgement.correct]
        assert len(accepted) / count <= limit, accepted
        assert not any(judgement.verdict is Verdict.TIMEOUT for judgement in judged)


def test_mathvista_verdicts(shared_data: Path) -> None:
    """Labelled GPT-4 outputs. Where the model refused, the label is MathVista's nearest-choice guess, not imitated."""
    found = rows(shared_data / "answer_extraction" / "mathvista_gpt4_500.jsonl")
    multiple = [row["question_type"] == "multi_choice" for row in found]
    judged = verify_many(
        [row["response"] for row in found],
        [row["answer"] for row in found],
        [
            "choice" if choice else ("math" if row["answer_type"] == "list" else "number")
            for row, choice in zip(found, multiple, strict=True)
        ],
        [row["choices"] if choice else None for row, choice in zip(found, multiple, strict=True)],
    )
    agreed = sum(judgement.correct == row["true_false"] for row, judgement in zip(found, judged, strict=True))
    peer = sum(math_verify_says(row["answer"], row["response"]) == row["true_false"] for row in found)
    assert agreed >= peer
    assert agreed >= 445
    answered = [pair for pair in zip(found, judged, strict=True) if pair[1].strict_verdict is not Verdict.UNPARSEABLE]
    assert len(answered) >= 140
    # One label is wrong: "A (\\frac{20}{3})" was read as 7 by MathVista's own extraction.
    assert sum(judgement.correct != row["true_false"] for row, judgement in answered) <= 1


def test_svamp_rationales(shared_data: Path) -> None:
    found = rows(shared_data / "sft_cot" / "svamp_nl_cot.jsonl")
    judged = verify_many([row["answer_cot"] for row in found], [row["answer_value"] for row in found])
    missed = [row for row, judgement in zip(found, judged, strict=True) if not judgement.strict_correct]
    # Ten rows were rounded ("<3.22>" for 3.2222222222) or are wrong.
    assert len(missed) <= 10
    assert not any(math_verify_says(row["answer_value"], row["answer_cot"]) for row in missed)


def test_aqua_rationales(shared_data: Path) -> None:
    found = rows(shared_data / "mwp" / "aqua_dev.jsonl")
    judged = verify_many(
        [row["rationale"] for row in found],
        [row["correct"] for row in found],
        ["choice"] * len(found),
        [row["options"] for row in found],
    )
    assert sum(judgement.correct for judgement in judged) >= 238  # the others end without naming an option
    assert sum(judgement.verdict is Verdict.WRONG for judgement in judged) == 0


def test_scienceqa_rationales(shared_data: Path) -> None:
    found = rows(shared_data / "scienceqa" / "minitrain_1000_cot.jsonl")
    judged = verify_many([row["response"] for row in found], [row["answer"] for row in found], ["choice"] * len(found))
    assert all(judgement.strict_correct for judgement in judged)


@pytest.mark.parametrize("name", ["mmlu_test_2280", "cmmlu_test_10x67", "cmmlu_dev"])
def test_option_texts_name_their_own_letter(shared_data: Path, name: str) -> None:
    """Real options (English, Chinese): the letter and the text of the gold verify, those of another don't."""
    found = rows(shared_data / "mcqa" / f"{name}.jsonl")
    for style in ("Answer: %s", "The answer is (%s).", "\\boxed{%s}", "**%s**", "所以答案是%s。"):
        completions = [style % row["answer"] for row in found]
        judged = verify_many(completions, [row["answer"] for row in found], None, [row["choices"] for row in found])
        assert all(judgement.correct for judgement in judged), style
    others = ["ABCD"[("ABCD".index(row["answer"]) + 1) % 4] for row in found]
    judged = verify_many(
        [f"The answer is {o}." for o in others],
        [row["answer"] for row in found],
        None,
        [row["choices"] for row in found],
    )
    distinct = [
        row["choices"]["ABCD".index(o)].strip() != row["choices"]["ABCD".index(row["answer"])].strip()
        for row, o in zip(found, others, strict=True)
    ]
    assert not any(judgement.correct for judgement, differs in zip(judged, distinct, strict=True) if differs)
    texts = [row["choices"]["ABCD".index(row["answer"])] for row in found]
    judged = verify_many(
        [f"<answer>{text}</answer>" for text in texts],
        [row["answer"] for row in found],
        None,
        [row["choices"] for row in found],
    )
    assert sum(judgement.correct for judgement in judged) / len(found) >= 0.97
    texts = [row["choices"]["ABCD".index(o)] for row, o in zip(found, others, strict=True)]
    judged = verify_many(
        [f"<answer>{text}</answer>" for text in texts],
        [row["answer"] for row in found],
        None,
        [row["choices"] for row in found],
    )
    wrong = [
        (text, row)
        for text, row, judgement, differs in zip(texts, found, judged, distinct, strict=True)
        if judgement.correct and differs
    ]
    assert len(wrong) <= 0.005 * len(found), wrong[:5]
