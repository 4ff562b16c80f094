"""Every prompt of a set rendered once, before GPU time is spent: what can't be used is named, or counted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmreason.data.formats.common import REASONS, RowError
from mmreason.data.loader import BadRows
from mmreason.data.render import render_prompt
from mmreason.data.visual import has_images, render_visual_prompt
from mmreason.types import DataError, OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset


def check_prompts(
    dataset: Dataset,
    tokenizer: Any,
    max_prompt_length: int | None,
    *,
    on_bad_row: OnBadRow = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Dataset, list[list[int]], dict[str, int]]:
    """Render every prompt, and open every image, once. Only token ids are kept, image placeholders expanded.

    Args:
        dataset: rows with `id`, `prompt` and, where there are any, `images` and `tools`.
        tokenizer: a tokenizer, or a processor, which rows with images need.
        max_prompt_length: limit of a prompt's tokens, those of its images included.

    Returns: (the dataset without the rows that can't be used, their prompts' token ids, number of dropped rows by
        reason).
    Raises: DataError naming the first five bad rows and their number, or that no row is left; ConfigError where the
        model, or its chat template, takes no images and a row has some.
    """
    bad, keep = BadRows(), []
    prompt_ids: list[list[int]] = []
    for index, row in enumerate(_with_progress(dataset)):
        try:
            ids, images = _render(row, tokenizer, chat_template_kwargs)
            _check_length(ids, images, max_prompt_length)
        except RowError as error:
            bad.add(f"row {row['id']}", None, error)
        else:
            keep.append(index)
            prompt_ids.append(ids)
    if not bad.total:
        return dataset, prompt_ids, {}
    _report(bad, len(dataset), max_prompt_length, on_bad_row)
    return dataset.select(keep), prompt_ids, dict(bad.counts)


def _with_progress(dataset: Dataset) -> Iterator[Mapping[str, Any]]:
    """The rows' columns that are needed; with a progress bar where there are images to open."""
    names = [name for name in ("id", "prompt", "images", "tools") if name in dataset.column_names]
    rows = dataset.select_columns(names)
    if "images" not in names or os.environ.get("RANK", "0") != "0":
        yield from rows
        return
    from tqdm.auto import tqdm

    every = 0.1 if sys.stderr.isatty() else 30.0  # a log file wants lines, not frames
    yield from tqdm(rows, desc="opening images", unit="row", dynamic_ncols=True, mininterval=every)


def _render(
    row: Mapping[str, Any], tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None
) -> tuple[list[int], int]:
    """(ids, number of images). Raises RowError where the row's images can't be used, DataError for the rest."""
    with_images, tools = has_images(row), row.get("tools")
    try:
        if with_images:
            images = row.get("images")
            visual = render_visual_prompt(row["prompt"], images, tokenizer, chat_template_kwargs, tools=tools)
            return visual.ids, len(visual.images)
        return render_prompt(row["prompt"], tokenizer, chat_template_kwargs, tools=tools), 0
    except DataError as error:
        if with_images and error.reason in REASONS:
            raise RowError(error.reason, getattr(error, "detail", str(error))) from error
        raise DataError(f"row {row['id']}: {error}", row=row["id"], reason=error.reason) from error


def _check_length(ids: list[int], images: int, limit: int | None) -> None:
    if limit is not None and len(ids) > limit:
        seen = f", with those of {images} image(s)" if images else ""
        raise RowError("prompt_too_long", f"{len(ids)} tokens{seen}, the limit is {limit}")


def _report(bad: BadRows, rows: int, limit: int | None, on_bad_row: OnBadRow) -> None:
    """Raise DataError for bad rows that were not to be dropped, and for a set of which nothing is left."""
    listed = "\n  ".join(bad.shown)
    only_long = set(bad.counts) == {"prompt_too_long"}
    reason = next(iter(bad.counts))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(bad.counts.items()))
    if on_bad_row == "error":
        more = f"\n  ... and {bad.total - len(bad.shown)} more" if bad.total > len(bad.shown) else ""
        what = "are over max_prompt_length" if only_long else f"can't be used ({counts})"
        cure = "Raise max_prompt_length, or drop such rows" if only_long else "Mend them, or drop such rows"
        raise DataError(
            f"{bad.total} of {rows} prompts {what}:\n  {listed}{more}\n{cure} with on_bad_row: drop",
            row=bad.shown[0].split(": ", 1)[0].removeprefix("row "),
            reason=reason,
        )
    if bad.total == rows:
        what = f"every prompt is over max_prompt_length {limit}" if only_long else f"no prompt can be used ({counts})"
        raise DataError(f"{what}:\n  {listed}", reason=reason)
