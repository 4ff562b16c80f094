"""Rows of a distillation run: the student's, beside each what its teachers need to be asked about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmreason.data.order import Bin
from mmreason.data.spans import align
from mmreason.data.supervised import SupervisedRow
from mmreason.losses.distill import NO_TOKEN
from mmreason.rollout.types import Completion, Engine, Request, Sampling
from mmreason.trainers.distill_store import RowLogps, TeacherStore
from mmreason.trainers.preference_data import shared_visual
from mmreason.trainers.sft import Collator
from mmreason.types import ConfigError, DataError


@dataclass(frozen=True)
class DistillRow:
    """One row of a micro-batch.

    row: the student's. source: its place among the sources. number: of the training row, for error messages.
    teachers: each teacher's own rendering, None where the student's suits. stored: what each teacher has said already.
    spans: for each teacher, of the student's and its own supervised tokens, the number of the span that each is in.
    """

    row: SupervisedRow
    source: int
    teachers: tuple[SupervisedRow | None, ...]
    stored: tuple[RowLogps | None, ...]
    spans: tuple[tuple[list[int], list[int]], ...] = ()


class DistillRows(torch.utils.data.Dataset[list[DistillRow]]):
    """A bin's rows with their teachers' (see `mmreason.trainers.sft.StepRows`).

    Args:
        rows: the student's. sources: their names. renderings: each teacher's own rows, None where the student's suit.
        stores: each teacher's kept log-probabilities, None for one that is asked.
        tokenizers: the student's and each teacher's, where they differ and spans are compared.
    """

    def __init__(
        self,
        rows: Any,
        sources: Sequence[str],
        renderings: Sequence[Any],
        stores: Sequence[TeacherStore | None],
        tokenizers: Sequence[Any] = (),
    ) -> None:
        self.tokenizers, self._spans = list(tokenizers), dict[int, tuple[tuple[list[int], list[int]], ...]]()
        self.rows, self.renderings, self.stores = rows, list(renderings), list(stores)
        self.numbers = {name: i for i, name in enumerate(sources)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, one: Bin) -> list[DistillRow]:
        return [self._row(index) for index in one]

    def _row(self, index: int) -> DistillRow:
        number = max(index, ~index)
        row = self.rows[number]
        teachers = [None if rows is None else rows[number] for rows in self.renderings]
        stored: list[RowLogps | None] = [None if store is None else store[number] for store in self.stores]
        for told in stored:
            if told is not None and len(told.label_logps) != _supervised(row):
                raise DataError(
                    f"row {row.row_id}: {_supervised(row)} tokens are learned from, and the teacher's "
                    f"log-probabilities are of {len(told.label_logps)}",
                    row=row.row_id,
                    reason="logprobs",
                )
        source = self.numbers[row.source]
        if index < 0:  # a filler, which counts nothing
            row = replace(row, weights=[0.0] * len(row.ids))
            teachers = [None if one is None else replace(one, weights=[0.0] * len(one.ids)) for one in teachers]
            stored = [
                None if one is None else RowLogps(one.ids[:0], one.logps[:0], one.label_logps[:0]) for one in stored
            ]
        spans = self._aligned(number, row, teachers) if self.tokenizers and index >= 0 else ()
        return DistillRow(row, source, tuple(teachers), tuple(stored), spans)

    def _aligned(
        self, number: int, row: SupervisedRow, teachers: Sequence[SupervisedRow | None]
    ) -> tuple[tuple[list[int], list[int]], ...]:
        if number not in self._spans:
            mine = [token for token, _ in _learned(row)]
            found = []
            for own, tokenizer in zip(teachers, self.tokenizers[1:], strict=True):
                assert own is not None
                theirs = [token for token, _ in _learned(own)]
                found.append(align(mine, theirs, (self.tokenizers[0], tokenizer), f"row {row.row_id}"))
            self._spans[number] = tuple(found)
        return self._spans[number]


class PickedRows:
    """A teacher's rendering of just those rows that the student has, in the student's order.

    Args: rows: all that the teacher reads. wanted: the student's row ids; one that stands several times means an
        Example's rows one after another.
    Raises: ConfigError naming a row that the teacher doesn't have.
    """

    def __init__(self, rows: Any, wanted: Sequence[str], name: str) -> None:
        places: dict[str, list[int]] = {}
        for place, row_id in enumerate(rows.row_ids):
            places.setdefault(row_id, []).append(place)
        seen = Counter[str]()
        self.rows, self.places = rows, list[int]()
        for row_id in wanted:
            mine = places.get(row_id, [])
            if seen[row_id] >= len(mine):
                raise ConfigError(f"row {row_id}: the teacher {name} has no rendering of it; leave it out of the data")
            self.places.append(mine[seen[row_id]])
            seen[row_id] += 1

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> SupervisedRow:
        row: SupervisedRow = self.rows[self.places[index]]
        return row

    def without_images(self, index: int) -> SupervisedRow:
        """Its tokens and weights alone."""
        row: SupervisedRow = self.rows.without_images(self.places[index])
        return row


def _supervised(row: SupervisedRow) -> int:
    return sum(weight != 0 for weight in row.weights[1:])


def check_renderings(student: Any, teacher: Any, name: str) -> None:
    """Raises: ConfigError where the rows of a teacher's own rendering don't have the student's supervised tokens."""
    for index in range(len(student)):
        mine, theirs = (rows.without_images(index) for rows in (student, teacher))
        if _learned(mine) != _learned(theirs):
            raise ConfigError(
                f"row {mine.row_id}: the chat templates of the student and of the teacher {name} write the completion "
                "in different tokens, which can't be compared one by one. Use mode: hard, or give both the same "
                "template with chat_template_path"
            )


def _learned(row: SupervisedRow) -> list[tuple[int, float]]:
    return [(token, weight) for token, weight in zip(row.ids[1:], row.weights[1:], strict=True) if weight != 0]


class DistillCollator:
    """Bins of `DistillRow`s -> the student's tensors; `row_numbers` also tells which rows a message can name.

    Besides, under "teachers", a list with None, or the tensors of the teacher's own rendering, or its `ids` (S, k),
    `logps` (S, k) and `label_logps` (S,) for the S supervised tokens in their order; and `row_ids`.
    """

    def __init__(self, student: Collator, teachers: Sequence[Collator | None]) -> None:
        self.student, self.teachers = student, list(teachers)

    def __call__(self, bins: Sequence[list[Any]]) -> dict[str, Any]:
        if bins and bins[0] and isinstance(bins[0][0], tuple):  # held-out rows, of which no teacher is asked
            return dict(self.student(bins))
        rows = [one for bin_ in bins for one in bin_]
        batch: dict[str, Any] = dict(self.student([[(one.row, one.source) for one in rows]]))
        told: list[Any] = []
        for place, collate in enumerate(self.teachers):
            if any(one.stored[place] is not None for one in rows):
                told.append(_stacked([one.stored[place] for one in rows if one.stored[place] is not None]))
            elif collate is not None:
                own = dict(collate([[(one.teachers[place], one.source) for one in rows]]))
                del own["row_sources"]
                told.append(own)
            else:
                told.append(None)
        if any(one.spans for one in rows):
            for place, own in enumerate(told):
                own["spans"] = _joined_spans([one.spans[place] for one in rows if one.spans])
        return batch | {"teachers": told, "row_ids": [one.row.row_id for one in rows]}


def _joined_spans(spans: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Numbers of all rows' spans, one row behind the other: (S,) of the student's tokens, (S',) of the teacher's."""
    joined: tuple[list[int], list[int]] = ([], [])
    count = 0
    for pair in spans:
        for into, numbers in zip(joined, pair, strict=True):
            into += [number + count if number >= 0 else -1 for number in numbers]
        count += max([*pair[0], *pair[1], -1]) + 1
    return torch.tensor(joined[0]), torch.tensor(joined[1])


def _stacked(stored: Sequence[Any]) -> dict[str, Tensor]:
    width = max(one.ids.shape[1] for one in stored)
    ids = [np.pad(one.ids, ((0, 0), (0, width - one.ids.shape[1])), constant_values=NO_TOKEN) for one in stored]
    logps = [np.pad(one.logps, ((0, 0), (0, width - one.logps.shape[1]))) for one in stored]
    labels = [one.label_logps for one in stored]
    if not sum(map(len, labels)):  # the one place that stands in where nothing is learned
        ids, logps, labels = [np.full((1, width), NO_TOKEN)], [np.zeros((1, width))], [np.zeros(1)]
    return {
        "ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        "logps": torch.from_numpy(np.concatenate(logps).astype(np.float32)),
        "label_logps": torch.from_numpy(np.concatenate(labels).astype(np.float32)),
    }


def sample_rows(rows: Sequence[DistillRow], engine: Engine, sampling: Sampling, seed: int) -> list[DistillRow]:
    """The same prompts, each with an answer of the student's own (GKD, arXiv 2306.13649, algorithm 1). Collective."""
    starts = [_start(one.row) for one in rows]
    requests = []
    for one, start in zip(rows, starts, strict=True):
        visual = None if one.row.visual is None else shared_visual(one.row, start)
        requests.append(Request(one.row.ids[:start], 1, visual))
    drawn = engine.generate(requests, sampling, seed)
    return [
        replace(
            one,
            row=_answered(one.row, start, answers[0]),
            teachers=tuple(None if own is None else _answered(own, _start(own), answers[0]) for own in one.teachers),
        )
        for one, start, answers in zip(rows, starts, drawn, strict=True)
    ]


def _start(row: SupervisedRow) -> int:
    """Place of a row's first token that counts; a filler's row is asked as a whole."""
    return next((i for i, weight in enumerate(row.weights) if weight), len(row.ids))


def _answered(row: SupervisedRow, start: int, answer: Completion) -> SupervisedRow:
    """A row whose prompt is followed by another answer."""
    count = float(any(row.weights))  # a filler stays one
    visual = None if row.visual is None else shared_visual(row, start)
    weights = [0.0] * start + [count] * len(answer.token_ids)
    return replace(row, ids=[*row.ids[:start], *answer.token_ids], weights=weights, visual=visual)
