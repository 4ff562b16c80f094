"""Tiny random checkpoints of well-known vision-language models, made by code: model, processor, tokenizer, template.

Each is the real transformers class with the real processor, a few layers deep and 64 wide. The weights are large, so
that pictures move the log-probabilities and greedy text varies; norms and biases are random too, so that a tensor that
gets lost on the way somewhere shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmreason.models.tiny import tiny_tokenizer

# Attention heads are 32 wide, the narrowest that vLLM's CPU attention takes.
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
_VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_QWEN_VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "depth": 3,
    "num_heads": 2,
    "out_hidden_size": 64,
}

_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['reasoning_content'] %}{{ message['reasoning_content'] + '\\n' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _tokenizer(image: str, special: list[str], **named: str) -> Any:
    """The byte-level tokenizer with `special` added and a template that writes `image` for an image part.

    named: tokens that the processor looks up as attributes of the tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    bare = tiny_tokenizer()
    bare.add_special_tokens({"additional_special_tokens": [*special, *named.values()]})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare._tokenizer,
        pad_token=bare.pad_token,
        unk_token=bare.unk_token,
        eos_token=bare.eos_token,
        model_max_length=2048,
        extra_special_tokens=named or None,
    )
    tokenizer.chat_template = _TEMPLATE.replace("IMAGE", image)
    return tokenizer


def _text(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    return (
        _TEXT
        | {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        }
        | settings
    )


_QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(_QWEN_TOKENS), strict=True))


def _qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer("<|vision_start|><|image_pad|><|vision_end|>", _QWEN_TOKENS)
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        # a window of 2 × 2 merged patches, so that windowed and full attention differ
        vision_config=_QWEN_VISION | {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 12 * 28 * 28}  # 4 to 12 tokens per image
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size),
        tokenizer,
        Qwen2VLVideoProcessor(size=size),
        chat_template=tokenizer.chat_template,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = _tokenizer("<|vision_start|><|image_pad|><|vision_end|>", _QWEN_TOKENS)
    rope = {
        "rope_type": "default",
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
        "rope_theta": 10000.0,
    }
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, head_dim=32, rope_parameters=rope),
        vision_config=_QWEN_VISION
        | {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 12 * 32 * 32}
    mean = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=size, patch_size=16, **mean),
        tokenizer,
        Qwen3VLVideoProcessor(size=size, patch_size=16, **mean),
        chat_template=tokenizer.chat_template,
    )
    return Qwen3VLForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    """The first SmolVLMs are Idefics3 models (SmolVLM2's processor needs the package num2words)."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles]
    tokenizer = _tokenizer("<image>", special)
    config = Idefics3Config(
        text_config=_text(tokenizer, model_type="llama", head_dim=32),
        vision_config=_VISION | {"image_size": 32, "patch_size": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )
    return Idefics3ForConditionalGeneration(config), processor


def _llava() -> tuple[Any, Any]:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaImageProcessor, LlavaProcessor

    tokenizer = _tokenizer("<image>", ["<image>"])
    config = LlavaConfig(
        text_config=_text(tokenizer, model_type="qwen2", tie_word_embeddings=True),
        vision_config=_VISION | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    processor = LlavaProcessor(
        LlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return LlavaForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = _tokenizer(
        "<IMG_CONTEXT>\n",
        [],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        text_config=_text(tokenizer, model_type="qwen2", tie_word_embeddings=True),
        vision_config=_VISION | {"image_size": [28, 28], "patch_size": [7, 7], "attention_bias": True},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=True,
    )
    size = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    return InternVLForConditionalGeneration(config), processor


TINY_VLMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "llava": _llava,
    "internvl": _internvl,
}


def tiny_vlm(kind: str, folder: str | os.PathLike[str], seed: int = 0) -> str:
    """Write a tiny random float32 checkpoint of a key of TINY_VLMS, with processor and tokenizer; returns its path.

    `AutoProcessor` and `AutoModelForImageTextToText` load it. An image takes 4 to 20 tokens.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = TINY_VLMS[kind]()
        randomise(model)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.eval().save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def randomise(model: torch.nn.Module) -> None:
    """Draw every parameter: matrices large enough to matter, vectors around what they were (0 or 1)."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
