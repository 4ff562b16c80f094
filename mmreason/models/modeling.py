"""The composed model: vision towers, a projector and any decoder, as one ordinary transformers model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import ModelOutput

from mmreason.models.configuration import MMReasonConfig
from mmreason.models.projectors import QueryProjector, build_projector
from mmreason.models.vision import VisionTower

_VISUAL = ("pixel_values", "num_tiles", "image_features")


class MMReasonForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Any encoder, projected into any decoder.

    A view's projected patches stand in the decoder's sequence where the text has image tokens (LLaVA, arXiv
    2304.08485). The decoder is the whole causal language model of its own transformers class, so that what it does to
    its logits or embeddings (scaling, capping, tying) stays as it is.
    """

    config: MMReasonConfig
    config_class = MMReasonConfig
    base_model_prefix = "mmreason"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)
    all_run_the_tower = True
    """Processes without pictures in a step run tower and projector, too (see `_beside_others`)."""

    def __init__(self, config: MMReasonConfig, language_model: Any = None):
        """language_model: a decoder with its weights, of `config.text_config`; None: a random one."""
        super().__init__(config)
        vision, text = cast(Any, config.vision_config), cast(Any, config.text_config)
        self.vision_tower = VisionTower(vision)
        self.projector = build_projector(
            config.projector or {}, vision.grid, vision.prefix, vision.hidden_size, text.hidden_size
        )
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(text, attn_implementation=text._attn_implementation)
        else:
            for module in language_model.modules():
                module._is_hf_initialized = True  # else transformers would draw its weights again
        self.language_model = language_model
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The projector's weights; towers and decoder have their libraries' own ways."""
        super()._init_weights(module)
        if isinstance(module, QueryProjector):
            nn.init.normal_(module.queries, std=0.02)

    def initialize_weights(self) -> None:
        """transformers calls this once a checkpoint is in, with buffers that no file holds left empty."""
        super().initialize_weights()
        self.vision_tower.restore_buffers()

    # ---- the way of a picture

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Views (views, 3 · towers, H, W) → projected patches (views, tokens per view, decoder width)."""
        return self.project(self.encode(pixel_values))

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Views → the towers' features (views, patches, channels): what a feature store keeps."""
        weight = next(self.vision_tower.parameters())
        # A frozen tower keeps no activations, even where PEFT has made its first layer's output ask for gradients.
        learns = any(param.requires_grad for param in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return cast(Tensor, self.vision_tower(pixel_values.to(weight.device, weight.dtype)))

    def project(self, image_features: Tensor) -> Tensor:
        """The towers' features → embeddings for the decoder."""
        weight = next(self.projector.parameters())
        return cast(Tensor, self.projector(image_features.to(weight.device, weight.dtype)))

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        *,
        continues: bool = False,
    ) -> Tensor:
        """Token embeddings with pictures in the places of the image tokens, (B, T, decoder width).

        Args: continues: a cache holds what came before, with its pictures.

        Raises:
            ValueError: other than `tokens per view` image tokens for each view.
        """
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.image_token_id
        if image_features is None and pixel_values is not None:
            image_features = self.encode(pixel_values)
        if image_features is None:
            if input_ids.shape[1] > 1 and places.any():
                raise ValueError(f"{int(places.sum())} image tokens in the text, but no pictures were given")
            return embeds if continues else self._beside_others(embeds)
        tokens = self.project(image_features)
        if int(places.sum()) != tokens.shape[0] * tokens.shape[1]:
            raise ValueError(
                f"{int(places.sum())} image tokens in the text, {tokens.shape[0]} views of {tokens.shape[1]} tokens: "
                "text and pictures don't belong together"
            )
        return embeds.masked_scatter(places.unsqueeze(-1), tokens.to(embeds.device, embeds.dtype))

    def _beside_others(self, embeds: Tensor) -> Tensor:
        """The same embeddings, with tower and projector run where another process may have pictures in this very step.

        Processes that share weights or gradients must run the same modules: without this a batch of texts beside one
        with pictures would wait for ever (ZeRO-3) or be refused (DDP).
        """
        together = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if not together or not (self.training or is_deepspeed_zero3_enabled()):
            return embeds
        vision = cast(Any, self.config.vision_config)
        blank = embeds.new_zeros(1, vision.num_channels, vision.image_size, vision.image_size)
        return embeds + 0 * self.get_image_features(blank).float().mean().to(embeds.dtype)

    # ---- the model as transformers knows it

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        num_tiles: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ModelOutput:
        """Logits, and the loss where labels are given: the decoder's own output.

        Args:
            input_ids: (B, T), one image token for each projected patch.
            pixel_values: (views, 3 · towers, H, W), the views of all the batch's pictures in the order of their tokens.
            image_features: (views, patches, channels), the towers' output, instead of pixel_values.
            num_tiles: (images,) views of each picture. The order of the views says it already; engines need it.
            inputs_embeds: (B, T, width), in which pictures are in their places already, instead of input_ids.

        Raises:
            ValueError: image tokens and views that don't match, or neither ids nor embeddings.
        """
        continues = past_key_values is not None and past_key_values.get_seq_length() > 0
        inputs_embeds = self._embeddings(input_ids, inputs_embeds, pixel_values, image_features, continues)
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            kwargs["logits_to_keep"] = logits_to_keep
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    def _embeddings(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
        continues: bool = False,
    ) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None:
            return inputs_embeds
        return self.embed(cast(Tensor, input_ids), pixel_values, image_features, continues=continues)

    @property
    def base_model(self) -> Any:
        """Everything but the head, as a function of the same inputs: TRL fuses the head with its own losses."""
        return _BaseModel(self)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Pictures go in with the prompt; afterwards the cache has them."""
        visual = {name: kwargs.pop(name, None) for name in _VISUAL}
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {name: value for name, value in visual.items() if value is not None}
        return cast(dict[str, Any], inputs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Rows next to their copies, and each row's views with them: a row may have any number of views."""
        visual = {name: model_kwargs.pop(name, None) for name in _VISUAL}
        if expand_size > 1 and input_ids is not None:
            places = (input_ids == self.config.image_token_id).sum(1)
            views = (places // self.config.tokens_per_view).tolist()
            for name in ("pixel_values", "image_features"):
                if visual[name] is not None:
                    rows = visual[name].split(views)
                    visual[name] = torch.cat([row for row in rows for _ in range(expand_size)])
            visual["num_tiles"] = None
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return cast(Tensor, input_ids), model_kwargs | {k: v for k, v in visual.items() if v is not None}

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return cast("nn.Module | None", self.language_model.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> Any:
        return self.language_model.get_decoder()

    def set_decoder(self, decoder: Any) -> None:
        self.language_model.set_decoder(decoder)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, **kwargs)
        self.vision_tower.set_checkpointing(enable)


class _BaseModel:
    """The composed model up to the decoder's last hidden states; no module, so that no weight is there twice."""

    def __init__(self, model: MMReasonForConditionalGeneration):
        self.model_with_head = model
        self._tp_plan, self._pp_plan = model._tp_plan, model._pp_plan  # what transformers asks a base model for

    def __call__(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        num_tiles: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        model = self.model_with_head
        inputs_embeds = model._embeddings(input_ids, inputs_embeds, pixel_values, image_features)
        return model.language_model.base_model(inputs_embeds=inputs_embeds, **kwargs)
