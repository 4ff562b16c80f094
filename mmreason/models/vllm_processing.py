"""Pictures on their way into vLLM: through the checkpoint's own processor, one item per picture with all its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from mmreason.models.configuration import MMReasonConfig
from mmreason.models.processing import MMReasonProcessor


class MMReasonProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about a checkpoint before it reads a picture."""

    def get_hf_config(self) -> MMReasonConfig:
        config: MMReasonConfig = self.ctx.get_hf_config(MMReasonConfig)
        return config

    def get_hf_processor(self, **kwargs: object) -> MMReasonProcessor:
        processor: MMReasonProcessor = self.ctx.get_hf_processor(MMReasonProcessor, **kwargs)
        return processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        width, height = self.largest_image()
        processor = self.get_hf_processor()
        return {"image": processor.image_processor.count_views(height, width) * processor.tokens_per_view}

    def largest_image(self) -> tuple[int, int]:
        """(width, height) in pixels of a picture that is cut into as many tiles as the processor allows."""
        images = self.get_hf_processor().image_processor
        return images.max_tiles * images.image_size, images.image_size


class MMReasonDummyInputs(BaseDummyInputsBuilder[MMReasonProcessingInfo]):
    """The largest prompt of pictures, by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return str(self.info.get_hf_processor().image_token) * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        width, height = self.info.largest_image()
        images = self._get_dummy_images(
            width=width, height=height, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class MMReasonMultiModalProcessor(BaseMultiModalProcessor[MMReasonProcessingInfo]):
    """Views of all pictures one after the other, and how many belong to each."""

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        views = hf_inputs.get("num_tiles", torch.empty(0))  # empty: all pictures were prepared before
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", views),
            "num_tiles": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        token = self.info.get_hf_config().image_token_id
        tokens_per_view = self.info.get_hf_processor(**hf_processor_mm_kwargs).tokens_per_view

        def places(index: int) -> list[int]:
            views = int(out_mm_kwargs["image"][index]["num_tiles"].data)
            return [token] * (views * tokens_per_view)

        return [PromptReplacement(modality="image", target=[token], replacement=places)]
