"""Number swap: on GSM8K's own solutions, with another evaluator than the one that made them, and on planted cases."""

from __future__ import annotations

import ast
import json
import operator
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from data_builders._augment.numbers import another, plausible, tokens_of, written
from data_builders._augment.swap import NoSwapError, NumberSwap, Swap, swap_numbers

OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


def value_of(text: str) -> Fraction:
    """Python's own parser with fractions as leaves."""
    source = re.sub(r"(\d+(?:\.\d+)?|\.\d+)%", r"(\1/100)", text.replace(",", "").replace("$", "")).strip()
    source = re.sub(r"(?<![\d.])0+(?=\d)", "", source)

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.BinOp):
            return Fraction(OPERATORS[type(node.op)](value(node.left), value(node.right)))
        if isinstance(node, ast.UnaryOp):
            return Fraction(OPERATORS[type(node.op)](value(node.operand)))
        assert isinstance(node, ast.Constant)
        return Fraction(ast.get_source_segment(source, node) or "")

    return value(ast.parse(source, mode="eval"))


def check(question: str, swap: Swap) -> int:
    """Everything that must hold; the number of notes."""
    notes = re.findall(r"<<([^<>]*)=([^<>=]*)>>(\d[\d,]*(?:\.\d+)?)?", swap.rationale)
    for expression, result, shown in notes:
        assert value_of(expression) == value_of(result), swap
        assert not shown or value_of(shown) == value_of(result), swap
    assert value_of(swap.answer) in {value_of(result) for _, result, _ in notes}
    old, new = tokens_of(question), tokens_of(swap.question)
    assert len(old) == len(new) and swap.question != question
    changed = {value_of(before): value_of(after) for before, after in swap.changed.items()}
    for before, after in zip(old, new, strict=True):
        assert after.value == changed.get(before.value, before.value)
        assert "." in before.text or after.value.denominator == 1
        assert not before.fixed or after.text == before.text
    words = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
    assert words.sub("#", question) == words.sub("#", swap.question), "only numbers change"
    return len(notes)


def swaps(path: Path, step: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[::step]):
        row = json.loads(line)
        gold = row["answer"].rpartition("####")[2].strip()
        try:
            swap = swap_numbers(row["question"], row["answer"], gold, random.Random(number))
        except NoSwapError as error:
            counts[error.reason] += 1
            continue
        counts["swapped"] += 1
        counts["notes"] += check(row["question"], swap)
    return counts


def test_gsm8k_solutions(shared_data: Path) -> None:
    counts = swaps(shared_data / "gsm8k" / "train.jsonl", 25)
    assert counts["swapped"] > 150 and counts["notes"] > 400 and counts["unbound_number"] > 30


@pytest.mark.soak
def test_all_gsm8k_solutions(shared_data: Path) -> None:
    counts = swaps(shared_data / "gsm8k" / "train.jsonl", 1)
    assert counts["swapped"] == 4301 and sum(counts.values()) - counts["notes"] == 7473


QUESTION = "Ann buys 12 pens for $3 each, and twice as many pencils for $2 each. What does she pay?"
RATIONALE = (
    "The pens cost 12*3=$<<12*3=36>>36.\nShe buys 12*2=<<12*2=24>>24 pencils for 24*2=$<<24*2=48>>48.\n"
    "She pays 36+48=$<<36+48=84>>84.\n#### 84"
)


def test_numbers_are_traced_by_where_they_come_from() -> None:
    """The price of 2 dollars may be the 2 of "twice" wherever it stands, so that it stays."""
    for seed in range(20):
        swap = swap_numbers(QUESTION, RATIONALE, "84", random.Random(seed))
        pens, price = (int(swap.changed.get(old, old)) for old in ("12", "3"))
        assert set(swap.changed) <= {"12", "3"} and int(swap.answer) == pens * price + pens * 2 * 2
        assert swap.question == QUESTION.replace("12", str(pens)).replace("$3", f"${price}")
        assert f"{pens}*2=<<{pens}*2={2 * pens}>>{2 * pens} pencils" in swap.rationale
    assert len({swap_numbers(QUESTION, RATIONALE, "84", random.Random(seed)).question for seed in range(20)}) > 8


@pytest.mark.parametrize(
    ("question", "rationale", "answer", "reason"),
    [
        ("He has 3 and 4.", "3+4=7\n#### 7", "7", "no_notes"),
        ("He has 3 and 4.", "<<3+4=8>>8\n#### 8", "8", "wrong_note"),
        ("He has 3 and 4.", "<<3+4=7>>9\n#### 7", "7", "wrong_note"),
        ("He has 3 and 4.", "That is 3+4. So <<7*5=35>>35\n#### 35", "35", "unbound_number"),
        ("He has 3 and 4.", "There are 13 more.\n<<3+4=7>>7\n#### 7", "7", "unbound_number"),
        ("He has 3 and 4.", "<<3+4=7>>7\n#### 8", "8", "answer_not_computed"),
        ("He has 3 and 4, not 7.", "<<3+4=7>>7\n#### 7", "7", "answer_not_computed"),
        ("He has three and four.", "<<3+4=7>>7\n#### 7", "7", "nothing_to_swap"),
        ("In 1990 he had 20%.", "<<1990*20/100=398>>398\n#### 398", "398", "nothing_to_swap"),
    ],
)  # fmt: skip
def test_what_is_refused(question: str, rationale: str, answer: str, reason: str) -> None:
    with pytest.raises(NoSwapError) as caught:
        swap_numbers(question, rationale, answer, random.Random(0))
    assert caught.value.reason == reason


def test_equal_numbers_of_other_origin_are_not_confused() -> None:
    """The second 7 may be the first result or the question's own: only where both stay equal is a swap made."""
    question = "A box has 3 red, 4 blue and 7 green balls. How many are there in 7 such boxes, without green ones?"
    rationale = "3+4=<<3+4=7>>7\n7*7=<<7*7=49>>49\n#### 49"
    with pytest.raises(NoSwapError, match="no_plausible_numbers"):
        for seed in range(10):
            swap = swap_numbers(question, rationale, "49", random.Random(seed))
            assert sum(map(int, swap.changed.values())) == 7  # 3 and 4 may only become two numbers of the same sum
            raise NoSwapError("no_plausible_numbers")


def test_hidden_equations_are_held_up() -> None:
    """6 is computed without a note. It is also in the question, so it can be traced, but the equation then breaks."""
    question = "He has 2 bags with 3 balls and 6 caps, 9 for each cap. How many coins?"
    rationale = "2*3=6\n6*9=<<6*9=54>>54\n#### 54"
    for seed in range(10):
        swap = swap_numbers(question, rationale, "54", random.Random(seed))
        assert set(swap.changed) == {"9"} and "2*3=6\n6*" in swap.rationale


def test_a_draw_needs_no_second_reading() -> None:
    problem = NumberSwap(QUESTION, RATIONALE, "84")
    assert problem.draw(random.Random(3)) == swap_numbers(QUESTION, RATIONALE, "84", random.Random(3))


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("5 apples", False), ("$5.50", False), ("1,250 pages", False), ("20% off", True), ("20 percent", True),
        ("1/2 cup", True), ("4 legs", True), ("18-wheel truck", True), ("at 5 pm", True), ("7:30", True),
        ("the 4th", True), ("page 12", True), ("1 apple", True), ("0.5 kg", True), ("in 1999", True),
        ("$1999", False), ("3-5 days", True), ("x5", True), ("12-ounce", False),
    ],
)  # fmt: skip
def test_numbers_that_their_place_fixes(text: str, fixed: bool) -> None:
    assert tokens_of(text)[0].fixed is fixed


def test_new_values_are_like_old_ones() -> None:
    rng = random.Random(0)
    for text, allowed in {
        "12 pens": lambda v: 6 <= v <= 24, "1,500 people": lambda v: v % 100 == 0 and 750 <= v <= 3000,
        "$2.50": lambda v: v * 100 % 1 == 0 and 2 <= v <= 10, "3 days": lambda v: 2 <= v <= 7,
        "8 hours": lambda v: 4 <= v <= 16,
    }.items():  # fmt: skip
        (token,) = tokens_of(text)
        for _ in range(200):
            value = another(token, rng)
            assert value != token.value and allowed(value), (text, value)
    assert written(Fraction(2000), tokens_of("1,500")[0]) == "2,000"
    assert written(Fraction(7, 2), tokens_of("$2.50")[0]) == "3.50" and written(Fraction(5), tokens_of("3")[0]) == "5"


def test_what_is_plausible() -> None:
    f = Fraction
    good = [(f(3), f(5)), (f(1, 2), f(1, 4)), (f(5, 2), f(4)), (f(0), f(0)), (f(1), f(1)), (f(-3), f(-2))]
    bad = [
        (f(3), f(5, 2)), (f(3), f(-1)), (f(3), f(0)), (f(3), f(1)), (f(1), f(2)), (f(1, 2), f(3, 2)),
        (f(5, 2), f(7, 3)), (f(5, 2), f(21, 8)),
    ]  # fmt: skip
    assert all(plausible(*pair) for pair in good) and not any(plausible(*pair) for pair in bad)
