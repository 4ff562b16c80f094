"""Attention along the branches of packed rows: each way of computing it against a dense mask in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmreason.models.shared_attention import Row, _by_branches, _flex, rows_of, tree_attention

GROUPS = [(5, [3, 4, 1]), (1, [2, 2]), (7, []), (3, [6]), (4, [1, 1, 1]), (2, [130, 70])]
"""(tokens of the trunk, tokens of each branch); the last is longer than a block of any kernel."""

SCALE = 0.3


def positions(groups: list[tuple[int, list[int]]]) -> Tensor:
    out: list[int] = []
    for trunk, branches in groups:
        out += range(trunk)
        for branch in branches:
            out += range(trunk, trunk + branch)
    return torch.tensor(out)[None]


def dense(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """(1, T, heads, width) float64, with every pair of tokens looked at by itself."""
    places: list[tuple[int, int, int]] = []  # row, branch (0: trunk), place along the path
    for row, (trunk, branches) in enumerate(GROUPS):
        places += [(row, 0, i) for i in range(trunk)]
        for number, branch in enumerate(branches, start=1):
            places += [(row, number, trunk + i) for i in range(branch)]
    sees = torch.zeros(len(places), len(places), dtype=torch.bool)
    for i, (row, branch, place) in enumerate(places):
        for j, (other_row, other_branch, other_place) in enumerate(places[: i + 1]):
            on_path = row == other_row and other_branch in (0, branch)
            sees[i, j] = on_path and (window is None or place - other_place < window)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(repeats, 1), value.double().repeat_interleave(repeats, 1)
    scores = (query.double() @ key.transpose(-1, -2) * SCALE).masked_fill(~sees, float("-inf"))
    return (torch.softmax(scores, -1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)]
)  # fmt: skip
def test_values_and_gradients(dtype: torch.dtype, bound: float, window: int | None) -> None:
    """Grouped heads; with a window the CPU goes branch by branch, without in two passes."""
    position_ids = positions(GROUPS)
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> Tensor:
        drawn = torch.randn(1, position_ids.shape[1], heads, 16, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).transpose(1, 2).requires_grad_()

    inputs = draw(4), draw(2), draw(2)
    weights = torch.randn(1, position_ids.shape[1], 4, 16, generator=generator, dtype=torch.float64)
    wanted = dense(*inputs, window)
    gradients = torch.autograd.grad((wanted * weights).sum(), inputs)
    found = tree_attention(*inputs, position_ids, scaling=SCALE, sliding_window=window)
    assert found.dtype == dtype and (found.double() - wanted).abs().max() <= bound
    for got, gradient in zip(torch.autograd.grad((found * weights).sum(), inputs), gradients, strict=True):
        assert (got.double() - gradient).abs().max() <= 10 * bound


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_the_other_ways(window: int | None) -> None:
    """FlexAttention's block mask, which CUDA uses (uncompiled here), and the fallback for other devices."""
    position_ids = positions(GROUPS)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, position_ids.shape[1], 16, generator=generator)
    key, value = (torch.randn(1, 2, position_ids.shape[1], 16, generator=generator) for _ in range(2))
    wanted = dense(query, key, value, window)
    flex = _flex(query, key, value, position_ids, SCALE, window, compiled=False).transpose(1, 2)
    assert (flex.double() - wanted).abs().max() <= 1e-5
    keys, values = (one.repeat_interleave(2, dim=1) for one in (key, value))
    branches = _by_branches(query, keys, values, rows_of(position_ids), 0.0, SCALE, window).transpose(1, 2)
    assert (branches.double() - wanted).abs().max() <= 1e-5


@pytest.mark.gpu
def test_compiled_flex_attention() -> None:
    """On a GPU: values and gradients of the compiled kernel, for two lengths, against the dense mask."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    position_ids = positions(GROUPS).cuda()
    query, key, value = inputs = [
        torch.randn(1, heads, position_ids.shape[1], 64, device="cuda", requires_grad=True) for heads in (4, 2, 2)
    ]
    found = tree_attention(query, key, value, position_ids, scaling=SCALE)
    wanted = dense(query.cpu(), key.cpu(), value.cpu(), None)
    assert (found.cpu().double() - wanted).abs().max() <= 1e-2
    gradients = torch.autograd.grad(wanted.sum(), inputs)
    for got, gradient in zip(torch.autograd.grad(found.double().sum(), inputs), gradients, strict=True):
        assert (got - gradient).abs().max() <= 5e-2


def test_positions_say_where_rows_branch() -> None:
    assert rows_of(positions([(5, [3, 4, 1]), (1, [2, 2]), (7, [])])) == [
        Row(0, 5, (8, 12, 13)), Row(13, 14, (16, 18)), Row(18, 25, ())
    ]  # fmt: skip
    assert rows_of(positions([(3, [6])])) == [Row(0, 9, ())]  # one branch is the row going on
    assert rows_of(torch.arange(7, 12)[None]) == [Row(0, 5, ())]


@pytest.mark.parametrize("wrong", [[0, 1, 2, 5, 6], [0, 1, 2, 3, 2, 3, 1], [0, 1, 2, 3, 2, 4]])
def test_other_positions_are_an_error(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match=r"position ids go to \d at token \d"):
        rows_of(torch.tensor([wrong]))
