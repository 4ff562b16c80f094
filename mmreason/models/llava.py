"""To and from the layout of transformers' LLaVA, for parts that it has: one CLIP or SigLIP tower, a two-layer MLP.

Both ways share the weights with the model that they are given; only what is written to a folder is a copy.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from mmreason.models.compose import assemble
from mmreason.models.configuration import MMReasonConfig
from mmreason.models.modeling import MMReasonForConditionalGeneration
from mmreason.models.processing import MMReasonProcessor, build_processor
from mmreason.models.projectors import MLPSettings, read_settings
from mmreason.models.templates import template_with_images
from mmreason.models.vision import find_layers
from mmreason.models.vision_parts import resolve_vision
from mmreason.types import ConfigError

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Model type of a tower that LLaVA can have here → tokens before its patches."""


def to_llava(
    model: MMReasonForConditionalGeneration, processor: MMReasonProcessor, folder: str | os.PathLike[str] | None = None
) -> tuple[Any, Any]:
    """The same model as `LlavaForConditionalGeneration`, with a `LlavaProcessor`.

    Args:
        folder: where both are written, if anywhere.

    Its tower has the layers that are used and no later ones; of a picture that isn't square the processor sees the same
    part, resized by transformers' own code (equal pixels for resize: stretch and pad, nearly equal ones for crop).

    Raises:
        ConfigError: LLaVA has no place for some part; all such parts are named.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    problems = list(_not_in_llava(model))
    if problems:
        raise ConfigError(f"this model has no LLaVA form: {'; '.join(problems)}")
    config, language_model = model.config, model.language_model
    tower = cast(Any, config.vision_config).towers[0]
    encoder = _complete_encoder(model.vision_tower.towers[0].encoder)
    drops_class_token = bool(_CLASS_TOKENS[encoder.config.model_type]) and tower["select"] == "patch"
    first, _, second = cast(Any, model.projector).layers
    llava_config = LlavaConfig(
        vision_config=encoder.config,
        text_config=language_model.config,
        attn_implementation=language_model.config._attn_implementation,  # a new configuration forgets that of its parts
        image_token_index=config.image_token_id,
        image_seq_length=config.tokens_per_view,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if drops_class_token else "full",
        multimodal_projector_bias=first.bias is not None,
    )
    with torch.device("meta"):  # every module that holds anything is put in its place below
        llava: Any = LlavaForConditionalGeneration(llava_config)
    llava.model.vision_tower = encoder
    llava.model.multi_modal_projector.linear_1, llava.model.multi_modal_projector.linear_2 = first, second
    llava.model.language_model = language_model.base_model
    llava.lm_head = language_model.get_output_embeddings()
    llava.generation_config = copy.deepcopy(model.generation_config)
    llava.eval()
    llava_processor = _llava_processor(processor, encoder.config, drops_class_token)
    if folder is not None:
        llava.save_pretrained(folder)
        llava_processor.save_pretrained(folder)
    return llava, llava_processor


def _not_in_llava(model: MMReasonForConditionalGeneration) -> Iterator[str]:
    vision = cast(Any, model.config.vision_config)
    if len(vision.towers) != 1:
        yield f"it has {len(vision.towers)} vision towers"
    else:
        yield from _not_in_a_llava_tower(vision.towers[0])
    if vision.max_tiles > 1:
        yield f"it cuts pictures into tiles (vision.max_tiles: {vision.max_tiles})"
    projector = model.config.projector or {}
    _, settings = read_settings(projector, vision.grid, vision.prefix)
    width = cast(Any, model.config.text_config).hidden_size
    if not isinstance(settings, MLPSettings) or projector["kind"] != "mlp":
        yield f"its projector is {projector['kind']}, not mlp"
    elif settings.layers != 2 or settings.width not in (None, width):
        yield "its projector hasn't two layers as wide as the decoder"
    if not _is_plain_head(model.language_model):
        yield f"{type(model.language_model).__name__} is more than its base model and a linear head"


def _not_in_a_llava_tower(tower: dict[str, Any]) -> Iterator[str]:
    kind = tower["settings"].get("model_type")
    if tower["source"] != "hf" or kind not in _CLASS_TOKENS:
        yield f"its tower is {tower['source']} {tower['name']}, not a CLIP or SigLIP model of transformers"
        return
    if kind == "siglip_vision_model" and tower["feature_layer"] is None:
        yield "it reads the tower's features behind the final norm (vision.feature_layer: -1 is before it)"
    from transformers.models.auto import CONFIG_MAPPING

    own = CONFIG_MAPPING[kind](**{k: v for k, v in tower["settings"].items() if k != "model_type"}).image_size
    if own != tower["image_size"]:
        yield f"it resizes the tower's position embeddings from {own} to {tower['image_size']} pixels"


def _is_plain_head(language_model: Any) -> bool:
    """Whether logits are those of a linear head without bias on the base model, told by trying."""
    head, base = language_model.get_output_embeddings(), language_model.base_model
    if not isinstance(head, nn.Linear) or head.bias is not None or base is language_model:
        return False
    ids = torch.arange(4, device=head.weight.device)[None]
    training = language_model.training
    with torch.no_grad():
        language_model.eval()
        same = torch.equal(language_model(input_ids=ids).logits, head(base(input_ids=ids).last_hidden_state))
    language_model.train(training)
    return same


def _complete_encoder(encoder: Any) -> Any:
    """A copy that shares all tensors, as its class builds it: what was cut off has left the configuration too."""
    shared = {id(tensor): tensor for tensor in [*encoder.parameters(), *encoder.buffers()]}
    whole = copy.deepcopy(encoder, shared)
    inner = getattr(whole, "vision_model", whole)
    whole.config.num_hidden_layers = len(find_layers(whole))
    if whole.config.model_type == "siglip_vision_model":
        whole.config.vision_use_head = False
        if hasattr(inner, "head"):
            del inner.head
    # Behind the features that LLaVA reads, so it has no effect, but the class has it.
    weight = next(encoder.parameters())
    norm = nn.LayerNorm(whole.config.hidden_size, eps=whole.config.layer_norm_eps)
    inner.post_layernorm = norm.to(weight.device, weight.dtype)
    return whole


def _llava_processor(processor: MMReasonProcessor, vision_config: Any, drops_class_token: bool) -> Any:
    from transformers import LlavaImageProcessor, LlavaProcessor

    images, size = cast(Any, processor).image_processor, vision_config.image_size
    square = {"height": size, "width": size}
    image_processor = LlavaImageProcessor(
        do_resize=True,
        size={"shortest_edge": size} if images.resize == "crop" else square,
        do_center_crop=images.resize == "crop",
        crop_size=square,
        do_pad=images.resize == "pad",
        resample=images.resample,
        image_mean=images.image_mean,
        image_std=images.image_std,
    )
    return LlavaProcessor(
        image_processor,
        copy.deepcopy(cast(Any, processor).tokenizer),
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy="default" if drops_class_token else "full",
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=_CLASS_TOKENS[vision_config.model_type],
    )


def from_llava(
    source: Any, processor: Any = None, dtype: torch.dtype | str = "auto"
) -> tuple[MMReasonForConditionalGeneration, MMReasonProcessor]:
    """A LLaVA checkpoint of transformers as our model with its processor.

    Args:
        source: folder or hub id, or a `LlavaForConditionalGeneration`. processor: its `LlavaProcessor`; None: the one
            beside the checkpoint. dtype: of a checkpoint's weights.

    Raises:
        ConfigError: the checkpoint can't be loaded, is of another class, or has parts that our model lacks.
    """
    from transformers import LlavaForConditionalGeneration

    llava = source
    if isinstance(source, str | os.PathLike):
        from transformers import AutoProcessor

        from mmreason.models.loading import load_checked

        llava = load_checked(str(source), "llava", dtype=dtype)
        processor = processor or AutoProcessor.from_pretrained(source)
    if not isinstance(llava, LlavaForConditionalGeneration):
        raise ConfigError(f"llava: {type(llava).__name__} is no LlavaForConditionalGeneration")
    if processor is None:
        raise ConfigError("llava: give the processor of a model that isn't a checkpoint's folder or name")
    config = cast(Any, llava.config)
    if config.projector_hidden_act != "gelu":
        raise ConfigError(f"llava: projector_hidden_act={config.projector_hidden_act!r}; our mlp has gelu")
    vision_config, towers = resolve_vision(_vision_settings(cast(Any, llava), processor.image_processor))
    images = processor.image_processor
    cast(Any, vision_config).towers[0] |= {"mean": list(images.image_mean), "std": list(images.image_std)}
    vision_config.resample = int(images.resample)
    tokenizer = copy.deepcopy(processor.tokenizer)
    template = processor.chat_template or tokenizer.chat_template
    if template:
        tokenizer.chat_template = template
        tokenizer.chat_template = template_with_images(tokenizer, processor.image_token)
    language_model = _causal_language_model(cast(Any, llava))
    bias = llava.model.multi_modal_projector.linear_1.bias is not None
    ours = MMReasonConfig(
        vision_config=vision_config,
        text_config=language_model.config,
        projector={"kind": "mlp", "layers": 2} | ({} if bias else {"bias": False}),
        image_token_id=config.image_token_id,
        attn_implementation=language_model.config._attn_implementation,
    )
    model = assemble(ours, towers, language_model)
    layers = cast(Any, model.projector).layers
    layers[0], layers[2] = llava.model.multi_modal_projector.linear_1, llava.model.multi_modal_projector.linear_2
    return model, build_processor(ours, tokenizer, processor.image_token)


def _vision_settings(llava: Any, images: Any) -> dict[str, Any]:
    """The tower as a user would name it, with the weights that are there."""
    config, tower = llava.config, llava.config.vision_config
    layer = config.vision_feature_layer
    if tower.model_type not in _CLASS_TOKENS:
        raise ConfigError(f"llava: its tower is a {tower.model_type}; known: {', '.join(_CLASS_TOKENS)}")
    if not isinstance(layer, int):
        raise ConfigError(f"llava: vision_feature_layer={layer}; our model reads one layer")
    if layer >= 0:  # counted from the embeddings
        layer -= tower.num_hidden_layers + 1
    drops = config.vision_feature_select_strategy == "default"
    if drops and not _CLASS_TOKENS[tower.model_type]:
        raise ConfigError("llava: vision_feature_select_strategy=default drops a patch of a tower without class token")
    resize = "pad" if getattr(images, "do_pad", False) else "crop" if images.do_center_crop else "stretch"
    return {
        "source": "hf",
        "name": tower.model_type,
        "weights": llava.model.vision_tower.state_dict(),
        "config": {key: value for key, value in tower.to_diff_dict().items() if key != "vision_use_head"},
        "feature_layer": layer,
        "select": "patch" if drops or not _CLASS_TOKENS[tower.model_type] else "all",
        "resize": resize,
    }


def _causal_language_model(llava: Any) -> Any:
    """The decoder's own class around LLaVA's parts of it."""
    from transformers import AutoModelForCausalLM

    config = llava.config.text_config  # the very one that the layers look at
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)
    if type(language_model.base_model) is not type(llava.model.language_model):
        raise ConfigError(f"llava: {type(language_model).__name__} has no {type(llava.model.language_model).__name__}")
    setattr(language_model, language_model.base_model_prefix, llava.model.language_model)
    language_model.set_output_embeddings(llava.lm_head)
    language_model.generation_config = copy.deepcopy(llava.generation_config)
    return language_model.eval()
