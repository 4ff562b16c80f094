"""Several adapters over one model in memory, another one for each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmreason._adapters import KINDS, kind_of
from mmreason._functions import did_you_mean
from mmreason.models.peft import activate, load_adapter
from mmreason.types import ConfigError


class AdapterSwitch:
    """A base and its adapters, which answer requests in any mixture.

    Rows for different LoRA adapters go through the model in one batch, each layer applying to a row the adapter that
    it asked for. Other kinds, whose layers have one adapter at a time, take a batch for each adapter.

    Args:
        model: the base. adapters: name → folder, all of one kind. any_base: see `load_adapter`.

    Raises:
        ConfigError: an adapter of another base or kind.
    """

    def __init__(self, model: Any, adapters: Mapping[str, str | Path], *, any_base: bool = False) -> None:
        if not adapters:
            raise ConfigError("no adapter was named")
        for name, folder in adapters.items():
            model = load_adapter(model, folder, name, any_base=any_base)
        self.model, self.names = model.eval(), list(adapters)
        configs = list(model.peft_config.values())
        self.mixes = all(kind_of(config.to_dict()) in ("lora", "rslora") for config in configs)
        self.placed = all(KINDS[kind].placed for kind in map(kind_of, (config.to_dict() for config in configs)))

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, adapters: Sequence[str | None], **options: Any
    ) -> Tensor:
        """New tokens of each row, under its adapter.

        Args:
            input_ids, attention_mask: (B, T), padded at the left. adapters: a name for each row; None: the base alone.
            options: of transformers' `generate`.

        Returns: (B, longest) token ids, padded at the right with `pad_token_id`.

        Raises:
            ConfigError: a name that isn't loaded, with the nearest one.
        """
        for name in adapters:
            if name is not None and name not in self.names:
                raise ConfigError(
                    f"no adapter {name!r}; loaded: {', '.join(self.names)}.{did_you_mean(name, self.names)}"
                )
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.mixes:
            asked = [name or "__base__" for name in adapters]
            activate(self.model, self.names[0])  # the layers must be on; which adapter is used, each row says
            return self._new_tokens(inputs, {"adapter_names": asked, **options})
        found: dict[int, Tensor] = {}
        for name in dict.fromkeys(adapters):
            rows = [i for i, other in enumerate(adapters) if other == name]
            part = {key: value[rows] for key, value in inputs.items()}
            activate(self.model, name or self.names[0])
            with self.model.disable_adapter() if name is None else nullcontext():
                new = self._new_tokens(part, options)
            found |= dict(zip(rows, new, strict=True))
        width = max(len(row) for row in found.values())
        pad = options.get("pad_token_id", self.model.generation_config.pad_token_id) or 0
        out = input_ids.new_full((len(adapters), width), pad)
        for i, row in found.items():
            out[i, : len(row)] = row
        return out

    def _new_tokens(self, inputs: Mapping[str, Tensor], options: Mapping[str, Any]) -> Tensor:
        sequences: Tensor = self.model.generate(**inputs, **options)
        return sequences[:, inputs["input_ids"].shape[1] :]
