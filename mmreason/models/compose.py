"""`from_parts`: a vision tower, a projector and a decoder become one model with its processor."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange

from mmreason.models.configuration import MMReasonConfig
from mmreason.models.modeling import MMReasonForConditionalGeneration
from mmreason.models.processing import MMReasonProcessor, build_processor
from mmreason.models.templates import template_with_images
from mmreason.models.vision_parts import Tower, resolve_vision
from mmreason.types import ConfigError

IMAGE_TOKENS = ("<|image_pad|>", "<image>", "<|image|>")
"""Names under which a tokenizer may have an image token already, in the order of preference; else the last is added."""
PARTS = "parts.json"
"""Beside a composed checkpoint: what it was made from."""


def from_parts(
    vision: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    projector: Mapping[str, Any] | None,
    decoder: str,
    *,
    image_token: str | None = None,
    chat_template: str | None = None,
    revision: str = "main",
    dtype: torch.dtype | str = torch.float32,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> tuple[MMReasonForConditionalGeneration, MMReasonProcessor]:
    """Compose a model.

    Args:
        vision: see `mmreason.models.vision_parts`. projector: see `mmreason.models.projectors`; None: a two-layer MLP.
        decoder: hub id or folder of any causal language model with its tokenizer.
        image_token: text of the image token. None: the one of `IMAGE_TOKENS` that the tokenizer has, or a new one.
        chat_template: in place of the tokenizer's own. One without image parts is extended to place them.
        seed: of the projector's weights, and of a tower's where they are random. Generators are left as they were.

    The image token takes a row behind the tokenizer's last one: rows that are there already don't move. Where the
    embedding has no spare row for it, one is added (the mean of the others), nothing else changes.

    Raises:
        ConfigError: a part that isn't there or doesn't fit, a decoder and a tokenizer that disagree, a chat template
            that can't place images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision_config, towers = resolve_vision(vision)
        language_model = _load_decoder(decoder, revision, dtype, attn_implementation, trust_remote_code)
        tokenizer = _load_tokenizer(decoder, revision, trust_remote_code, language_model)
        token = _add_image_token(tokenizer, image_token, language_model)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        if tokenizer.chat_template:
            tokenizer.chat_template = template_with_images(tokenizer, token)
        text_config = language_model.config
        text_config.architectures = [type(language_model).__name__]
        config = MMReasonConfig(
            vision_config=vision_config,
            text_config=text_config,
            projector=dict(projector or {"kind": "mlp"}),
            image_token_id=tokenizer.convert_tokens_to_ids(token),
            attn_implementation=text_config._attn_implementation,  # a new configuration forgets that of its parts
        )
        processor = build_processor(config, tokenizer, token)  # a projector that can't be is refused here
        model = assemble(config, towers, language_model)
    return model, processor


def compose_checkpoint(folder: str | os.PathLike[str], parts: Mapping[str, Any]) -> str:
    """Write `from_parts(**parts)` as a checkpoint, whole or not at all; returns its path.

    Where `folder` holds one of the same parts already, that one stays, so that a run that is continued finds the model
    it began with. Raises as `from_parts`; ConfigError where `folder` holds something else.
    """
    path, note = Path(folder), json.dumps(parts, sort_keys=True, default=str)
    if (path / PARTS).is_file() and (path / PARTS).read_text(encoding="utf-8") == note:
        return str(path)
    if path.exists():
        raise ConfigError(f"{path} holds another model, or one of other parts: choose another folder, or remove it")
    model, processor = from_parts(**parts)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / PARTS).write_text(note, encoding="utf-8")
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(path)


def assemble(config: MMReasonConfig, towers: Sequence[Tower], language_model: Any) -> MMReasonForConditionalGeneration:
    """The model of a configuration with these towers' and this decoder's weights; only its projector is random."""
    model = MMReasonForConditionalGeneration(config, language_model)
    for mine, tower in zip(model.vision_tower.towers, towers, strict=True):
        mine.load_state_dict(tower.module.state_dict())
    model.to(language_model.dtype)
    # As loading sets it, so that saving again writes the same file.
    cast(Any, config.vision_config).dtype = language_model.dtype
    model.generation_config = copy.deepcopy(language_model.generation_config)
    model.generation_config.suppress_tokens = [config.image_token_id]  # a place without its picture
    if all(isinstance(change, PrefixChange) for change in get_model_conversion_mapping(model, add_legacy=False)):
        model._weight_conversions = []  # as loading leaves it too: shards are then cut in the same order
    return model.eval()


def _load_decoder(
    decoder: str, revision: str, dtype: torch.dtype | str, attn_implementation: str | None, trust_remote_code: bool
) -> Any:
    from mmreason.models.loading import load_checked

    return load_checked(
        decoder,
        "decoder",
        dtype=dtype,
        revision=revision,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        text_only=True,
    )


def _load_tokenizer(decoder: str, revision: str, trust_remote_code: bool, model: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(decoder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"decoder={decoder!r}: no tokenizer could be loaded ({error})") from error
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):  # what a class is without its files
        raise ConfigError(f"decoder={decoder!r}: it comes without a tokenizer's vocabulary")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"decoder={decoder!r}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows: they don't "
            "belong together"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"decoder={decoder!r}: its tokenizer has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _add_image_token(tokenizer: Any, wanted: str | None, model: Any) -> str:
    """Give the tokenizer the image token and the model a row for it; returns the token's text."""
    vocabulary = tokenizer.get_vocab()
    found = next((token for token in IMAGE_TOKENS if token in vocabulary), IMAGE_TOKENS[-1])
    token = wanted if wanted is not None else found
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    index = tokenizer.convert_tokens_to_ids(token)
    if tokenizer.encode(token, add_special_tokens=False) != [index]:
        raise ConfigError(f"image_token={token!r} is not read as one token; choose another text")
    embedding = model.get_input_embeddings().weight
    if index >= embedding.shape[0]:
        rows = embedding.shape[0]
        model.resize_token_embeddings(index + 1, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None and layer.weight.shape[0] > rows:
                    layer.weight[rows:] = layer.weight[:rows].mean(0)
    return token
