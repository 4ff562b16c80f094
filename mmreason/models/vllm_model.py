"""A composed model in vLLM: our towers and projector as they are, around vLLM's own class of the decoder.

Attributes have the names of `MMReasonForConditionalGeneration`, so checkpoints, and weights that a trainer sends, find
their places. Under tensor parallelism the decoder is split, towers and projector are whole in each process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from mmreason.models.configuration import MMReasonConfig
from mmreason.models.loading import whole_models
from mmreason.models.projectors import build_projector
from mmreason.models.vision import VisionTower
from mmreason.models.vllm_adapters import PER_TOKEN, AdapterNames, make_adaptable
from mmreason.models.vllm_processing import MMReasonDummyInputs, MMReasonMultiModalProcessor, MMReasonProcessingInfo
from mmreason.models.vllm_weights import WeightNames, persistent_buffers
from mmreason.types import ConfigError


@MULTIMODAL_REGISTRY.register_processor(
    MMReasonMultiModalProcessor, info=MMReasonProcessingInfo, dummy_inputs=MMReasonDummyInputs
)
class MMReasonForVLLM(nn.Module, SupportsMultiModal, SupportsLoRA):
    """The vLLM class of `MMReasonForConditionalGeneration`.

    The image token can't be sampled and has no share of the log-probabilities: what it would stand for is not there.

    Raises:
        ConfigError: vLLM has no class of the decoder.
    """

    packed_modules_mapping = {  # noqa: RUF012  # of most decoders; the one at hand tells its own below
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    supports_tower_connector_lora = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        self.config: MMReasonConfig = model_config.hf_config
        vision, text = cast(Any, self.config.vision_config), cast(Any, self.config.text_config)
        check_decoder(text.architectures or [], model_config.model)
        self.configure_mm_token_handling(text.vocab_size, [self.config.image_token_id])  # type: ignore[operator]
        projector_settings = self.config.projector or {}
        self.supports_tower_connector_lora = projector_settings.get("kind", "mlp") in PER_TOKEN
        lora = vllm_config.lora_config
        adapts = lora is not None and lora.enable_tower_connector_lora and self.supports_tower_connector_lora
        self.hf_to_vllm_mapper = AdapterNames(with_connector=adapts)

        with self._mark_tower_model(vllm_config, "image"), whole_models():  # type: ignore[operator]
            device = torch.get_default_device()
            self.vision_tower = VisionTower(vision).to(device)
            projector = build_projector(
                projector_settings, vision.grid, vision.prefix, vision.hidden_size, text.hidden_size
            )
            if adapts:
                make_adaptable(projector, maybe_prefix(prefix, "projector"))
            self.projector = projector
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=text, prefix=maybe_prefix(prefix, "language_model")
            )
        self.packed_modules_mapping = getattr(self.language_model, "packed_modules_mapping", {})
        self._names = WeightNames(self.vision_tower, text)
        # The very tensors: while vLLM reloads weights, the modules hold others without values.
        self._statistics = persistent_buffers(self.vision_tower, "vision_tower.")

    # ---- pictures

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Nothing: the checkpoint's chat template places its image token."""
        return None

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Embeddings of each picture, (its views · tokens per view, decoder width).

        Args:
            kwargs: pixel_values (views, 3 · towers, H, W) of all pictures, num_tiles (pictures,), the views of each.
        """
        pixel_values = kwargs.get("pixel_values")
        if pixel_values is None:
            return []
        views = self.projector(self.vision_tower(pixel_values))
        return [picture.flatten(0, 1) for picture in views.split(kwargs["num_tiles"].flatten().tolist())]

    # ---- the decoder

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The decoder's hidden states. intermediate_tensors: of pipeline stages, None."""
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The decoder's logits, with the image token's at minus infinity."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.config.image_token_id] = float("-inf")
        return logits

    # ---- weights and adapters

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights under transformers' names, of the whole model, as files have them or as a trainer has.

        Statistics that the towers keep beside their parameters (those of batch norm) stay as they are where `weights`
        lacks them, as a trainer's do.
        """
        statistics = dict(self._statistics)

        def parameters() -> Iterator[tuple[str, Tensor]]:
            for given, value in weights:
                name = self._names(given)
                if name in statistics:
                    statistics[name] = value
                else:
                    yield name, value

        loaded: set[str] = AutoWeightsLoader(self).load_weights(parameters())
        # vLLM's loader would write statistics into copies, which are dropped when weights are loaded again.
        for name, value in statistics.items():
            owner, _, leaf = name.rpartition(".")
            buffer = getattr(self.get_submodule(owner), leaf)
            getattr(buffer, "weight_loader", default_weight_loader)(buffer, value)
        return loaded | statistics.keys()

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which modules are what, for LoRA."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="projector", tower_model="vision_tower"
        )

    def get_mm_lora_token_counts(self, *, modality: str, mm_kwargs: Any, num_mm_embeds: int) -> tuple[int, int]:
        """(tower tokens, connector tokens) of a picture of that many places."""
        return num_mm_embeds, num_mm_embeds


def check_decoder(architectures: list[str], checkpoint: str) -> None:
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        raise ConfigError(
            f"{checkpoint}: vLLM has no class of its own for the decoder {', '.join(architectures) or '(unnamed)'}; "
            "sample with use_vllm: false, or choose another decoder"
        )
