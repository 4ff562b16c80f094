"""Self-play: the model writes new problems, solves each k times, and keeps those it half masters.

    python -m data_builders.self_play --source gsm8k/train.jsonl --out played --n 2000 --k 8 \\
        --teacher.base_url http://localhost:8000/v1 --teacher.model NAME

A problem is written from seed problems of the parent set. It is kept where the k solutions agree on an answer (the
majority has at least `agree` of those that state one) and where its pass rate (the majority's share of all k) lies
between `low` and `high`: neither hopeless nor known. Its rows are the solutions with that answer which go different
ways. No problem of the parent's test split is kept, and none that is too like one of the parent or an earlier one.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from data_builders.building.build import Builder, BuildOptions, Drop, Made, SourceNote, Task, Tools, option
from mmreason.types import ConfigError, DataError, Example

if TYPE_CHECKING:
    from data_builders._teacher.novelty import Pool
    from mmreason.data.overlap import OverlapIndex
    from mmreason.prompting.types import Problem

_PLAY, _ROWS = "Self-play", "Rows"
_MIN_WORDS = 5


@dataclass(frozen=True, kw_only=True)
class SelfPlayOptions(BuildOptions):
    """The options of `mmreason build self_play`."""

    source: str = field(metadata=option("The parent: a set whose problems are the seeds.", _ROWS))
    source_split: str = field(default="train", metadata=option("Its split.", _ROWS))
    test: str | None = field(
        default=None,
        metadata=option("Test set of the parent, kept out; default: its split test; 'none' where it has none.", _ROWS),
    )
    format: str = field(default="auto", metadata=option("How the parent's rows are read.", _ROWS))
    n: int = field(default=1000, metadata=option("Problems that are written.", _PLAY))
    seeds: int = field(default=3, metadata=option("Problems of the parent shown for each.", _PLAY))
    k: int = field(default=8, metadata=option("Solutions of each problem.", _PLAY))
    agree: float = field(default=0.6, metadata=option("Least share of the majority among stated answers.", _PLAY))
    low: float = field(default=0.25, metadata=option("Least pass rate: the majority's share of all k.", _PLAY))
    high: float = field(default=0.9, metadata=option("Greatest pass rate.", _PLAY))
    novelty: float = field(
        default=0.7, metadata=option("ROUGE-L from which a problem is too like another one; 1 for equal ones.", _PLAY)
    )
    max_paths: int | None = field(default=2, metadata=option("Rows of a problem; the most distinct solutions.", _PLAY))
    notes: Literal["strip", "keep", "tool_calls"] = field(default="strip", metadata=option("As in cot.", _ROWS))
    strategy: str | dict[str, Any] = field(
        default_factory=lambda: {"name": "zero_shot_cot", "stages": 1},
        metadata=option("By which the problems are solved.", _PLAY),
    )
    language: Literal["en", "zh"] = field(default="en", metadata=option("Of the prompts.", _PLAY))
    temperature: float | None = field(default=0.8, metadata=option("Of problems and solutions.", _PLAY))
    top_p: float | None = field(default=None, metadata=option("Nucleus of the sampling.", _PLAY))
    max_tokens: int = field(default=1024, metadata=option("Of a reply, where the strategy sets none.", _PLAY))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("n", 1), ("seeds", 1), ("k", 2), ("max_paths", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        for name in ("agree", "low", "high", "novelty"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        if self.low > self.high:
            raise ConfigError(f"low {self.low} is above high {self.high}: no problem could be kept")


class SelfPlay(Builder[SelfPlayOptions]):
    """Plans a task for each problem to be written; see the module."""

    name, version = "self_play", 1

    def __init__(self, options: SelfPlayOptions) -> None:
        super().__init__(options)
        from mmreason.prompting.registry import load_strategy
        from mmreason.prompting.single import FewShot

        spec = {"name": options.strategy} if isinstance(options.strategy, str) else dict(options.strategy)
        self._strategy = load_strategy({"language": options.language, **spec})
        if isinstance(self._strategy, FewShot):
            raise ConfigError("strategy few_shot needs worked examples, which self-play has none of: use another one")
        self._parents: list[Example] = []
        self._pool: Pool | None = None
        self._known = 0  # texts of the parent in the pool, before those of earlier problems
        self._tests: OverlapIndex | None = None
        self._test_pool: Pool | None = None
        self._last = ""  # the problem of the row that was kept last
        self._pass_rates: list[float] = []

    # ----------------------------------------------------------------------------------------------------------------
    # Input

    def sources(self) -> Sequence[SourceNote]:
        from data_builders._cot.asking import calls_tools
        from data_builders._teacher.novelty import Pool
        from data_builders.building.sources import read_source

        examples, note = read_source(self.options.source, split=self.options.source_split, format=self.options.format)
        self._parents = [example for example in examples if _is_open(example)]
        if not self._parents:
            raise DataError(
                f"{self.options.source}: no row is a question of text with one answer and without choices, from which "
                "a problem could be written; give a set of open questions",
                path=self.options.source,
                reason="missing_prompt",
            )
        if self.options.notes == "tool_calls" or calls_tools(self._strategy):
            self.columns = (*type(self).columns, "tools")
        self._pool = Pool(self.options.novelty)
        for text in dict.fromkeys(map(_text, self._parents)):
            self._pool.add(text)
        self._known = len(self._pool)
        tests = self._read_tests()
        return [note] if tests is None else [note, tests]

    def _read_tests(self) -> SourceNote | None:
        """The parent's test split, indexed. Raises: ConfigError where none is found and none is declined."""
        from data_builders._teacher.novelty import Pool
        from data_builders.building.sources import read_source
        from mmreason.data.overlap import OverlapIndex

        if self.options.test == "none":
            return None
        data = Path(self.options.source).expanduser()
        place = self.options.test or str(data.parent if data.is_file() else self.options.source)
        try:
            # Without a name of the format: a test set may come in another form than its parent.
            examples, note = read_source(place, split="test")
        except DataError as error:
            raise ConfigError(
                f"self-play keeps the parent's test split out, and {place} gives none ({error}). Name it with --test "
                "PATH, or say --test none"
            ) from error
        self._test_pool = Pool(self.options.novelty, map(_text, examples))
        self._tests = OverlapIndex.build({"the parent's test split": examples})
        return note

    def plan(self) -> Iterator[Task]:
        for i in range(self.options.n):
            rng = random.Random(f"{self.options.seed} self-play {i}")
            yield Task(f"played-{i:06d}", rng.sample(self._parents, min(self.options.seeds, len(self._parents))))

    # ----------------------------------------------------------------------------------------------------------------
    # One problem

    async def make(self, task: Task, tools: Tools) -> Made:
        from data_builders._cot.asking import draw
        from data_builders._self_play.votes import tally
        from data_builders.building.recorder import Recorder
        from mmreason.prompting.from_completer import CompleterSample

        recorder = Recorder(tools.teacher)
        sample = CompleterSample(
            completer=recorder, max_tokens=self.options.max_tokens, temperature=self.options.temperature,
            top_p=self.options.top_p,
        )  # fmt: skip
        seeds = cast(list[Example], task.data)
        problem, fault = await self._write(task, seeds, sample)
        if fault is not None:
            return Made(drops=[fault])
        drawn = await draw(self._strategy, problem, sample, self.options.k)
        votes = await asyncio.to_thread(tally, drawn.candidates, problem, self.options.k)
        fault = self._judged(votes.share, votes.pass_rate, problem.text)
        counts = Counter({"drawn": len(drawn.candidates)})
        if fault is not None:
            return Made(drops=[fault], counts=counts)
        meta = {
            "kind": problem.answer_kind, "choices": None, "parents": [seed.get("id", "") for seed in seeds],
            "pass_rate": votes.pass_rate, "agreement": votes.share, "votes": dict(votes.answers),
            "teacher": recorder.names,
        }  # fmt: skip
        rows, drops = await asyncio.to_thread(self._rows, task.id, problem, votes.answer, votes.right, meta, counts)
        return Made(rows, drops, counts)

    async def _write(self, task: Task, seeds: Sequence[Example], sample: Any) -> tuple[Problem, Drop | None]:
        """A new problem, and why it can't be used."""
        from data_builders._self_play.texts import writing_prompt, written_problem
        from mmreason.prompting.prompts import TEXTS, said
        from mmreason.prompting.types import Problem

        kinds = Counter((seed.get("meta") or {}).get("kind") for seed in seeds)
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        texts = TEXTS[self.options.language]
        prompt = writing_prompt([_text(seed) for seed in seeds], texts.forms[kind], self.options.language)
        # Two tasks may draw the same seeds: each gets a draw of its own.
        number = int(task.id.rpartition("-")[2])
        (reply,) = await sample([{"role": "user", "content": prompt}], n=1, draw=number)
        text = written_problem(said(reply))
        problem = Problem(question=text, kind=kind, id=task.id)
        if reply.finish_reason == "length":
            return problem, Drop("truncated_problem", text)
        return problem, await asyncio.to_thread(self._not_new, text)

    def _not_new(self, text: str) -> Drop | None:
        """Is it a problem of the test split, too like one of the parent's, or none at all?"""
        from mmreason.data._words import words

        assert self._pool is not None
        if len(words(text)) < _MIN_WORDS:
            return Drop("no_problem", text)
        if self._tests is not None and self._test_pool is not None:
            hit = self._tests.find([text], min_share=0.5)[0]
            if hit is not None:
                return Drop("in_parents_test", f"{text}\n({hit.reason})")
            near = self._test_pool.nearest(text)
            if near is not None:
                return Drop("in_parents_test", _beside(text, near.score, self._test_pool.texts[near.index]))
        near = self._pool.nearest(text, first=self._known)
        return None if near is None else Drop("like_parent", _beside(text, near.score, self._pool.texts[near.index]))

    def _judged(self, share: float, pass_rate: float, text: str) -> Drop | None:
        told = f"{text}\n(agreement {share:.2f}, pass rate {pass_rate:.2f})"
        if share < self.options.agree:
            return Drop("no_agreement", told)
        if pass_rate < self.options.low:
            return Drop("too_hard", told)
        return Drop("too_easy", told) if pass_rate > self.options.high else None

    def _rows(
        self,
        name: str,
        problem: Problem,
        answer: str,
        right: Sequence[Any],
        meta: Mapping[str, Any],
        counts: Counter[str],
    ) -> tuple[list[Example], list[Drop]]:
        from data_builders._self_play.votes import rows_of_votes

        return rows_of_votes(
            name, problem, answer, right, meta, counts, notes=self.options.notes, language=self.options.language,
            max_paths=self.options.max_paths,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------------------------
    # All problems

    def keep(self, row: Example) -> Drop | None:
        """Rows of one problem come one after the other; another problem like it is dropped."""
        assert self._pool is not None
        text = _text(row)
        problem = row["id"].rpartition("/")[0]
        if problem == self._last:
            return None
        near = self._pool.nearest(text)
        if near is not None:
            return Drop("like_earlier", _beside(text, near.score, self._pool.texts[near.index]))
        self._pool.add(text)
        self._last = problem
        self._pass_rates.append(float(row["meta"]["pass_rate"]))
        return None

    def told(self) -> Mapping[str, object]:
        rates = self._pass_rates
        bins = Counter(min(int(10 * rate), 9) for rate in rates)
        return {
            "problems": len(rates),
            "pass_rates": {f"{i / 10:.1f}-{(i + 1) / 10:.1f}": bins[i] for i in sorted(bins)},
            "parents_test_kept_out": self._tests is not None,
        }


def _is_open(example: Example) -> bool:
    """A question of text with an answer and without choices."""
    prompt = example["prompt"]
    plain = isinstance(prompt, str) or (len(prompt) == 1 and isinstance(prompt[0]["content"], str))
    return plain and bool(example.get("answer")) and not (example.get("meta") or {}).get("choices")


def _beside(text: str, score: float, other: str) -> str:
    return f"{text}\n(ROUGE-L {score:.2f}: {other})"


def _text(example: Example) -> str:
    prompt = example["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    from data_builders.building.runner import run_main

    return run_main(SelfPlay, SelfPlayOptions, argv, description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
