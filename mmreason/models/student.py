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

from mmreason.models.student_sizes import (
    FAMILIES,
    Sizes,
    decoder_config,
    is_composed,
    select_layers,
    sizes_of,
    student_config,
)
from mmreason.types import ConfigError

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
    if settings.get("kind", "mlp") != "linear" and settings.get("width") is None:
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
