"""Of which teachers students can be made, and the sizes and layers that a student may have."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError


@dataclass(frozen=True)
class Family:
    """What sets an architecture apart here.

    norm_offset: an RMS norm multiplies by its weight plus this. scales_embeddings: token embeddings are multiplied by
    sqrt(hidden_size). divides: hidden_size must be a multiple of the number of heads.
    """

    norm_offset: float = 0.0
    scales_embeddings: bool = False
    divides: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(divides=True),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(norm_offset=1.0, scales_embeddings=True),
}
"""`model_type` of a decoder → what is special about it. Their modules have the same names and order."""

LAYER_SELECTIONS = ("uniform", "first", "last", "importance")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a student shall have; None: as the teacher.

    layers: how many, or which of the teacher's (from 0, ascending). heads: query heads, kv_heads: key-value heads.
    """

    layers: int | list[int] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A decoder's sizes."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int


def is_composed(config: Any) -> bool:
    """Is it the configuration of one of our composed models?"""
    return bool(config.model_type == "mmreason")


def decoder_config(config: Any) -> Any:
    """The decoder's configuration: of a composed model a part, else the whole.

    Raises: ConfigError: an architecture of which no student can be made, or quantised weights.
    """
    text = config.text_config if is_composed(config) else config
    if text.model_type not in FAMILIES:
        raise ConfigError(
            f"the teacher is a {text.model_type} model; students are made of {', '.join(FAMILIES)} decoders, alone or "
            "in a model of `mmreason compose`"
        )
    if getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise ConfigError("the teacher's weights are quantised; name the checkpoint that they were made of")
    return text


def sizes_of(text: Any) -> Sizes:
    """Args: text: a decoder's configuration."""
    heads = int(text.num_attention_heads)
    return Sizes(
        layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        intermediate_size=int(text.intermediate_size),
        heads=heads,
        kv_heads=int(text.num_key_value_heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
    )


def student_sizes(text: Any, wanted: Wanted) -> Sizes:
    """The student's sizes. A head stays as wide as the teacher's.

    Without `kv_heads` the key-value heads stay, but a teacher with one for each query head gets a student with one
    for each. Without `heads` each kept key-value head keeps all its query heads.

    Args: text: the teacher's decoder's configuration.
    Raises: ConfigError: a size below 1 or above the teacher's, layers that aren't there, heads that can't be shared
        out to the key-value heads.
    """
    teacher = sizes_of(text)
    layers = _layer_count(wanted.layers, teacher.layers)
    for name in ("hidden_size", "intermediate_size", "heads", "kv_heads"):
        _check_size(name, getattr(wanted, name), getattr(teacher, name))
    group = teacher.heads // teacher.kv_heads
    follows = wanted.heads if group == 1 and wanted.heads is not None else teacher.kv_heads
    kv_heads = wanted.kv_heads or follows
    heads = wanted.heads or kv_heads * group
    if heads % kv_heads:
        raise ConfigError(
            f"heads={heads} is no multiple of the {kv_heads} key-value heads; take one, or another kv_heads"
        )
    if heads // kv_heads > group:
        raise ConfigError(
            f"heads={heads} with kv_heads={kv_heads} would be {heads // kv_heads} query heads for each key-value head; "
            f"the teacher has {group}, so take at most heads={kv_heads * group}"
        )
    hidden = wanted.hidden_size or teacher.hidden_size
    if FAMILIES[text.model_type].divides and hidden % heads:
        raise ConfigError(f"hidden_size={hidden} must be a multiple of heads={heads} in a {text.model_type} model")
    return Sizes(
        layers=layers,
        hidden_size=hidden,
        intermediate_size=wanted.intermediate_size or teacher.intermediate_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=teacher.head_dim,
    )


def _check_size(name: str, value: int | None, limit: int) -> None:
    if value is not None and not 1 <= value <= limit:
        raise ConfigError(f"{name}={value} must be from 1 to the teacher's {limit}")


def _layer_count(layers: int | list[int] | None, limit: int) -> int:
    if not isinstance(layers, list):
        _check_size("layers", layers, limit)
        return layers or limit
    if not layers:
        raise ConfigError("layers=[] names no layer")
    for place in layers:
        if not 0 <= place < limit:
            raise ConfigError(f"layers={layers}: the teacher's layers are 0 to {limit - 1}, there is no {place}")
    if layers != sorted(set(layers)):
        raise ConfigError(f"layers={layers} must ascend: a student's layers stand in the teacher's order")
    return len(layers)


def select_layers(count: int, limit: int, selection: str, influence: Tensor | None = None) -> tuple[int, ...]:
    """Which `count` of a teacher's `limit` layers stay.

    Args:
        selection: "uniform": evenly spread, the first and the last among them, as DistilBERT's six of twelve were
            (arXiv 1910.01108); "first", "last": those; "importance": those of the greatest block influence (ShortGPT,
            arXiv 2403.03853).
        influence: (limit,) float, for "importance".

    Raises: ConfigError: an unknown selection.
    """
    if selection not in LAYER_SELECTIONS:
        hint = did_you_mean(selection, LAYER_SELECTIONS)
        raise ConfigError(f"layer_selection={selection!r}; known: {', '.join(LAYER_SELECTIONS)}.{hint}")
    if selection == "first":
        return tuple(range(count))
    if selection == "last":
        return tuple(range(limit - count, limit))
    if selection == "importance":
        assert influence is not None
        return tuple(largest(influence, count).tolist())
    return tuple(round(place * (limit - 1) / max(count - 1, 1)) for place in range(count))


def largest(scores: Tensor, count: int) -> Tensor:
    """Places of the `count` greatest scores, ascending; of equal ones the first. (count,) int64, on the CPU."""
    return scores.cpu().argsort(descending=True, stable=True)[:count].sort().values


def student_config(text: Any, sizes: Sizes, layers: Sequence[int]) -> Any:
    """The configuration of a decoder with these sizes.

    Args: layers: the teacher's layers whose kind (full or sliding attention) its layers have.
    """
    config = copy.deepcopy(text)
    config.hidden_size, config.intermediate_size = sizes.hidden_size, sizes.intermediate_size
    config.num_attention_heads, config.num_key_value_heads = sizes.heads, sizes.kv_heads
    config.head_dim = sizes.head_dim  # it no longer follows from the others
    config.num_hidden_layers = len(layers)
    if getattr(text, "layer_types", None):
        config.layer_types = [text.layer_types[place] for place in layers]
    if getattr(text, "max_window_layers", None) is not None:
        config.max_window_layers = sum(place < text.max_window_layers for place in layers)
    return config


def count_parameters(config: Any) -> int:
    """Parameters of a decoder of this configuration, which takes no memory for them. Tied ones count once.

    Raises: ConfigError: the architecture doesn't take these sizes.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"a {config.model_type} model can't have these sizes: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters())


def serving_note(text: Any) -> str | None:
    """Why vLLM couldn't serve a decoder of this configuration, as far as it is known; None: nothing is against it."""
    sizes = sizes_of(text)
    if text.model_type != "qwen2" or sizes.heads * sizes.head_dim == sizes.hidden_size:
        return None
    return (
        f"vLLM's Qwen2 takes a head to be hidden_size / heads wide, and here {sizes.heads} heads of {sizes.head_dim} "
        f"are {sizes.heads * sizes.head_dim}, not {sizes.hidden_size}: transformers runs this student, vLLM doesn't"
    )
