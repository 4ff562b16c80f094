"""Answers of teacher models: to your questions, to new instructions grown from seed tasks, or to deepened ones.

    python -m data_builders.teacher --out answers --source questions.jsonl \\
        --teacher.base_url http://localhost:8000/v1 --teacher.model NAME

mode: answer (the default) asks every teacher every question of the source. Rows with a gold are kept where the answer
is right, rows with tests (HumanEval's form, or `meta.tests`) where the program passes them in the sandbox. Refusals,
empty and cut-off answers, other languages, loops, and answers under a judge's score are dropped and counted. `choose`
takes all good answers, the judge's best, or one that most agree on. `top_logprobs: k` keeps the k likeliest tokens of
each place (mmreason/clients/packed_logprobs.py says how).

mode: self_instruct grows new instructions from seed tasks in rounds (Self-Instruct, arXiv 2212.10560); each has a
ROUGE-L below `novelty` with all others, and gets examples with input and output.

mode: deepen makes instructions harder step by step, or turns them to rarer ones (Evol-Instruct, arXiv 2304.12244).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from data_builders._teacher.answers import Answerer
from data_builders._teacher.deepen import Deepen
from data_builders._teacher.options import Mode, TeacherOptions
from data_builders._teacher.self_instruct import SelfInstruct
from data_builders.building.build import Builder, Drop, Made, SourceNote, Task, Tools
from data_builders.building.pictures import image_bytes
from mmreason.clients.packed_logprobs import pack_logprobs, unpack_logprobs
from mmreason.types import Example

__all__ = ["TeacherBuilder", "TeacherOptions", "main", "pack_logprobs", "unpack_logprobs"]


class _Mode(Protocol):
    """What the builder does in one mode; see `Builder` for the methods."""

    @property
    def round_size(self) -> int | None: ...
    def sources(self) -> Sequence[SourceNote]: ...
    def plan(self) -> Iterator[Task]: ...
    async def make(self, task: Task, tools: Tools) -> Made: ...
    def keep(self, row: Example) -> Drop | None: ...
    def told(self) -> Mapping[str, object]: ...


class AnswerQuestions:
    """The mode `answer`: a task for each question."""

    round_size: int | None = None

    def __init__(self, options: TeacherOptions) -> None:
        self.options = options
        self.answerer = Answerer(options)
        self.examples: list[Example] = []

    def sources(self) -> Sequence[SourceNote]:
        self.examples, note = read_questions(self.options)
        self.answerer.check(self.examples)
        return [note]

    def plan(self) -> Iterator[Task]:
        yield from (Task(example["id"], example) for example in self.examples)

    async def make(self, task: Task, tools: Tools) -> Made:
        return await self.answerer.rows(task.data, tools)

    def keep(self, row: Example) -> Drop | None:
        return None

    def told(self) -> Mapping[str, object]:
        return {"questions": len(self.examples)}


def read_questions(options: TeacherOptions) -> tuple[list[Example], SourceNote]:
    """The source's rows without their own completions; images are read once, so that a missing one is told now.

    Raises: DataError, ConfigError.
    """
    from data_builders.building.sources import read_source

    examples, note = read_source(options.source, **options.load_options())
    for example in examples:
        for cell in example.get("images") or ():
            image_bytes(cell)
    return examples, note


MODES: dict[Mode, type[AnswerQuestions | SelfInstruct | Deepen]] = {
    "answer": AnswerQuestions,
    "self_instruct": SelfInstruct,
    "deepen": Deepen,
}


class TeacherBuilder(Builder[TeacherOptions]):
    """Runs one of `MODES`."""

    name: ClassVar[str] = "teacher"
    version: ClassVar[int] = 1

    def __init__(self, options: TeacherOptions) -> None:
        super().__init__(options)
        self._mode: _Mode = MODES[options.mode](options)

    @property
    def columns(self) -> Sequence[str]:  # type: ignore[override]
        """Images and tools are columns only where the questions have some: an empty column of images tells plain TRL
        that the set is a visual one."""
        examples = self._mode.examples if isinstance(self._mode, AnswerQuestions) else []
        further = [name for name in ("images", "tools") if any(example.get(name) for example in examples)]
        return (*Builder.columns, *further)

    def other_endpoints(self) -> Sequence[Mapping[str, Any]]:
        return [] if self.options.judge is None else [self.options.judge]

    @property
    def round_size(self) -> int | None:
        return self._mode.round_size

    def sources(self) -> Sequence[SourceNote]:
        return self._mode.sources()

    def sends_images(self) -> bool:
        return "images" in self.columns

    def plan(self) -> Iterator[Task]:
        return self._mode.plan()

    async def make(self, task: Task, tools: Tools) -> Made:
        return await self._mode.make(task, tools)

    def keep(self, row: Example) -> Drop | None:
        return self._mode.keep(row)

    def told(self) -> Mapping[str, object]:
        return {"mode": self.options.mode, **self._mode.told()}


def main(argv: Sequence[str] | None = None) -> int:
    from data_builders.building.runner import run_main

    return run_main(TeacherBuilder, TeacherOptions, argv, description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
