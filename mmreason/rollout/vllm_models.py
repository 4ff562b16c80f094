"""Which models vLLM can be given, with how many images, and whether it reads the prompts that the trainer scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from mmreason.types import ConfigError

IMAGE_CACHE_GB = 1.0
"""Host memory per process for images that vLLM's processor has prepared."""


def model_settings(checkpoint: str, max_images: int, model_impl: str, trust_remote_code: bool) -> dict[str, Any]:
    """What vLLM's LLM is told about a model that it will share this process with.

    Raises:
        ConfigError: vLLM can't be colocated with the model, or can't give it images.
    """
    import torch
    from transformers import AutoConfig

    from mmreason.models.vllm_plugin import register

    register()  # vLLM does it by itself only where mmreason is installed and plugins are not restricted
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        _refuse_experts(config, checkpoint)
    _refuse_transformers_backend(config, checkpoint, model_impl)
    images = _image_settings(config, checkpoint, max_images, on_gpu)
    return {"model_impl": model_impl, "trust_remote_code": trust_remote_code, **images}


def _image_settings(config: Any, checkpoint: str, max_images: int, on_gpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's LLM for at most `max_images` images per prompt and nothing else beside text."""
    if not hasattr(config, "vision_config"):
        if max_images:
            raise ConfigError(
                f"{checkpoint} is a text-only model ({config.model_type}), but prompts bring up to {max_images} "
                "image(s): choose a vision-language model, or a dataset without images"
            )
        return {}
    return {
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "mm_processor_cache_gb": IMAGE_CACHE_GB if max_images else 0,
        # Measuring the peak of the largest possible images is what keeps a GPU from running out of memory later.
        "skip_mm_profiling": not on_gpu,
    }


def check_prompt(expected: Sequence[int], read: Sequence[int], checkpoint: str) -> None:
    """Raise where vLLM has read another prompt than the trainer will score."""
    if list(expected) == list(read):
        return
    pairs = enumerate(zip(expected, read, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(read)))
    here, there = (ids[first] if first < len(ids) else "the end" for ids in (expected, read))
    raise ConfigError(
        f"vLLM read a prompt of {len(read)} tokens where the trainer has {len(expected)}; the first difference is at "
        f"position {first}: {there} instead of {here}. vLLM expands images with the processor that is saved in "
        f"{checkpoint}: save the one that the trainer uses there (image size, tiles), or sample with use_vllm: false"
    )


def _refuse_transformers_backend(config: Any, checkpoint: str, model_impl: str) -> None:
    """vLLM's Transformers backend rewrites the decoder's class in place, and with it the model that is trained here."""
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # a plugin may bring a class of its own for this architecture
    architectures = config.architectures or []
    known = not architectures or set(architectures) & set(ModelRegistry.get_supported_archs())
    if model_impl == "transformers" or not known:
        name = ", ".join(architectures) or config.model_type
        missing = "" if known else ". Is it a vLLM for texts only, or is a plugin missing or left out (VLLM_PLUGINS)?"
        raise ConfigError(
            f"{checkpoint}: vLLM would run {name} with its Transformers backend, which changes the class of the model "
            f"that is trained in the same process; set use_vllm: false, or vllm_mode: server{missing}"
        )


def _refuse_experts(config: Any, checkpoint: str) -> None:
    """After `reload_weights` vLLM 0.31's CPU kernel for experts gives other log-probabilities, without an error."""
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ConfigError(
            f"{checkpoint}: vLLM on the CPU computes with wrong expert weights once they have been renewed; sample "
            "this mixture-of-experts model with use_vllm: false, or on a GPU"
        )


def check_runs(prompt_ids: Sequence[int], images: int, processor: Any) -> None:
    """Raise where TRL's client could not tell the images of a prompt apart: it takes a run of image tokens for one."""
    runs = sum(token == processor.image_token_id for token, _ in groupby(prompt_ids))
    if runs != images:
        raise ConfigError(
            f"a prompt with {images} image(s) has {runs} separate run(s) of image tokens ({processor.image_token}), "
            "and vllm_mode: server needs one run per image; this model can be sampled with vllm_mode: colocate, or "
            "with use_vllm: false"
        )
