"""A smaller student out of a teacher: fewer layers, narrower ones, or the same architecture from scratch.

A student is an ordinary checkpoint of the teacher's own architecture. Which parts of the teacher stay is a `Kept`;
`mmreason.models.student_importance` chooses it by what the teacher does on calibration rows, `prune` cuts it out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

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

# Rows, then columns, of each weight; a bias and a norm have rows only. `None` is an axis that never gets narrower.
_AXES: dict[str, tuple[str | None, ...]] = {
    "input_layernorm": ("channels",),
    "post_attention_layernorm": ("channels",),
    "self_attn.q_proj": ("heads", "channels"),
    "self_attn.k_proj": ("kv_heads", "channels"),
    "self_attn.v_proj": ("kv_heads", "channels"),
    "self_attn.o_proj": ("channels", "heads"),
    "self_attn.q_norm": (None,),
    "self_attn.k_norm": (None,),
    "mlp.gate_proj": ("neurons", "channels"),
    "mlp.up_proj": ("neurons", "channels"),
    "mlp.down_proj": ("channels", "neurons"),
}
_OUTSIDE: dict[str, tuple[str | None, ...]] = {
    "model.embed_tokens": (None, "channels"),
    "model.norm": ("channels",),
    "lm_head": (None, "channels"),
}
_IN_A_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


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


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which parts of a teacher stay, each by its place in the teacher, from 0, ascending.

    Attributes:
        layers: of the decoder.
        channels: (hidden size,) int64, of the residual stream, the same in all layers; None: all.
        neurons: of each kept layer, (intermediate size,) int64; None: all.
        heads: of each kept layer, (query heads,) int64: as many of each kept key-value head; None: all.
        kv_heads: of each kept layer, (key-value heads,) int64; None exactly where `heads` is.
    """

    layers: tuple[int, ...]
    channels: Tensor | None = None
    neurons: Sequence[Tensor] | None = None
    heads: Sequence[Tensor] | None = None
    kv_heads: Sequence[Tensor] | None = None


# --------------------------------------------------------------------------------------------------------------------
# Sizes


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


# --------------------------------------------------------------------------------------------------------------------
# Models


def language_model(model: Any) -> Any:
    """The causal language model of a decoder or of a composed model."""
    return model.language_model if is_composed(model.config) else model


@torch.no_grad()
def prune(model: Any, kept: Kept) -> PreTrainedModel:
    """The student that consists of a teacher's kept parts. The teacher stays as it is.

    The student computes what its teacher would with all other parts set to zero. An RMS norm divides by the root of the
    mean over all channels, so of d channels d' stay, each norm's factors are multiplied by sqrt(d / d'), and only the
    norm's epsilon weighs otherwise. A tied head stays tied.

    Args:
        model: a decoder of FAMILIES, or a composed model of one, whose tower stays as it is, and whose projector's
            output gets as narrow as the decoder.

    Returns: a model of the same class and dtype, on the CPU, in evaluation mode.
    """
    teacher = language_model(model)
    text, sizes = decoder_config(model.config), sizes_of(decoder_config(model.config))
    cut = {
        "hidden_size": kept.channels,
        "intermediate_size": None if kept.neurons is None else kept.neurons[0],
        "heads": None if kept.heads is None else kept.heads[0],
        "kv_heads": None if kept.kv_heads is None else kept.kv_heads[0],
    }
    new = {name: len(places) for name, places in cut.items() if places is not None}
    config = student_config(text, Sizes(**vars(sizes) | new | {"layers": len(kept.layers)}), kept.layers)
    state = _pruned_state(teacher, kept, sizes)
    student = AutoModelForCausalLM.from_config(config, dtype=teacher.dtype)
    student.load_state_dict(state)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return _around(model, student.eval(), kept.channels)


def _pruned_state(teacher: Any, kept: Kept, sizes: Sizes) -> dict[str, Tensor]:
    """The student's weights under the student's names."""
    places = {layer: place for place, layer in enumerate(kept.layers)}
    state: dict[str, Tensor] = {}
    for name, tensor in teacher.state_dict().items():
        module, _, kind = name.rpartition(".")
        match = _IN_A_LAYER.fullmatch(module)
        layer = None if match is None else int(match[1])
        if layer is not None and layer not in places:
            continue
        axes = _OUTSIDE.get(module) if match is None else _AXES.get(match[2])
        if axes is None or kind not in ("weight", "bias"):
            raise ConfigError(f"the teacher has a weight {name}, which is none of a plain {teacher.config.model_type}")
        place = 0 if layer is None else places[layer]
        new = tensor.cpu()
        for dim in range(new.ndim):
            index = _index(axes[dim], kept, place, sizes)
            if index is not None:
                new = new.index_select(dim, index)
        state[name if layer is None else name.replace(f"layers.{layer}.", f"layers.{place}.", 1)] = new.clone()
    if kept.channels is not None:
        _keep_scale(state, teacher, (sizes.hidden_size / len(kept.channels)) ** 0.5)
    return state


def _keep_scale(state: dict[str, Tensor], teacher: Any, scale: float) -> None:
    """Let what the kept channels carry leave norms and embeddings as large as in the teacher.

    Args: scale: sqrt(d / d'), see `prune`.
    """
    family = FAMILIES[teacher.config.model_type]
    tied = teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight
    for name, weight in state.items():
        factor = scale
        if name == "model.norm.weight" and family.scales_embeddings and tied:
            factor = 1.0  # the head is the embedding, which is made larger below
        if name.endswith("norm.weight") and not name.endswith(("q_norm.weight", "k_norm.weight")):
            state[name] = ((weight.double() + family.norm_offset) * factor - family.norm_offset).to(weight.dtype)
    if family.scales_embeddings:  # by the root of a smaller size now
        weight = state["model.embed_tokens.weight"]
        state["model.embed_tokens.weight"] = (weight.double() * scale).to(weight.dtype)
        if tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]


def _index(axis: str | None, kept: Kept, place: int, sizes: Sizes) -> Tensor | None:
    """Which rows or columns along an axis stay in the layer at `place`; None: all."""
    if axis == "channels":
        return kept.channels
    if axis == "neurons":
        return None if kept.neurons is None else kept.neurons[place]
    chosen = {"heads": kept.heads, "kv_heads": kept.kv_heads}.get(axis or "")
    if chosen is None:
        return None
    return (chosen[place][:, None] * sizes.head_dim + torch.arange(sizes.head_dim)).flatten()


def from_scratch(config: Any, sizes: Sizes, *, seed: int, dtype: Any, teacher: Any = None) -> PreTrainedModel:
    """A model of the teacher's architecture with other sizes and random weights, as transformers draws them.

    Args:
        config: the teacher's. seed: of the weights; generators are left as they were.
        teacher: of a composed model the teacher itself, whose tower stays; its projector is random too, as there is
            nothing that it could project into.
    """
    text = decoder_config(config)
    layers = select_layers(sizes.layers, int(text.num_hidden_layers), "uniform")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForCausalLM.from_config(student_config(text, sizes, layers), dtype=dtype).eval()
        return student if teacher is None else _around(teacher, student, None, projector=False)


def _around(model: Any, student: Any, channels: Tensor | None, projector: bool = True) -> PreTrainedModel:
    """A composed teacher's tower and projector around a new decoder; the decoder itself for a teacher without."""
    if not is_composed(model.config):
        return cast(PreTrainedModel, student)
    from mmreason.models.compose import assemble
    from mmreason.models.vision_parts import Tower

    config = copy.deepcopy(model.config)
    config.text_config = cast(PreTrainedConfig, student.config)
    settings = dict(config.projector or {"kind": "mlp"})
    if settings["kind"] != "linear" and settings.get("width") is None:
        # Its hidden layers were as wide as the teacher's decoder, and stay so.
        settings["width"] = decoder_config(model.config).hidden_size
    config.projector = settings
    made = assemble(config, [Tower({}, tower) for tower in model.vision_tower.towers], student)
    made.generation_config = copy.deepcopy(model.generation_config)
    if projector:
        last = _last_layer(model.projector)
        state = {name: tensor.cpu() for name, tensor in model.projector.state_dict().items()}
        if channels is not None:
            state |= {name: t.index_select(0, channels) for name, t in state.items() if name.startswith(f"{last}.")}
        made.projector.load_state_dict(state)
    return cast(PreTrainedModel, made)


def _last_layer(projector: Any) -> str:
    """Name of the linear layer that writes to the decoder."""
    *_, name = [name for name, module in projector.named_modules() if isinstance(module, torch.nn.Linear)]
    return name
