"""Names of weights: transformers gives some of them other names in memory than in files, and vLLM must take both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, revert_weight_conversion

from mmreason.models.vision import VisionTower

_DECODER = "language_model."


class WeightNames:
    """Takes any name of a composed model's weight to the one that vLLM's class of it knows.

    The towers are the modules that are trained, so they know the names in memory; the decoder's class in vLLM knows
    those of files.

    Args:
        tower: the towers; anything else where vLLM has left them out. text_config: the decoder's configuration.
    """

    def __init__(self, tower: nn.Module, text_config: Any) -> None:
        self.tower = _from_files(tower, "vision_tower.")
        self.decoder = _to_files(text_config)

    def __call__(self, name: str) -> str:
        if not name.startswith(_DECODER):
            return self.tower.get(name, name)
        name = name.removeprefix(_DECODER)
        for renaming in self.decoder:
            name, _ = renaming.rename_source_key(name)
        return _DECODER + name


def _from_files(tower: nn.Module, prefix: str) -> dict[str, str]:
    """Names in files, as transformers writes them, → names in memory, of towers of transformers."""
    names: dict[str, str] = {}
    for module_name, encoder in tower.named_modules():
        if not isinstance(encoder, PreTrainedModel) or not module_name.endswith(".encoder"):
            continue
        for name in encoder.state_dict():
            (saved,) = revert_weight_conversion(encoder, {name: torch.empty(0)})
            names[f"{prefix}{module_name}.{saved}"] = f"{prefix}{module_name}.{name}"
    return names


def _to_files(text_config: Any) -> list[Any]:
    """transformers' own renamings of a decoder's weights, from memory to files."""
    known = (get_checkpoint_conversion_mapping(name) for name in (*text_config.architectures, text_config.model_type))
    found: list[Any] = next((renamings for renamings in known if renamings), [])
    return [entry.reverse_transform() for entry in reversed(found) if type(entry) is WeightRenaming]


def persistent_buffers(tower: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are no parameters. None where vLLM has left the towers out."""
    if not isinstance(tower, VisionTower):
        return {}
    saved = tower.state_dict(prefix=prefix, keep_vars=True)
    return {name: value for name, value in saved.items() if not isinstance(value, nn.Parameter)}
