"""vLLM's CLIP and SigLIP towers, taught the weight names of today's transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def accept_flat_towers() -> None:
    """Let LLaVA-like models of vLLM load towers that were saved, or are sent, without a `vision_model` level.

    transformers 5 has dropped that level from its CLIP and SigLIP vision models, in memory and in what it saves; vLLM
    0.31 knows only the old names. To be called in each process that loads a model, before it does; a second call, or a
    vLLM that has learnt it, changes nothing.
    """
    from vllm.model_executor.models.clip import CLIPVisionModel
    from vllm.model_executor.models.siglip import SiglipVisionModel

    for tower in (CLIPVisionModel, SiglipVisionModel):
        if not hasattr(tower, "load_weights"):
            tower.load_weights = _load_tower  # type: ignore[attr-defined]


def _load_tower(self: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

    names = WeightsMapper(orig_to_new_regex={re.compile(r"^(?!vision_model\.)"): "vision_model."})
    loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=names)
    return loaded
