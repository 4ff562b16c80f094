"""Small arithmetic questions in English, made from a seed: the embedded data of demos and tests.

    python -m data_builders.arithmetic --out data/arithmetic --n 1000 --level 1 --seed 0

Levels: 1 sums of two to four one-digit numbers; 2 one sum or difference of two-digit numbers; 3 two steps as a short
story, results from 0 to 999. Each example carries the steps as the completion's ``reasoning_content``.
Train and test share no operands: a hash of the operands (in any order) decides on which side a question falls.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data_builders.building.writing import as_dataset, write_set
from mmreason.types import ConfigError, Example, MMReasonError

__all__ = ["LEVELS", "VERSION", "Question", "as_dataset", "build", "generate", "main", "split_of"]

VERSION = 1  # raise it whenever the same seed would give other rows
_TEST_SHARE = 10  # one in ten operand sets belongs to the test split
_TRIES_PER_ROW = 200

Split = Literal["train", "test"]


class Question(NamedTuple):
    """One question with its steps: text, operands, (expression, result) of each step. The last result is the answer."""

    text: str
    operands: tuple[int, ...]
    steps: tuple[tuple[str, int], ...]


NAMES = ("Ana", "Ben", "Chen", "Dina", "Emil", "Fay", "Goran", "Hana", "Ivo", "Jana", "Kofi", "Lea")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "shells", "stamps", "tickets")
SUM_TEXTS = ("What is {0}?", "Compute {0}.", "Add up: {0}", "How much is {0}?")


def _level_1(rng: random.Random) -> Question:
    """Sum of two to four one-digit numbers, added from left to right."""
    operands = tuple(rng.randint(0, 9) for _ in range(rng.choice((2, 3, 3, 4, 4, 4))))
    steps, total = [], operands[0]
    for operand in operands[1:]:
        steps.append((f"{total} + {operand}", total + operand))
        total += operand
    return Question(rng.choice(SUM_TEXTS).format(" + ".join(map(str, operands))), operands, tuple(steps))


def _level_2(rng: random.Random) -> Question:
    """One sum or difference (not below 0) of two-digit numbers."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        step = (f"{a} + {b}", a + b)
    else:
        a, b = max(a, b), min(a, b)
        step = (f"{a} - {b}", a - b)
    text = rng.choice(("What is {0}?", "Compute {0}.", "How much is {0}?")).format(step[0])
    return Question(text, (a, b), (step,))


def _level_3(rng: random.Random) -> Question:
    """Two steps, told as a story: gain then loss, groups and some more, or groups and some lost."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    kind = rng.choice(("gain_loss", "groups_more", "groups_less"))
    if kind == "gain_loss":
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        c = rng.randint(1, a + b)
        text = f"{name} has {a} {thing}, gets {b} more and gives {c} away. How many {thing} does {name} have now?"
        return Question(text, (a, b, c), ((f"{a} + {b}", a + b), (f"{a + b} - {c}", a + b - c)))
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    if kind == "groups_more":
        c = rng.randint(1, 99)
        text = f"{name} has {a} boxes with {b} {thing} each and {c} more {thing}. How many {thing} are there in all?"
        return Question(text, (a, b, c), ((f"{a} * {b}", a * b), (f"{a * b} + {c}", a * b + c)))
    c = rng.randint(1, a * b)
    text = f"{name} has {a} boxes with {b} {thing} each and loses {c} of the {thing}. How many {thing} are left?"
    return Question(text, (a, b, c), ((f"{a} * {b}", a * b), (f"{a * b} - {c}", a * b - c)))


LEVELS: dict[int, Callable[[random.Random], Question]] = {1: _level_1, 2: _level_2, 3: _level_3}


def split_of(operands: Sequence[int]) -> Split:
    """The side on which questions over these operands fall; the order of the operands plays no part."""
    key = ",".join(map(str, sorted(operands)))
    return "test" if hashlib.sha256(key.encode()).digest()[0] % _TEST_SHARE == 0 else "train"


def generate(n: int, seed: int, level: int, split: Split = "train") -> list[Example]:
    """n different questions of one level and split; the same arguments always give the same list.

    Raises: ConfigError for an unknown level, n < 1, or more questions than the level has.
    """
    if level not in LEVELS:
        raise ConfigError(f"unknown level {level}; levels are {', '.join(map(str, LEVELS))}")
    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}")
    rng = random.Random(f"arithmetic {VERSION} {seed} {level} {split}")
    questions: dict[str, Question] = {}
    for _ in range(_TRIES_PER_ROW * n + 1000):
        question = LEVELS[level](rng)
        if split_of(question.operands) == split:
            questions.setdefault(question.text, question)
        if len(questions) == n:
            break
    else:
        raise ConfigError(f"level {level} gave only {len(questions)} different {split} questions, {n} were asked for")
    prefix = f"arithmetic/{level}/{seed}/{split}"
    return [_example(question, level, f"{prefix}/{i}") for i, question in enumerate(questions.values())]


def _example(question: Question, level: int, row_id: str) -> Example:
    answer = str(question.steps[-1][1])
    reasoning = "\n".join(f"{expression} = {result}" for expression, result in question.steps)
    return {
        "prompt": [{"role": "user", "content": question.text}],
        "completion": [{"role": "assistant", "reasoning_content": reasoning, "content": answer}],
        "answer": answer,
        "id": row_id,
        "source": "arithmetic",
        "meta": {"kind": "number", "choices": None, "level": level, "operands": list(question.operands)},
    }


def build(out: Path, *, n: int, n_test: int, seed: int, level: int) -> dict[str, object]:
    """Write train.parquet, test.parquet (where n_test > 0) and manifest.json into `out`; returns the manifest.

    Each file is written beside its place and then moved there, so a broken run leaves no half file; the manifest is
    written last. Raises: ConfigError (see `generate`), OSError (no permission, disk full).
    """
    parts: dict[str, list[Example]] = {"train": generate(n, seed, level)}
    if n_test:
        parts["test"] = generate(n_test, seed, level, "test")
    arguments = {"n": n, "n_test": n_test, "seed": seed, "level": level}
    return write_set(out, parts, builder="data_builders.arithmetic", version=VERSION, arguments=arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.arithmetic", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet, test.parquet, manifest.json")
    parser.add_argument("--n", type=int, default=1000, help="training questions (default 1000)")
    parser.add_argument(
        "--n_test", type=int, default=None, help="test questions (default a tenth of n; 0: no test file)"
    )
    parser.add_argument(
        "--level", type=int, choices=sorted(LEVELS), default=1, help="1 sums, 2 two digits, 3 two steps"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a named error."""
    args = _parser().parse_args(argv)
    n_test = max(args.n // 10, 1) if args.n_test is None else args.n_test
    try:
        manifest = build(args.out, n=args.n, n_test=n_test, seed=args.seed, level=args.level)
    except (MMReasonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(manifest["files"], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
