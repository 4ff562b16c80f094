"""Verdicts: the table of hand-made cases, bad golds, the many-at-once form, votes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.answers import (
    Judgement,
    Verdict,
    check_gold,
    clusters,
    equivalent,
    infer_kind,
    majority_vote,
    verify,
    verify_many,
)
from tests.answers.cases import ABCD, ALL, BAD_GOLDS, N


@pytest.fixture(scope="module")
def judged() -> list[Judgement]:
    completions, golds, kinds, choices, _ = zip(*ALL, strict=True)
    return verify_many(completions, golds, kinds, choices, timeout_s=2.0)


@pytest.mark.parametrize(
    "index", range(len(ALL)), ids=lambda i: ALL[i][0][:30].encode("ascii", "replace").decode() or "empty"
)
def test_case(judged: list[Judgement], index: int) -> None:
    verdict, wanted = judged[index].verdict.value, ALL[index][4]
    if wanted == N:
        assert verdict != "correct", judged[index]
    else:
        assert verdict == wanted, judged[index]


def test_the_table_is_large_and_mixed() -> None:
    assert len(ALL) >= 300
    assert sum(case[4] == "correct" for case in ALL) >= 150
    assert sum(case[4] != "correct" for case in ALL) >= 100


def test_verify_and_verify_many_agree(judged: list[Judgement]) -> None:
    for case, judgement in list(zip(ALL, judged, strict=True))[::7]:
        assert verify(case[0], case[1], case[2], case[3], timeout_s=2.0) == judgement  # type: ignore[arg-type]


def test_strict_and_flexible_are_reported_apart() -> None:
    fallback = verify("We get 42", "42")
    assert (fallback.correct, fallback.strict_correct, fallback.strict_verdict) == (True, False, Verdict.UNPARSEABLE)
    marked = verify("\\boxed{42}", "42")
    assert (marked.correct, marked.strict_correct) == (True, True)
    assert (marked.answer, marked.marker, marked.kind) == ("42", "boxed", "number")


@pytest.mark.parametrize(("gold", "kind", "choices"), BAD_GOLDS)
def test_bad_golds_are_named_and_never_rewarded(gold: str, kind: str | None, choices: tuple[str, ...] | None) -> None:
    assert check_gold(gold, kind, choices)  # type: ignore[arg-type]
    for completion in (gold, f"\\boxed{{{gold}}}", f"The answer is {gold}", ""):
        judgement = verify(completion, gold, kind, choices)  # type: ignore[arg-type]
        assert judgement.verdict is judgement.strict_verdict is Verdict.BAD_GOLD
    assert equivalent("42", gold, kind, choices) is Verdict.BAD_GOLD  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", [None, 42, 4.2, ["42"], float("nan")])
def test_golds_that_are_no_strings(gold: object) -> None:
    assert "not a string" in (check_gold(gold) or "")
    assert verify("42", gold).verdict is Verdict.BAD_GOLD  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", ["\\frac{\\sqrt{2}}{", "\\foo{1}{2}+\\bar^", "\\begin{matrix} 1"])
def test_unparseable_latex_golds_are_found_before_training(gold: str) -> None:
    assert check_gold(gold, "math") is not None
    assert not verify("\\boxed{1}", gold, "math").correct


@pytest.mark.parametrize(
    ("gold", "choices", "kind"),
    [
        ("42", None, "number"),
        ("1,080", None, "number"),
        ("\\frac{1}{2}", None, "number"),
        ("10\\%", None, "number"),
        ("x+1", None, "math"),
        ("\\sqrt{2}", None, "math"),
        ("(1,2)", None, "math"),
        ("B", None, "choice"),
        ("B", ABCD, "choice"),
        ("12 cm", ABCD, "choice"),
        ("yes", None, "yesno"),
        ("False", None, "yesno"),
        ("Leon", None, "text"),
        ("\\text{Evelyn}", None, "text"),
        ("x", None, "math"),
    ],
)
def test_infer_kind(gold: str, choices: tuple[str, ...] | None, kind: str) -> None:
    assert infer_kind(gold, choices) == kind
    assert check_gold(gold, None, choices) is None


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="2 completions but 1 golds"):
        verify_many(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="unknown answer kind 'nmber'"):
        verify("a", "b", "nmber")  # type: ignore[arg-type]
    assert "unknown kind" in (check_gold("1", "nmber") or "")  # type: ignore[arg-type]


def test_choices_may_repeat_and_may_be_labelled() -> None:
    assert verify("The answer is A", "B", "choice", ["3", "3", "4"]).correct
    assert not verify("The answer is A", "B", "choice", ["3", "5", "4"]).correct
    assert verify("\\boxed{6000}", "B", "choice", ["A)32400", "B)6000", "C)600"]).correct


def test_long_option_lists() -> None:
    options = [f"option text {i}" for i in range(26)]
    assert verify("The answer is Z.", "Z", "choice", options).correct
    assert verify("The answer is option text 12.", "M", "choice", options).correct
    assert verify("The answer is option text 1.", "M", "choice", options).verdict is Verdict.WRONG


def test_majority_vote() -> None:
    assert majority_vote(["1/2", "0.5", "0.7", None, ""], "number") == "1/2"
    assert majority_vote(["\\frac{1}{\\sqrt{2}}", "3", "\\frac{\\sqrt{2}}{2}"], "math") == "\\frac{1}{\\sqrt{2}}"
    assert majority_vote(["B", "A", "b"], "choice") == "B"
    assert majority_vote(["7", "8"], "number") == "7"
    assert majority_vote([None, " "], "number") is None
    assert clusters(["1", "2", "1.0", "2", "2.0"], "number") == [[1, 3, 4], [0, 2]]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["42", "B", "yes", "Leon"]))
def test_any_text_gets_a_verdict(completion: str, gold: str) -> None:
    judgement = verify(completion, gold, timeout_s=2.0)
    assert judgement.verdict is not Verdict.BAD_GOLD
    assert judgement.strict_verdict in (judgement.verdict, Verdict.UNPARSEABLE)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(-999, 999),
    st.lists(st.integers(-999, 999), min_size=1, max_size=6),
    st.sampled_from([", ", " or ", " and ", "; "]),
)
def test_a_list_of_guesses_is_never_rewarded(gold: int, others: list[int], joint: str) -> None:
    guesses = [str(n) for n in dict.fromkeys([*others, gold])]
    if len(guesses) < 2:
        return
    listed = joint.join(guesses)
    for completion in (
        f"\\boxed{{{listed}}}",
        f"The answer is {listed}.",
        f"<answer>{listed}</answer>",
        joint.join(f"\\boxed{{{g}}}" for g in guesses),
    ):
        judgement = verify(completion, str(gold), "number", timeout_s=5.0)
        assert not judgement.correct, (completion, judgement)
