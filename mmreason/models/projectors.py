"""From a vision tower's patches to embeddings that a decoder reads. `PROJECTORS` names every kind.

A projector is built from its settings, the tower's grid (rows, columns) and width, and the decoder's width. Its token
count is known before it is built (`token_count`), so that prompts can be laid out without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class MLPSettings:
    """layers: linear layers, GELU between them. width: of hidden ones; None: the decoder's. bias: of every layer."""

    layers: int = 2
    width: int | None = None
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class PooledSettings(MLPSettings):
    """factor: side of the square of patches that becomes one token; it must divide both sides of the grid."""

    factor: int = 2


@dataclass(frozen=True, kw_only=True)
class QuerySettings:
    """queries: tokens per view. layers, heads: of the attention blocks. width: theirs; None: the decoder's."""

    queries: int = 64
    layers: int = 2
    heads: int = 8
    width: int | None = None


class Projector(Protocol):
    """(views, rows · columns, tower width) → (views, tokens, decoder width)."""

    def __call__(self, features: Tensor) -> Tensor: ...


def mlp(width_in: int, width_out: int, settings: MLPSettings) -> nn.Sequential:
    """Linear layers with GELU between them: LLaVA-1.5's connector (arXiv 2310.03744) where layers is 2."""
    widths = [width_in, *[settings.width or width_out] * (settings.layers - 1), width_out]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after, bias=settings.bias), nn.GELU()]
    return nn.Sequential(*parts[:-1])


class MLPProjector(nn.Module):
    """Every patch by itself through an MLP; one layer is LLaVA's linear projection (arXiv 2304.08485)."""

    def __init__(self, settings: MLPSettings, grid: Grid, width_in: int, width_out: int):
        super().__init__()
        self.layers = mlp(width_in, width_out, settings)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.layers(features))


class PixelShuffleProjector(nn.Module):
    """factor × factor neighbouring patches as one token, layer norm, MLP (InternVL 1.5, arXiv 2404.16821)."""

    def __init__(self, settings: PooledSettings, grid: Grid, width_in: int, width_out: int):
        super().__init__()
        self.grid, self.factor = grid, settings.factor
        self.norm = nn.LayerNorm(width_in * settings.factor**2)
        self.layers = mlp(width_in * settings.factor**2, width_out, settings)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.layers(self.norm(fold_patches(features, self.grid, self.factor).flatten(2))))


class AveragePoolProjector(nn.Module):
    """The mean of factor × factor neighbouring patches, then an MLP (C-Abstractor's baseline, arXiv 2312.06742)."""

    def __init__(self, settings: PooledSettings, grid: Grid, width_in: int, width_out: int):
        super().__init__()
        self.grid, self.factor = grid, settings.factor
        self.layers = mlp(width_in, width_out, settings)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.layers(fold_patches(features, self.grid, self.factor).mean(2)))


def fold_patches(features: Tensor, grid: Grid, factor: int) -> Tensor:
    """(views, rows · columns, D) → (views, tokens, factor², D): the patches of each square, row by row."""
    views, _, width = features.shape
    rows, columns = grid[0] // factor, grid[1] // factor
    squares = features.view(views, rows, factor, columns, factor, width).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(views, rows * columns, factor * factor, width)


class Attention(nn.Module):
    """Multi-head attention from one sequence to another, without a mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(context)), split(self.value(context))
        return cast(Tensor, self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class FeedForward(nn.Sequential):
    """Layer norm and a two-layer MLP, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class PerceiverBlock(nn.Module):
    """Queries look at patches and themselves in one attention, then an MLP (Flamingo, arXiv 2204.14198, figure 5)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_queries, self.norm_patches = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        normed = self.norm_queries(queries)
        queries = queries + self.attention(normed, torch.cat([self.norm_patches(patches), normed], dim=1))
        return cast(Tensor, queries + self.feed_forward(queries))


class QFormerBlock(nn.Module):
    """Queries look at themselves, then at patches, then an MLP (BLIP-2's Q-Former, arXiv 2301.12597, without text)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_self, self.norm_cross = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention, self.cross_attention = Attention(width, heads), Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        normed = self.norm_self(queries)
        queries = queries + self.self_attention(normed, normed)
        queries = queries + self.cross_attention(self.norm_cross(queries), patches)
        return cast(Tensor, queries + self.feed_forward(queries))


class QueryProjector(nn.Module):
    """A fixed number of learned queries that gather what they need from the patches, through blocks of one kind."""

    block: Callable[[int, int], nn.Module]

    def __init__(self, settings: QuerySettings, grid: Grid, width_in: int, width_out: int):
        super().__init__()
        width = settings.width or width_out
        self.queries = nn.Parameter(torch.empty(settings.queries, width))
        self.patches = nn.Linear(width_in, width)
        self.blocks = nn.ModuleList(type(self).block(width, settings.heads) for _ in range(settings.layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width_out)

    def forward(self, features: Tensor) -> Tensor:
        patches = self.patches(features)
        queries = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, patches)
        return cast(Tensor, self.out(self.norm(queries)))


class PerceiverProjector(QueryProjector):
    """Flamingo's resampler (arXiv 2204.14198)."""

    block = PerceiverBlock


class QFormerProjector(QueryProjector):
    """BLIP-2's queries (arXiv 2301.12597)."""

    block = QFormerBlock


def _every_patch(settings: Any, grid: Grid, prefix: int) -> int:
    return prefix + grid[0] * grid[1]


def _per_square(settings: PooledSettings, grid: Grid, prefix: int) -> int:
    return (grid[0] // settings.factor) * (grid[1] // settings.factor)


def _per_query(settings: QuerySettings, grid: Grid, prefix: int) -> int:
    return settings.queries


@dataclass(frozen=True)
class Kind:
    """One kind of projector: what it is set by, what it is built with, tokens per view (of settings, grid, prefix)."""

    settings: type
    module: Callable[..., nn.Module]
    count: Callable[[Any, Grid, int], int]
    fixed: Mapping[str, Any] | None = None


PROJECTORS: dict[str, Kind] = {
    "linear": Kind(MLPSettings, MLPProjector, _every_patch, {"layers": 1}),
    "mlp": Kind(MLPSettings, MLPProjector, _every_patch),
    "pixel_shuffle": Kind(PooledSettings, PixelShuffleProjector, _per_square),
    "avg_pool": Kind(PooledSettings, AveragePoolProjector, _per_square),
    "perceiver": Kind(QuerySettings, PerceiverProjector, _per_query),
    "qformer": Kind(QuerySettings, QFormerProjector, _per_query),
}
"""Name → kind. All but linear take further settings beside `kind`, see their settings class."""


def read_settings(projector: Mapping[str, Any], grid: Grid, prefix: int = 0) -> tuple[Kind, Any]:
    """(kind, its settings) of `{"kind": "mlp", "layers": 2}`.

    Raises:
        ConfigError: an unknown kind or setting, a value that can't be, a grid that the squares don't tile, tokens
            beside the grid (`prefix`, from vision.select: all) where there are squares.
    """
    name = projector.get("kind", "mlp")
    if name not in PROJECTORS:
        hint = did_you_mean(str(name), PROJECTORS)
        raise ConfigError(f"projector.kind={name!r}; known: {', '.join(PROJECTORS)}.{hint}")
    kind = PROJECTORS[name]
    given = {key: value for key, value in projector.items() if key != "kind"}
    known = [f.name for f in fields(kind.settings) if f.name not in (kind.fixed or {})]
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"projector.{key}: {name} has no such setting; it has {', '.join(known)}.{did_you_mean(key, known)}"
            )
        if key == "width" and value is None:
            continue
        if type(value) is not (bool if key == "bias" else int) or (value < 1 and key != "bias"):
            raise ConfigError(f"projector.{key}={value!r} must be {'true or false' if key == 'bias' else 'at least 1'}")
    settings = kind.settings(**(given | dict(kind.fixed or {})))
    if isinstance(settings, PooledSettings):
        _check_squares(name, settings.factor, grid, prefix)
    return kind, settings


def _check_squares(name: str, factor: int, grid: Grid, prefix: int) -> None:
    if prefix:
        raise ConfigError(f"projector.kind={name} needs a grid of patches only: set vision.select: patch")
    if grid[0] % factor or grid[1] % factor:
        fitting = [f for f in range(1, min(grid) + 1) if grid[0] % f == 0 and grid[1] % f == 0]
        raise ConfigError(
            f"projector.factor={factor} can't tile the tower's grid of {grid[0]} x {grid[1]} patches: use one of "
            f"{fitting}, or another vision.image_size"
        )


def token_count(projector: Mapping[str, Any], grid: Grid, prefix: int = 0) -> int:
    """Tokens that one view takes in the decoder's sequence. Raises as `read_settings`."""
    kind, settings = read_settings(projector, grid, prefix)
    return kind.count(settings, grid, prefix)


def build_projector(projector: Mapping[str, Any], grid: Grid, prefix: int, width_in: int, width_out: int) -> nn.Module:
    """The projector as torch initialises it. Raises as `read_settings`, or for heads that don't divide the width."""
    kind, settings = read_settings(projector, grid, prefix)
    if isinstance(settings, QuerySettings) and (settings.width or width_out) % settings.heads:
        raise ConfigError(f"projector.heads={settings.heads} doesn't divide its width {settings.width or width_out}")
    return kind.module(settings, grid, width_in, width_out)
