"""Rows -> the tensors of one micro-batch: padded rows, or one sequence in which each row keeps to itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mmreason.data.visual import collate_visual, flat_visual
from mmreason.types import IGNORE_INDEX

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmreason.data.supervised import SupervisedRow

RowPositions = Callable[["Tensor", "Mapping[str, Tensor]"], "Tensor"]
"""(1, T) ids and the row's visual inputs -> (axes, T) positions of a model with several position axes (M-RoPE)."""


def collate_rows(
    rows: Sequence[SupervisedRow],
    pad_token_id: int,
    *,
    padding_free: bool = False,
    row_positions: RowPositions | None = None,
    visual_dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """What a model takes for some rows, and what it shall say.

    Args:
        rows: R of them.
        padding_free: put all rows into one sequence: B = 1, and T is the sum of their lengths. Positions restart with
            each row, which is how attention knows where one ends (see mmreason.models.packed_attention).
        row_positions: of a model with several position axes; needed without padding only, else the model works its
            positions out.
        visual_dtype: what pixels become; None leaves them.

    Returns:
        input_ids (B, T); labels (B, T), IGNORE_INDEX where nothing is learned; loss_weights (B, T) float32, the weight
        of predicting the token at that place from those before; row_numbers (B, T), from 0. Rows' first tokens have
        nothing to be predicted from, so they carry no loss. Padded: attention_mask (B, T). Without padding:
        position_ids (1, T), or (1 + axes, 1, T) with the plain positions first, as transformers' M-RoPE models want
        them for packed rows. Besides what the processor made of the rows' images, in the rows' order.
    """
    import torch

    ids = [torch.tensor(row.ids, dtype=torch.long) for row in rows]
    weights = [torch.tensor([0.0, *row.weights[1:]], dtype=torch.float32) for row in rows]
    numbers = [torch.full_like(one, number) for number, one in enumerate(ids)]
    if padding_free:
        out = {name: torch.cat(parts)[None] for name, parts in _named(ids, weights, numbers)}
        out["position_ids"] = _positions(rows, ids, row_positions)
        out |= flat_visual([row.visual for row in rows], [len(row.ids) for row in rows], dtype=visual_dtype)
    else:
        pad = torch.nn.utils.rnn.pad_sequence
        fill = {"input_ids": pad_token_id, "loss_weights": 0.0, "row_numbers": 0}
        out = {
            name: pad(parts, batch_first=True, padding_value=fill[name])
            for name, parts in _named(ids, weights, numbers)
        }
        out["attention_mask"] = pad([torch.ones_like(one) for one in ids], batch_first=True)
        out |= collate_visual([row.visual for row in rows], out["input_ids"].shape[1], dtype=visual_dtype)
    out["labels"] = out["input_ids"].masked_fill(out["loss_weights"] == 0, IGNORE_INDEX)
    return out


def _named(ids: list[Tensor], weights: list[Tensor], numbers: list[Tensor]) -> list[tuple[str, list[Tensor]]]:
    return [("input_ids", ids), ("loss_weights", weights), ("row_numbers", numbers)]


def _positions(rows: Sequence[SupervisedRow], ids: list[Tensor], row_positions: RowPositions | None) -> Tensor:
    import torch

    plain = torch.cat([torch.arange(len(one)) for one in ids])[None]
    if row_positions is None:
        return plain
    axes = [row_positions(one[None], _visual_of(row)) for row, one in zip(rows, ids, strict=True)]
    return torch.cat([plain[None], torch.cat(axes, dim=1)[:, None].to(plain.dtype)])


def _visual_of(row: SupervisedRow) -> dict[str, Tensor]:
    """The processor's outputs for one row; what is per token as (1, T), also where the row goes on behind it."""
    return collate_visual([row.visual], len(row.ids))
