"""Each reward against TRL's own (where TRL has it), closed forms, and hostile completions."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import trl.rewards
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.rewards import (
    REWARDS,
    accuracy_reward,
    completion_text,
    cosine_length_reward,
    format_reward,
    judge,
    load_rewards,
    partial_credit_reward,
    repetition_reward,
    soft_overlong_reward,
    strict_accuracy_reward,
    tag_count_reward,
)
from mmreason.types import ConfigError

NUMBER = {"kind": "number", "choices": None}


def chat(text: str, reasoning: str | None = None) -> list[dict[str, Any]]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return [message | ({"reasoning_content": reasoning} if reasoning is not None else {})]


# --- the text of a completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        ([], ""),
        (chat("a"), "a"),
        (chat("4", "2+2"), "<think>\n2+2\n</think>\n\n4"),
        (chat("4", ""), "4"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
        ([{"content": "no role"}], "no role"),
        ([{"role": "assistant", "content": None}], ""),
        ([*chat("call"), {"role": "tool", "content": "#### 9"}, *chat("end")], "call\nend"),
    ],
)
def test_completion_text(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


# --- accuracy -------------------------------------------------------------------------------------------------------


def test_accuracy_verdicts() -> None:
    completions = ["#### 72", chat("It is 72."), "It is 71.", "no idea", "", "\ud800 so 72"]
    rewards = accuracy_reward(completions, ["72"] * 6, [NUMBER] * 6)
    assert rewards == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert strict_accuracy_reward(completions, ["72"] * 6, [NUMBER] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_bad_gold_is_neither_rewarded_nor_punished() -> None:
    golds = ["72", None, "", "not a number"]
    for reward in (accuracy_reward, strict_accuracy_reward, partial_credit_reward):
        assert reward(["#### 72"] * 4, golds, [NUMBER] * 4) == [1.0, None, None, None]
    lengths = cosine_length_reward(["#### 72"] * 4, [[1]] * 4, golds, [NUMBER] * 4, max_length=10)
    assert lengths[1:] == [None] * 3 and lengths[0] is not None


def test_answer_in_reasoning_does_not_hide_the_final_one() -> None:
    assert accuracy_reward([chat("The answer is 72.", "maybe \\boxed{5}")], ["72"], [NUMBER]) == [1.0]


def test_meta_is_optional_and_its_length_checked() -> None:
    assert accuracy_reward(["#### 72"], ["72"]) == [1.0]
    assert accuracy_reward(["#### 72"], ["72"], [None]) == [1.0]
    with pytest.raises(ValueError, match="don't match"):
        accuracy_reward(["#### 72"], ["72"], [NUMBER] * 2)


def test_agrees_with_trl_on_boxed_answers() -> None:
    rng = random.Random(0)
    golds = [str(rng.randint(-99, 99)) for _ in range(20)] + ["\\frac{1}{3}", "2\\sqrt{3}", "x+1", "(1,2)"]
    texts = [f"so \\boxed{{{gold if rng.random() < 0.5 else golds[rng.randrange(len(golds))]}}}" for gold in golds]
    theirs = trl.rewards.accuracy_reward([chat(text) for text in texts], [f"${gold}$" for gold in golds])
    assert accuracy_reward(texts, golds) == theirs
    assert 0 < sum(r or 0 for r in theirs) < len(golds)


def test_one_batch_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmreason.answers

    calls = []
    real = mmreason.answers.verify_many
    monkeypatch.setattr(mmreason.answers, "verify_many", lambda *a, **k: calls.append(1) or real(*a, **k))
    completions = ["it is 41 here", "it is 42 here"]
    accuracy_reward(completions, ["42", "42"])
    partial_credit_reward(completions, ["42", "42"])
    cosine_length_reward(completions, [[1], [1]], ["42", "42"], max_length=4)
    assert len(calls) == 1
    assert accuracy_reward(completions, ["41", "42"]) == [1.0, 1.0] and len(calls) == 2
    judge(completions, ["41", "42"])[0] = None  # a caller's own list: the held judgements stay whole
    assert accuracy_reward(completions, ["41", "42"]) == [1.0, 1.0]


# --- partial credit -------------------------------------------------------------------------------------------------


def test_partial_credit() -> None:
    completions = ["#### 100", "#### 90", "about 90", "nothing here", "#### 500"]
    golds, meta = ["100"] * 5, [NUMBER] * 5
    assert partial_credit_reward(completions, golds, meta) == [1.0, 0.1, 0.1, 0.0, 0.1]
    assert partial_credit_reward(completions, golds, meta, strict=True) == [1.0, 0.1, 0.0, 0.0, 0.1]
    near = partial_credit_reward(completions, golds, meta, parseable=0.1, closeness=0.5)
    assert near == pytest.approx([1.0, 0.1 + 0.5 * 0.9, 0.1 + 0.5 * 0.9, 0.0, 0.1])


@given(parseable=st.floats(-1, 2), closeness=st.floats(-1, 2))
def test_partial_credit_never_pays_a_wrong_answer_like_a_right_one(parseable: float, closeness: float) -> None:
    arguments: Any = {"parseable": parseable, "closeness": closeness}
    if min(parseable, closeness) < 0 or parseable + closeness >= 1:
        with pytest.raises(ConfigError):
            partial_credit_reward([], [], **arguments)
    else:
        (wrong,) = partial_credit_reward(["#### 99.999"], ["100"], [NUMBER], **arguments)
        assert wrong is not None and 0 <= wrong < 1


# --- format ---------------------------------------------------------------------------------------------------------

THINK_ANSWER = "<think>\nwhy {x}\n</think>\n<answer>42</answer>"


@pytest.mark.parametrize(
    ("text", "think_answer", "think", "answer", "boxed"),
    [
        (THINK_ANSWER, 1, 0, 0, 0),
        (f"\n {THINK_ANSWER} \n", 1, 0, 0, 0),
        (f"{THINK_ANSWER} trailing", 0, 0, 0, 0),
        (f"leading {THINK_ANSWER}", 0, 0, 0, 0),
        (THINK_ANSWER + THINK_ANSWER, 0, 0, 0, 0),
        ("<think>a</think> b", 0, 1, 0, 0),
        ("<think>a b", 0, 0, 0, 0),
        ("a</think> b", 0, 0, 0, 0),
        ("<think>a<think>b</think></think>c", 0, 0, 0, 0),
        ("so <answer>4</answer>", 0, 0, 1, 0),
        ("so \\boxed{4}", 0, 0, 0, 1),
        ("so \\boxed{\\frac{1}{2}} and {", 0, 0, 0, 1),
        ("so \\boxed {\\{1\\}}", 0, 0, 0, 1),
        ("\\boxed{4} \\boxed{4}", 0, 0, 0, 0),
        ("\\boxed{\\boxed{4}}", 0, 0, 0, 0),
        ("\\boxed{4", 0, 0, 0, 0),
        ("\\boxed{ }", 0, 0, 0, 0),
        ("\\boxed 4", 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
        ("\ud800", 0, 0, 0, 0),
    ],
)
def test_format_styles(text: str, think_answer: int, think: int, answer: int, boxed: int) -> None:
    found = [format_reward([text], style=style)[0] for style in ("think_answer", "think", "answer", "boxed")]
    assert found == [think_answer, think, answer, boxed]
    assert [format_reward([chat(text)], style=style)[0] for style in ("think_answer", "boxed")] == [think_answer, boxed]


def test_format_of_parsed_reasoning_and_prefill() -> None:
    assert format_reward([chat("<answer>4</answer>", "2+2")]) == [1.0]
    assert format_reward(["2+2</think><answer>4</answer>"], prefilled="<think>") == [1.0]
    assert tag_count_reward(["2+2</think><answer>4</answer>"], prefilled="<think>") == [1.0]


def test_own_pattern() -> None:
    assert format_reward(["a\nb 7", "a 7 b"], pattern=r".*\d") == [1.0, 0.0]
    with pytest.raises(ConfigError, match="no regular expression"):
        format_reward([], pattern="(")
    with pytest.raises(ConfigError, match="unknown style 'bxed'"):
        format_reward([], style="bxed")


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "]), max_size=7).map("".join))
def test_think_style_against_trl(text: str) -> None:
    """TRL lets further </think> follow and no white space lead; apart from these the two agree."""
    ours = format_reward([text], style="think")[0]
    theirs = trl.rewards.think_format_reward([chat(text)])[0]
    if text.count("</think>") <= 1 and not text[:1].isspace():
        assert ours == theirs
    else:
        assert ours is not None and ours <= max(theirs, trl.rewards.think_format_reward([chat(text.lstrip())])[0])


def test_format_is_linear_on_hostile_text() -> None:
    for piece in ("<think>", "</think>", "<think></think>", "\\boxed{", "{", "<", "a"):
        text = "<think>" + piece * 50_000
        for style in ("think_answer", "think", "answer", "boxed"):
            assert format_reward([text], style=style)[0] in (0.0, 1.0)  # pytest's timeout is the other half


def test_tag_count() -> None:
    texts = [THINK_ANSWER, "<think>a</think>b", "<think><think></think>", ""]
    assert tag_count_reward(texts) == [1.0, 0.5, 0.25, 0.0]
    assert tag_count_reward(["a b b"], tags=["a", "b"]) == [0.5]
    for tags in ([], "ab", [""]):
        with pytest.raises(ConfigError):
            tag_count_reward(["x"], tags=tags)


# --- length and repetition ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=6),
    max_length=st.integers(1, 120),
    wrong=st.tuples(st.floats(-10, 0), st.floats(-10, 0)).map(sorted),
    right=st.tuples(st.floats(0, 2), st.floats(0, 2)).map(sorted),
    seed=st.integers(0, 99),
)
def test_cosine_equals_trl(lengths: list[int], max_length: int, wrong: Any, right: Any, seed: int) -> None:
    rng = random.Random(seed)
    texts = [f"\\boxed{{{rng.choice((7, 8))}}}" for _ in lengths]
    ids = [[1] * n for n in lengths]
    theirs = trl.rewards.get_cosine_scaled_reward(max_length, *wrong, *right)
    ours = cosine_length_reward(
        texts,
        ids,
        ["7"] * len(ids),
        max_length=max_length,
        min_value_wrong=wrong[0],
        max_value_wrong=wrong[1],
        min_value_correct=right[0],
        max_value_correct=right[1],
    )
    assert ours == pytest.approx(theirs([chat(t) for t in texts], ["7"] * len(ids), ids), abs=1e-12)


def test_cosine_order_and_ends() -> None:
    arguments: Any = {"completions": ["#### 1", "#### 1", "#### 2", "#### 2"], "answer": ["1"] * 4}
    ids = [[1] * 10, [1] * 90, [1] * 10, [1] * 90]
    short_right, long_right, short_wrong, long_wrong = cosine_length_reward(
        completion_ids=ids, max_length=100, **arguments
    )
    assert short_right > long_right > 0 > long_wrong > short_wrong  # type: ignore[operator]
    ends = cosine_length_reward(completion_ids=[[], [1] * 500, [], [1] * 500], max_length=100, **arguments)
    assert ends == pytest.approx([1.0, 0.5, -1.0, -0.5])
    exceeding = cosine_length_reward(
        completion_ids=[[1] * 99, [1] * 100, [], [1] * 101], max_length=100, exceed_value=-10.0, **arguments
    )
    assert exceeding[1] == exceeding[3] == -10.0 and exceeding[0] > 0.49 and exceeding[2] == -1.0  # type: ignore[operator]


@given(lengths=st.lists(st.integers(0, 300), max_size=8), max_length=st.integers(1, 200), share=st.floats(0, 1))
def test_soft_overlong_equals_trl(lengths: list[int], max_length: int, share: float) -> None:
    cache = int(share * max_length)
    ids = [[0] * n for n in lengths]
    theirs = trl.rewards.get_soft_overlong_punishment(max_length, cache)
    assert soft_overlong_reward(ids, max_length=max_length, soft_punish_cache=cache) == theirs(ids)


@given(
    ids=st.lists(st.lists(st.integers(0, 4), max_size=20), max_size=5),
    n=st.integers(1, 5),
    penalty=st.floats(-3, 0),
)
def test_repetition_equals_trl(ids: list[list[int]], n: int, penalty: float) -> None:
    theirs = trl.rewards.get_repetition_penalty_reward(n, penalty)(ids)
    assert repetition_reward(ids, ngram_size=n, max_penalty=penalty) == pytest.approx(theirs, abs=1e-12)


def test_repetition_closed_forms() -> None:
    assert repetition_reward([[], [1], list(range(50)), [5] * 5], ngram_size=2) == [0.0, 0.0, 0.0, -0.75]


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "cosine_length", "max_length": 0},
        {"name": "cosine_length", "max_length": 5, "min_value_correct": 2.0},
        {"name": "soft_overlong", "max_length": 5, "soft_punish_cache": 6},
        {"name": "repetition", "ngram_size": 0},
        {"name": "repetition", "max_penalty": 1.0},
        {"name": "partial_credit", "parseable": 1.0},
        {"name": "format", "style": "boxd"},
        {"name": "cosine_length", "max_length": "many"},
    ],
)
def test_wrong_parameters_show_when_loading(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load_rewards([entry])


# --- all of them ----------------------------------------------------------------------------------------------------

HOSTILE: list[Any] = [
    "",
    " ",
    "\x00",
    "\ud800\udfff",
    "{" * 2000,
    "9" * 5000,
    "<think>" * 100,
    None,
    [],
    chat(""),
    chat("\ud800"),
]
ENTRIES: dict[str, Any] = {
    "cosine_length": {"name": "cosine_length", "max_length": 8},
    "soft_overlong": {"name": "soft_overlong", "max_length": 8, "soft_punish_cache": 4},
}


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "reward_model"])  # see test_reward_model.py
def test_every_reward_takes_hostile_completions(name: str) -> None:
    (reward,) = load_rewards([ENTRIES.get(name, name)])
    n = len(HOSTILE)
    values = reward(
        prompts=["p"] * n,
        completions=HOSTILE,
        completion_ids=[[1] * i for i in range(n)],
        trainer_state=None,
        answer=["42"] * n,
        meta=[NUMBER] * n,
        tests=[{"kind": "asserts", "statements": ["assert f(1) == 1"]}] * n,
        id=[str(i) for i in range(n)],
        environment_reward=[0.5] * n,
        tool_calls=[1] * n,
        tool_errors=[0] * n,
    )
    assert len(values) == n
    assert all(isinstance(value, float) and math.isfinite(value) for value in values)


def test_agrees_with_the_labels_of_gsm8k_solutions(shared_data: Path) -> None:
    """3,600 solutions by two models, labelled right or wrong by GSM8K's authors."""
    path = shared_data / "gsm8k" / "model_solutions_labeled.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rewards = accuracy_reward([r["solution"] for r in rows], [r["gold"] for r in rows], [NUMBER] * len(rows))
    assert len(rows) == 3600
    assert rewards == [float(row["is_correct"]) for row in rows]
