"""What the solutions of a written problem agree on, and the rows of those that agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_builders._cot.asking import Candidate, judged, rationale_of
from data_builders._cot.equations import path_key
from data_builders._cot.forms import Path, is_verified, rows_of
from data_builders._cot.notes import NotesForm, recompute, without_notes
from data_builders._cot.paths import choose_paths
from data_builders.building.build import Drop
from mmreason.answers import clusters
from mmreason.prompting.types import Lang, Problem
from mmreason.types import Example


@dataclass(frozen=True, slots=True)
class Votes:
    """The vote over a problem's solutions.

    Attributes:
        answer: of the majority, in its first spelling; "" where nobody states one.
        share: of the majority among the solutions that state an answer.
        pass_rate: of the majority among all k.
        right: the majority's solutions.
        answers: answer -> votes, most first.
    """

    answer: str
    share: float
    pass_rate: float
    right: tuple[Candidate, ...]
    answers: Mapping[str, int]


def tally(candidates: Sequence[Candidate], problem: Problem, k: int) -> Votes:
    """Count the votes; equivalent answers count together, solutions that were cut off count for none."""
    answers = [None if candidate.fault else candidate.answer for candidate in candidates]
    groups = clusters(answers, problem.kind)
    if not groups:
        return Votes("", 0.0, 0.0, (), {})
    stated = sum(map(len, groups))
    votes = {answers[group[0]] or "": len(group) for group in groups}
    most = len(groups[0])
    right = tuple(candidates[i] for i in groups[0])
    return Votes(next(iter(votes)), most / stated, most / max(k, len(candidates)), right, votes)


def rows_of_votes(
    name: str, problem: Problem, answer: str, right: Sequence[Candidate], meta: Mapping[str, Any],
    counts: Counter[str], *, notes: NotesForm, language: Lang, max_paths: int | None,
) -> tuple[list[Example], list[Drop]]:  # fmt: skip
    """The rows of the majority's solutions that go different ways, each verified against its answer."""
    settled = replace(problem, gold=answer)
    paths: list[Path] = []
    drops: list[Drop] = []
    for candidate in right:
        fault = judged(candidate, settled)
        checked = recompute(rationale_of(candidate, settled))
        counts.update(checked.counts)
        if not fault and checked.counts.get("notes_wrong"):
            fault = "wrong_note"
        if not fault and not without_notes(checked.text).strip() and not candidate.messages:
            fault = "no_rationale"
        if fault:
            drops.append(Drop(fault, candidate.text))
        else:
            paths.append(Path(checked.text, candidate.answer or "", candidate.messages, candidate.tools))
    example: Example = {
        "prompt": [{"role": "user", "content": problem.text}],
        "answer": answer,
        "id": name,
        "source": "self_play",
        "meta": dict(meta),
    }
    rows: list[Example] = []
    for i in choose_paths([path_key(path.rationale) for path in paths], max_paths):
        made = rows_of(
            paths[i], example, settled, f"{name}/{len(rows)}", form="reasoning", notes=notes, language=language, meta={}
        )
        for row in made:
            row["source"] = "self_play"
            if is_verified(row):
                rows.append(row)
            else:
                drops.append(Drop("unverified", str(row["completion"])))
    counts["verified"] += len(rows)
    return rows, drops
