"""Models: composed of any encoder, projector and decoder, or any Hugging Face model as it is; and tiny ones by code.

Importing this package makes composed checkpoints known to transformers' Auto classes, and bottleneck adapters to PEFT.
"""

from __future__ import annotations


def register() -> None:
    """Make `model_type: mmreason` known to the Auto classes, bottleneck adapters to PEFT; again, it changes nothing."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
        AutoProcessor,
    )

    from mmreason.models.bottleneck import register_bottleneck
    from mmreason.models.configuration import MMReasonConfig
    from mmreason.models.modeling import MMReasonForConditionalGeneration
    from mmreason.models.processing import MMReasonImageProcessor, MMReasonProcessor
    from mmreason.models.reward import RewardModel, RewardModelConfig

    AutoConfig.register("mmreason", MMReasonConfig, exist_ok=True)
    AutoModelForImageTextToText.register(MMReasonConfig, MMReasonForConditionalGeneration, exist_ok=True)
    backends = dict.fromkeys(("pil", "torchvision"), MMReasonImageProcessor)  # the same pixels whatever is installed
    AutoImageProcessor.register(MMReasonConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(MMReasonConfig, MMReasonProcessor, exist_ok=True)
    AutoConfig.register("mmreason_reward", RewardModelConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(RewardModelConfig, RewardModel, exist_ok=True)
    register_bottleneck()


register()
