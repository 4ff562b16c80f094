"""What a user says about towers: weights from everywhere, pictures prepared as the libraries do, and named errors."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmreason.models.configuration import MMReasonVisionConfig
from mmreason.models.processing import MMReasonImageProcessor
from mmreason.models.vision_parts import resolve_vision
from mmreason.types import ConfigError
from tests.models.parts import HF_CLIP, HF_SIGLIP, OPEN_CLIP_VIT, TIMM_VIT
from tests.pictures import picture
from tests.tiny_vlms import randomise


def prepared(config: MMReasonVisionConfig, image: Image.Image) -> Tensor:
    """What the tower of a configuration sees of a picture, (3, H, W)."""
    tower = config.towers[0]
    processor = MMReasonImageProcessor(config.image_size, tower["mean"], tower["std"], config.resample)
    return processor(image)["pixel_values"][0]


# ---- pictures, square ones of another size: where the libraries cut pictures that aren't, we stretch or pad by default

TIMM_MODELS = ["vit_base_patch16_siglip_224", "vit_small_patch14_reg4_dinov2", "convnext_atto", "resnet18"]


@pytest.mark.parametrize("name", TIMM_MODELS)
@pytest.mark.parametrize("side", [24, 150])
def test_timm_prepares_pictures_so(name: str, side: int) -> None:
    """Without the border that its evaluation transform cuts off (crop_pct)."""
    import timm

    given = {"source": "timm", "name": name, "weights": "random", "image_size": 56 if "dinov2" in name else 64}
    small: dict[str, Any] = {"depth": 1, "embed_dim": 64, "num_heads": 1} if name.startswith("vit") else {}
    config, _ = resolve_vision(given | {"config": small})
    size = (3, config.image_size, config.image_size)
    data = timm.data.resolve_data_config({"input_size": size}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**data | {"crop_pct": 1.0})
    image = picture(side, side)
    torch.testing.assert_close(prepared(config, image), transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "tag"), [("ViT-B-32", "openai"), ("ViT-B-16-SigLIP", "webli"), ("ViT-B-32", "laion2b_s34b_b79k")]
)
def test_open_clip_prepares_pictures_so(name: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the settings of each tag of weights, whose place tiny random ones take here: the real ones are on the hub."""
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    small = {"timm_model_name": "test_vit", "image_size": 160} if "SigLIP" in name else OPEN_CLIP_VIT["config"]
    known = open_clip.get_model_config(name)
    visual = _build_vision_tower(known["embed_dim"], CLIPVisionCfg(**known["vision_cfg"] | dict(small)))
    whole = SimpleNamespace(visual=visual)
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: whole)
    config, towers = resolve_vision({"source": "open_clip", "name": name, "weights": tag, "config": small})
    assert config.towers[0]["settings"]["quick_gelu"] == (tag == "openai")
    loaded = towers[0].module.state_dict()
    assert all(
        torch.equal(value, loaded["encoder." + key.removeprefix("trunk.")])
        for key, value in visual.state_dict().items()
        if "encoder." + key.removeprefix("trunk.") in loaded
    )
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**{
            key: value for key, value in open_clip.get_pretrained_cfg(name, tag).items()
            if key in ("mean", "std", "interpolation", "resize_mode")
        } | {"size": config.image_size}),
        is_train=False,
    )  # fmt: skip
    image = picture(150, 150)
    torch.testing.assert_close(prepared(config, image), transform(image), rtol=0, atol=1e-6)


def hf_vision_model(kind: str) -> tuple[Any, Any]:
    """(model, image processor) as a checkpoint of that family has them."""
    import transformers as tf

    vision = dict(HF_CLIP["config"])
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 32,
        "vocab_size": 40,
    }
    size = {"height": 32, "width": 32}
    if kind == "clip":
        return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision)), tf.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=size
        )
    if kind == "siglip":
        return tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision)), tf.SiglipImageProcessorPil(
            size=size
        )
    if kind == "siglip2":
        vision = {key: value for key, value in vision.items() if key != "image_size"} | {"num_patches": 16}
        images = tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
        return tf.Siglip2Model(tf.Siglip2Config(text_config=text, vision_config=vision)), images
    if kind == "dinov2":
        vision.pop("intermediate_size")
        return tf.Dinov2Model(tf.Dinov2Config(**vision)), tf.BitImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size=size,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
    config = tf.DINOv3ViTConfig(**vision, num_register_tokens=4)
    return tf.DINOv3ViTModel(config), tf.DINOv3ViTImageProcessor(size=size, image_mean=[0.4] * 3)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dinov2", "dinov3"])
def test_hf_checkpoints(kind: str, tmp_path: Path) -> None:
    """A folder as the hub has it, dual encoders too: the vision part's own features and preprocessing."""
    torch.manual_seed(0)
    model, images = hf_vision_model(kind)
    randomise(model)
    model.eval().save_pretrained(tmp_path)
    images.save_pretrained(tmp_path)
    config, towers = resolve_vision({"source": "hf", "name": str(tmp_path), "image_size": 32})
    square = picture(75, 75)
    inputs = images(square, return_tensors="pt")
    pixels = prepared(config, square)
    if kind == "siglip2":
        patches = towers[0].module._as_patches(pixels[None])["pixel_values"]
        torch.testing.assert_close(patches, inputs["pixel_values"], rtol=0, atol=1e-6)
    else:
        # DINOv3's image processor resizes tensors, not PIL images: filtered bytes there may be rounded otherwise.
        bound = 0.05 if kind == "dinov3" else 1e-6
        torch.testing.assert_close(pixels, inputs["pixel_values"][0], rtol=0, atol=bound)
        inputs = {"pixel_values": pixels[None]}
    inner = getattr(model, "vision_model", model)
    with torch.no_grad():
        wanted = inner(**inputs).last_hidden_state
        tokens, prefix = towers[0].module.eval()(pixels[None])
    torch.testing.assert_close(tokens, wanted, rtol=0, atol=1e-5)
    assert prefix == {"clip": 1, "dinov2": 1, "dinov3": 5}.get(kind, 0)
    if kind == "dinov3":
        assert config.towers[0]["mean"] == [0.4] * 3


# ---- weights


def weights_of(given: dict[str, Any], folder: Path) -> Path:
    """A file of all that the library's model has: those of our tower, which is cut to what it needs."""
    _, towers = resolve_vision(given)
    file = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in towers[0].module.encoder.state_dict().items()}, file)
    return file


@pytest.mark.parametrize("given", [TIMM_VIT, OPEN_CLIP_VIT, HF_CLIP, HF_SIGLIP], ids=lambda given: given["name"])
def test_weights_from_a_file_or_a_folder(given: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    file = weights_of(given, tmp_path)
    for place in (str(file), str(tmp_path), load_file(file)):
        _, towers = resolve_vision(given | {"weights": place})
        loaded = towers[0].module.encoder.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in load_file(file).items())


def test_weights_of_a_whole_open_clip_model(tmp_path: Path) -> None:
    """The text side is left out; what the image side doesn't know is not."""
    state = load_file(weights_of(OPEN_CLIP_VIT, tmp_path))
    whole = {f"visual.{key}": value for key, value in state.items()} | {"token_embedding.weight": torch.zeros(2)}
    save_file(whole, tmp_path / "whole.safetensors")
    _, towers = resolve_vision(OPEN_CLIP_VIT | {"weights": str(tmp_path / "whole.safetensors")})
    assert all(torch.equal(towers[0].module.encoder.state_dict()[key], value) for key, value in state.items())
    save_file(whole | {"visual.odd": torch.zeros(1)}, tmp_path / "whole.safetensors")
    with pytest.raises(ConfigError, match="of no part of it odd"):
        resolve_vision(OPEN_CLIP_VIT | {"weights": str(tmp_path / "whole.safetensors")})


FIRST = {"timm": "patch_embed.proj.weight", "open_clip": "conv1.weight", "hf": "embeddings.patch_embedding.weight"}


@pytest.mark.parametrize("given", [TIMM_VIT, OPEN_CLIP_VIT, HF_CLIP], ids=lambda given: given["source"])
def test_weights_that_do_not_fit(given: dict[str, Any], tmp_path: Path) -> None:
    file = weights_of(given, tmp_path)
    state, first = load_file(file), FIRST[given["source"]]
    damaged: dict[str, tuple[dict[str, Tensor], str]] = {
        "missing": ({key: value for key, value in state.items() if key != first}, f"missing {re.escape(first)}"),
        "extra": (state | {"odd.weight": torch.zeros(1)}, "of no part of it odd.weight"),
        "misshapen": (
            state | {first: torch.zeros(3, 3)},
            rf"{re.escape(first)} is \(3, 3\), needed is \(64, 3, 8, 8\)",
        ),
        "another's": ({"a": torch.zeros(1), "b": torch.zeros(1)}, "missing .* and [0-9]+ more; of no part of it a, b"),
    }
    for tensors, told in damaged.values():
        save_file(tensors, file)
        with pytest.raises(ConfigError, match=f"don't fit {given['source']} {given['name']}: .*{told}"):
            resolve_vision(given | {"weights": str(file)})
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ConfigError, match=f"{file} can't be read"):
        resolve_vision(given | {"weights": str(file)})


def test_pickles_are_refused(tmp_path: Path) -> None:
    """Without reading a byte of them: one that would run code is one."""
    for name in ("pytorch_model.bin", "weights.pt", "weights.npz"):
        place = tmp_path / name
        torch.save({"a": torch.zeros(1)}, place)
        for given in (TIMM_VIT, OPEN_CLIP_VIT, HF_CLIP):
            with pytest.raises(ConfigError, match=f"{name}' is no .safetensors file"):
                resolve_vision(given | {"weights": str(place)})
    with pytest.raises(ConfigError, match="no folder with one"):
        resolve_vision(TIMM_VIT | {"weights": str(tmp_path)})
    model, images = hf_vision_model("siglip")
    folder = tmp_path / "hub"
    images.save_pretrained(folder)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights of hf .* can't be had"):
        resolve_vision({"source": "hf", "name": str(folder)})


def test_hf_folder_without_weights_of_a_part(tmp_path: Path) -> None:
    model, _ = hf_vision_model("siglip")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {key: value for key, value in load_file(file).items() if "encoder.layers.1.mlp" not in key}
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="missing .*encoder.layers.1.mlp"):
        resolve_vision({"source": "hf", "name": str(tmp_path)})


# ---- named errors

OPEN_CLIP_RESNET = OPEN_CLIP_VIT | {"name": "RN50", "config": {"width": 16, "layers": [1, 1, 1, 1]}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"source": "tim", "name": "x"}, r"vision.source='tim'; known: timm, open_clip, hf.*Did you mean 'timm'\?"),
        ({"source": "timm"}, "vision.name is missing"),
        ({"source": "timm", "name": "vit_tiny_patch16_225"}, "no model of timm .*Did you mean 'vit_tiny_patch16_224'"),
        ({"source": "open_clip", "name": "ViT-B-33"}, r"is no model of open_clip .*Did you mean 'ViT-B-32"),
        ({"source": "hf", "name": "no-such/tower"}, "'no-such/tower' is neither a hub model, a folder nor"),
        ({"source": "hf", "name": "clip_vision_model"}, "is a model type without weights"),
        ({"source": "open_clip", "name": "ViT-B-32"}, "name one of open_clip's weights of ViT-B-32: openai, "),
        (TIMM_VIT | {"weight": "random"}, r"vision.weight is no setting; .*Did you mean 'weights'\?"),
        (TIMM_VIT | {"max_tile": 4}, r"vision.max_tile is no setting; .*Did you mean 'max_tiles'\?"),
        (TIMM_VIT | {"max_tiles": 0}, "vision.max_tiles=0 must be a whole number, at least 1"),
        (TIMM_VIT | {"max_tiles": True}, "vision.max_tiles=True must be a whole number, at least 1"),
        (TIMM_VIT | {"resize": "squash"}, "vision.resize='squash' must be stretch, pad or crop"),
        (TIMM_VIT | {"select": "cls"}, "vision.select='cls' must be patch or all"),
        (TIMM_VIT | {"weights": "nowhere.safetensors"}, "weights='nowhere.safetensors' is no .safetensors file"),
        (TIMM_VIT | {"image_size": "64"}, "vision.image_size='64' must be a whole number of pixels"),
        (TIMM_VIT | {"image_size": 0}, "vision.image_size=0 must be a whole number of pixels"),
        *[(given | {"feature_layer": 0}, "vision.feature_layer=0: -1: the last") for given in (TIMM_VIT, HF_CLIP)],
        *[
            (given | {"feature_layer": -4}, "vision.feature_layer=-4: the tower has 3 layers")
            for given in (TIMM_VIT, OPEN_CLIP_VIT, HF_CLIP)
        ],
        (TIMM_VIT | {"config": {"depht": 3}}, "vision.config: vit_tiny_patch16_224: .*depht"),
        (OPEN_CLIP_VIT | {"config": {"layerz": 3}}, "vision.config: ViT-B-16: .*layerz"),
        (HF_CLIP | {"config": {"layerz": 3}}, "vision.config: clip_vision_model has no layerz"),
        (HF_CLIP | {"config": {"hidden_sizes": 3}}, "has no hidden_sizes. Did you mean 'hidden_size'"),
        (HF_CLIP | {"config": {"hidden_size": 65}}, "vision.config: clip_vision_model: .*65.* not a multiple of"),
        ({"towers": []}, "vision.towers is empty"),
        ({"towers": [TIMM_VIT], "image_size": 32}, "vision.image_size is no setting"),
        ({"source": "timm", "name": "crossvit_tiny_240", "weights": "random"}, "no tokens and no feature map"),
        ({"source": "timm", "name": "pit_ti_distilled_224", "weights": "random"}, "no square grid of patches"),
        (HF_CLIP | {"name": "bert", "config": {"num_hidden_layers": 1}}, "vision: bert can't take views"),
        (OPEN_CLIP_RESNET | {"feature_layer": -2}, "this open_clip tower has only its last"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve_vision(given)


@pytest.mark.parametrize(
    ("towers", "told"),
    [
        ([TIMM_VIT, HF_SIGLIP | {"image_size": 48}], "takes 32 px and gives 4 x 4 .*takes 48 px and gives 6 x 6"),
        ([TIMM_VIT, HF_SIGLIP | {"config": {**HF_SIGLIP["config"], "patch_size": 16}}], "4 x 4 .* 2 x 2"),
        ([TIMM_VIT | {"select": "all"}, HF_SIGLIP], "1 tokens beside them.*0 tokens beside them"),
    ],
)
def test_towers_that_cannot_be_joined(towers: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ConfigError, match=f"can't be joined patch by patch: .*{told}.*Set image_size and select alike"):
        resolve_vision(towers)


def test_several_towers_see_one_picture_each_in_its_own_colours() -> None:
    other = HF_SIGLIP | {"select": "patch"}
    config, _ = resolve_vision({"towers": [HF_CLIP, other], "resize": "pad", "max_tiles": 3})
    assert config.num_channels == 6 and config.hidden_size == 128 and config.grid == (4, 4) and config.max_tiles == 3
    mean = [m for tower in config.towers for m in tower["mean"]]
    std = [s for tower in config.towers for s in tower["std"]]
    image = picture(32, 32)
    pixels = MMReasonImageProcessor(32, mean, std)(image)["pixel_values"][0]
    rgb = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255
    for channel in range(6):
        wanted = (rgb[channel % 3] - mean[channel]) / std[channel]
        torch.testing.assert_close(pixels[channel].double(), torch.from_numpy(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tower", "said"),
    [
        (
            {"source": "timm", "name": "resnet18", "config": {"checkpoint_path": "x.pth"}},
            "checkpoint_path is not taken",
        ),
        (
            {"source": "open_clip", "name": "ViT-B-16", "config": {"timm_model_name": "hf-hub:a/b"}},
            "is no model of timm",
        ),
    ],
)
def test_settings_that_would_read_files_or_the_network(tower: dict[str, Any], said: str) -> None:
    """Neither from a YAML nor from the configuration of somebody's checkpoint."""
    with pytest.raises(ConfigError, match=said):
        resolve_vision(tower | {"weights": "random"})


def test_a_tower_whose_patch_size_does_not_tell_its_grid() -> None:
    config = {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "image_size": 64,
        "patch_size": 4,
        "window_size": 4,
    }
    with pytest.raises(ConfigError, match="no square grid of patches"):
        resolve_vision({"source": "hf", "name": "swin", "weights": "random", "config": config})
