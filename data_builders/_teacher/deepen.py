"""Deepening (after Evol-Instruct, arXiv 2304.12244): instructions made harder in steps, or turned to rarer ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_builders._teacher.answers import Answerer, asked_text, parted
from data_builders._teacher.options import TeacherOptions
from data_builders._teacher.prompts import BROADEN, DEEPEN, OPERATIONS, SAME_TASK, read_task, says
from data_builders._teacher.rules import copied_prompt, gives_up, says_nothing
from data_builders._teacher.self_instruct import in_template
from data_builders.building.build import Drop, Made, SourceNote, Task, Tools
from data_builders.building.sources import read_source
from mmreason.clients.types import EndpointError
from mmreason.types import DataError, Example, Message

_ADDED_WORDS, _MOST_WORDS = 20, 400
BREADTH = "breadth"


class Deepen:
    """The mode `deepen`: a task for each seed instruction, which goes through the generations one after the other.

    In each generation an operation is drawn; the teacher rewrites the instruction, says whether anything was gained,
    and answers it. What the rules of elimination refuse (section 3.2) is dropped, and the instruction stays as it was
    for the next generation. A step in breadth gives a row, and the instruction itself goes on.
    """

    def __init__(self, options: TeacherOptions) -> None:
        self.options = options
        self.answerer = Answerer(options)
        self._examples: list[Example] = []
        self._seen: set[str] = set()
        self._operations: Counter[str] = Counter()

    round_size: int | None = None

    def sources(self) -> Sequence[SourceNote]:
        """Raises: DataError: nothing to read, or a row that text alone can't tell (images, tools, plain text)."""
        options = self.options
        load = {name: value for name, value in options.load_options().items() if name != "prompt_template"}
        self._examples, note = read_source(options.source, **load)
        for example in self._examples:
            if example.get("images") or example.get("tools") or not asked_text(example).strip():
                raise DataError(
                    f"{options.source}, row {example['id']}: only instructions of text alone can be deepened, this row "
                    "has images, tools, or no text; leave it out",
                    path=options.source,
                    row=example["id"],
                    reason="no_text",
                )
        self.answerer.check([])
        self._seen = {_key(asked_text(example)) for example in self._examples}
        return [note]

    def plan(self) -> Iterator[Task]:
        yield from (Task(example["id"], example) for example in self._examples)

    async def make(self, task: Task, tools: Tools) -> Made:
        seed: Example = task.data
        rng = random.Random(f"{self.options.seed}/{task.id}")
        current, depth = asked_text(seed), 0
        rows: list[Example] = []
        drops: list[Drop] = []
        counts: Counter[str] = Counter()
        for generation in range(1, self.options.generations + 1):
            operation = BREADTH if rng.random() < self.options.breadth else rng.choice(list(OPERATIONS))
            try:
                text, fault = await self._rewritten(current, operation, task.id, tools)
            except EndpointError as error:  # the provider's filter: of this step, the others are paid for and good
                if error.kind != "refused":
                    raise
                text, fault = str(error), "refused"
            counts["rewritten"] += 1
            if fault is not None:
                drops.append(Drop(fault, f"{operation}: {current}\n→ {text}"[:600]))
                continue
            example = self._example(seed, text, generation, operation, depth + (operation != BREADTH))
            made = await self.answerer.rows(example, tools)
            counts.update(made.counts)
            drops += made.drops
            before = len(rows)
            for row in made.rows:
                fault = _eliminated(_said(row))
                if fault is None:
                    rows.append(row)
                else:
                    drops.append(Drop(fault, f"{text}\n\n{_said(row)}"[:600]))
            if len(rows) > before and operation != BREADTH:
                current, depth = text, depth + 1
        return Made(rows, drops, counts)

    async def _rewritten(self, text: str, operation: str, name: str, tools: Tools) -> tuple[str, str | None]:
        """(the new instruction, why it isn't used)."""
        prompt = (
            BROADEN.format(instruction=text)
            if operation == BREADTH
            else DEEPEN.format(instruction=text, operation=OPERATIONS[operation], words=_ADDED_WORDS)
        )
        reply = await tools.teacher.complete(self.options.request(prompt, name))
        new = read_task(parted(reply)[1])
        if reply.finish_reason == "length":
            return new, "truncated"
        if not new or says_nothing(new):
            return new, "empty"
        if copied_prompt(new):
            return new, "copied_prompt"
        if len(new.split()) > _MOST_WORDS:
            return new, "instruction_long"
        if _key(new) == _key(text):
            return new, "nothing_gained"
        if operation != BREADTH:
            asked = SAME_TASK.format(first=text, second=new)
            judged = await tools.teacher.complete(self.options.request(asked, name))
            if not says(parted(judged)[1], "different", "不同"):
                return new, "nothing_gained"
        return new, None

    def _example(self, seed: Example, text: str, generation: int, operation: str, depth: int) -> Example:
        """The seed's conversation with another last question; a gold of the old one would be wrong."""
        prompt = seed["prompt"]
        earlier: Sequence[Message] = [] if isinstance(prompt, str) else prompt[:-1]
        root = (seed.get("meta") or {}).get("root")
        meta: dict[str, Any] = {
            "kind": None,
            "choices": None,
            "parent": seed["id"],
            **({} if root is None else {"root": root}),
            "instruction": text,
            "operation": operation,
            "generation": generation,
            "depth": depth,
        }
        return {
            "prompt": [*earlier, {"role": "user", "content": in_template(self.options.prompt_template, text)}],
            "answer": None,
            "id": f"{seed['id']}/deepen-{generation}",
            "source": seed.get("source", ""),
            "meta": meta,
        }

    def keep(self, row: Example) -> Drop | None:
        """Each instruction once; several answers to it (several teachers) stand together."""
        meta = row["meta"]
        owner, key = f"{meta['parent']}/{meta['generation']}", _key(meta["instruction"])
        if key in self._seen and f"{owner}\0{key}" not in self._seen:
            return Drop("duplicate", meta["instruction"])
        self._seen |= {key, f"{owner}\0{key}"}
        self._operations[meta["operation"]] += 1
        return None

    def told(self) -> Mapping[str, object]:
        return {"seeds": len(self._examples), "rows_by_operation": dict(sorted(self._operations.items()))}


def _eliminated(answer: str) -> str | None:
    return "too_hard" if gives_up(answer) else "says_nothing" if says_nothing(answer) else None


def _said(row: Example) -> str:
    completion = row["completion"]
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _key(text: str) -> str:
    from mmreason.data.holdout import question_key

    return question_key(text)
