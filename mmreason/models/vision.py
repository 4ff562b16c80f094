"""Vision towers at work: a library's own encoder as `(views, 3, H, W) → (views, tokens, width)`, and several fused.

Which library, which model and which of its layers is in the configuration (`MMReasonVisionConfig.towers`), as
`mmreason.models.vision_parts` resolves it. Only what the wanted features need is kept of an encoder: later blocks,
pooling and heads are cut off, so that every parameter of a tower has a gradient when it is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmreason.types import ConfigError


class TimmTower(nn.Module):
    """A timm model: the output of `forward_features`, or of an earlier block (cut off behind it)."""

    def __init__(self, tower: Mapping[str, Any]):
        super().__init__()
        import timm

        check_settings(tower)
        self.encoder = timm.create_model(tower["name"], pretrained=False, num_classes=0, **tower["settings"])
        prune_timm(self.encoder, tower["feature_layer"])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, int]:
        return timm_tokens(self.encoder, pixel_values)

    def set_checkpointing(self, enable: bool) -> None:
        checkpoint_timm(self.encoder, enable)


def check_settings(tower: Mapping[str, Any]) -> None:
    """Refuse what would make a library read files or the network: weights come with the checkpoint, as safetensors.

    Raises: ConfigError naming the setting.
    """
    import timm

    settings = dict(tower["settings"])
    vision = dict(settings.get("vision_cfg", {}))
    for key in (*settings, *vision):
        wanted = settings.get(key, vision.get(key))
        if key in ("checkpoint_path", "cache_dir", "pretrained") or (key.endswith("_pretrained") and wanted):
            raise ConfigError(f"vision.config.{key} is not taken: name weights with vision.weights")
    names = [tower["name"]] if tower["source"] == "timm" else [vision.get("timm_model_name")]
    for name in filter(None, names):
        if not timm.is_model(name):
            raise ConfigError(f"vision: {name!r} is no model of timm {timm.__version__}")


def checkpoint_timm(encoder: Any, enable: bool) -> None:
    """Gradient checkpointing of a timm model; one that has none keeps its activations, and says so."""
    try:
        encoder.set_grad_checkpointing(enable)
    except (AssertionError, AttributeError, TypeError):
        if enable:
            logging.getLogger(__name__).warning(
                "%s of timm has no gradient checkpointing: its activations are kept", type(encoder).__name__
            )


def prune_timm(encoder: Any, feature_layer: int | None) -> None:
    """Cut off what comes after the wanted features. Raises ConfigError for a layer that isn't there."""
    # What only `forward_head` uses; EfficientNet's conv_head, which a norm bn2 follows, belongs to the features.
    unused = ["head", "fc_norm", "norm_head", "pre_logits", *([] if hasattr(encoder, "bn2") else ["conv_head"])]
    for name in unused:
        if isinstance(getattr(encoder, name, None), nn.Module):
            setattr(encoder, name, nn.Identity())
    if getattr(encoder, "attn_pool", None) is not None:
        encoder.attn_pool = None
    if feature_layer is None:
        return
    if not hasattr(encoder, "prune_intermediate_layers"):
        raise ConfigError("vision.feature_layer: this timm model has only its last features; leave feature_layer out")
    blocks = len(encoder.feature_info)
    if -feature_layer > blocks:
        raise ConfigError(f"vision.feature_layer={feature_layer}: the tower has {blocks} layers")
    # By the library's own rule, with the norm that would follow taken off, `forward_features` then ends there.
    encoder.prune_intermediate_layers([blocks + feature_layer], prune_norm=True, prune_head=True)


def timm_tokens(encoder: Any, pixel_values: Tensor) -> tuple[Tensor, int]:
    """(tokens, how many of them stand before the patches) of `forward_features`, whatever its layout."""
    features = encoder.forward_features(pixel_values)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        shape = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ConfigError(f"{type(encoder).__name__} gives {shape}: no tokens and no feature map")
    if features.ndim == 4:
        channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
        return (features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)), 0
    return features, int(getattr(encoder, "num_prefix_tokens", 0) or 0)


class OpenClipTower(nn.Module):
    """The image tower of an open_clip model: the tokens of its `output_tokens=True`, or those of an earlier block."""

    def __init__(self, tower: Mapping[str, Any]):
        super().__init__()
        from open_clip.model import _build_vision_tower

        check_settings(tower)
        visual = _build_vision_tower(**tower["settings"])
        layer = tower["feature_layer"]
        self.trunk = hasattr(visual, "trunk")
        if self.trunk:  # a timm model behind open_clip's head
            self.encoder = visual.trunk
            prune_timm(self.encoder, layer)
            return
        self.encoder = visual
        if hasattr(visual, "transformer"):
            self._prune_transformer(visual, layer)
        elif layer is not None:
            raise ConfigError("vision.feature_layer: this open_clip tower has only its last features; leave it out")
        else:
            visual.attnpool = nn.Identity()

    def _prune_transformer(self, visual: Any, layer: int | None) -> None:
        # Behind an attention pooling, as CoCa's, the norm is as wide as what it pools to.
        unnormed = layer is not None or visual.final_ln_after_pool or visual.attn_pool is not None
        visual.proj = visual.attn_pool = visual.attn_pool_contrastive = None
        blocks = len(visual.transformer.resblocks)
        if layer is not None:
            if -layer > blocks:
                raise ConfigError(f"vision.feature_layer={layer}: the tower has {blocks} layers")
            visual.transformer.resblocks = visual.transformer.resblocks[: blocks + layer + 1]
        if unnormed:
            visual.ln_post = nn.Identity()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, int]:
        if self.trunk:
            return timm_tokens(self.encoder, pixel_values)
        visual = self.encoder
        if hasattr(visual, "transformer"):
            return visual.ln_post(visual.transformer(visual._embeds(pixel_values))), 1
        features = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixel_values)))))
        return features.flatten(2).transpose(1, 2), 0

    def set_checkpointing(self, enable: bool) -> None:
        checkpoint_timm(self.encoder, enable)


class HFTower(nn.Module):
    """A vision model of transformers: `last_hidden_state`, or the output of an earlier layer without a final norm."""

    def __init__(self, tower: Mapping[str, Any], attn_implementation: str | None = None):
        super().__init__()
        from transformers import AutoModel
        from transformers.models.auto import CONFIG_MAPPING

        settings = dict(tower["settings"])
        config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
        self.layer = tower["feature_layer"]
        self.image_size = int(tower["image_size"])
        self.encoder = AutoModel.from_config(config, attn_implementation=attn_implementation)
        self._prune(config)
        parameters = self._forward_parameters()
        self.interpolates = (
            "interpolate_pos_encoding" in parameters and getattr(config, "image_size", None) != self.image_size
        )
        self.patchwise = "spatial_shapes" in parameters  # SigLIP 2's variable-resolution form takes patches

    def _forward_parameters(self) -> Sequence[str]:
        import inspect

        return tuple(inspect.signature(type(self.encoder).forward).parameters)

    def _prune(self, config: Any) -> None:
        inner = getattr(self.encoder, "vision_model", self.encoder)
        unused = ["head", "pooler"]
        if self.layer is not None or config.model_type == "clip_vision_model":  # CLIP norms its pooled token only
            unused += ["post_layernorm", "layernorm", "norm"]
        for name in unused:
            if isinstance(getattr(inner, name, None), nn.Module):
                setattr(inner, name, nn.Identity())
        if hasattr(inner, "use_head"):
            inner.use_head = False
        if getattr(getattr(inner, "embeddings", None), "mask_token", None) is not None:  # of DINO's pretraining
            inner.embeddings.mask_token = None
        if self.layer is None or self.layer == -1:
            return
        layers = find_layers(inner)
        if -self.layer > len(layers):
            raise ConfigError(f"vision.feature_layer={self.layer}: the tower has {len(layers)} layers")
        del layers[len(layers) + self.layer + 1 :]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, int]:
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if self.patchwise:
            inputs = self._as_patches(pixel_values)
        if self.interpolates:
            inputs["interpolate_pos_encoding"] = True
        # What would follow the wanted layer is cut off or the identity, so the last state is the layer's output.
        features = self.encoder(**inputs).last_hidden_state
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2), 0
        if features.ndim != 3:
            raise ConfigError(f"{type(self.encoder).__name__} gives {tuple(features.shape)}: no tokens, no feature map")
        patch = getattr(self.encoder.config, "patch_size", None)
        if not isinstance(patch, int):
            return features, 0
        return features, features.shape[1] - (pixel_values.shape[-1] // patch) ** 2

    def _as_patches(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Views → (views, patches, patch² · 3), a patch's pixels row by row with their channels together."""
        patch, (views, channels, height, width) = self.encoder.config.patch_size, pixel_values.shape
        rows, columns = height // patch, width // patch
        cut = pixel_values.view(views, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": cut.reshape(views, rows * columns, patch * patch * channels),
            "pixel_attention_mask": torch.ones(views, rows * columns, dtype=torch.long, device=pixel_values.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * views, device=pixel_values.device),
        }

    def set_checkpointing(self, enable: bool) -> None:
        """Nothing: transformers' own method reaches this model's layers."""


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a vision transformer's blocks: the longest one. Raises ConfigError where there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError("vision.feature_layer: this tower has no list of layers; leave feature_layer out")
    return max(lists, key=len)


TOWERS: dict[str, Callable[..., nn.Module]] = {"timm": TimmTower, "open_clip": OpenClipTower, "hf": HFTower}
"""Source → tower."""


class VisionTower(nn.Module):
    """The towers of a configuration side by side, their patches' channels joined (as in Prismatic, arXiv 2402.07865).

    Args:
        config: MMReasonVisionConfig.

    Library encoders are built on a real device even where a checkpoint is loaded through `meta`: some compute buffers
    that no checkpoint holds (relative positions, rotary tables), and those are kept and put back.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.selects = [tower["select"] for tower in config.towers]
        self.tokens = config.prefix + config.grid[0] * config.grid[1]
        self.towers = nn.ModuleList()
        self._buffers_of_libraries: dict[str, Tensor] = {}
        for index, tower in enumerate(config.towers):
            if tower["source"] == "hf":
                self.towers.append(HFTower(tower, config._attn_implementation))
                continue
            with torch.device("cpu"):
                built = TOWERS[tower["source"]](tower)
            self.towers.append(built)
            for module in built.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # the library has done it
            for name, buffer in _unsaved_buffers(built):
                self._buffers_of_libraries[f"towers.{index}.{name}"] = buffer.detach().clone()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(views, 3 · towers, H, W) → (views, tokens, width)."""
        parts = []
        for select, tower, pixels in zip(self.selects, self.towers, pixel_values.split(3, dim=1), strict=True):
            tokens, prefix = tower(pixels)
            parts.append(tokens[:, prefix:] if select == "patch" else tokens)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def train(self, mode: bool = True) -> VisionTower:
        """A frozen tower stays as it is, without dropout. Batch norms always keep their statistics: those of a few
        pictures would be others at each step, and others again in the engine that samples.
        """
        learns = [any(param.requires_grad for param in tower.parameters()) for tower in self.towers]
        super().train(mode and any(learns))
        for tower, learning in zip(self.towers, learns, strict=True):
            tower.train(mode and learning)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def restore_buffers(self) -> None:
        """Give buffers that no checkpoint holds their values again; transformers empties them while it loads."""
        current = dict(self.named_buffers())
        for name, value in self._buffers_of_libraries.items():
            module, _, leaf = name.rpartition(".")
            device = current[name].device if name in current else value.device
            self.get_submodule(module)._buffers[leaf] = value.to(device)

    def set_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass, where the library can."""
        for tower in self.towers:
            cast(Any, tower).set_checkpointing(enable)


def _unsaved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{prefix}.{name}" if prefix else name, buffer)
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    ]
