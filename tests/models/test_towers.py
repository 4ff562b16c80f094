"""Vision towers against the forward of the libraries that they come from, weights and all, also after a reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmreason.models.compose import from_parts
from mmreason.models.modeling import MMReasonForConditionalGeneration
from mmreason.models.vision import VisionTower
from mmreason.models.vision_parts import resolve_vision
from tests.models.parts import save_decoder
from tests.tiny_vlms import randomise

BOUND = 1e-5

# A library's own tower, and its features as a function of pixels: (views, patches, width).
Reference = tuple[nn.Module, Callable[[Tensor], Tensor]]


def timm_reference(name: str, settings: Mapping[str, Any], layer: int | None, prefix: int) -> Reference:
    import timm

    model = timm.create_model(name, num_classes=7, **settings)

    def features(pixels: Tensor) -> Tensor:
        if layer is not None:
            outputs = model.forward_intermediates(pixels, indices=-layer, norm=False, intermediates_only=True)
            return outputs[0].flatten(2).transpose(1, 2)
        output = model.forward_features(pixels)
        if output.ndim == 3:
            return output[:, prefix:]
        return output.flatten(1, 2) if name.startswith("swin") else output.flatten(2).transpose(1, 2)

    return model, features


def open_clip_reference(name: str, config: Mapping[str, Any], size: int, layer: int | None) -> Reference:
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    known = open_clip.get_model_config(name)
    vision = known["vision_cfg"] | dict(config) | {"image_size": size, "timm_model_pretrained": False}
    model = _build_vision_tower(
        known["embed_dim"], CLIPVisionCfg(**vision | {"output_tokens": True}), known.get("quick_gelu", False)
    )

    def features(pixels: Tensor) -> Tensor:
        if hasattr(model, "trunk"):
            return model.trunk.forward_features(pixels)[:, 1:]
        if hasattr(model, "layer4"):
            kept: list[Tensor] = []
            with_hook = model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
            model(pixels)
            with_hook.remove()
            return kept[0].flatten(2).transpose(1, 2)
        if layer is not None or model.attn_pool is not None:
            outputs = model.forward_intermediates(
                pixels, indices=-(layer or -1), normalize_intermediates=False, intermediates_only=True, output_fmt="NLC"
            )
            return outputs["image_intermediates"][0]
        return model(pixels)[1]

    return model, features


def hf_reference(model_type: str, config: Mapping[str, Any], layer: int | None, prefix: int) -> Reference:
    from transformers import AutoModel
    from transformers.models.auto import CONFIG_MAPPING

    model = AutoModel.from_config(CONFIG_MAPPING[model_type](**config))

    def features(pixels: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if model_type == "siglip2_vision_model":
            side = pixels.shape[-1] // config["patch_size"]
            patches = siglip2_patches(pixels, config["patch_size"]).to(pixels.dtype)
            shapes = torch.tensor([[side, side]] * len(pixels))
            ones = torch.ones(patches.shape[:2], dtype=torch.long)
            inputs = {"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": ones}
        elif pixels.shape[-1] != config["image_size"]:
            inputs["interpolate_pos_encoding"] = True
        output = model(**inputs, output_hidden_states=layer is not None)
        return (output.last_hidden_state if layer is None else output.hidden_states[layer])[:, prefix:]

    return model, features


def siglip2_patches(pixels: Tensor, patch: int) -> Tensor:
    """As the library's own image processor cuts them."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    return torch.stack([torch.as_tensor(convert_image_to_patches(image.float().numpy(), patch)) for image in pixels])


SMALL = {"embed_dim": 64, "depth": 3, "num_heads": 2}
HF_SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CLIP = HF_SMALL | {"intermediate_size": 96}
SIGLIP2 = {key: value for key, value in CLIP.items() if key != "image_size"} | {"num_patches": 16}
OPEN_CLIP = {"width": 64, "layers": 3, "head_width": 32, "patch_size": 8}


def case(given: dict[str, Any], reference: Callable[..., Reference], *args: Any) -> tuple[Any, ...]:
    return given, lambda: reference(*args)


def of_timm(name: str, size: int, config: Mapping[str, Any], *, sized: bool, prefix: int = 0, layer: Any = None) -> Any:
    """sized: the model is built for a size of picture."""
    given = {"source": "timm", "name": name, "image_size": size, "feature_layer": layer, "config": dict(config)}
    return case(given, timm_reference, name, {**config, **({"img_size": size} if sized else {})}, layer, prefix)


def of_open_clip(name: str, size: int, config: Mapping[str, Any], layer: int | None = None) -> Any:
    given = {"source": "open_clip", "name": name, "image_size": size, "feature_layer": layer, "config": dict(config)}
    return case(given, open_clip_reference, name, config, size, layer)


def of_hf(name: str, config: Mapping[str, Any], *, size: int = 32, prefix: int = 0, layer: int | None = None) -> Any:
    given = {"source": "hf", "name": name, "image_size": size, "feature_layer": layer, "config": dict(config)}
    return case(given, hf_reference, name, config, layer, prefix)


CASES: dict[str, tuple[dict[str, Any], Callable[[], Reference]]] = {
    "timm vit": of_timm("vit_tiny_patch16_224", 64, SMALL, sized=True, prefix=1),
    "timm vit, second last": of_timm("vit_tiny_patch16_224", 64, SMALL, sized=True, prefix=1, layer=-2),
    "timm vit, last without norm": of_timm("vit_tiny_patch16_224", 64, SMALL, sized=True, prefix=1, layer=-1),
    "timm siglip, map head": of_timm("vit_base_patch16_siglip_224", 64, SMALL, sized=True),
    "timm siglip, second last": of_timm("vit_base_patch16_siglip_224", 64, SMALL, sized=True, layer=-2),
    "timm dinov2, registers": of_timm("vit_small_patch14_reg4_dinov2", 56, SMALL, sized=True, prefix=5),
    "timm eva02, rope": of_timm("eva02_tiny_patch14_224", 56, SMALL, sized=True, prefix=1),
    "timm eva02, second last": of_timm("eva02_tiny_patch14_224", 56, SMALL, sized=True, prefix=1, layer=-2),
    "timm swin, NHWC": of_timm(
        "swin_tiny_patch4_window7_224", 224, {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        sized=True,
    ),
    "timm convnext": of_timm("convnext_atto", 64, {"dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1)}, sized=False),
    "timm resnet": of_timm("resnet18", 64, {"channels": (16, 16, 32, 32)}, sized=False),
    "timm fasternet, head convolution": of_timm("fasternet_t0", 64, {}, sized=False),
    "timm efficientnet": of_timm("test_efficientnet", 64, {}, sized=False),
    "open_clip vit": of_open_clip("ViT-B-16", 32, OPEN_CLIP),
    "open_clip vit, second last": of_open_clip("ViT-B-16", 32, OPEN_CLIP, -2),
    "open_clip vit, quick gelu": of_open_clip("ViT-B-16-quickgelu", 32, OPEN_CLIP),
    "open_clip coca, attention pooling": of_open_clip("coca_ViT-B-32", 32, OPEN_CLIP),
    "open_clip resnet": of_open_clip("RN50", 64, {"width": 16, "layers": [1, 1, 1, 1]}),
    "open_clip siglip, timm's trunk": of_open_clip("ViT-B-32-SigLIP2-256", 160, {"timm_model_name": "test_vit"}),
    "hf clip": of_hf("clip_vision_model", CLIP, prefix=1),
    "hf clip, second last": of_hf("clip_vision_model", CLIP, prefix=1, layer=-2),
    "hf siglip": of_hf("siglip_vision_model", CLIP),
    "hf siglip, last without norm": of_hf("siglip_vision_model", CLIP, layer=-1),
    "hf siglip, larger pictures": of_hf("siglip_vision_model", CLIP, size=48),
    "hf siglip2": of_hf("siglip2_vision_model", SIGLIP2),
    "hf dinov2": of_hf("dinov2", HF_SMALL, prefix=1),
    "hf dinov2, second last": of_hf("dinov2", HF_SMALL, prefix=1, layer=-2),
    "hf dinov2, registers": of_hf("dinov2_with_registers", HF_SMALL, prefix=5),
    "hf dinov3": of_hf("dinov3_vit", CLIP | {"num_register_tokens": 4}, prefix=5),
    "hf dinov3, second last": of_hf("dinov3_vit", CLIP | {"num_register_tokens": 4}, prefix=5, layer=-2),
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize("name", CASES)
def test_tower_equals_its_library(name: str, decoder: str, tmp_path: Path) -> None:
    """With all its weights, in float32 and bfloat16, before and after a reload; and every weight of it learns."""
    given, make = CASES[name]
    torch.manual_seed(0)
    reference, features = make()
    randomise(reference)
    reference.eval()
    weights = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in reference.state_dict().items()}, weights)
    model, _ = from_parts(given | {"weights": str(weights)}, {"kind": "linear"}, decoder)
    pixels = torch.randn(2, 3, given["image_size"], given["image_size"])
    with torch.no_grad():
        wanted = features(pixels)
        assert wanted.shape[1] == model.config.vision_config.grid[0] ** 2
        scale = float(wanted.abs().max().clamp(min=1))
        torch.testing.assert_close(model.encode(pixels), wanted, rtol=0, atol=BOUND * scale)
        model.save_pretrained(tmp_path / "saved")
        loaded = MMReasonForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=torch.float32)
        torch.testing.assert_close(loaded.encode(pixels), wanted, rtol=0, atol=BOUND * scale)
        half = MMReasonForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
        reference.to(torch.bfloat16)
        torch.testing.assert_close(
            half.encode(pixels), features(pixels.bfloat16()), rtol=0, atol=0.02 * scale, check_dtype=False
        )
    loaded.train()
    loaded.encode(pixels).square().mean().backward()
    unused = [key for key, weight in loaded.vision_tower.named_parameters() if weight.grad is None]
    assert not unused


def test_a_timm_model_without_gradient_checkpointing(caplog: pytest.LogCaptureFixture) -> None:
    """It keeps its activations and says so, where a run asks for checkpointing as it does by default."""
    tower = {"source": "timm", "name": "pit_ti_224", "weights": "random"}
    vision = VisionTower(resolve_vision(tower)[0])
    vision.set_checkpointing(True)
    assert "no gradient checkpointing" in caplog.text


def test_each_frozen_tower_stays_in_evaluation_mode() -> None:
    tower = {"source": "timm", "name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
    vision = VisionTower(resolve_vision([tower | {"config": {"depth": 1}}] * 2)[0])
    vision.towers[0].requires_grad_(False)
    vision.train()
    assert vision.training and not vision.towers[0].training and vision.towers[1].training
    vision.requires_grad_(False)
    assert not vision.train().training and not any(module.training for module in vision.modules())
