"""LoRA adapters of composed models in vLLM: for the decoder, and for projectors whose layers see a token per place."""

from __future__ import annotations

from torch import nn
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.utils import WeightsMapper

from mmreason.types import ConfigError

PER_TOKEN = ("linear", "mlp", "pixel_shuffle", "avg_pool")
"""Kinds of projector whose linear layers see as many tokens as come out: by that vLLM knows a token's adapter."""


class AdapterNames(WeightsMapper):  # type: ignore[misc]
    """Passes names of an adapter's weights on, and refuses those that have no place.

    vLLM itself knows modules by the last part of their names, so it would pass over a tower's `q_proj`, say, without a
    word, and answer with another model than the trained one.

    Args:
        with_connector: whether the projector takes adapters.
    """

    def __init__(self, with_connector: bool) -> None:
        super().__init__()
        self.with_connector = with_connector

    def get_rename_mapper(self) -> AdapterNames:
        return self

    def map_name(self, key: str) -> str | None:
        """The name. Raises ConfigError for an adapter of the tower, or of a projector that takes none."""
        if ".lora_" in key:
            if key.startswith("vision_tower."):
                raise ConfigError(
                    f"the adapter changes the vision tower ({key}), which vLLM can't: merge it into the "
                    "model, or train one of language_model modules"
                )
            if key.startswith("projector.") and not self.with_connector:
                raise ConfigError(
                    f"the adapter changes the projector ({key}): start vLLM with --enable-tower-connector-lora if the "
                    f"projector's kind is one of {', '.join(PER_TOKEN)}, else merge the adapter into the model"
                )
        name: str | None = super().map_name(key)
        return name


def make_adaptable(projector: nn.Module, prefix: str) -> None:
    """Put vLLM's linear layers, which take LoRA adapters, in the places of torch's."""
    for name, layer in list(projector.named_modules()):
        if isinstance(layer, nn.Linear):
            own = ReplicatedLinear(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                return_bias=False,
                prefix=f"{prefix}.{name}",
            )
            projector.set_submodule(name, own)
