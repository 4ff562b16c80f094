"""Projectors: shapes and token counts for any grid, folding and attention against plain loops, refused settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmreason.models.projectors import (
    PROJECTORS,
    Attention,
    build_projector,
    fold_patches,
    mlp,
    read_settings,
    token_count,
)
from mmreason.types import ConfigError
from tests.tiny_vlms import randomise

WIDTH_IN, WIDTH_OUT = 6, 8
QUERIES = {"heads": 2, "layers": 1}


def squares(grid: tuple[int, int], factor: int) -> list[list[tuple[int, int]]]:
    """(row, column) of the patches of each square, squares and patches row by row."""
    return [
        [(top + i, left + j) for i in range(factor) for j in range(factor)]
        for top in range(0, grid[0], factor)
        for left in range(0, grid[1], factor)
    ]


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), factor=st.integers(1, 3), views=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_fold_patches(rows: int, columns: int, factor: int, views: int) -> None:
    grid = (rows * factor, columns * factor)
    features = torch.randn(views, grid[0] * grid[1], 3)
    folded = fold_patches(features, grid, factor)
    for view in range(views):
        for token, patches in enumerate(squares(grid, factor)):
            for place, (row, column) in enumerate(patches):
                assert torch.equal(folded[view, token, place], features[view, row * grid[1] + column])
    assert folded.shape == (views, rows * columns, factor**2, 3)


@st.composite
def projectors(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int], int]:
    """(settings, grid, prefix) that fit together."""
    kind = draw(st.sampled_from(sorted(PROJECTORS)))
    rows, columns, prefix = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    projector: dict[str, Any] = {"kind": kind}
    if kind in ("pixel_shuffle", "avg_pool"):
        projector["factor"], prefix = draw(st.integers(1, 3)), 0
        rows, columns = rows * projector["factor"], columns * projector["factor"]
    if kind in ("perceiver", "qformer"):
        projector |= QUERIES | {"queries": draw(st.integers(1, 5))}
        projector |= {} if draw(st.booleans()) else {"width": 4}
    elif kind != "linear":
        projector |= {"layers": draw(st.integers(1, 3)), "width": draw(st.integers(1, 5))}
    return projector, (rows, columns), prefix


@given(projectors(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_token_count_is_the_length_of_the_output(
    drawn: tuple[dict[str, Any], tuple[int, int], int], views: int
) -> None:
    projector, grid, prefix = drawn
    module = build_projector(projector, grid, prefix, WIDTH_IN, WIDTH_OUT)
    tokens = module(torch.randn(views, prefix + grid[0] * grid[1], WIDTH_IN))
    assert tokens.shape == (views, token_count(projector, grid, prefix), WIDTH_OUT)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_weight_learns_and_views_are_apart(kind: str) -> None:
    projector = {"kind": kind} | (QUERIES | {"queries": 3} if kind in ("perceiver", "qformer") else {})
    module = build_projector(projector, (4, 4), 0, WIDTH_IN, WIDTH_OUT)
    torch.manual_seed(0)
    randomise(module)
    features = torch.randn(2, 16, WIDTH_IN)
    tokens = module(features)
    tokens.square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        # Softmax doesn't see what is added to all of a row's logits, so a key's bias alone may have none.
        assert parameter.grad.abs().max() > 1e-9 or name.endswith("key.bias"), name
    changed = features.clone()
    changed[1] = 0
    assert torch.equal(module(changed)[:1], module(features[:1])) or torch.allclose(module(changed)[0], tokens[0])
    assert not torch.allclose(module(changed)[1], tokens[1])


def test_pixel_shuffle_and_average_pooling_by_hand() -> None:
    features, grid = torch.randn(2, 24, WIDTH_IN, dtype=torch.float64), (4, 6)
    for kind in ("pixel_shuffle", "avg_pool"):
        module: Any = build_projector({"kind": kind, "layers": 1}, grid, 0, WIDTH_IN, WIDTH_OUT).double()
        randomise(module)
        tokens = module(features)
        linear = module.layers[0]
        for view in range(2):
            for token, patches in enumerate(squares(grid, 2)):
                rows = [features[view, row * grid[1] + column] for row, column in patches]
                wanted = module.norm(torch.cat(rows)) if kind == "pixel_shuffle" else sum(rows[1:], rows[0]) / 4
                torch.testing.assert_close(tokens[view, token], linear.weight @ wanted + linear.bias)


def test_attention_equals_torch() -> None:
    """The same weights in `nn.MultiheadAttention`."""
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x, context = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])


def softmax_attention(module: Any, x: Tensor, context: Tensor) -> Tensor:
    """One view, head by head in float64: softmax(q kᵀ / √d) v."""
    q, k, v = (layer(rows) for layer, rows in ((module.query, x), (module.key, context), (module.value, context)))
    heads = []
    for part in range(module.heads):
        width = q.shape[-1] // module.heads
        at = slice(part * width, (part + 1) * width)
        weights = torch.softmax(q[:, at] @ k[:, at].T / math.sqrt(width), dim=-1)
        heads.append(weights @ v[:, at])
    return module.out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("kind", ["perceiver", "qformer"])
def test_query_projectors_by_their_papers(kind: str) -> None:
    """Flamingo's figure 5 (keys: patches and queries), BLIP-2's two attentions, each before a residual MLP."""
    projector = {"kind": kind, "queries": 3, "layers": 2, "heads": 2}
    module: Any = build_projector(projector, (2, 2), 0, WIDTH_IN, WIDTH_OUT).double()
    randomise(module)
    nn.init.normal_(module.queries)
    features = torch.randn(2, 4, WIDTH_IN, dtype=torch.float64)
    tokens = module(features)
    for view in range(2):
        patches, queries = module.patches(features[view]), module.queries
        for block in module.blocks:
            if kind == "perceiver":
                normed = block.norm_queries(queries)
                context = torch.cat([block.norm_patches(patches), normed])
                queries = queries + softmax_attention(block.attention, normed, context)
            else:
                normed = block.norm_self(queries)
                queries = queries + softmax_attention(block.self_attention, normed, normed)
                queries = queries + softmax_attention(block.cross_attention, block.norm_cross(queries), patches)
            norm, wide, act, narrow = block.feed_forward
            queries = queries + narrow(act(wide(norm(queries))))
        torch.testing.assert_close(tokens[view], module.out(module.norm(queries)))


def test_mlp_layers() -> None:
    assert read_settings({"kind": "mlp", "width": None}, (1, 1)) == read_settings({"kind": "mlp"}, (1, 1))
    _, chosen = read_settings({"kind": "mlp", "layers": 3, "width": 5, "bias": False}, (1, 1))
    layers = mlp(WIDTH_IN, WIDTH_OUT, chosen)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(5, WIDTH_IN), (5, 5), (WIDTH_OUT, 5)]
    assert all(layer.bias is None for layer in layers[::2])


@pytest.mark.parametrize(
    ("projector", "told"),
    [
        ({"kind": "mpl"}, r"projector.kind='mpl'; known: linear, mlp, .*Did you mean 'mlp'\?"),
        ({"kind": "mlp", "layer": 2}, r"projector.layer: mlp has no such setting; .*Did you mean 'layers'\?"),
        ({"kind": "linear", "layers": 2}, "projector.layers: linear has no such setting"),
        ({"kind": "mlp", "layers": 0}, "projector.layers=0 must be at least 1"),
        ({"kind": "mlp", "layers": 2.0}, "projector.layers=2.0 must be"),
        ({"kind": "mlp", "layers": True}, "projector.layers=True must be"),
        ({"kind": "mlp", "layers": "2"}, "projector.layers='2' must be"),
        ({"kind": "mlp", "width": -3}, "projector.width=-3 must be at least 1"),
        ({"kind": "mlp", "bias": 3}, "projector.bias=3 must be true or false"),
        ({"kind": "perceiver", "queries": 0}, "projector.queries=0 must be at least 1"),
        ({"kind": "qformer", "heads": 3}, "projector.heads=3 doesn't divide its width 8"),
        ({"kind": "qformer", "heads": 3, "width": 10}, "projector.heads=3 doesn't divide its width 10"),
        ({"kind": "pixel_shuffle", "factor": 3}, r"factor=3 can't tile .* 4 x 4 patches: use one of \[1, 2, 4\]"),
        ({"kind": "avg_pool", "factor": 8}, "factor=8 can't tile"),
    ],
)
def test_settings_that_cannot_be(projector: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_projector(projector, (4, 4), 0, WIDTH_IN, WIDTH_OUT)


@pytest.mark.parametrize("kind", ["pixel_shuffle", "avg_pool"])
def test_squares_need_a_grid_alone(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"projector.kind={kind} needs a grid of patches only: set vision.select"):
        build_projector({"kind": kind}, (4, 4), 1, WIDTH_IN, WIDTH_OUT)
