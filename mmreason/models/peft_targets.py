"""Which modules of a model an adapter goes on: names and patterns, by part, with the nearest match for wrong ones."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, constants
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmreason._adapters import ALL_LINEAR, ALL_PARTS, KINDS, PARTS, AdapterSettings
from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

# Parts of a module's name by which transformers' vision-language models call what lies before their decoder. Qwen-VL's
# projector (merger) lies inside its tower (visual), so projectors are looked for first.
_PROJECTORS = {
    "projector", "multi_modal_projector", "mm_projector", "connector", "merger", "deepstack_merger_list", "aligner",
    "qformer", "embed_vision", "modality_projection",
}  # fmt: skip
_TOWERS = {"vision_tower", "vision_model", "visual", "vision_encoder", "vision_embed_tokens"}

_LINEAR: tuple[type, ...] = (nn.Linear, Conv1D)
_TYPES: dict[str, tuple[type, ...]] = {
    "LORA": (*_LINEAR, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention),
    "ADALORA": (*_LINEAR, nn.Conv2d),
    "IA3": (*_LINEAR, nn.Conv2d, nn.Conv3d),
    "OFT": (*_LINEAR, nn.Conv2d),
}
"""PEFT's type → modules that it adapts; linear layers where nothing is said."""

_OUTPUTS = (
    "o_proj", "out_proj", "proj", "projection_layer", "c_proj", "dense", "wo", "down_proj", "fc2", "linear_fc2", "w2",
    "dense_4h_to_h", "fc_out",
)  # fmt: skip
"""Last layers of attention and feed-forward parts, by name: what they give goes to the residual stream."""
_FEED_FORWARD = ("down_proj", "fc2", "linear_fc2", "w2", "dense_4h_to_h", "fc_out", "wo", "mlp.c_proj")
"""Last layers of feed-forward parts: IA3 scales what goes into them (arXiv 2205.05638, section 3.3)."""


def resolve_targets(model: nn.Module, settings: AdapterSettings) -> list[str]:
    """The modules that an adapter goes on, under names of which PEFT takes those modules and no others.

    Args:
        model: any transformers model, with adapters or without.

    Raises:
        ConfigError: a name that fits no module of the chosen parts (with the nearest that does), a module that the
            kind can't adapt or on which an adapter would never learn, or a part that the model hasn't.
    """
    modules = adaptable(model)
    parts = parts_of(model, modules)
    there = [known for known in PARTS if known in parts.values()]
    chosen = there if settings.modules == (ALL_PARTS,) else list(settings.modules)
    for part in chosen:
        if part not in there:
            raise ConfigError(f"adapter.modules: {type(model).__name__} has no {part}, only {' and '.join(there)}")
    inside = {name: module for name, module in modules.items() if parts[name] in chosen}
    types = _TYPES.get(KINDS[settings.kind].peft_type, _LINEAR)
    given = settings.target_modules
    if given is None:
        wanted = _by_default(model, settings, inside, parts)
    elif given == (ALL_LINEAR,):
        wanted = _all_linear(model, inside)
    else:
        wanted = set()
        for pattern in given:
            found = fitting(pattern, inside)
            if not found:
                raise ConfigError(_nowhere("target_modules", pattern, model, modules, chosen))
            wanted |= set(found)
    for pattern in settings.exclude_modules:
        excluded = fitting(pattern, modules)
        if not excluded:
            raise ConfigError(_nowhere("exclude_modules", pattern, model, modules, chosen))
        wanted -= set(excluded)
    if not wanted:
        raise ConfigError(f"adapter.exclude_modules={list(settings.exclude_modules)} leaves no module to adapt")
    for name in sorted(wanted):
        _check_module(model, name, modules[name], types, settings.kind)
    # In the shortest form that means the same: as given, by last names, in full.
    leaves = sorted({name.rpartition(".")[2] for name in wanted})
    for names in (list(given or ()), leaves):
        if wanted == {name for pattern in names for name in modules if _is_suffix(pattern, name)}:
            return names
    return sorted(wanted)


def feed_forward(targets: Sequence[str]) -> list[str]:
    """Those of an IA3 adapter's targets whose input it scales, instead of their output."""
    return [name for name in targets if any(_is_suffix(known, name) for known in _FEED_FORWARD)]


def check_saved_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse modules_to_save that fit nothing, which PEFT passes over. Raises ConfigError with the nearest match."""
    modules = [name for name, _ in model.named_modules() if name]
    for name in names:
        if not any(_is_suffix(name, module) for module in modules):
            raise ConfigError(_nowhere("modules_to_save", name, model, modules, PARTS))


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name as the bare model has them: what adapters have wrapped counts as what it wraps."""
    found: dict[str, nn.Module] = {}
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (wrapped and name.startswith(wrapped)):
            continue
        if isinstance(module, BaseTunerLayer):
            found[name] = module.get_base_layer()
            wrapped = (*wrapped, f"{name}.")
        elif isinstance(module, ModulesToSaveWrapper):
            found[name] = module.original_module
            wrapped = (*wrapped, f"{name}.")
        else:
            found[name] = module
    return found


def parts_of(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Each module's part, of PARTS; "" for one of no known part (an audio tower)."""
    if not hasattr(model.config, "vision_config"):
        return dict.fromkeys(names, "decoder")
    inner = [model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings()]
    places = tuple(where for where, module in model.named_modules() if any(module is part for part in inner))

    def part(name: str) -> str:
        steps = set(name.split("."))
        if steps & _PROJECTORS:
            return "projector"
        if steps & _TOWERS:
            return "vision_tower"
        return "decoder" if any(name == place or name.startswith(f"{place}.") for place in places) else ""

    return {name: part(name) for name in names}


def fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """Modules that a name or pattern means: a full name, its last parts, or either with `*` and `?`."""
    if any(sign in pattern for sign in "*?["):
        fits = re.compile(r"(?:.*\.)?" + fnmatch.translate(pattern))
        return [name for name in names if fits.match(name)]
    return [name for name in names if _is_suffix(pattern, name)]


def _is_suffix(pattern: str, name: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}")


def dead_reason(model: nn.Module, name: str) -> str | None:
    """Why an adapter on this linear layer would never run, though it is a module like any other; None: it would."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention takes its weight and never calls it"
    if name.endswith("qkv") and getattr(parent, "q_bias", None) is not None:
        return f"{type(parent).__name__} takes its weight and never calls it"  # timm's BEiT, EVA, Swin v2
    return None


def _all_linear(model: Any, inside: dict[str, nn.Module]) -> set[str]:
    """Every linear layer but the output head and those on which an adapter would be dead."""
    head = model.get_output_embeddings()
    head = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    return {
        name
        for name, module in inside.items()
        if isinstance(module, _LINEAR) and module is not head and dead_reason(model, name) is None
    }


def _by_default(model: Any, settings: AdapterSettings, inside: dict[str, nn.Module], parts: dict[str, str]) -> set[str]:
    """PEFT's choice for the decoder's architecture, all linear layers where it has none; outputs for bottlenecks."""
    linear = _all_linear(model, inside)
    if settings.kind == "bottleneck":
        found = {name for name in linear if any(_is_suffix(known, name) for known in _OUTPUTS)}
        projectors = [name for name in inside if name in linear and parts[name] == "projector"]
        found = (found - set(projectors)) | set(projectors[-1:])  # its last layer, whatever it is called
        if not found:
            raise ConfigError(
                f"adapter.target_modules: no output projection of {type(model).__name__} has a known name; name the "
                "layers that write to the residual stream"
            )
        return found
    known = (
        constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if settings.kind == "ia3"
        else constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    )
    # `qwen2_5_vl_text` is a Qwen2 decoder under another name; one that isn't known takes all linear layers.
    names = known.get(model.config.get_text_config().model_type)
    if not isinstance(names, list):
        return linear
    chosen = {name for name in linear if parts[name] == "decoder" and any(_is_suffix(n, name) for n in names)}
    return chosen | {name for name in linear if parts[name] != "decoder"} if chosen else linear


def _check_module(model: nn.Module, name: str, module: nn.Module, types: tuple[type, ...], kind: str) -> None:
    if not isinstance(module, types):
        raise ConfigError(
            f"adapter.target_modules: {name} is a {type(module).__name__}; kind {kind!r} goes on "
            f"{', '.join(sorted(known.__name__ for known in types))}"
        )
    reason = dead_reason(model, name) if isinstance(module, _LINEAR) else None
    if reason is not None:
        raise ConfigError(
            f"adapter.target_modules: an adapter on {name} would never learn: {reason}. Leave it out "
            f"(exclude_modules: [{name.rpartition('.')[2]}]), or adapt other layers of this tower"
        )


def _nowhere(key: str, pattern: str, model: nn.Module, modules: Iterable[str], parts: Sequence[str]) -> str:
    elsewhere = fitting(pattern, modules)
    if elsewhere:
        return (
            f"adapter.{key}: {pattern!r} is in the {parts_of(model, elsewhere)[elsewhere[0]] or 'rest of the model'} "
            f"({elsewhere[0]}), and adapter.modules is {list(parts)}"
        )
    known = {name.rsplit(".", 1)[-1] for name in modules} if "." not in pattern else set(modules)
    return f"adapter.{key}: {pattern!r} fits no module of {type(model).__name__}.{did_you_mean(pattern, known)}"
