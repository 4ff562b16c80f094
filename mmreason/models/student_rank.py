"""Linear layers of low rank: each weight becomes the matrix of rank r whose outputs on calibration rows are nearest.

No standard architecture holds a product of two factors, so the product is written: the file stays as large as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmreason.models.student import language_model
from mmreason.models.student_importance import Batch
from mmreason.types import ConfigError, DataError

# Share of the mean output energy with which every input direction counts besides: those that no row has are then
# kept by their own singular values, not by chance.
_RIDGE = 1e-6


@dataclass(frozen=True)
class Truncated:
    """A linear layer that was cut.

    rank: of its weight now. energy: share of the sum of squares of its outputs on the calibration rows that stays.
    factored, whole: numbers that two factors would hold, and that the weight holds.
    """

    rank: int
    energy: float
    factored: int
    whole: int


def check_rank(rank: int | None, share: float | None) -> None:
    """Raises: ConfigError: a rank below 1, or a share that isn't between 0 and 1."""
    if rank is not None and rank < 1:
        raise ConfigError(f"rank={rank} must be at least 1; a share of each weight's rank is a rank_share")
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"rank_share={share} must be above 0 and below 1")


@torch.no_grad()
def truncate(
    model: Any, batches: Iterable[Batch], *, rank: int | None = None, share: float | None = None
) -> dict[str, Truncated]:
    """Cut the linear layers of a decoder's blocks to a rank, in place; embeddings and head stay.

    For a weight W and inputs X the rank-r matrix W' with the least |WX - W'X| is U_r U_rᵀ W, where the columns of U_r
    are the first r left singular vectors of WX (Eckart and Young; activation-aware as in SVD-LLM, arXiv 2403.07378).
    WXXᵀWᵀ is gathered in one pass, from the side of the layer that is narrower.

    Args:
        model: a decoder or composed model that `student_sizes.decoder_config` takes, in evaluation mode.
        rank: of each weight; or share: of min(out, in), the rank that a weight (out, in) can have.

    Returns: name of each layer that was cut, in the decoder → what became of it.
    Raises: ConfigError: as `check_rank`, or a rank that cuts no layer; DataError: no batch.
    """
    check_rank(rank, share)
    decoder = language_model(model).get_decoder()
    linear, ranks = {}, {}
    for name, module in decoder.layers.named_modules(prefix="layers"):
        if isinstance(module, nn.Linear):
            full = min(module.weight.shape)
            ranks[name] = max(1, round((share or 1.0) * full)) if rank is None else rank
            if ranks[name] < full:
                linear[name] = module
    if not linear:
        raise ConfigError(f"rank={rank}, rank_share={share} cuts nothing: every weight's rank is that low already")
    squares = _gather(model, linear, batches)
    return {name: _cut(module, ranks[name], squares.pop(name)) for name, module in linear.items()}


def _reads(module: nn.Linear) -> bool:
    """Is it the inputs that are gathered?"""
    return module.in_features <= module.out_features


def _gather(model: Any, linear: dict[str, nn.Linear], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """XXᵀ (in, in) or WXXᵀWᵀ (out, out) of each layer, float32, on its device; padding left out."""
    sums: dict[str, Tensor] = {}
    mask = torch.ones(0)

    def hook(name: str, module: nn.Linear) -> Callable[..., None]:
        def add(_: Any, args: Any, output: Tensor) -> None:
            values = args[0] if _reads(module) else output if module.bias is None else output - module.bias
            rows = values.float().flatten(0, -2)[mask.flatten().to(values.device)]
            sums[name] = sums[name] + rows.T @ rows if name in sums else rows.T @ rows

        return add

    handles = [module.register_forward_hook(hook(name, module)) for name, module in linear.items()]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise DataError("there are no calibration rows", reason="empty")
    return sums


def _cut(module: nn.Linear, rank: int, squares: Tensor) -> Truncated:
    weight, squares = module.weight.double(), squares.double()
    energy = (weight @ squares @ weight.T).trace() if _reads(module) else squares.trace()
    ridge = _RIDGE * energy / weight.square().sum()
    if _reads(module):
        values, vectors = torch.linalg.eigh(squares)
        root = weight @ (vectors * (values.clamp_min(0) + ridge).sqrt())  # its left singular vectors are those of WX
        left, singular, _ = torch.linalg.svd(root, full_matrices=False)
        spectrum = singular.square()
    else:
        values, vectors = torch.linalg.eigh(squares + ridge * weight @ weight.T)
        left, spectrum = vectors.flip(1), values.flip(0).clamp_min(0)
    basis = left[:, :rank]
    module.weight.copy_(basis @ (basis.T @ weight))
    return Truncated(
        rank,
        float(spectrum[:rank].sum() / spectrum.sum()),
        rank * (module.in_features + module.out_features),
        weight.numel(),
    )
