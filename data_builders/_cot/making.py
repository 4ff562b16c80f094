"""From a problem to its rows: draw, verify, clean, recompute, choose, write in the form that is wanted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data_builders._cot.asking import Candidate, Drawn, Origin, draw, judged, rationale_of
from data_builders._cot.equations import equations, path_key
from data_builders._cot.forms import Path, is_verified, rows_of
from data_builders._cot.notes import recompute, without_notes
from data_builders._cot.paths import choose_paths
from data_builders._cot.process import process_row, value_steps
from data_builders._cot.rationale import cleaned, standing
from data_builders.building.build import Drop, Made, Tools
from data_builders.building.recorder import Recorder
from mmreason.answers import check_gold
from mmreason.prompting.from_completer import CompleterSample
from mmreason.prompting.rationalize import Rationalize
from mmreason.prompting.registry import STRATEGIES
from mmreason.prompting.strategy import Strategy
from mmreason.prompting.types import Problem
from mmreason.types import Example

if TYPE_CHECKING:
    from data_builders.cot import CotOptions

_LETTERED = ("choice", "yesno")


def gold_fault(example: Example, problem: Problem) -> Drop | None:
    """Why a row's answer can't be verified with; None where it can. Symbolic golds may take seconds."""
    gold = example.get("answer")
    if not gold:
        return Drop("missing_answer", problem.text)
    fault = check_gold(gold, problem.answer_kind, problem.choices)
    return None if fault is None else Drop("bad_gold", fault)


@dataclass(slots=True)
class _Work:
    """What one problem has come to so far."""

    drops: list[Drop]
    counts: Counter[str]


class Maker:
    """Makes the rows of problems.

    Args: strategy: by which the teacher solves.
    """

    def __init__(self, options: CotOptions, strategy: Strategy, tools: Tools) -> None:
        self.options, self.strategy = options, strategy
        self.recorder: Recorder | None = None
        self.sample: CompleterSample | None = None
        if options.mode != "gold" or options.form == "process":
            self.recorder = Recorder(tools.teacher)
            self.sample = CompleterSample(
                completer=self.recorder,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
            )

    async def made(self, name: str, example: Example, gold_text: str | None, problem: Problem) -> Made:
        """The rows of one problem.

        Raises: EndpointError, DataError.
        """
        work = _Work([], Counter())
        # In threads: symbolic answers are compared in worker processes, which would hold up the other problems.
        if self.options.mode == "gold" and self.options.form != "process":
            rows = await asyncio.to_thread(self._of_gold, name, gold_text, example, problem, work)
            return Made(rows, work.drops, dict(work.counts))
        candidates = await asyncio.to_thread(self._gold, gold_text, example, problem, work)
        if candidates is None:
            return Made((), work.drops, {})
        if self.options.mode != "gold":
            candidates += await self._drawn(problem, work)
        if self.options.form == "process":
            rows = await self._process(name, candidates, example, problem, work)
        else:
            rows = await asyncio.to_thread(self._rows, name, candidates, example, problem, work)
        return Made(rows, work.drops, dict(work.counts))

    def _of_gold(self, name: str, text: str | None, example: Example, problem: Problem, work: _Work) -> list[Example]:
        candidates = self._gold(text, example, problem, work)
        return [] if candidates is None else self._rows(name, candidates, example, problem, work)

    # ----------------------------------------------------------------------------------------------------------------
    # Candidates

    def _gold(self, text: str | None, example: Example, problem: Problem, work: _Work) -> list[Candidate] | None:
        """The set's own rationale, if it is wanted and comes to the set's own answer; None without a usable answer."""
        fault = gold_fault(example, problem)
        if fault is not None:
            work.drops.append(fault)
            return None
        if self.options.mode == "teacher":
            return []
        if text is None:
            work.drops.append(Drop("no_rationale", problem.text))
            return []
        work.counts.update(recompute(text).counts)  # of all gold rationales, kept or not
        found = standing(text, problem)
        if found != "reached" and standing(cleaned(text, problem), problem) == "reached":
            found = "reached"  # a bare equation has its value once it is cleaned up
        if found == "contradicts" or (found == "silent" and problem.answer_kind in ("number", "math")):
            work.drops.append(Drop("answer_not_reached", f"{text}\n(answer: {problem.gold})"))
            return []
        if found == "rescued":
            work.counts["gold_rescued"] += 1
        return [Candidate(text, problem.gold, origin="gold")]

    async def _drawn(self, problem: Problem, work: _Work) -> list[Candidate]:
        """The teacher's solutions; where none is right, its explanations of the gold, if those are wanted."""
        assert self.sample is not None
        drawn = await draw(self.strategy, problem, self.sample, self.options.k)
        self._count(drawn, work, "drawn")
        if self.options.rationalize and self.options.form != "process":
            right = await asyncio.to_thread(lambda: [not judged(each, problem) for each in drawn.candidates])
            if not any(right):
                explain = Rationalize(k=self.options.rationalize, language=self.options.language)
                explained = await draw(explain, problem, self.sample, 1)
                self._count(explained, work, "explained")
                return drawn.candidates + [replace(each, origin="rationalized") for each in explained.candidates]
        return drawn.candidates

    def _count(self, drawn: Drawn, work: _Work, name: str) -> None:
        work.counts[name] += len(drawn.candidates)
        work.counts.update({f"strategy_{reason}": count for reason, count in drawn.counts.items()})
        work.drops += [Drop(f"endpoint_{kind}") for kind, count in drawn.lost.items() for _ in range(count)]

    # ----------------------------------------------------------------------------------------------------------------
    # Paths

    def _paths(self, candidates: Sequence[Candidate], problem: Problem, work: _Work) -> list[Path]:
        """The verified candidates that go different ways, at most `max_paths`."""
        paths = [path for candidate in candidates if (path := self._path(candidate, problem, work)) is not None]
        if len(paths) < 2:
            return paths
        keys = [path_key(path.rationale) for path in paths]
        chosen = choose_paths(keys, self.options.max_paths)
        first: dict[frozenset[str], int] = {}
        for i, key in enumerate(keys):
            if first.setdefault(key, i) != i:
                work.drops.append(Drop("same_path", paths[i].rationale))
            elif i not in chosen:
                work.drops.append(Drop("not_chosen", paths[i].rationale))
        return [paths[i] for i in chosen]

    def _path(self, candidate: Candidate, problem: Problem, work: _Work) -> Path | None:
        fault = judged(candidate, problem)
        if fault:
            work.drops.append(Drop(fault, f"{candidate.text}\n(answer: {problem.gold})"))
            return None
        rationale = rationale_of(candidate, problem, self.options.rationale_from)
        if not without_notes(rationale).strip() and not candidate.messages:
            work.drops.append(Drop("no_rationale", candidate.text))
            return None
        if self.options.false_equations == "drop" and any(each.holds is False for each in equations(rationale)):
            work.drops.append(Drop("false_equation", rationale))
            return None
        checked = recompute(rationale)
        if candidate.origin != "gold":
            work.counts.update(checked.counts)
        broken = checked.text != rationale and standing(checked.text, problem) == "contradicts"
        if not checked.consistent or (checked.counts.get("notes_wrong") and broken):
            work.drops.append(Drop("wrong_note", rationale))
            return None
        # A letter or a yes is written as the gold is; a number or formula as the solution has it.
        answer = problem.gold if problem.answer_kind in _LETTERED else candidate.answer
        return Path(checked.text, answer or "", candidate.messages, candidate.tools, candidate.origin)

    # ----------------------------------------------------------------------------------------------------------------
    # Rows

    def _rows(
        self, name: str, candidates: Sequence[Candidate], example: Example, problem: Problem, work: _Work
    ) -> list[Example]:
        rows: list[Example] = []
        for i, path in enumerate(self._paths(candidates, problem, work)):
            made = rows_of(
                path, example, problem, f"{name}/{i}", form=self.options.form, notes=self.options.notes,
                language=self.options.language, meta=self._provenance(path.origin) | {"from": path.origin},
            )  # fmt: skip
            if all(is_verified(row) for row in made):
                rows += made
            else:
                work.drops.append(Drop("unverified", f"{path.answer}\n(answer: {problem.gold})"))
        work.counts["verified"] += len(rows)
        return rows

    def _provenance(self, origin: Origin) -> dict[str, Any]:
        if origin == "gold":
            return {}
        by = Rationalize if origin == "rationalized" else type(self.strategy)
        name = next((key for key, cls in STRATEGIES.items() if cls is by), "")
        return {"teacher": self.recorder.names if self.recorder is not None else "", "strategy": name}

    async def _process(
        self, name: str, candidates: Sequence[Candidate], example: Example, problem: Problem, work: _Work
    ) -> list[Example]:
        """Right and wrong solutions alike, cut into steps with their values. Of equal ones the first is taken."""
        assert self.sample is not None
        rows: list[Example] = []
        seen: set[str] = set()
        for candidate in candidates:
            fault = await asyncio.to_thread(judged, candidate, problem)
            text = without_notes(rationale_of(candidate, problem, self.options.rationale_from)).strip()
            unfit = fault if fault not in ("", "wrong_answer") else "no_rationale" if not text else ""
            if unfit or text in seen:
                work.drops.append(Drop(unfit or "same_path", text))
                continue
            seen.add(text)
            valued = await value_steps(
                text, candidate.answer or "", not fault, problem, self.sample, rollouts=self.options.rollouts,
                language=self.options.language,
            )  # fmt: skip
            if valued is None:
                work.drops.append(Drop("rollouts_refused", text))
                continue
            work.counts.update(valued.counts)
            work.counts["steps"] += len(valued.steps)
            rows.append(
                process_row(
                    valued, example, problem.images, f"{name}/{len(rows)}", estimate=self.options.estimate,
                    threshold=self.options.soft_threshold, rollouts=self.options.rollouts, is_right=not fault,
                    meta=self._provenance("teacher") | {"from": candidate.origin},
                )
            )  # fmt: skip
        return rows
