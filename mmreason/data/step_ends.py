"""Where the steps of an answer end, in tokens: the places at which a process reward model is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmreason.data.formats.common import shorten
from mmreason.data.render import leading_tokens
from mmreason.data.visual import expanded_positions
from mmreason.types import DataError

if TYPE_CHECKING:
    from mmreason.data.supervised_rendering import RowText, SupervisedRenderer, SupervisedRow


def step_ends(text: RowText, row: SupervisedRow, steps: Sequence[str], renderer: SupervisedRenderer) -> tuple[int, ...]:
    """The token of `row` with which each step ends.

    Raises: DataError: the chat template writes the steps otherwise, or two of them end with one token.
    """
    encoded = renderer.tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [a for a, _ in encoded["offset_mapping"]]
    shift = len(leading_tokens(text.text, list(encoded["input_ids"]), renderer.tokenizer)) if text.plain else 0
    places: Sequence[int | None] = range(shift, shift + len(starts))
    if row.visual is not None:
        image = renderer.tokenizer.convert_tokens_to_ids(renderer.processor.image_token)
        places = expanded_positions(row.visual, int(image))
    ends: list[int] = []
    at = text.spans[0].start
    for number, step in enumerate(steps, 1):
        found = text.text.find(step.strip(), at)
        if found < 0:
            raise DataError(f"the chat template doesn't write step {number} as it is", reason="template")
        at = found + len(step.strip())
        place = places[int(np.searchsorted(starts, at)) - 1]
        if place is None or (ends and place <= ends[-1]):
            raise DataError(f"step {number} has no token of its own: {shorten(step)}", reason="template")
        ends.append(place)
    return tuple(ends)
