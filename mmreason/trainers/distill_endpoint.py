"""Teachers behind an endpoint: the log-probabilities that `mmreason build teacher` kept beside their texts, as ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmreason.clients.packed_logprobs import unpack_logprobs
from mmreason.clients.types import TokenLogprob
from mmreason.losses.distill import NO_TOKEN
from mmreason.trainers.distill_arguments import ROWS, TeacherOptions
from mmreason.trainers.distill_store import RowLogps
from mmreason.types import ConfigError, DataError

_UNKNOWN = "�"


@dataclass
class RowsTeacher:
    """What the rows themselves bring: `meta["logprobs"]` of a teacher that nobody has to ask again.

    options: path "rows", and its weights. rows: as the student reads them. cells: of each row, in their order.
    k: alternatives that are kept. tokenizer: the student's, which has to be the teacher's.
    """

    options: TeacherOptions
    rows: Any
    cells: Sequence[Mapping[str, Any]]
    k: int
    tokenizer: Any

    name = ROWS

    def prepare(self, accelerator: Any) -> None:
        """Nothing to load."""

    def digest(self) -> dict[str, Any]:
        """What tells these log-probabilities from others."""
        found = hashlib.sha256()
        for cell in self.cells:
            found.update(str(cell.get("data")).encode())
        return {"path": ROWS, "logprobs": found.hexdigest()[:16]}

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Text -> id, for tokens that are whole characters."""
        texts = ((str(self.tokenizer.decode([i])), i) for i in range(len(self.tokenizer)))
        return {text: i for text, i in texts if text and _UNKNOWN not in text}

    def said(self, part: range) -> list[RowLogps]:
        """The k likeliest tokens at each place of some rows. Raises: DataError naming a row that doesn't fit."""
        return [self._row(number) for number in part]

    def _row(self, number: int) -> RowLogps:
        row = self.rows.without_images(number)
        learned = [token for token, weight in zip(row.ids[1:], row.weights[1:], strict=True) if weight != 0]
        told = list(unpack_logprobs(self.cells[number]))
        if not len(told) <= len(learned) <= len(told) + 1:  # one more: the end of the turn, which servers leave out
            raise _misfit(row.row_id, f"{len(learned)} tokens are learned, and {len(told)} have log-probabilities")
        ids = np.full((len(learned), self.k), NO_TOKEN, dtype=np.int32)
        logps = np.zeros((len(learned), self.k), dtype=np.float32)
        label = np.zeros(len(learned), dtype=np.float32)
        for place, (token, one) in enumerate(zip(learned, told, strict=False)):
            if str(self.tokenizer.decode([token])) != one.token and _UNKNOWN not in one.token:
                mine = str(self.tokenizer.decode([token]))
                raise _misfit(row.row_id, f"token {place} is {mine!r} here and {one.token!r} there")
            found = self._alternatives(token, one)
            for column, (known, logprob) in enumerate(found[: self.k]):
                ids[place, column], logps[place, column] = known, logprob
            label[place] = one.logprob
        return RowLogps(ids, logps, label)

    def _alternatives(self, chosen: int, one: TokenLogprob) -> list[tuple[int, float]]:
        """(id, log-probability) of those that the student knows, the likeliest first; the others stay in the tail."""
        found = {chosen: one.logprob}
        for text, logprob in one.top:
            if (known := self._ids.get(text)) is not None:
                found.setdefault(known, logprob)
        return sorted(found.items(), key=lambda pair: -pair[1])


def _misfit(row: str, why: str) -> DataError:
    return DataError(
        f"row {row}: its log-probabilities are not of its tokens ({why}). They have to come from a teacher with the "
        "student's tokenizer, and completion_template, chat template and loss_on have to leave the text as it was",
        row=row,
        reason="logprobs",
    )


def rows_teacher(options: TeacherOptions, train: Any, rows: Any, k: int, tokenizer: Any) -> RowsTeacher:
    """Raises: ConfigError naming a row without log-probabilities."""
    by_id: dict[str, Any] = {
        str(row["id"]): (row.get("meta") or {}).get("logprobs") for row in train.select_columns(["id", "meta"])
    }
    without = next((name for name in rows.row_ids if not isinstance(by_id.get(name), Mapping)), None)
    if without is not None:
        raise ConfigError(
            f"teachers: path: {ROWS}: row {without} has no log-probabilities in meta; mmreason build teacher keeps "
            "some with top_logprobs=5, from endpoints that give them"
        )
    cells: list[Mapping[str, Any]] = [by_id[name] for name in rows.row_ids]
    return RowsTeacher(options, rows, cells, k, tokenizer)
