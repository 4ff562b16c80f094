"""Bins of pretraining rows -> the tensors of one micro-batch, for each kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmreason.data.collate import collate_rows
from mmreason.data.objectives import Layout, Piece
from mmreason.data.supervised import SupervisedRow
from mmreason.types import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor


def collate_bins(
    bins: Sequence[Sequence[Piece]], pad_token_id: int, layout: Layout, *, packed: bool
) -> dict[str, Tensor]:
    """What a model takes for some bins, and what it shall say.

    Args:
        packed: of layout "packed": put all rows into one sequence, in which they don't see each other (see
            `mmreason.data.collate.collate_rows`). False pads them.

    Returns:
        input_ids (B, T). labels, IGNORE_INDEX where nothing is learned: (B, T), or (B, target tokens) of an
        encoder-decoder; a decoder predicts each one place earlier. Packed: position_ids (1, T). "prefix":
        attention_mask (B, 1, T, T) bool, and position_ids. Else attention_mask (B, T).
    """
    rows = [piece for one in bins for piece in one]
    if layout == "packed":
        told = [
            SupervisedRow(row.ids.tolist(), (row.labels != IGNORE_INDEX).astype(float).tolist(), "", "") for row in rows
        ]
        made = collate_rows(told, pad_token_id, padding_free=packed)
        return {name: value for name, value in made.items() if name not in ("loss_weights", "row_numbers")}
    ids, lengths = _pad([row.ids for row in rows], pad_token_id)
    labels, _ = _pad([row.labels for row in rows], IGNORE_INDEX)
    out = {"input_ids": ids, "labels": labels}
    if layout == "prefix":
        return out | _prefix_attention(lengths, [row.prefix for row in rows])
    return out | {"attention_mask": _inside(lengths).long()}


def _pad(rows: Sequence[np.ndarray], fill: int) -> tuple[Tensor, Tensor]:
    """(rows as (B, T), padded on the right; their lengths (B,))."""
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(row)) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    return padded, torch.tensor([len(row) for row in rows])


def _inside(lengths: Tensor) -> Tensor:
    import torch

    return torch.arange(int(lengths.max()))[None] < lengths[:, None]


def _prefix_attention(lengths: Tensor, prefixes: Sequence[int]) -> dict[str, Tensor]:
    """Causal attention, but both ways within each row's prefix (arXiv 1905.03197, figure 1; 2103.10360, figure 2)."""
    import torch

    size = int(lengths.max())
    place = torch.arange(size)
    causal = place[:, None] >= place[None]
    first = place[None, None] < torch.tensor(list(prefixes))[:, None, None]  # (B, 1, T): keys of the prefix
    seen = (causal[None] | first) & _inside(lengths)[:, None]
    seen |= torch.eye(size, dtype=torch.bool)  # padding sees itself: a query that sees nothing gives nan
    return {"attention_mask": seen[:, None], "position_ids": place[None].expand(len(lengths), -1)}
