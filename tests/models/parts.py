"""Settings of tiny random parts: a tower of every kind, decoders, and a whole model of them with its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmreason.models.compose import from_parts
from mmreason.models.tiny import tiny_tokenizer
from tests.tiny_vlms import randomise

_HF_SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}

TIMM_VIT = {
    "source": "timm", "name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32,
    "config": {"embed_dim": 64, "depth": 3, "num_heads": 2, "patch_size": 8},
}  # fmt: skip
OPEN_CLIP_VIT = {
    "source": "open_clip", "name": "ViT-B-16", "weights": "random", "image_size": 32,
    "config": {"width": 64, "layers": 3, "head_width": 32, "patch_size": 8},
}  # fmt: skip
HF_CLIP = {
    "source": "hf", "name": "clip_vision_model", "weights": "random",
    "config": _HF_SIZES | {"intermediate_size": 96},
}  # fmt: skip
HF_SIGLIP = {
    "source": "hf", "name": "siglip_vision_model", "weights": "random",
    "config": _HF_SIZES | {"intermediate_size": 96},
}  # fmt: skip
"""Each sees 32 pixels and gives 4 x 4 patches of 64 channels."""

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
}
_GROUPED = _TEXT | {"num_key_value_heads": 1, "head_dim": 32}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", _TEXT | {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "qwen2-tied": ("qwen2", _TEXT | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", _GROUPED | {"tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", _GROUPED | {"tie_word_embeddings": True}),
    "llama": ("llama", _GROUPED | {"tie_word_embeddings": False}),
    "llama-tied": ("llama", _GROUPED | {"tie_word_embeddings": True}),
    "gemma": ("gemma", _GROUPED),  # tied by nature
    "mistral": ("mistral", _GROUPED | {"tie_word_embeddings": False}),
    "mistral-tied": ("mistral", _GROUPED | {"tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", _TEXT | {"tie_word_embeddings": False}),
    "gpt_neox-tied": ("gpt_neox", _TEXT | {"tie_word_embeddings": True}),
}
"""Name → (model type, settings)."""


def save_decoder(folder: Path, kind: str = "qwen2", spare_rows: int = 0, seed: int = 0) -> str:
    """Write a random decoder, a key of DECODERS, with `tiny_tokenizer`; returns its path.

    spare_rows: of the embedding, behind the tokenizer's last token.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto import CONFIG_MAPPING

    model_type, settings = DECODERS[kind]
    tokenizer = tiny_tokenizer()
    config = CONFIG_MAPPING[model_type](
        vocab_size=len(tokenizer) + spare_rows,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def compose(vision: Any, projector: dict[str, Any] | None, decoder: str, seed: int = 0, **options: Any) -> Any:
    """(model, processor) of these parts, with a tower and a projector that matter as much as the decoder."""
    model, processor = from_parts(vision, projector, decoder, seed=seed, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        randomise(model.vision_tower)
        randomise(model.projector)
    return model, processor
