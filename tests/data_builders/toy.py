"""A small builder for tests of the runner: `python -m tests.data_builders.toy --dataset QUESTIONS.jsonl --out …`."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_builders.building.build import Builder, BuildOptions, Drop, Made, SourceNote, Task, Tools, option
from data_builders.building.runner import run_main
from data_builders.building.sources import read_source
from mmreason.clients.types import EndpointError, Reply, Request
from mmreason.types import Example


@dataclass(frozen=True, kw_only=True)
class ToyOptions(BuildOptions):
    """A toy's options."""

    dataset: Path = field(metadata=option("Questions."))
    style: str = field(default="plain", metadata=option("Part of the prompt."))
    schema: bool = field(default=False, metadata=option("Ask for JSON."))
    max_tokens: int = field(default=64, metadata=option("Tokens of an answer at most."))


class Toy(Builder[ToyOptions]):
    """Asks each question once; drops empty answers, and answers that an earlier row has."""

    name, version = "toy", 1

    def __init__(self, options: ToyOptions) -> None:
        super().__init__(options)
        self.examples: list[Example] = []
        self.texts: set[str] = set()

    def sources(self) -> Sequence[SourceNote]:
        self.examples, note = read_source(self.options.dataset)
        return [note]

    def plan(self) -> Iterator[Task]:
        for example in self.examples:
            yield Task(example["id"], example)

    async def make(self, task: Task, tools: Tools) -> Made:
        messages = [{"role": "system", "content": self.options.style}, *task.data["prompt"]]
        schema = {"type": "object", "properties": {"a": {"type": "string"}}} if self.options.schema else None
        request = Request(messages=messages, max_tokens=self.options.max_tokens, json_schema=schema)
        reply = await tools.teacher.complete(request)
        if not reply.text:
            return Made(drops=[Drop("empty", f"nothing came for {task.id}")], counts={"empties": 1})
        return Made([self.row(task, reply.text)], counts={"characters": len(reply.text)})

    def row(self, task: Task, text: str) -> Example:
        return {
            "prompt": task.data["prompt"],
            "completion": [{"role": "assistant", "reasoning_content": "I think.", "content": text}],
            "answer": task.data.get("answer"),
            "id": f"toy/{task.id}",
            "source": "toy",
            "meta": {"kind": "number", "pair": (1, 2)},  # type: ignore[dict-item]
        }

    def keep(self, row: Example) -> Drop | None:
        text = row["completion"][0]["content"]  # type: ignore[index]
        if text in self.texts:
            return Drop("duplicate")
        self.texts.add(str(text))
        return None

    def told(self) -> Mapping[str, object]:
        return {"texts": len(self.texts)}


class Rounds(Toy):
    """Its prompts depend on the rows that were kept before."""

    round_size = 4

    def plan(self) -> Iterator[Task]:
        number = 0
        while True:
            seen = sorted(self.texts)
            rng = random.Random(f"{self.options.seed} {number}")
            chosen = rng.choice(seen) if seen else self.examples[0]["prompt"][0]["content"]  # type: ignore[index]
            question = f"{number % 5} of {len(seen)}: {chosen}"[:80]
            yield Task(f"round/{number}", {"prompt": [{"role": "user", "content": question}]})
            number += 1


class Scripted:
    """Answers in this process, each after a random while.

    Attributes:
        answers: by fragment of the question; else "answer to: " and the question.
        errors: by fragment, the errors that come first.
        asked: how often each question was asked.
    """

    def __init__(
        self,
        answers: Mapping[str, str] | None = None,
        errors: Mapping[str, Sequence[Exception]] | None = None,
        *,
        latency_s: float = 0.0,
        seed: int = 0,
        cost: float | None = None,
    ) -> None:
        self.answers, self.latency_s, self.cost = dict(answers or {}), latency_s, cost
        self.errors = {part: list(errors) for part, errors in (errors or {}).items()}
        self.asked: Counter[str] = Counter()
        self.most_at_once = self._now = 0
        self._rng = random.Random(seed)

    async def complete(self, request: Request) -> Reply:
        question = str(request.messages[-1]["content"])
        self.asked[question] += 1
        self._now += 1
        self.most_at_once = max(self._now, self.most_at_once)
        await asyncio.sleep(self._rng.random() * self.latency_s)
        self._now -= 1
        for part, errors in self.errors.items():
            if part in question and errors:
                raise errors.pop(0)
        text = next((answer for part, answer in self.answers.items() if part in question), f"answer to: {question}")
        return Reply(text=text, prompt_tokens=10, completion_tokens=len(text), model="scripted", cost=self.cost)


def failure(kind: str = "timeout", status: int | None = None) -> EndpointError:
    return EndpointError(kind, f"scripted {kind}", status=status)  # type: ignore[arg-type]


def write_questions(path: Path, n: int, *, distinct: int | None = None) -> Path:
    """n rows "What is I plus I?", ids q0, q1 …; from the `distinct`th on the same questions again."""
    rows = [
        {"id": f"q{i}", "question": f"What is {i % (distinct or n)} plus {i % (distinct or n)}?", "answer": str(2 * i)}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy(tmp_path: Path, *, out: str = "out", rounds: bool = False, n: int = 20, **options: Any) -> Toy:
    """A toy over n questions."""
    dataset = options.pop("dataset", None) or write_questions(tmp_path / f"questions{n}.jsonl", n)
    settings = {"out": tmp_path / out, "decontaminate": [], "tasks_per_shard": 6, "license": "mit"} | options
    return (Rounds if rounds else Toy)(ToyOptions(dataset=dataset, **settings))


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of the shards in order."""
    from mmreason.data.reader import read_rows

    files = sorted(folder.glob(f"{split}-*.parquet"))
    return [dict(row) for file in files for _, row in read_rows(file)]  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the shards."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(Toy, ToyOptions, argv, description="Toy answers to questions.")


if __name__ == "__main__":
    raise SystemExit(main())
