"""Self-Instruct (arXiv 2212.10560): from seed tasks to new instructions, round by round, then to examples of them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_builders._teacher.answers import parted
from data_builders._teacher.novelty import Pool
from data_builders._teacher.options import TeacherOptions
from data_builders._teacher.prompts import (
    EXAMPLES,
    EXAMPLES_BY_LABEL,
    IS_CLASSIFICATION,
    NEW_INSTRUCTIONS,
    numbered,
    read_examples,
    read_numbered,
    says,
)
from data_builders._teacher.rules import instruction_fault
from data_builders.building.build import Drop, Made, SourceNote, Task, Tools
from data_builders.building.sources import read_source
from mmreason.clients.types import EndpointError, Reply
from mmreason.types import DataError, Example, Message

_EXAMPLES_EACH = 3


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a task's request shows, and how many instructions there were when it was planned: what they are new to."""

    shots: tuple[str, ...]
    known: int


class SelfInstruct:
    """The mode `self_instruct`. An instruction is kept once, by its first row; its other examples follow it."""

    def __init__(self, options: TeacherOptions) -> None:
        self.options = options
        self._filter = options.filter
        self._pool = Pool(options.novelty)
        self._seeds = 0
        self._kept: set[str] = set()
        self._refused: dict[str, Drop] = {}
        self._classes: Counter[str] = Counter()

    @property
    def round_size(self) -> int:
        return self.options.requests_per_round

    def sources(self) -> Sequence[SourceNote]:
        """Raises: DataError: no seed task, or one that can't be read."""
        options = self.options
        load = {name: value for name, value in options.load_options().items() if name != "prompt_template"}
        examples, note = read_source(options.source, **load)
        texts = _instructions(options, examples)
        for text in dict.fromkeys(texts):
            self._pool.add(text)
        self._seeds = len(self._pool)
        if not self._seeds:
            raise DataError(f"{options.source}: there is no seed task", path=options.source, reason="empty")
        return [note]

    def plan(self) -> Iterator[Task]:
        options = self.options
        most = options.max_requests or options.target
        number = 0
        while number < most and len(self._kept) < options.target:
            known = len(self._pool)
            for _ in range(min(options.requests_per_round, most - number)):
                rng = random.Random(f"{options.seed}/{number}")
                shown = rng.sample(range(self._seeds), min(options.seed_shots, self._seeds))
                shown += rng.sample(range(self._seeds, known), min(options.own_shots, known - self._seeds))
                rng.shuffle(shown)
                shots = tuple(self._pool.texts[i] for i in shown)
                yield Task(f"request-{number:06d}", _Wanted(shots, known))
                number += 1

    async def make(self, task: Task, tools: Tools) -> Made:
        wanted: _Wanted = task.data
        prompt = NEW_INSTRUCTIONS.format(
            n=self.options.per_request, first=len(wanted.shots) + 1, shots=numbered(wanted.shots)
        )
        reply = await tools.teacher.complete(self.options.request(prompt, task.id))
        entries = read_numbered(parted(reply)[1], cut=reply.finish_reason == "length")
        drops: list[Drop] = [] if entries else [Drop("no_instructions", reply.text[:400])]
        fresh, beside = [], Pool(self.options.novelty)
        for number, text in enumerate(entries):
            fault = instruction_fault(text, self.options.blocked_words)
            if fault is None and (self._pool.nearest(text, wanted.known) or beside.nearest(text)):
                fault = "not_novel"
            if fault is not None:
                drops.append(Drop(fault, text))
                continue
            beside.add(text)
            fresh.append((number, text))
        made = await asyncio.gather(
            *(self._examples(f"{task.id}/{number}", text, tools) for number, text in fresh), return_exceptions=True
        )
        rows: list[Example] = []
        for (_, text), found in zip(fresh, made, strict=True):
            if isinstance(found, EndpointError) and found.kind == "refused":
                drops.append(Drop("refused", f"{text}\n\n{found}"[:400]))
                continue
            if isinstance(found, BaseException):
                raise found
            rows += found.rows
            drops += found.drops
        return Made(rows, drops, {"instructions": len(entries), "instructions_fresh": len(fresh)})

    async def _examples(self, name: str, instruction: str, tools: Tools) -> Made:
        """Rows of one instruction: its examples, by label first where it sorts into classes (section 2.2)."""
        asked = IS_CLASSIFICATION.format(instruction=instruction)
        sorted_ = says(parted(await tools.teacher.complete(self.options.request(asked, name)))[1], "yes", "是")
        form = EXAMPLES_BY_LABEL if sorted_ else EXAMPLES
        prompt = form.format(instruction=instruction, n=_EXAMPLES_EACH + 3 * sorted_)
        reply = await tools.teacher.complete(self.options.request(prompt, name))
        pairs = read_examples(parted(reply)[1], cut=reply.finish_reason == "length")
        good, drops = self._good_pairs(instruction, pairs)
        if not pairs:
            drops.append(Drop("no_examples", f"{instruction}\n\n{reply.text}"[:400]))
        rows = [
            self._row(f"self_instruct/{name}/{number}", name, instruction, pair, sorted_, reply)
            for number, pair in enumerate(good)
        ]
        return Made(rows, drops)

    def _good_pairs(
        self, instruction: str, pairs: Sequence[tuple[str, str]]
    ) -> tuple[list[tuple[str, str]], list[Drop]]:
        """The examples without faults, each once; inputs with different outputs are all dropped."""
        outputs: dict[str, set[str]] = {}
        for given, output in pairs:
            outputs.setdefault(given, set()).add(output)
        good: list[tuple[str, str]] = []
        drops = []
        for given, output in pairs:
            shown = f"{instruction}\n\n{given}\n\n{output}"[-400:]
            fault = self._filter.fault(f"{instruction}\n{given}", output)
            if fault is None and len(outputs[given]) > 1:
                fault = "contradictory_examples"
            if fault is None and given and given == output:
                fault = "output_is_input"
            if fault is None and (given, output) in good:
                fault = "duplicate"
            if fault is None:
                good.append((given, output))
            else:
                drops.append(Drop(fault, shown))
        return good, drops

    def _row(
        self, id_: str, name: str, instruction: str, pair: tuple[str, str], sorted_: bool, reply: Reply
    ) -> Example:
        given, output = pair
        asked = f"{instruction}\n\n{given}" if given else instruction
        meta: dict[str, Any] = {
            "kind": None,
            "choices": None,
            "task": name,
            "instruction": instruction,
            "classification": sorted_,
            "teacher": reply.model,
        }
        system = self.options.system_prompt
        template = self.options.prompt_template
        return {
            "prompt": [
                *([Message(role="system", content=system)] if system else []),
                Message(role="user", content=in_template(template, asked)),
            ],
            "completion": [{"role": "assistant", "content": output}],
            "answer": None,
            "id": id_,
            "source": "self_instruct",
            "meta": meta,
        }

    def keep(self, row: Example) -> Drop | None:
        meta = row["meta"]
        name, text = meta["task"], meta["instruction"]
        if name in self._kept:
            return None
        if name in self._refused:
            return self._refused[name]
        if len(self._kept) >= self.options.target:
            drop = Drop("enough", text)
        elif (nearest := self._pool.nearest(text)) is not None:
            drop = Drop("not_novel", f"{text}\n≈ {self._pool.texts[nearest.index]} ({nearest.score:.2f})")
        else:
            self._pool.add(text)
            self._kept.add(name)
            self._classes["classification" if meta["classification"] else "other"] += 1
            return None
        self._refused[name] = drop
        return drop

    def told(self) -> Mapping[str, object]:
        return {
            "seed_tasks": self._seeds,
            "new_instructions": len(self._kept),
            "by_form": dict(sorted(self._classes.items())),
            "novelty": self.options.novelty,
        }


def in_template(template: str | None, question: str) -> str:
    """The question in a prompt template; as it is without one."""
    from mmreason.data.prompts import PLACEHOLDER, resolve_template

    return question if template is None else resolve_template(template).replace(PLACEHOLDER, question)


def _instructions(options: TeacherOptions, examples: Sequence[Example]) -> list[str]:
    """The seed tasks without their inputs where the rows keep the two apart, else what the user says."""
    from itertools import islice

    from mmreason.data.loader import open_rows
    from mmreason.data.quality import instruction_text
    from mmreason.data.sources import parse_split, resolve

    split = parse_split(options.source_split)
    rows, _ = open_rows(resolve(options.source, split), split, options.source)
    name = (options.column_map or {}).get("instruction", "instruction")
    cells = [located.row.get(name) for _, located in islice(rows, options.max_rows) if isinstance(located.row, Mapping)]
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    return texts or [text for example in examples if (text := instruction_text(example).strip())]
