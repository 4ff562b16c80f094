"""Positions of models that count along several axes (M-RoPE, arXiv 2409.12191): time, height and width of a picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor


def row_positions_of(model: Any) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None:
    """How this model counts the tokens of one row; None where plain positions 0, 1, 2 … are all that it takes.

    Returns: a function of ids (1, T) and the processor's outputs for the row's pictures, giving (axes, T). It is the
        model's own `get_rope_index`, and reads nothing but its configuration.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = getattr(base, "model", base)
    count = getattr(inner, "get_rope_index", None)
    if count is None:
        return None
    known = set(inspect.signature(count).parameters)

    def positions(ids: Tensor, visual: Mapping[str, Tensor]) -> Tensor:
        given = {name: value for name, value in visual.items() if name in known}
        if "mm_token_type_ids" in known:
            given.setdefault("mm_token_type_ids", ids.new_zeros(ids.shape))
        return cast(Tensor, count(input_ids=ids, **given)[0][:, 0])

    return positions
