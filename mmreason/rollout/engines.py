"""Choosing and building the engine that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mmreason.rollout.hf import HFEngine
from mmreason.rollout.types import Engine

# Names under which configurations keep the ids of placeholder tokens that stand for an image, a video or a sound.
_PLACEHOLDERS = (
    "image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id", "audio_token_index"
)  # fmt: skip


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's and the model's generation configuration's."""
    found = [tokenizer.eos_token_id]
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found += configured if isinstance(configured, list) else [configured]
    return sorted({token for token in found if token is not None})


def placeholder_token_ids(model: Any) -> list[int]:
    """Tokens that a policy must never sample: a placeholder without its image breaks the next forward pass.

    Found in the model's configuration and all that are nested in it.
    """
    found = {getattr(config, name, None) for config in _nested(model.config) for name in _PLACEHOLDERS}
    vocab = model.config.get_text_config().vocab_size
    return sorted(token for token in found if isinstance(token, int) and 0 <= token < vocab)


def _nested(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, name, None)) is not None:
            yield from _nested(inner)


def build_engine(
    args: Any,
    model: Any,
    accelerator: Accelerator,
    processor: Any,
    *,
    checkpoint: str,
    dtype: torch.dtype,
    eos_token_ids: Sequence[int],
    banned_token_ids: Sequence[int],
    max_prompt_tokens: int,
    max_images: int = 0,
) -> Engine:
    """The engine that `args` (a PolicyConfig) names: HF generate, vLLM in this process, or a vLLM server.

    Args:
        model: the prepared policy. processor: the model's, or its tokenizer where it takes no images.
        checkpoint: where vLLM reads configuration and initial weights from.
        max_prompt_tokens, max_images: of the longest prompt of the run, and of the one with most images, for vLLM.
    """
    if not args.use_vllm:
        return HFEngine(
            model,
            accelerator,
            pad_token_id=getattr(processor, "tokenizer", processor).pad_token_id,
            eos_token_ids=eos_token_ids,
            banned_token_ids=banned_token_ids,
            batch_size=args.hf_generation_batch_size,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        )
    from mmreason.rollout.vllm import VLLMColocateEngine, VLLMServerEngine

    if args.vllm_mode == "server":
        return VLLMServerEngine(
            model,
            accelerator,
            processor,
            eos_token_ids=eos_token_ids,
            banned_token_ids=banned_token_ids,
            base_url=args.vllm_server_base_url,
            host=args.vllm_server_host,
            port=args.vllm_server_port,
            timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
        )
    return VLLMColocateEngine(
        model,
        accelerator,
        checkpoint,
        dtype=dtype,
        eos_token_ids=eos_token_ids,
        banned_token_ids=banned_token_ids,
        max_model_length=args.vllm_max_model_length or max_prompt_tokens + args.max_completion_length,
        max_images_per_prompt=max_images,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        model_impl=args.vllm_model_impl,
    )
