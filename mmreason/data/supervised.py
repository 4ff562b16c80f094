"""A set of Examples as rows of token ids and loss weights: each rendered before training, nothing lost silently."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmreason.data.formats.common import RowError
from mmreason.data.images import load_image
from mmreason.data.loader import BadRows
from mmreason.data.loss_spans import LAST_TURN, LossOn
from mmreason.data.supervised_rendering import (
    RowText,
    SupervisedRenderer,
    SupervisedRow,
    Truncation,
    render_supervised,
)
from mmreason.data.truncation import NOTHING_CUT
from mmreason.data.visual import process_text
from mmreason.types import DataError, Message, OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ("id", "source", "prompt", "completion", "images", "tools")


@dataclass(frozen=True, slots=True)
class _Pictured:
    """A row with images: its text, the place of its Example in the dataset, and which of the Example's images."""

    text: str
    example: int
    images: tuple[int, ...]


class SupervisedRows:
    """The rows of a set, checked. Token ids and weights stay in memory, 8 bytes a token; images are opened again when a
    row is asked for.

    Attributes:
        lengths: (N,) int64, tokens of each row, those of images included.
        supervised: (N,) int64, tokens of each row with a weight over 0.
        weight_sums: (N,) float64, sum of each row's weights.
        sources, row_ids: of the Examples; several rows may have the same.
        cut: what truncation cut off all rows together.
    """

    def __init__(self, dataset: Any, processor: Any) -> None:
        self._dataset, self._processor = dataset, processor
        self._ids, self._weights = array("i"), array("f")
        self._starts = array("q", [0])
        self._pictured: dict[int, _Pictured] = {}
        self.sources: list[str] = []
        self.row_ids: list[str] = []
        self.lengths = self.supervised = np.zeros(0, dtype=np.int64)
        self.weight_sums = np.zeros(0)
        self.cut = NOTHING_CUT

    def add(self, example: int, text: RowText, row: SupervisedRow) -> None:
        """Keep a row of the Example at place `example` of the dataset. `close` ends this."""
        if row.visual is not None:
            self._pictured[len(self.row_ids)] = _Pictured(text.text, example, text.images)
        self._ids.extend(row.ids)
        self._weights.extend(row.weights)
        self._starts.append(len(self._ids))
        self.sources.append(sys.intern(row.source))
        self.row_ids.append(row.row_id)
        self.cut += text.cut

    def close(self) -> SupervisedRows:
        """Count what is there."""
        starts = np.frombuffer(self._starts, dtype=np.int64)
        weights = np.frombuffer(self._weights, dtype=np.float32) if self._weights else np.zeros(0, np.float32)
        self.lengths = np.diff(starts)
        self.supervised = np.diff(np.concatenate([[0], np.cumsum(weights > 0)])[starts])
        self.weight_sums = np.diff(np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])[starts])
        return self

    def scale(self, factors: Sequence[float]) -> None:
        """Multiply the weights of each row. Args: factors: one for each row, above 0."""
        weights = np.frombuffer(self._weights, dtype=np.float32)
        weights *= np.repeat(np.asarray(factors, dtype=np.float32), self.lengths)
        self.weight_sums = self.weight_sums * np.asarray(factors)

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> SupervisedRow:
        """A row, with what the processor makes of its images.

        Raises: IndexError; DataError naming the row, where its images can't be read any more or have become others.
        """
        row, pictured = self.without_images(index), self._pictured.get(range(len(self))[index])
        if pictured is None:
            return row
        visual = self._visual(row.row_id, pictured)
        if visual.ids != row.ids:
            raise DataError(
                f"row {row.row_id}: its images have another size than when the run began ({len(visual.ids)} tokens "
                f"now, {len(row.ids)} then); don't touch a dataset's files while it is in use",
                row=row.row_id,
                reason="image_count",
            )
        return replace(row, visual=visual)

    @property
    def image_counts(self) -> list[int]:
        """Images of each row."""
        seen = self._pictured
        return [len(seen[index].images) if index in seen else 0 for index in range(len(self))]

    def without_images(self, index: int) -> SupervisedRow:
        """A row's tokens and weights alone. Raises: IndexError."""
        index = range(len(self))[index]
        span = slice(self._starts[index], self._starts[index + 1])
        ids, weights = self._ids[span].tolist(), self._weights[span].tolist()
        return SupervisedRow(ids, weights, self.row_ids[index], self.sources[index])

    def _visual(self, row_id: str, pictured: _Pictured) -> Any:
        cells = self._dataset[pictured.example]["images"]
        try:
            pictures = [load_image(cells[i], where=f"image {i + 1}") for i in pictured.images]
            return process_text(pictured.text, pictures, self._processor)
        except (DataError, RowError) as error:
            raise DataError(f"row {row_id}: {error}", row=row_id, reason=error.reason) from error


def prepare_supervised(
    dataset: Dataset,
    processor: Any,
    *,
    loss_on: LossOn = LAST_TURN,
    max_length: int | None = None,
    truncation: Truncation = "error",
    on_bad_row: OnBadRow = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[SupervisedRows, dict[str, int]]:
    """Render every Example, and open every image, once, before a model is loaded.

    Args:
        dataset: columns `id`, `prompt`, `completion`, and where there are any `source`, `images`, `tools`.
        on_bad_row: "error" names the first five bad rows and their number; "drop" counts them by reason.
        processor, loss_on, max_length, truncation, chat_template_kwargs: see `render_supervised`.

    Returns: (the rows, number of left out rows by reason; of truncation "drop" they have the reason "too_long").
    Raises: DataError naming bad rows, or that no row is left; ConfigError as `render_supervised`.
    """
    renderer = SupervisedRenderer(
        processor,
        loss_on=loss_on,
        max_length=max_length,
        truncation=truncation,
        chat_template_kwargs=chat_template_kwargs,
    )
    rows, bad, left_out = SupervisedRows(dataset, processor), BadRows(), 0
    for place, example in enumerate(_with_progress(dataset)):
        try:
            rendered = renderer.render(example)
        except DataError as error:
            detail = str(error).removeprefix(f"row {error.row}: ")
            bad.add(f"row {error.row}", None, RowError(error.reason or "bad_messages", detail))
            continue
        left_out += rendered.too_long
        for text, row in rendered.rows:
            rows.add(place, text, row)
    _report(bad, left_out, len(rows), len(dataset), max_length, on_bad_row)
    dropped = dict(bad.counts)
    if left_out:
        dropped["too_long"] = dropped.get("too_long", 0) + left_out
    return rows.close(), dropped


def _with_progress(dataset: Dataset) -> Iterator[Mapping[str, Any]]:
    """The rows' columns that are needed, with a progress bar."""
    from tqdm.auto import tqdm

    rows = dataset.select_columns([name for name in _COLUMNS if name in dataset.column_names])
    quiet = os.environ.get("RANK", "0") != "0"
    every = 0.5 if sys.stderr.isatty() else 30.0  # a log file wants lines, not frames
    yield from tqdm(rows, desc="tokenizing", unit="row", dynamic_ncols=True, mininterval=every, disable=quiet)


def _report(bad: BadRows, left_out: int, good: int, count: int, max_length: int | None, on_bad_row: OnBadRow) -> None:
    """Raise DataError for bad rows that were not to be dropped, and for a set of which nothing is left."""
    if good and (not bad.total or on_bad_row == "drop"):
        return
    if not bad.total:
        what = f"all {left_out} rows are over max_length {max_length}" if left_out else "the dataset is empty (no rows)"
        raise DataError(what, reason="too_long" if left_out else "empty")
    listed = "\n  ".join(bad.shown)
    more = f"\n  ... and {bad.total - len(bad.shown)} more" if bad.total > len(bad.shown) else ""
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(bad.counts.items()))
    cures = ["Put them right"]
    if "too_long" in bad.counts:
        cures.append("raise max_length or set truncation: cut_oldest_turns")
    raise DataError(
        f"{bad.total} of {count} rows can't be learned from ({reasons}):\n  {listed}{more}\n"
        f"{', '.join(cures)}, or drop such rows with on_bad_row: drop (dropped rows are counted)",
        row=bad.shown[0].split(": ", 1)[0].removeprefix("row "),
        reason=next(iter(bad.counts)),
    )


def render_completion(
    prompt: Sequence[Message] | str,
    completion: Sequence[Message] | str,
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of what the model should say after `render_prompt(prompt)`, with the end of its turn as last token.

    Images in the prompt play no part. Raises: as `render_supervised`.
    """
    renderer = SupervisedRenderer(tokenizer, chat_template_kwargs=chat_template_kwargs)
    return renderer.completion_ids({"prompt": prompt, "completion": completion})


def message_texts(messages: Sequence[Message] | str) -> Iterator[str]:
    """The texts of some messages: reasoning, contents, text parts."""
    if isinstance(messages, str):
        yield messages
        return
    for message in messages:
        if message.get("reasoning_content"):
            yield str(message["reasoning_content"])
        content = message.get("content") or ""
        yield from [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]


__all__ = [
    "LossOn",
    "SupervisedRow",
    "SupervisedRows",
    "Truncation",
    "message_texts",
    "prepare_supervised",
    "render_completion",
    "render_supervised",
]
