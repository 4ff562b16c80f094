"""Variants of your rows: other numbers, other words, distractors, harder and easier ones; each proved.

    python -m data_builders.augment --out more --source gsm8k-train.jsonl --per_row 2

number_swap needs no teacher: a solution with calculator notes (GSM8K's `<<48/2=24>>`) tells how its numbers hang
together, so that others can be drawn for the question and all results recomputed exactly; the calculator proves each
note. Distractors are a sentence about something else. paraphrase, back_translation (through `pivot`), harder and easier
are written by the teacher, which then solves each `solve_k` times: the agreed answer must be the gold.

Each variant differs from its parent and its siblings, and names both its parent and the first ancestor
(`meta.parent`, `meta.root`); `split_by_parent` keeps families together when a set is split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from data_builders._augment.options import KINDS, ORIGINAL, AugmentOptions
from data_builders._augment.splits import family_of, split_by_parent
from data_builders._augment.variants import VariantMaker, with_question
from data_builders._teacher.answers import asked_text
from data_builders._teacher.novelty import Pool
from data_builders.building.build import Builder, Drop, Made, SourceNote, Task, Tools
from data_builders.building.pictures import image_bytes
from mmreason.types import DataError, Example

__all__ = ["KINDS", "AugmentBuilder", "AugmentOptions", "main", "split_by_parent"]

_WORDINGS = frozenset({"paraphrase", "back_translation"})


class AugmentBuilder(Builder[AugmentOptions]):
    """A task for each row, kind and number."""

    name: ClassVar[str] = "augment"
    version: ClassVar[int] = 1

    def __init__(self, options: AugmentOptions) -> None:
        super().__init__(options)
        self._maker = VariantMaker(options)
        self._examples: list[Example] = []
        self._notes: dict[str, str] = {}
        self._seen: set[str] = set()
        self._wordings: dict[str, Pool] = {}
        self._kept: Counter[str] = Counter()

    @property
    def columns(self) -> Sequence[str]:  # type: ignore[override]
        """With images only where the source has some: a column of them tells plain TRL that the set is visual."""
        return (*Builder.columns, *(["images"] if any(one.get("images") for one in self._examples) else []))

    def needs_endpoint(self) -> bool:
        return self.options.asks

    def sources(self) -> Sequence[SourceNote]:
        from data_builders.building.sources import read_source

        options = self.options
        load = {name: value for name, value in options.load_options().items() if name != "prompt_template"}
        self._examples, note = read_source(options.source, **load)
        if "number_swap" in options.kinds:
            self._notes = _noted(options, self._examples)
            if not self._notes and options.kinds == ["number_swap"]:
                raise DataError(
                    f"{options.source}: no solution has calculator notes such as <<48/2=24>>, from which number_swap "
                    "tells how the numbers hang together; take other kinds",
                    path=options.source,
                    reason="no_notes",
                )
        for example in self._examples:
            for cell in example.get("images") or ():
                image_bytes(cell)
            if not asked_text(example).strip():
                raise DataError(f"{options.source}, row {example['id']}: it asks nothing", row=example["id"])
            self._seen.add(self._key(example, asked_text(example)))
        return [note]

    def sends_images(self) -> bool:
        return "images" in self.columns and self.options.solve_k > 0

    def plan(self) -> Iterator[Task]:
        kinds = [ORIGINAL] * self.options.keep_parents + self.options.kinds
        for example in self._examples:
            for kind in kinds:
                for number in range(1 if kind == ORIGINAL else self.options.per_row):
                    yield Task(f"{example['id']}/{kind}-{number}", (example, kind, number))

    async def make(self, task: Task, tools: Tools) -> Made:
        example, kind, number = task.data
        if kind == ORIGINAL:
            return Made([self._original(example)])
        return await self._maker.make(example, kind, number, self._notes.get(example["id"]), tools)

    def _original(self, example: Example) -> Example:
        meta = {**(example.get("meta") or {}), "root": family_of(example), "variant": ORIGINAL}
        row: Example = {
            "prompt": with_question(example, asked_text(example), self.options.prompt_template),
            "answer": example.get("answer"),
            "id": example["id"],
            "source": "augment",
            "meta": meta,
        }
        for name in ("completion", "images"):
            if example.get(name):
                row[name] = example[name]  # type: ignore[literal-required]
        return row

    def keep(self, row: Example) -> Drop | None:
        """New beside all questions of the source and all variants; other wordings also beside those of the parent."""
        meta = row["meta"]
        kind = meta["variant"]
        if kind != ORIGINAL:
            key, text = self._key(row, meta["question"]), meta["question"]
            if key in self._seen:
                return Drop("duplicate", text)
            if kind in _WORDINGS:
                pool = self._wordings.setdefault(meta["parent"], Pool(self.options.max_similarity))
                if pool.nearest(text) is not None:
                    return Drop("not_novel", text)
                pool.add(text)
            self._seen.add(key)
        self._kept[kind] += 1
        return None

    def _key(self, row: Mapping[str, Any], question: str) -> str:
        from mmreason.data.holdout import question_key

        return question_key(question, row.get("images") or ())

    def told(self) -> Mapping[str, object]:
        return {"rows_read": len(self._examples), "kept_by_kind": dict(sorted(self._kept.items()))}


def _noted(options: AugmentOptions, examples: Sequence[Example]) -> dict[str, str]:
    """Id -> solution with notes: the row's own, or the source's, where its format leaves the notes out."""
    from mmreason.data.holdout import question_key
    from mmreason.data.loader import open_rows
    from mmreason.data.sources import parse_split, resolve

    split = parse_split(options.source_split)
    raw: dict[str, str] = {}
    for _, located in open_rows(resolve(options.source, split), split, options.source)[0]:
        row = located.row if isinstance(located.row, Mapping) else {}
        cells = [cell for cell in row.values() if isinstance(cell, str)]
        solution = next((cell for cell in cells if "<<" in cell), None)
        if solution is not None:
            raw.update({question_key(cell.strip()): solution for cell in cells if cell is not solution})
    found: dict[str, str] = {}
    for example in examples:
        solution = _own_notes(example) or raw.get(question_key(asked_text(example)))
        if solution is not None:
            found[example["id"]] = solution
    return found


def _own_notes(example: Example) -> str | None:
    """The thoughts or the content of the row's completion, whichever has notes."""
    completion = example.get("completion") or ()
    for message in completion if not isinstance(completion, str) else [{"content": completion}]:
        for text in (message.get("reasoning_content"), message.get("content")):
            if isinstance(text, str) and "<<" in text:
                return text
    return None


def main(argv: Sequence[str] | None = None) -> int:
    from data_builders.building.runner import run_main

    return run_main(AugmentBuilder, AugmentOptions, argv, description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
