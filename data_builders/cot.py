"""Chain of thought: rationales by a teacher or from the set's own solutions, each with a verified answer.

    python -m data_builders.cot --source gsm8k/train.jsonl --mode gold --out cot-gold
    python -m data_builders.cot --source gsm8k/train.jsonl --out cot --strategy zero_shot_cot --k 8 --max_paths 4 \\
        --teacher.base_url http://localhost:8000/v1 --teacher.model NAME

Any set of prompts with answers that `mmreason.data` reads will do: GSM8K, MATH, AQuA, SVAMP, ScienceQA with its images.
The teacher draws `k` solutions of each problem by a strategy of `mmreason.prompting`. Those are kept whose answer
agrees with the gold (`mmreason.answers`), at most `max_paths` of a problem and only such as go different ways: by their
sets of equations (rejection sampling, arXiv:2308.01825). Calculator notes (`<<48/2=24>>`) are recomputed in any case.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from data_builders.building.build import Builder, BuildOptions, Made, SourceNote, Task, Tools, option
from mmreason.types import ConfigError, DataError, Example

_WAY, _ROWS = "Solutions", "Rows"


@dataclass(frozen=True, kw_only=True)
class CotOptions(BuildOptions):
    """The options of `mmreason build cot`."""

    source: list[str] = field(metadata=option("Sets with questions and answers: files, folders, hub ids.", _ROWS))
    source_split: str = field(default="train", metadata=option("Split of these sets, such as train[:1000].", _ROWS))
    format: str = field(default="auto", metadata=option("How their rows are read, see `mmreason doctor`.", _ROWS))
    column_map: dict[str, str] | None = field(
        default=None, metadata=option("Our field -> their column: {prompt: Body, answer: Gold}.", _ROWS)
    )
    image_root: str | None = field(default=None, metadata=option("Where relative image paths start.", _ROWS))
    on_bad_row: Literal["error", "drop"] = field(
        default="error", metadata=option("Rows that can't be read, a missing image say: stop, or leave out.", _ROWS)
    )
    form: Literal["reasoning", "label_rationale", "two_turn", "process"] = field(
        default="reasoning",
        metadata=option(
            "reasoning: thoughts and answer in one turn. label_rationale: two tasks, told apart by a prefix. two_turn: "
            "rationale, then answer. process: steps with their values from rollouts.",
            _ROWS,
        ),
    )
    notes: Literal["strip", "keep", "tool_calls"] = field(
        default="strip",
        metadata=option("Calculator notes: stripped, kept with wrong results corrected, or run as tool calls.", _ROWS),
    )
    mode: Literal["teacher", "gold", "both"] = field(
        default="teacher", metadata=option("Who writes: a teacher, the set's own rationales, or both.", _WAY)
    )
    strategy: str | dict[str, Any] = field(
        default_factory=lambda: {"name": "zero_shot_cot", "stages": 1},
        metadata=option("Name of a strategy of mmreason.prompting, or {name: …, its parameters}.", _WAY),
    )
    language: Literal["en", "zh"] = field(default="en", metadata=option("Of the prompts.", _WAY))
    k: int = field(default=4, metadata=option("Solutions drawn of each problem.", _WAY))
    max_paths: int | None = field(default=None, metadata=option("Kept of each problem; those most distinct.", _WAY))
    shots: int = field(default=0, metadata=option("Worked examples shown, drawn from the sets themselves.", _WAY))
    rationalize: int = field(
        default=0,
        metadata=option("Explanations of the gold, drawn where no solution is right (STaR, arXiv:2203.14465).", _WAY),
    )
    rationale_from: Literal["text", "thoughts"] = field(
        default="text", metadata=option("Of a teacher whose thoughts are parted from its text: which to learn.", _WAY)
    )
    false_equations: Literal["keep", "drop"] = field(
        default="keep", metadata=option("Solutions with the right answer and an equation that is not true.", _WAY)
    )
    temperature: float | None = field(default=0.7, metadata=option("Where the strategy sets none.", _WAY))
    top_p: float | None = field(default=None, metadata=option("Nucleus of the sampling.", _WAY))
    max_tokens: int = field(default=1024, metadata=option("Of a reply, where the strategy sets none.", _WAY))
    rollouts: int = field(default=8, metadata=option("form process: completions from each step.", _WAY))
    estimate: Literal["hard", "soft"] = field(
        default="hard",
        metadata=option("form process: a step is good if any rollout is right, or from soft_threshold on.", _WAY),
    )
    soft_threshold: float = field(default=0.5, metadata=option("Share of right rollouts of a good step.", _WAY))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("k", 1), ("max_paths", 1), ("rollouts", 1), ("max_tokens", 1), ("shots", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        if self.rationalize < 0:
            raise ConfigError(f"rationalize must be at least 0, not {self.rationalize}")
        if not 0 < self.soft_threshold <= 1:
            raise ConfigError(f"soft_threshold must be above 0 and at most 1, not {self.soft_threshold}")
        if not self.source:
            raise ConfigError("source: give at least one set, --source PATH")
        self._check_idle()
        if self.form in ("label_rationale", "two_turn") and self.notes == "tool_calls":
            raise ConfigError(f"notes tool_calls needs form reasoning, not {self.form}: only there is a turn of calls")

    def _check_idle(self) -> None:
        """Raises: ConfigError for an option that would do nothing."""
        if self.rationalize and self.mode == "gold":
            raise ConfigError("rationalize asks a teacher, which mode gold has none of: use mode teacher or both")
        if self.form != "process":
            return
        if self.notes != "strip":
            raise ConfigError(f"form process has steps of text without notes: notes {self.notes} needs another form")
        idle = {
            "rationalize": self.rationalize > 0,
            "max_paths": self.max_paths is not None,
            "false_equations": self.false_equations == "drop",
        }
        for name in (name for name, is_given in idle.items() if is_given):
            raise ConfigError(f"form process keeps right and wrong solutions alike: {name} needs another form")


@dataclass(frozen=True, slots=True)
class _Row:
    """A task: the row, and its own rationale with the notes that the format leaves out."""

    example: Example
    gold_text: str | None

    def __repr__(self) -> str:
        """As a dry run shows the task."""
        from mmreason.prompting.types import Problem

        return f"{Problem.from_example(self.example).text} (answer: {self.example.get('answer')})"


class Cot(Builder[CotOptions]):
    """Plans a task for each row; see the module."""

    name, version = "cot", 1

    def __init__(self, options: CotOptions) -> None:
        super().__init__(options)
        from mmreason.prompting.registry import load_strategy
        from mmreason.prompting.single import FewShot

        spec = {"name": options.strategy} if isinstance(options.strategy, str) else dict(options.strategy)
        self._strategy = load_strategy({"language": options.language, **spec})
        if isinstance(self._strategy, FewShot) and options.shots < (self._strategy.shots or 1):
            raise ConfigError(f"strategy few_shot shows worked examples: give --shots {self._strategy.shots or 4}")
        self._rows: list[_Row] = []

    def needs_endpoint(self) -> bool:
        return self.options.mode != "gold" or self.options.form == "process"

    def sends_images(self) -> bool:
        return "images" in self.columns and self.needs_endpoint()

    # ----------------------------------------------------------------------------------------------------------------
    # Input

    def sources(self) -> Sequence[SourceNote]:
        from data_builders._cot.reading import gold_texts
        from data_builders.building.sources import read_source

        notes: list[SourceNote] = []
        for source in self.options.source:
            settings: dict[str, Any] = {
                "format": self.options.format, "column_map": self.options.column_map,
                "image_root": self.options.image_root, "on_bad_row": self.options.on_bad_row,
            }  # fmt: skip
            examples, note = read_source(source, split=self.options.source_split, **settings)
            notes.append(note)
            texts = gold_texts(examples, source, self.options.source_split)
            self._rows += [_Row(example, text) for example, text in zip(examples, texts, strict=True)]
        self._check_rows()
        self._set_columns()
        return notes

    def _check_rows(self) -> None:
        listed = ", ".join(self.options.source)
        if not any(row.example.get("answer") for row in self._rows):
            raise DataError(
                f"{listed}: no row has an answer to verify with; name its column with --column_map '{{answer: …}}'",
                path=listed,
                reason="missing_answer",
            )
        needs_text = "mode gold" if self.options.mode == "gold" else f"shots {self.options.shots}"
        if (self.options.mode == "gold" or self.options.shots) and not any(row.gold_text for row in self._rows):
            raise DataError(
                f"{listed}: no row has a rationale, which {needs_text} needs; use --mode teacher without shots",
                path=listed,
                reason="missing_completion",
            )

    def _set_columns(self) -> None:
        """Columns that hold something: plain TRL takes a set with an image column for one of pictures."""
        more = ["images"] if any(row.example.get("images") for row in self._rows) else []
        more += ["tools"] if self.options.notes == "tool_calls" or self._calls_tools() else []
        more += ["label", "completions", "labels"] if self.options.form == "process" else []
        self.columns = (*type(self).columns, *more)

    def _calls_tools(self) -> bool:
        from data_builders._cot.asking import calls_tools

        return self.options.mode != "gold" and calls_tools(self._strategy)

    def plan(self) -> Iterator[Task]:
        seen: Counter[str] = Counter()
        for row in self._rows:
            name = row.example.get("id") or "row"
            seen[name] += 1
            yield Task(name if seen[name] == 1 else f"{name}#{seen[name]}", row)

    # ----------------------------------------------------------------------------------------------------------------
    # Solutions

    async def make(self, task: Task, tools: Tools) -> Made:
        from data_builders._cot.asking import problem_of
        from data_builders._cot.making import Maker

        row = cast(_Row, task.data)
        problem = await problem_of(row.example, await self._shots_for(task))
        return await Maker(self.options, self._strategy, tools).made(task.id, row.example, row.gold_text, problem)

    async def _shots_for(self, task: Task) -> list[Any]:
        """Worked examples for a task: drawn by the seed and its id, never the row itself."""
        from data_builders._cot.asking import problem_of, shot_of
        from data_builders._cot.notes import without_notes

        row = cast(_Row, task.data)
        if not self.options.shots or self.options.mode == "gold":
            return []
        rng, shown = random.Random(f"{self.options.seed} shots {task.id}"), []
        for other in rng.sample(self._rows, min(len(self._rows), 20 * self.options.shots)):
            if other.gold_text and other.example["prompt"] != row.example["prompt"] and other.example.get("answer"):
                shown.append(shot_of(other.example, await problem_of(other.example), without_notes(other.gold_text)))
            if len(shown) == self.options.shots:
                break
        return shown

    def told(self) -> Mapping[str, object]:
        return {"strategy": repr(self._strategy), "form": self.options.form, "mode": self.options.mode}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    from data_builders.building.runner import run_main

    return run_main(Cot, CotOptions, argv, description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
