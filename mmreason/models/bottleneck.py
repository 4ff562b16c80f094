"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751) as a method of PEFT's.

PEFT has none. Once `register_bottleneck` has run (importing mmreason.models does it), `get_peft_model`,
`save_pretrained`, `from_pretrained`, `set_adapter` and `disable_adapter` take them as they take LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

NAME = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """Settings, in the form that PEFT's configurations have.

    Args:
        r: width of the bottleneck. activation: a name of transformers' ACT2FN. dropout: on what goes into it.
        target_modules: linear layers whose output passes through it: those that write to the residual stream, as after
            attention and after the feed-forward part in the paper (section 2.1).
        modules_to_save: modules trained in full; the paper trains the layer norms too.
    """

    r: int = 64
    activation: str = "gelu"
    dropout: float = 0.0
    target_modules: Any = None
    exclude_modules: Any = None
    modules_to_save: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _member()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer and, behind it, h + W_up σ(W_down h + b_down) + b_up for each active adapter.

    W_up and its bias begin at 0, so that training begins at the base model exactly; the paper begins near it, with a
    standard deviation of 0.01, which W_down has here, too.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "bottleneck_activation")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer: nn.Module = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_dropout, self.bottleneck_activation = nn.ModuleDict(), nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, **_: Any) -> None:
        """Add an adapter, or begin it anew."""
        base = cast(Any, self).get_base_layer()
        width = base.nf if isinstance(base, Conv1D) else base.out_features
        down, up = nn.Linear(width, config.r), nn.Linear(config.r, width)
        nn.init.trunc_normal_(down.weight, std=0.01, a=-0.02, b=0.02)
        for tensor in (down.bias, up.weight, up.bias):
            nn.init.zeros_(tensor)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_activation[adapter_name] = ACT2FN[config.activation]
        layer = cast(Any, self)
        layer._move_adapter_to_device_of_base_layer(adapter_name)
        layer.set_adapter(layer.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        active: Any = () if self.disable_adapters else self.active_adapters
        for name in active:
            if name in self.bottleneck_down:
                down = cast(nn.Linear, self.bottleneck_down[name])
                hidden = down(self.bottleneck_dropout[name](result.to(down.weight.dtype)))
                added = self.bottleneck_up[name](self.bottleneck_activation[name](hidden))
                result = result + added.to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ValueError: what is behind an activation is in no weight."""
        raise ValueError(
            "bottleneck adapters can't be merged: they are networks of their own, which no weight can hold"
        )

    def unmerge(self) -> None:
        """Nothing: it is never merged."""


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """The model with bottleneck layers in the places of its linear ones."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (PEFT's name and form)

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear | Conv1D):
            raise ValueError(f"bottleneck adapters go on linear layers; {current_key} is a {type(target).__name__}")
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        BottleneckLayer.merge(cast(BottleneckLayer, None))


def _member() -> Any:
    """PeftType.BOTTLENECK. PEFT keeps its methods' names in an enumeration, which Python extends by no public way."""
    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_ = member._value_ = NAME
        type.__setattr__(PeftType, NAME, member)
        PeftType._member_map_[NAME] = PeftType._value2member_map_[NAME] = member
        PeftType._member_names_.append(NAME)
    return PeftType.__members__[NAME]


def register_bottleneck() -> None:
    """Make the method known to PEFT; a second call changes nothing."""
    if _member() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=BottleneckConfig, model_cls=BottleneckModel)
