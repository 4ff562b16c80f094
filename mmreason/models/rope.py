"""Longer contexts: rotary positions (RoPE, arXiv 2104.09864) scaled beyond the length that a model was trained for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

KINDS: dict[str, str] = {
    "linear": "positions divided by the factor (arXiv 2306.15595)",
    "dynamic": "the base grows with the sequence (NTK-aware); short ones stay as they were",
    "yarn": "high frequencies stay, low ones are interpolated, attention is sharpened (arXiv 2309.00071)",
}
"""Ways of scaling: names of transformers' rope types."""
_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_KEYS = ("rope_type", "factor", "original_max_position_embeddings", *_YARN)


def extend_context(model: Any, scaling: Mapping[str, Any]) -> tuple[int, int]:
    """Scale a model's rotary positions in place; its configuration says so and is saved with it.

    Args:
        model: any transformers decoder, or a model around one, before it is trained on.
        scaling: {rope_type: yarn, factor: 4.0}, see `KINDS`; for yarn also the settings that transformers has.
            original_max_position_embeddings: the length that is scaled; the model's own where it is left out.

    Returns: (length before, length now) in tokens.
    Raises: ConfigError: an unknown kind or key, a factor that is no number above 1, a model without rotary positions,
        one that is scaled already.
    """
    kind, factor = _checked(scaling)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    config = decoder.config
    name = f"{type(model).__name__} ({config.model_type})"
    rotary = [(path, module) for path, module in decoder.named_modules() if _is_rotary(module)]
    parameters = getattr(config, "rope_parameters", None)
    if not rotary or not isinstance(parameters, Mapping):
        raise ConfigError(f"rope_scaling: {name} has no rotary positions")
    parts = _by_layer_type(parameters)
    used = sorted({str(part["rope_type"]) for part in parts.values()} - {"default"})
    if used:
        raise ConfigError(f"rope_scaling: {name} is scaled already ({', '.join(used)}); start from its first version")
    before = int(scaling.get("original_max_position_embeddings") or config.max_position_embeddings)
    after = round(before * factor)
    for layer_type, part in parts.items():
        if layer_type != "sliding_attention":  # a window is never longer than it was
            part |= {"rope_type": kind, "factor": float(factor)}
        if layer_type != "sliding_attention" and kind == "yarn":
            part |= {"original_max_position_embeddings": before} | {k: scaling[k] for k in _YARN if k in scaling}
    config.rope_parameters = parts.get(None, parts)
    # transformers takes it for the length from which on dynamic scaling begins.
    config.max_position_embeddings = before if kind == "dynamic" else after
    for path, module in rotary:
        parent, _, leaf = path.rpartition(".")
        device = next(iter(module.buffers())).device
        with torch.device(device):
            setattr(decoder.get_submodule(parent) if parent else decoder, leaf, type(module)(config=config))
    return before, after


def _checked(scaling: Mapping[str, Any]) -> tuple[str, float]:
    for key in scaling:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise ConfigError(f"rope_scaling: unknown key {key!r}; known: {', '.join(_KEYS)}.{hint}")
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    if kind not in KINDS:
        known = "; ".join(f"{name}: {told}" for name, told in KINDS.items())
        raise ConfigError(f"rope_scaling: rope_type={kind!r}; known: {known}.{did_you_mean(str(kind), KINDS)}")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 1:
        raise ConfigError(f"rope_scaling: factor={factor!r} must be a number above 1")
    if kind != "yarn" and any(key in scaling for key in _YARN):
        raise ConfigError(f"rope_scaling: {', '.join(k for k in _YARN if k in scaling)} belong to rope_type yarn")
    return str(kind), float(factor)


def _by_layer_type(parameters: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Layer type → its parameters; None → those of all layers, where they are all alike."""
    if "rope_type" in parameters:
        return {None: dict(parameters)}
    return {layer_type: dict(part) for layer_type, part in parameters.items()}


def _is_rotary(module: Any) -> bool:
    """A module that holds the frequencies of a whole decoder and is made from its configuration."""
    held = any("inv_freq" in name for name, _ in module.named_buffers(recurse=False))
    return held and "config" in inspect.signature(type(module).__init__).parameters
