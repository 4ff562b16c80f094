"""Equations in canonical form, notes recomputed, and the choice of the most distinct paths."""

from __future__ import annotations

import ast
import itertools
import json
import math
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders._cot.equations import canonical_expression, equations, path_key
from data_builders._cot.notes import as_tool_calls, recompute
from data_builders._cot.paths import choose_paths, distances

# --------------------------------------------------------------------------------------------------------------------
# Notes against an independent evaluator: Python's parser and fractions


def value_of(expression: str) -> Fraction:
    """Raises: ZeroDivisionError."""

    def walk(node: ast.AST) -> Fraction:
        match node:
            case ast.Expression(body=body):
                return walk(body)
            case ast.Constant():
                return Fraction(ast.get_source_segment(source, node) or "")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return walk(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = walk(left), walk(right)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.Div():
                        return a / b
                    case ast.FloorDiv():
                        return Fraction(a // b)
        raise AssertionError(ast.dump(node))

    # Python takes no leading zeros, and a percentage is a hundredth.
    source = re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"([\d.]+)%", r"(\1/100)", expression)).strip()
    return walk(ast.parse(source, mode="eval"))


numbers = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.builds(lambda a, op, b: f"{a}{op}{b}", inner, st.sampled_from(["+", "-", "*", "/"]), inner)
        | inner.map(lambda text: f"({text})")
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(expressions, st.integers(-3, 3), st.sampled_from(["", " clips", ", then"]))
def test_notes_are_recomputed_exactly(expression: str, off: int, behind: str) -> None:
    try:
        value = value_of(expression)
    except ZeroDivisionError:
        assert recompute(f"<<{expression}=1>>1").counts == {"notes": 1, "notes_wrong": 0, "notes_unreadable": 1}
        return
    stated = value + off
    written = str(stated.numerator) if stated.denominator == 1 else f"{stated.numerator}/{stated.denominator}"
    found = recompute(f"It is {expression} = <<{expression}={written}>>{behind}")
    assert found.counts["notes"] == 1
    assert found.counts["notes_wrong"] == (off != 0) and found.consistent
    result = re.search(r"=([^=]*)>>", found.text)
    assert result is not None
    corrected = value_of(result[1])
    exact = value.denominator == 1 or off == 0
    assert corrected == value if exact else abs(corrected - value) <= Fraction(1, 100)


def test_every_note_of_gsm8k(shared_data: Path) -> None:
    """None of the 23,716 notes in the 7,473 gold rationales is wrong; test_cot.py has the builder's count of them."""
    rows = [json.loads(line) for line in (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8")]
    bodies = [body for row in rows for body in re.findall(r"<<(.*?)>>", row["answer"])]
    wrong = [body for body in bodies if value_of(body.rpartition("=")[0]) != value_of(body.rpartition("=")[2])]
    assert (len(rows), len(bodies), wrong) == (7473, 23716, [])


def test_a_wrong_note_is_corrected_and_what_was_built_on_it_is_told() -> None:
    once = recompute("6*2 = <<6*2=13>>13 pages, and 52 weeks.")
    assert once.text == "6*2 = <<6*2=12>>12 pages, and 52 weeks." and once.consistent
    used = recompute("6*2 = <<6*2=13>>13 pages. 13*52 = <<13*52=676>>676.")
    assert used.counts["notes_wrong"] == 1 and not used.consistent
    assert recompute("It is <<x+1=2>>2.").text == "It is 2."


def test_notes_become_calls_that_were_run() -> None:
    messages = as_tool_calls("48/2 = <<48/2=24>>24 in May.\n48+24 = <<48+24=72>>72 in all.", "72")
    assert messages == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "48/2 =",
            "tool_calls": [
                {
                    "id": "call00001",
                    "type": "function",
                    "function": {"name": "calculator", "arguments": {"expression": "48/2"}},
                }
            ],
        },
        {"role": "tool", "name": "calculator", "tool_call_id": "call00001", "content": "24"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "24 in May.\n48+24 =",
            "tool_calls": [
                {
                    "id": "call00002",
                    "type": "function",
                    "function": {"name": "calculator", "arguments": {"expression": "48+24"}},
                }
            ],
        },
        {"role": "tool", "name": "calculator", "tool_call_id": "call00002", "content": "72"},
        {"role": "assistant", "content": "72", "reasoning_content": "72 in all."},
    ]
    assert as_tool_calls("No notes.", "1") is None
    failing = as_tool_calls("<<1/0=0>>0 then <<1+1=2>>2", "2")
    assert failing is not None and [m.get("content") for m in failing] == ["", "2", "2"]


# --------------------------------------------------------------------------------------------------------------------
# Equations


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 x (2 + 4) = $18", "(4 + 2.0) * 3 = 18."),
        ("16 canes / 4 canes/cavity = 4 cavities", "So 16/4 = <<16/4=4>>4"),
        ("1,200 × 2 = 2,400", "$2 \\times 1200 = 2400$"),
        ("\\frac{1}{2} \\cdot 8 = 4", "(1/2)*8=4"),
        ("10/3 = 3.33", "10/3 = <<10/3=3.333>>3.333"),
        ("15% of $80 = $12", "80 * 0.15 = 12"),
        ("5 - 2 + 1 = 4", "1 + 5 - 2 = 4"),
        ("2+3=5=1+4", "3+2 = 5; 4 + 1 = 5"),
        ("1. 5 + 3 = 8 apples", "(3 + 5 = 8)"),
    ],
)
def test_the_same_equation_in_other_words(one: str, other: str) -> None:
    if one.startswith("2+3"):
        assert path_key(one) <= path_key(other)
    else:
        assert path_key(one) == path_key(other) and equations(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("8 - 5 = 3", "5 - 8 = -3"), ("6/2 = 3", "6 - 3 = 3"), ("2*(3+4) = 14", "2*3+4 = 10"), ("2^3 = 8", "3^2 = 9")],
)
def test_other_equations(one: str, other: str) -> None:
    assert path_key(one) != path_key(other)


def test_what_is_true_and_what_can_not_be_told() -> None:
    assert [e.holds for e in equations("3 + 4 = 8, but 10/3 = 3.33 and 1 1/2 + 1 = 2 1/2")] == [False, True, None]
    assert equations("x + 5 = 12, 2x = 24, 5 - 3 = 2y, x = 5") == []
    assert equations("=" * 300 + "(" * 300 + "1=2") == []


@settings(max_examples=60, deadline=None)
@given(expressions, st.randoms(use_true_random=False))
def test_order_of_terms_and_factors_does_not_matter(expression: str, rng: random.Random) -> None:
    def shuffled(node: ast.AST) -> str:
        match node:
            case ast.Constant():
                return ast.get_source_segment(source, node) or ""
            case ast.BinOp(left=left, op=ast.Add() | ast.Mult() as op, right=right):
                sides = [shuffled(left), shuffled(right)]
                rng.shuffle(sides)
                return f"({sides[0]} {'+' if isinstance(op, ast.Add) else '*'} {sides[1]})"
            case ast.BinOp(left=left, op=op, right=right):
                return f"({shuffled(left)} {'-' if isinstance(op, ast.Sub) else '/'} {shuffled(right)})"
        raise AssertionError(ast.dump(node))

    source = re.sub(r"(?<![\d.])0+(?=\d)", "", expression)
    assert canonical_expression(shuffled(ast.parse(source, mode="eval").body)) == canonical_expression(expression)


def test_paths_without_equations_are_told_apart_by_their_sentences() -> None:
    assert path_key("Birds have wings. A crow is a bird.") == path_key("A crow is a bird.\nBirds have WINGS!")
    assert path_key("Birds have wings.") != path_key("Crows have wings.")
    assert path_key("So $x^2 = 4$, thus $x = 2$.") == path_key("Then $x = 2$ as $x^2=4$.")


# --------------------------------------------------------------------------------------------------------------------
# The choice

keys_ = st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=4), min_size=1, max_size=9)


def jaccard(one: frozenset[str], other: frozenset[str]) -> Fraction:
    return 1 - Fraction(len(one & other), len(one | other))


@settings(max_examples=150, deadline=None)
@given(keys_, st.integers(1, 5))
def test_choice_equals_brute_force(keys: list[frozenset[str]], most: int) -> None:
    first = [i for i, key in enumerate(keys) if key not in keys[:i]]
    if len(first) <= most:
        expected = first
    else:
        scores = {
            chosen: sum(jaccard(keys[i], keys[j]) for i, j in itertools.combinations(chosen, 2))
            for chosen in itertools.combinations(first, most)
        }
        best = max(scores.values())
        expected = list(min(chosen for chosen, score in scores.items() if score == best))
    assert choose_paths(keys, most) == expected


def test_choice_of_many_ends_and_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    keys = [frozenset(rng.sample("abcdefghijklmnop", rng.randint(2, 9))) for _ in range(60)]
    table = distances(keys)

    def score(chosen: list[int]) -> int:
        return sum(table[i][j] for i, j in itertools.combinations(chosen, 2))

    chosen = choose_paths(keys, 8)
    assert len(set(chosen)) == 8 and chosen == sorted(chosen) == choose_paths(keys, 8)
    drawn = [score(rng.sample(range(60), 8)) for _ in range(2000)]
    assert score(chosen) > max(drawn)
    assert choose_paths(keys, None) == [i for i, key in enumerate(keys) if key not in keys[:i]]


def test_distances_are_exact() -> None:
    keys = [frozenset("ab"), frozenset("abc"), frozenset("cdefg"), frozenset()]
    scale = math.lcm(3, 7, 6, 2, 5, 1)
    table = distances(keys)
    for i, j in itertools.permutations(range(4), 2):
        union = len(keys[i] | keys[j])
        assert Fraction(table[i][j], max(map(max, table))) <= 1 and scale % union == 0
    assert Fraction(table[0][1], table[0][2]) == Fraction(1, 3)
