"""Attention in which the rows of one packed sequence don't see each other, without a mask of all their pairs.

The contract is that of transformers' own packing: batch size 1, no attention mask, and position ids that begin with 0
at each row. transformers' FlashAttention and FlexAttention know it as well; its sdpa and eager attention get a dense
mask, which is exact too, but costs the square of the whole sequence. `use_packed_attention` puts `packed_attention` in
the place of sdpa; `check_rows_apart` tries whether a model really keeps rows apart.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmreason.models.positions import row_positions_of
from mmreason.types import ConfigError

NAME = "mmreason_packed"
"""As transformers' `attn_implementation`."""

_LAYERS = {"full_attention", "sliding_attention"}
_bounds: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # position ids -> where rows begin: all layers ask for it


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of a packed sequence; for any other call that of transformers' sdpa.

    Args: query (1, heads, T, width); key, value (1, key heads, T, width). position_ids (1, T).
    Returns: (1, T, heads, width).
    """
    packed = attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2] > 1
    if not packed or position_ids is None or position_ids.shape[0] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    bounds = _row_bounds(position_ids)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _varlen(query, key, value, bounds, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    parts = []
    for start, end in pairwise(bounds):
        rows = slice(start, end)
        mask = _window(end - start, sliding_window, query.device)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, rows],
                key[:, :, rows],
                value[:, :, rows],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _row_bounds(position_ids: Tensor) -> list[int]:
    """[0, end of the first row, …, T]."""
    found = _bounds.get(position_ids)
    if found is None:
        starts = (position_ids[0] == 0).nonzero().flatten().tolist()
        found = [*({0} | set(starts)), position_ids.shape[1]]
        found.sort()
        _bounds[position_ids] = found
    return list(found)


def _window(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    if sliding_window is None or length <= sliding_window:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None]
    return (distance >= 0) & (distance < sliding_window)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: list[int], scaling: float | None, sliding_window: int | None
) -> Tensor:
    """torch's own FlashAttention over rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor(bounds, dtype=torch.int32, device=query.device)
    longest = max(end - start for start, end in pairwise(bounds))
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    groups = query.shape[1] != key.shape[1]
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=window, enable_gqa=groups)
    return out[None]


def _packed_mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **rest: Any
) -> Any:
    """No mask for what `packed_attention` takes apart by itself."""
    if attention_mask is None and batch_size == 1 and q_length == kv_length > 1:
        return None
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **rest
    )


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _packed_mask)


def use_packed_attention(model: Any) -> None:
    """Let a model read packed rows; its towers and everything that isn't packed stay as they are.

    Args: model: before it is wrapped by a trainer; a PEFT model, too.
    Raises: ConfigError naming the model where layers are no attention, where the tokens of a picture see each other, or
        where an adapter puts virtual tokens before a row.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    _refuse(model, base)
    decoder = base.get_decoder()
    if decoder.config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(NAME)


def _refuse(model: Any, base: Any) -> None:
    config = base.config.get_text_config()
    name = f"{type(base).__name__} ({config.model_type})"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others:
        raise ConfigError(
            f"{name} can't read packed rows: its layers of kind {', '.join(others)} would look across them; train it "
            "with packing: false and padding_free: false"
        )
    sees = hasattr(base.config, "vision_config")
    if sees and "token_type_ids" in inspect.signature(type(base).forward).parameters:
        raise ConfigError(
            f"{name} can't read packed rows: it builds masks of its own, in which a picture's tokens see each other; "
            "train it with packing: false and padding_free: false"
        )
    for adapter in getattr(model, "peft_config", {}).values():
        if getattr(adapter, "is_prompt_learning", False):
            raise ConfigError(
                f"{adapter.peft_type.value} puts virtual tokens before a row, which packed rows have no place for; use "
                "packing: false and padding_free: false, or another adapter"
            )


@torch.no_grad()
def check_rows_apart(model: Any, *, autocast: bool = False) -> None:
    """Try a model, as a trainer runs it, on three short rows: packed and one by one. Collective for sharded models.

    Args: autocast: the model's forward runs in half precision, whatever its weights and logits are.
    Raises: ConfigError naming the model where rows are not independent of each other.
    """
    inner = model
    while hasattr(inner, "module"):
        inner = inner.module
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    config = base.config.get_text_config()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    banned = {getattr(base.config, name, None) for name in ("image_token_id", "video_token_id", "image_token_index")}
    usable = torch.tensor([token for token in range(min(config.vocab_size, 256)) if token not in banned])
    rows = [usable[torch.randint(len(usable), (1, n), generator=generator)].to(device) for n in (5, 9, 7)]
    positions = torch.cat([torch.arange(row.shape[1], device=device) for row in rows])[None]
    if row_positions_of(base) is not None:  # text has the same place on each of three axes
        positions = positions.expand(4, 1, -1)
    training = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], dim=1).float()
        together = model(input_ids=torch.cat(rows, 1), position_ids=positions, use_cache=False).logits
    finally:
        model.train(training)
    scale = alone.std().clamp(min=1e-6)
    gap = float((together.float() - alone).abs().max() / scale)
    dtypes = {alone.dtype, next(model.parameters()).dtype}
    exact = dtypes == {torch.float32} and not autocast
    if not gap <= (2e-3 if exact else 0.2):
        raise ConfigError(
            f"{type(base).__name__} ({config.model_type}) doesn't keep packed rows apart (logits differ by {gap:.2g} "
            "standard deviations): train it with packing: false and padding_free: false"
        )
