"""What all kinds of traces go through: verified, run once more, given a mistake where one is wanted, written."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from data_builders._tool_use.errors import plant
from data_builders._tool_use.trace import Trace, Writing, differences, recorded_calls, rows_of
from data_builders.building.build import Drop, Made
from data_builders.building.pictures import image_bytes
from mmreason.answers import verify
from mmreason.prompting.prompts import TEXTS, ask, fill, finish
from mmreason.prompting.react import ReAct
from mmreason.prompting.solve import solve
from mmreason.prompting.types import Completion, Lang, Problem
from mmreason.tools.toolbox import Toolbox
from mmreason.types import Example, Message

PROGRAMS: dict[Lang, str] = {
    "en": (
        "You solve problems by reasoning and with Python programs. Say in a sentence or two what has to be computed, "
        "then write one program between the lines ```python and ```, and stop there: its output follows between "
        "```output and ```. A program prints what is to be seen, and keeps nothing from earlier ones. If it fails, "
        "say why and write a better one. When you know the answer, stop writing programs. {finish}"
    ),
    "zh": (
        "你通过推理和 Python 程序解题。先用一两句话说明要算什么，然后在 ```python 和 ``` 两行之间写一个程序，"
        "写完即停：它的输出会写在 ```output 和 ``` 之间。程序要打印需要看到的内容，之前程序的变量不会保留。"
        "如果出错，说明原因并写一个更好的程序。知道答案后不要再写程序。{finish}"
    ),
}
"""The instructions of the form `fenced`, worded here. Takes `{finish}`."""


_ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}\b")


@dataclass(frozen=True)
class Workshop:
    """What the traces of a run are made with.

    Attributes:
        kind: of the traces, for `meta`.
        toolbox: the tools. tools: how they were configured, for `meta`: a replay makes them again from it.
        writing: how rows are written.
        instructions: rows begin with what a model is told that uses the tools by itself.
        errors: share of the traces that get a planted mistake. mistakes: which kinds.
        seed: of what is drawn.
    """

    kind: str
    toolbox: Toolbox
    tools: Mapping[str, Any]
    writing: Writing
    instructions: bool = True
    errors: float = 0.0
    mistakes: Sequence[str] = ()
    seed: int = 0
    react: ReAct = field(default_factory=ReAct)

    @cached_property
    def schemas(self) -> list[dict[str, Any]]:
        return self.toolbox.schemas

    async def prompt(self, problem: Problem) -> list[Message]:
        """The messages with which a model that has these tools is asked."""
        if self.writing.form == "fenced":
            return _fenced_prompt(problem, self.writing.language, self.instructions)
        outcome = await solve(self.react, problem, _silent)
        messages = list(outcome.transcript[0].messages)  # as the strategy itself asks, so that both stay the same
        return messages if self.instructions else [message for message in messages if message["role"] != "system"]

    async def finish(
        self, task: str, example: Example, trace: Trace, told: Mapping[str, Any] | None = None, *, check: bool = True
    ) -> Made:
        """The rows of a trace that was run.

        Args:
            task: the task's id, which the rows get.
            example: where it came from: question, gold, choices.
            told: more for `meta`, such as the teacher.
            check: hold the trace's answer against the gold.
        """
        counts = Counter(traces=1, calls=len(trace.calls), failed_calls=sum(turn.failed for turn in trace.turns))
        gold = example.get("answer")
        if check:
            if gold is None:
                return Made(drops=[Drop("no_gold", trace.final)], counts=counts)
            meta = example.get("meta") or {}
            judged = await asyncio.to_thread(verify, trace.final, gold, meta.get("kind"), meta.get("choices"))
            if not judged.correct:
                return Made(drops=[Drop("wrong_answer", f"{trace.final}\n(gold: {gold})")], counts=counts)
        rng = random.Random(f"{self.seed} {task}")
        if rng.random() < self.errors:
            planted = await plant(trace, self.toolbox, rng, self.mistakes, self.writing.language)
            trace = planted or trace
            name = f"planted_{planted.turns[0].planted}" if planted else "planted_none"
            counts[name] += 1
        try:
            rows = rows_of(trace, await self._base(task, example, trace, told), self.writing)
        except ValueError as error:
            return Made(drops=[Drop("unwritable", str(error))], counts=counts)
        found = await asyncio.to_thread(self._changes, rows[-1])  # which holds the calls of all of them
        return Made(drops=[Drop("not_repeatable", found)], counts=counts) if found else Made(rows=rows, counts=counts)

    def _changes(self, row: Example) -> str:
        """What of a row's results another run wouldn't give; "" where all stay. Times, random numbers, addresses."""
        calls = recorded_calls(row)
        return "\n".join([*differences(calls, self.toolbox), *addresses(call.content or "" for call in calls)])

    async def _base(self, task: str, example: Example, trace: Trace, told: Mapping[str, Any] | None) -> Example:
        meta = dict(example.get("meta") or {})
        kept = {name: meta.get(name) for name in ("kind", "choices")}
        base: dict[str, Any] = {
            "prompt": await self._prompt_of(example),
            "answer": example.get("answer"),
            "id": task,
            "source": "tool_use",
            "meta": {
                **kept,
                "task": self.kind,
                "form": self.writing.form,
                "parent": example.get("id"),
                "origin": example.get("source"),
                "calls": len(trace.calls),
                "errors": [turn.planted or "own" for turn in trace.turns if turn.failed],
                "tools": dict(self.tools),
                **(told or {}),
            },
        }
        base |= pictures_of(example)
        if self.writing.form == "tool_calls":
            base["tools"] = example.get("tools") if self.kind == "calls" else self.schemas
        return cast(Example, base)

    async def _prompt_of(self, example: Example) -> list[Message]:
        if self.kind == "calls":
            return cast(list[Message], example["prompt"])
        return await self.prompt(problem_of(example))


def addresses(results: Iterable[str]) -> list[str]:
    """A sentence for each result with an address in memory, which another run needn't give."""
    return [f"an address in memory: {found[0]}" for result in results if (found := _ADDRESS.search(result))]


def embedded(example: Example) -> Example:
    """The row with its pictures as bytes, as endpoints take them and built sets hold them. Raises: ImageError."""
    cells = [{"bytes": image_bytes(cell), "path": None} for cell in example.get("images") or ()]
    return {**example, "images": cells} if cells else example


def pictures_of(example: Example) -> dict[str, Any]:
    """The column `images` of a row made from this one: none where it has no picture."""
    return {"images": example["images"]} if example.get("images") else {}


def problem_of(example: Example) -> Problem:
    """The problem of an embedded row. Options that already stand in its question are not listed again."""
    problem = Problem.from_example(example)
    problem = replace(problem, images=tuple(cell["bytes"] for cell in problem.images))
    if problem.choices and all(choice in problem.text for choice in problem.choices):
        return replace(problem, choices=None, kind=problem.kind or "choice")
    return problem


def _fenced_prompt(problem: Problem, language: Lang, instructions: bool) -> list[Message]:
    texts = TEXTS[language]
    prompt = ask("{question}", problem, texts)
    system = fill(PROGRAMS[language], finish=finish(problem, texts))
    return [*([cast(Message, {"role": "system", "content": system})] if instructions else []), *prompt.messages]


async def _silent(*args: Any, n: int = 1, **kwargs: Any) -> list[Completion]:
    """A model that answers at once: what a strategy asks it is all that is wanted."""
    return [Completion(text="Final Answer: -") for _ in range(n)]
