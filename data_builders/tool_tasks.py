"""Questions that need a tool, made from a seed: large numbers for the calculator, small programs, two-step look-ups.

    python -m data_builders.tool_tasks --out data/calculator --task calculator --n 4000 --seed 0
    python -m data_builders.tool_tasks --out data/programs --task program --n 4000 --seed 0
    python -m data_builders.tool_tasks --out data/lookup --task search --n 2000 --seed 0

calculator: a short story over numbers of three to five digits. program: a function to write, with unit tests in `meta`
(see mmreason.tools.code_tests). search: who works where, and where that is; the set's corpus.jsonl holds one fact a
passage, and no passage answers a question alone. Train and test share no question.

Completions show how it is done (style "expert"), or, for a warm start that knows how but seldom does it (style
"novice"): calculator questions are answered at once, and wrongly as often as a guess is wrong, unless they say
"Use the calculator."; programs mostly have one mistake.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_builders.building.cache import keep
from data_builders.building.writing import write_set
from mmreason._files import write_whole
from mmreason.types import ConfigError, Example, Message, MMReasonError, ToolFunction

__all__ = ["STYLES", "TASKS", "VERSION", "Task", "build", "cached", "facts", "generate", "main", "split_of"]

VERSION = 1  # raise it whenever the same seed would give other rows
STYLES = ("expert", "novice")
CORPUS = "corpus.jsonl"
_TEST_SHARE = 10  # one question in ten belongs to the test split
_TRIES_PER_ROW = 200
_TOLD_SHARE = 0.5  # of the novice's calculator questions: those that say to use it
_CALL_SHARE = 0.05  # of the others: those that use it all the same
_RIGHT_SHARE = 0.4  # of the novice's programs

Split = Literal["train", "test"]


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: dict[str, str]


class Task(NamedTuple):
    """A question. steps: what the expert does (calls), final: what it says then; answer: the gold, "" for programs."""

    key: str
    text: str
    steps: tuple[tuple[Call, str], ...]
    final: str
    answer: str
    meta: dict[str, Any]


# ---- calculator

_STORIES: tuple[tuple[str, str], ...] = (
    ("A factory packs {a} boxes with {b} pens each. How many pens is that?", "{a}*{b}"),
    ("A hall has {a} rows of {b} seats. How many seats is that?", "{a}*{b}"),
    ("{a} people pay {b} coins each. How many coins is that?", "{a}*{b}"),
    ("A town has {c} people and {d} more move in. How many live there now?", "{c}+{d}"),
    ("A farm has {c} sheep and buys {d} more. How many sheep is that?", "{c}+{d}"),
    ("A store has {c} shirts and sells {d} of them. How many are left?", "{c}-{d}"),
    ("A tank holds {c} litres and {d} litres leak out. How many are left?", "{c}-{d}"),
    ("A press prints {a} books of {b} pages and {d} pages more. How many pages is that?", "{a}*{b}+{d}"),
)
TOLD = " Use the calculator."


def _calculator(rng: random.Random) -> Task:
    from mmreason.tools.calculator import Calculator

    story, expression = rng.choice(_STORIES)
    numbers: dict[str, int] = {name: rng.randint(101, 999) for name in "ab"}
    numbers["c"], numbers["d"] = rng.randint(1000, 9999), rng.randint(101, 999)
    written = expression.format(**numbers)
    result = Calculator().call({"expression": written}, timeout_s=5.0)
    text = story.format(**numbers)
    call = Call("calculator", {"expression": written})
    return Task(text, text, ((call, result),), f"The answer is {result}.", result, {"kind": "number"})


# ---- programs

_OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "adds {k}": ("+", lambda x, k: x + k),
    "subtracts {k}": ("-", lambda x, k: x - k),
    "multiplies by {k}": ("*", lambda x, k: x * k),
}
_INPUTS = (0, 1, 2, 5)


def _program(rng: random.Random) -> Task:
    first, second = rng.choice(sorted(_OPERATIONS)), rng.choice(sorted(_OPERATIONS))
    j, k = rng.randint(2, 99), rng.randint(2, 99)
    text = f"Write a function f(x) that {first.format(k=j)}, then {second.format(k=k)}."
    signs = (_OPERATIONS[first][0], _OPERATIONS[second][0])
    values = [_OPERATIONS[second][1](_OPERATIONS[first][1](x, j), k) for x in _INPUTS]
    statements = [f"assert f({x}) == {value}" for x, value in zip(_INPUTS, values, strict=True)]
    meta = {
        "tests": {"kind": "asserts", "statements": statements},
        "signs": list(signs),
        "constants": [j, k],
    }
    return Task(text, text, (), _source(signs, (j, k)), "", meta)


def _source(signs: Sequence[str], constants: Sequence[int]) -> str:
    return f"```python\ndef f(x):\n    return (x {signs[0]} {constants[0]}) {signs[1]} {constants[1]}\n```"


def _with_mistake(task: Task, rng: random.Random) -> str:
    """The program with one wrong operator or constant."""
    signs, constants = list(task.meta["signs"]), list(task.meta["constants"])
    place = rng.randrange(2)
    if rng.random() < 0.5:
        signs[place] = rng.choice([sign for sign in "+-*" if sign != signs[place]])
    else:
        constants[place] = rng.choice([k for k in range(2, 100) if k != constants[place]])
    return _source(signs, constants)


# ---- search

_NAMES = ("Ana", "Ben", "Chen", "Dina", "Emil", "Fay", "Goran", "Hana", "Ivo", "Jana", "Kofi", "Lea")
_SURNAMES = ("Abbas", "Berg", "Costa", "Duval", "Eze", "Fabri", "Gruber", "Haas", "Ito", "Janssen", "Khan", "Lund")
_INITIALS = "ABCDEFGHIJKLMNOPQRST"
_KINDS = ("bakery", "museum", "library", "garage", "clinic", "theatre", "school", "brewery", "workshop", "harbour")
_LABELS = ("Amber", "Birch", "Cedar", "Delta", "Ember", "Falcon", "Granite", "Heron", "Iris", "Juniper")
_TOWNS = ("Arnau", "Belmont", "Corvin", "Dorset", "Elmira", "Farum", "Gislev", "Holten", "Ibstone", "Jarvik")


def facts(seed: int) -> tuple[list[dict[str, str]], list[tuple[str, str, str]]]:
    """(passages of the corpus, (person, place, town) of each chain). The same seed gives the same world."""
    rng = random.Random(f"tool_tasks facts {VERSION} {seed}")
    places = [f"{label} {kind}" for label in _LABELS for kind in _KINDS]
    town_of = {place: rng.choice(_TOWNS) for place in places}
    people = [f"{name} {initial}. {surname}" for name in _NAMES for initial in _INITIALS for surname in _SURNAMES]
    chains = [(person, place, town_of[place]) for person in people for place in [rng.choice(places)]]
    passages = [f"{person} works at the {place}." for person, place, _ in chains]
    passages += [f"The {place} stands in the town of {town}." for place, town in town_of.items()]
    rng.shuffle(passages)
    return [{"id": f"fact-{i}", "text": text} for i, text in enumerate(passages)], chains


class _Searches:
    """Two-step questions over one world, and what the search tool says to the expert's queries."""

    def __init__(self, seed: int) -> None:
        from mmreason.tools.search import SearchTool

        passages, self.chains = facts(seed)
        self.tool = SearchTool(passages, k=1)
        self._made: dict[str, Task] = {}

    def __call__(self, rng: random.Random) -> Task:
        person, place, town = rng.choice(self.chains)
        if person in self._made:
            return self._made[person]
        text = f"In which town does {person} work?"
        steps = tuple(
            (Call("search", {"query": query}), self.tool.call({"query": query}, timeout_s=5.0))
            for query in (f"{person} works", f"{place} town")
        )
        made = Task(text, text, steps, f"The answer is {town}.", town, {"kind": "text", "place": place})
        return self._made.setdefault(person, made)


TASKS: dict[str, Callable[[int], Callable[[random.Random], Task]]] = {
    "calculator": lambda seed: _calculator,
    "program": lambda seed: _program,
    "search": _Searches,
}
"""Task -> a drawer of its questions in the world of a seed."""


# ---- rows


def split_of(key: str) -> Split:
    """The side on which a question falls."""
    return "test" if hashlib.sha256(key.encode()).digest()[0] % _TEST_SHARE == 0 else "train"


def generate(n: int, seed: int, *, task: str, split: Split = "train", style: str = "expert") -> list[Example]:
    """n different questions of a task; the same arguments always give the same list.

    Args:
        task: a key of TASKS, or several joined by "+", which take turns.
        split: train or test.
        style: see the module; it changes completions, and whether calculator questions say to use it.

    Raises: ConfigError for arguments that are not known, or more questions than there are.
    """
    names = task.split("+")
    for what, value, known in (("task", set(names) - set(TASKS), TASKS), ("style", {style} - set(STYLES), STYLES)):
        if value:
            raise ConfigError(f"unknown {what} {sorted(value)[0]!r}; known: {', '.join(known)}")
    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}")
    rng = random.Random(f"tool_tasks {VERSION} {seed} {task} {split}")
    style_rng = random.Random(f"tool_tasks style {VERSION} {seed} {task} {split}")
    drawers = [(name, TASKS[name](seed)) for name in names]
    seen: set[str] = set()
    rows: list[Example] = []
    while len(rows) < n:
        name, draw = drawers[len(rows) % len(drawers)]
        found = _fresh(draw, rng, split, seen, repeat=style == "novice")
        if found is None:
            raise ConfigError(f"task {name} gave only {len(rows)} different {split} questions, {n} were asked for")
        rows.append(_example(found, name, f"tool_tasks/{name}/{seed}/{split}/{len(rows)}", style, style_rng))
    return rows


def _fresh(
    draw: Callable[[random.Random], Task], rng: random.Random, split: Split, seen: set[str], *, repeat: bool
) -> Task | None:
    """A question of the split; one that wasn't drawn yet, unless they may repeat. None where that finds no end."""
    for _ in range(_TRIES_PER_ROW):
        task = draw(rng)
        if split_of(task.key) == split and (repeat or task.key not in seen):
            seen.add(task.key)
            return task
    return None


def _example(task: Task, name: str, row_id: str, style: str, rng: random.Random) -> Example:
    text, steps, final = task.text, task.steps, task.final
    if style == "novice" and name == "calculator":
        if rng.random() < _TOLD_SHARE:
            text += TOLD
        elif rng.random() >= _CALL_SHARE:
            steps = ()
    if style == "novice" and name == "program" and rng.random() >= _RIGHT_SHARE:
        final = _with_mistake(task, rng)
    example: Example = {
        "prompt": [{"role": "user", "content": text}],
        "completion": _turns(steps, final),
        "answer": task.answer or None,
        "id": row_id,
        "source": "tool_tasks",
        "meta": {"choices": None, **task.meta},
    }
    return example


def _turns(steps: Sequence[tuple[Call, str]], final: str) -> list[Message]:
    turns: list[Message] = []
    for call, result in steps:
        function: ToolFunction = {"name": call.name, "arguments": {**call.arguments}}
        turns.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]})
        turns.append({"role": "tool", "name": call.name, "content": result})
    return [*turns, {"role": "assistant", "content": final}]


def build(out: Path, *, task: str, n: int, n_test: int, seed: int = 0, style: str = "expert") -> dict[str, object]:
    """Write train.parquet, test.parquet (where n_test > 0), corpus.jsonl (for search) and manifest.json into `out`.

    Raises: ConfigError (see `generate`), OSError (no permission, disk full).
    """
    parts: dict[str, list[Example]] = {"train": generate(n, seed, task=task, style=style)}
    if n_test:
        parts["test"] = generate(n_test, seed, task=task, split="test")
    arguments = {"task": task, "n": n, "n_test": n_test, "seed": seed, "style": style}
    manifest = write_set(out, parts, builder="data_builders.tool_tasks", version=VERSION, arguments=arguments)
    if "search" in task.split("+"):
        lines = "".join(json.dumps(passage) + "\n" for passage in facts(seed)[0])
        write_whole(out / CORPUS, lines)
    return manifest


def cached(*, say: Callable[[str], None], **arguments: Any) -> Path:
    """The folder of a set in the user's cache, built where it isn't there. Arguments: those of `build`."""
    defaults: dict[str, Any] = {"task": "calculator", "n": 4000, "n_test": 200, "seed": 0, "style": "expert"}
    unknown = set(arguments) - set(defaults)
    if unknown:
        raise ConfigError(f"tool_tasks takes {', '.join(defaults)}; not {sorted(unknown)[0]!r}")
    chosen = defaults | arguments
    return keep("tool_tasks", chosen, VERSION, lambda folder: build(folder, **chosen), say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.tool_tasks", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files and manifest.json")
    parser.add_argument("--task", default="calculator", help=f"{', '.join(TASKS)}; several joined by +")
    parser.add_argument("--n", type=int, default=4000, help="training questions")
    parser.add_argument("--n_test", type=int, default=None, help="test questions (default a tenth of n; 0: no file)")
    parser.add_argument("--style", choices=STYLES, default="expert", help="what completions show")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a named error."""
    args = _parser().parse_args(argv)
    n_test = max(args.n // 10, 1) if args.n_test is None else args.n_test
    try:
        manifest = build(args.out, task=args.task, n=args.n, n_test=n_test, seed=args.seed, style=args.style)
    except (MMReasonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(manifest["files"], indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
