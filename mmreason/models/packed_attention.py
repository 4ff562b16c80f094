"""Attention in which the rows of one packed sequence don't see each other, without a mask of all their pairs.

The contract is that of transformers' own packing: batch size 1, no attention mask, and position ids that begin with 0
at each row. transformers' FlashAttention and FlexAttention know it as well; its sdpa and eager attention get a dense
mask, which is exact too, but costs the square of the whole sequence. `use_packed_attention` puts `packed_attention` in
the place of sdpa; `check_rows_apart` tries whether a model really keeps rows apart. What is ours alone: a row may
branch, as completions of one prompt do (`mmreason.models.shared_attention`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmreason.models.positions import row_positions_of
from mmreason.models.shared_attention import rows_of, tree_attention
from mmreason.types import ConfigError

NAME = "mmreason_packed"
"""As transformers' `attn_implementation`."""

_LAYERS = {"full_attention", "sliding_attention"}


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
    """Causal attention within each row of a packed sequence, and along each path of a row that branches; for any other
    call that of transformers' sdpa.

    Args: query (1, heads, T, width); key, value (1, key heads, T, width). position_ids (1, T).
    Returns: (1, T, heads, width).
    """
    packed = attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2] > 1
    if not packed or position_ids is None or position_ids.shape[0] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    rows = rows_of(position_ids)
    if any(row.ends for row in rows):
        settings: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        return tree_attention(query, key, value, position_ids, **settings), None
    bounds = [0, *(row.end for row in rows)]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _varlen(query, key, value, bounds, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    parts = []
    for start, end in pairwise(bounds):
        own = slice(start, end)
        mask = _window(end - start, sliding_window, query.device)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, own],
                key[:, :, own],
                value[:, :, own],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


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
    why = packing_obstacle(model)
    if why is not None:
        kind = base.config.get_text_config().model_type
        raise ConfigError(
            f"{type(base).__name__} ({kind}) can't read packed rows: {why}; train it with packing: false and "
            "padding_free: false"
        )
    decoder = base.get_decoder()
    if decoder.config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(NAME)


def packing_obstacle(model: Any) -> str | None:
    """Why this model can't keep packed rows apart, as far as its configuration says it; None where nothing does.

    Args: model: not wrapped by a trainer; a PEFT model, too.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    others = sorted(set(getattr(base.config.get_text_config(), "layer_types", None) or ()) - _LAYERS)
    if others:
        return f"its layers of kind {', '.join(others)} would look across them"
    sees = hasattr(base.config, "vision_config")
    if sees and "token_type_ids" in inspect.signature(type(base).forward).parameters:
        return "it builds masks of its own, in which a picture's tokens see each other"
    for adapter in getattr(model, "peft_config", {}).values():
        if getattr(adapter, "is_prompt_learning", False):
            return f"{adapter.peft_type.value} puts virtual tokens before a row, which packed rows have no place for"
    return None


@torch.no_grad()
def check_rows_apart(model: Any, *, autocast: bool = False) -> None:
    """Try a model, as a trainer runs it, on three short rows: packed and one by one. Collective for sharded models.

    Args: autocast: the model's forward runs in half precision, whatever its weights and logits are.
    Raises: ConfigError naming the model where rows are not independent of each other.
    """
    base = base_model(model)
    device = next(model.parameters()).device
    rows = [torch.tensor([row], device=device) for row in probe_rows(base, (5, 9, 7))]
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
        kind = base.config.get_text_config().model_type
        raise ConfigError(
            f"{type(base).__name__} ({kind}) doesn't keep packed rows apart (logits differ by {gap:.2g} standard "
            "deviations): train it with packing: false and padding_free: false"
        )


def base_model(model: Any) -> Any:
    """The transformers model inside DDP, a DeepSpeed engine, a compiled module or a PEFT wrapper."""
    while (inner := getattr(model, "module", getattr(model, "_orig_mod", None))) is not None:
        model = inner
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe_rows(base: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Rows of random tokens for trying a model, the same each time, none of them an image's or a video's."""
    generator = torch.Generator().manual_seed(0)
    banned = {getattr(base.config, name, None) for name in ("image_token_id", "video_token_id", "image_token_index")}
    vocabulary = min(base.config.get_text_config().vocab_size, 256)
    usable = torch.tensor([token for token in range(vocabulary) if token not in banned])
    return [usable[torch.randint(len(usable), (n,), generator=generator)].tolist() for n in lengths]
