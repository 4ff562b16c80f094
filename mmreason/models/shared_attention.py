"""Attention over a packed sequence whose rows may branch: one prompt, read once, before any number of completions.

The layout is in the position ids (1, T) alone, so that it reaches every layer, also where one is recomputed for
gradient checkpointing: 0 begins a row, and going back to an earlier place of the row begins a branch of it. Each branch
continues what stands before that place (the trunk) and sees no other branch:

    tokens        p0 p1 p2 | a0 a1 | b0 b1 b2 | q0 q1 | c0 …
    position ids   0  1  2 |  3  4 |  3  4  5 |  0  1 |  2 …

A branch's tokens attend to the trunk and to what stands before them in the branch. No block of branch × branch is ever
computed, in any of three ways: two calls of a FlashAttention kernel, merged (on the CPU); FlexAttention with the tree
as its block mask (on CUDA); scaled_dot_product_attention branch by branch (elsewhere, and with sliding windows).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary


class Row(NamedTuple):
    """A row's places in the packed sequence: its trunk is [start, trunk), its branches end at `ends`, in order."""

    start: int
    trunk: int
    ends: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.ends[-1] if self.ends else self.trunk

    def branches(self) -> list[slice]:
        """The places of each branch."""
        return [slice(*bounds) for bounds in pairwise((self.trunk, *self.ends))]


_trees: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # position ids -> their rows: every layer asks for them
_masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # position ids -> FlexAttention's block masks, by window


def rows_of(position_ids: Tensor) -> list[Row]:
    """The rows that position ids (1, T) lay out; those without branches are all trunk.

    Raises: ValueError: positions that leave a gap, or branches of one row that begin at different places.
    """
    found = _trees.get(position_ids)
    if found is None:
        found = _trees[position_ids] = _read(position_ids[0])
    return cast("list[Row]", found)


def _read(positions: Tensor) -> list[Row]:
    breaks = (positions[1:] != positions[:-1] + 1).nonzero().flatten() + 1
    starts = [0, *breaks.tolist()]
    begins = positions[starts].tolist()
    rows: list[Row] = []
    row: Row | None = None
    for (start, end), begin in zip(pairwise([*starts, positions.shape[0]]), begins, strict=True):
        if begin == 0 or row is None:
            if row is not None:
                rows.append(row)
            row = Row(start, end, ())  # positions of a lone row may begin anywhere
        elif not row.ends and begin < row.trunk - row.start:
            row = Row(row.start, row.start + begin, (row.trunk, end))  # its first branch had no break before it
        elif begin == row.trunk - row.start:
            row = row._replace(ends=(*row.ends, end))
        else:
            raise ValueError(
                f"position ids go to {begin} at token {start}: neither the beginning of a row nor that of a branch at "
                f"{row.trunk - row.start}"
            )
    return [*rows, row] if row is not None else rows


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_ids: Tensor,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Causal attention along each path through the rows that `position_ids` lay out.

    Args:
        query: (1, heads, T, width). key, value: (1, key heads, T, width).
        position_ids: (1, T), see above.
        sliding_window: a token sees itself and so many - 1 before it, along its path.

    Returns: (1, T, heads, width).
    """
    rows = rows_of(position_ids)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # what it does for scaled_dot_product_attention; rotary parts may be float32
        query, key, value = (one.to(torch.get_autocast_dtype(kind)) for one in (query, key, value))
    if sliding_window is not None and int(position_ids.max()) < sliding_window:
        sliding_window = None
    if query.is_cuda and dropout == 0.0:
        out = _flex(query, key, value, position_ids, scaling, sliding_window, compiled=True)
        return out.transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    if kind == "cpu" and dropout == 0.0 and sliding_window is None and query.shape == value.shape:
        return cast(Tensor, _TwoPasses.apply(query, key, value, rows, scaling)).transpose(1, 2)
    return _by_branches(query, key, value, rows, dropout, scaling, sliding_window).transpose(1, 2)


# ---- branch by branch, for any device


def _by_branches(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: list[Row],
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Each branch against a copy of its trunk's keys and values before its own."""
    parts = []
    for row in rows:
        trunk = slice(row.start, row.trunk)
        for own in (trunk, *row.branches()):
            keys, values = key[:, :, own], value[:, :, own]
            if own != trunk:
                keys = torch.cat([key[:, :, trunk], keys], dim=2)
                values = torch.cat([value[:, :, trunk], values], dim=2)
            length, seen = own.stop - own.start, keys.shape[2]
            distance = torch.arange(seen - length, seen, device=query.device)[:, None]
            distance = distance - torch.arange(seen, device=query.device)
            mask = distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)
            parts.append(
                scaled_dot_product_attention(
                    query[:, :, own], keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling
                )
            )
    return torch.cat(parts, dim=2)


# ---- on the CPU: two passes


class _TwoPasses(torch.autograd.Function):
    """Every segment against itself, causally, and all branches of a row at once against its trunk; then merged.

    softmax over two sets of keys is the mean of the softmax over each, weighted with its normaliser (the online softmax
    of arXiv 1805.02867). FlashAttention's backward (arXiv 2205.14135, algorithm 4) needs only the output and the
    log of the normaliser over *all* keys, so it runs once for each part with the merged ones, and gradients add up.
    Nothing is copied for each branch, neither here nor for the backward.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: list[Row], scaling: float | None) -> Tensor:
        out = torch.empty_like(query)
        normaliser = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for own, seen, causal in _parts(rows):
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, own], key[:, :, seen], value[:, :, seen], 0.0, causal, scale=scaling
            )
            if causal:
                out[:, :, own], normaliser[:, :, own] = part, log_sum
                continue
            # Branches come after themselves in `_parts`, so what is there is their own part.
            before = normaliser[:, :, own]
            both = torch.logaddexp(before, log_sum)
            share = torch.exp(log_sum - both)[..., None]
            out[:, :, own] = torch.lerp(out[:, :, own].to(share.dtype), part.to(share.dtype), share).to(out.dtype)
            normaliser[:, :, own] = both
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.rows, ctx.scaling = rows, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, normaliser = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(one) for one in (query, key, value))
        for own, seen, causal in _parts(ctx.rows):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grads[0][:, :, own],
                query[:, :, own],
                key[:, :, seen],
                value[:, :, seen],
                out[:, :, own],
                normaliser[:, :, own],
                0.0,
                causal,
                scale=ctx.scaling,
            )
            for grad, part, places in zip((grad_query, grad_key, grad_value), parts, (own, seen, seen), strict=True):
                grad[:, :, places] += part
        return grad_query, grad_key, grad_value, None, None


def _parts(rows: list[Row]) -> list[tuple[slice, slice, bool]]:
    """(queries, keys, whether causal) of each call of the kernel."""
    parts: list[tuple[slice, slice, bool]] = []
    for row in rows:
        trunk = slice(row.start, row.trunk)
        parts += [(own, own, True) for own in (trunk, *row.branches())]
        if row.ends:
            parts.append((slice(row.trunk, row.end), trunk, False))
    return parts


# ---- on CUDA: FlexAttention


@cache
def _flex_kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Every micro-batch has another length: a kernel for each of them would be compiled without end.
    return cast("Callable[..., Any]", torch.compile(flex_attention, dynamic=True) if compiled else flex_attention)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_ids: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    *,
    compiled: bool,
) -> Tensor:
    """(1, heads, T, width). Not compiled it holds all T × T scores: for tests."""
    masks = _masks.get(position_ids)
    if masks is None:
        masks = _masks[position_ids] = {}
    if sliding_window not in masks:
        masks[sliding_window] = _block_mask(position_ids, sliding_window, compiled)
    kernel = _flex_kernel(compiled)
    groups = query.shape[1] != key.shape[1]
    return cast(Tensor, kernel(query, key, value, block_mask=masks[sliding_window], scale=scaling, enable_gqa=groups))


def _block_mask(position_ids: Tensor, sliding_window: int | None, compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    length, device = position_ids.shape[1], position_ids.device
    rows = rows_of(position_ids)
    row_lengths = [row.end - row.start for row in rows]
    row_numbers = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(row_lengths)).to(device)
    branch_lengths = [part.stop - part.start for row in rows for part in (slice(row.start, row.trunk), *row.branches())]
    # 0 is every trunk; a branch's number is its own.
    kinds = [number for row in rows for number in (0, *(1 for _ in row.ends))]
    numbers = (torch.tensor(kinds).cumsum(0) * torch.tensor(kinds)).repeat_interleave(torch.tensor(branch_lengths))
    branches, places = numbers.to(device), position_ids[0]
    window = length if sliding_window is None else sliding_window

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        path = (row_numbers[query] == row_numbers[key]) & ((branches[key] == 0) | (branches[query] == branches[key]))
        return path & (query >= key) & (places[query] - places[key] < window)

    return create_block_mask(sees, None, None, length, length, device=str(device), _compile=compiled)
