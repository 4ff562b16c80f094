"""What a user says about vision towers → what a configuration holds, and the encoders with their weights.

    {source: timm, name: vit_small_patch14_reg4_dinov2.lvd142m, image_size: 224, feature_layer: -2}
    {source: open_clip, name: ViT-B-16-SigLIP, weights: webli}
    {source: hf, name: google/siglip2-base-patch16-224}
    {towers: [{source: timm, …}, {source: hf, …}], max_tiles: 4, resize: pad}

Keys of a tower: source; name (timm's, open_clip's, or for hf a hub id, a folder or a model type such as
siglip_vision_model); weights (see `TOWER_KEYS`); image_size; feature_layer; select; config (settings of the library).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmreason._functions import did_you_mean
from mmreason.models.configuration import MMReasonVisionConfig
from mmreason.models.vision import TOWERS, check_settings
from mmreason.types import ConfigError

TOWER_KEYS: dict[str, str] = {
    "source": "timm, open_clip or hf",
    "name": "the library's name of the model; for hf a hub id, a folder, or a model type with `config`",
    "weights": "pretrained (the hub's; the default), random, a .safetensors file or a folder with model.safetensors; "
    "for open_clip also a tag of its pretrained weights; in code also a mapping of names to tensors",
    "image_size": "side of a view in pixels; the model's own where it is left out",
    "feature_layer": "-1: the last block's output without the final norm, -2: the block before …; left out: the "
    "model's own final features",
    "select": "patch (the grid only) or all (class and register tokens too)",
    "config": "settings of the library's model, e.g. {depth: 2}",
}
VISION_KEYS: dict[str, str] = {
    "towers": "a list of towers whose features are joined",
    "max_tiles": "cut a picture into up to that many tiles, by its aspect ratio, beside a thumbnail",
    "resize": "stretch, pad or crop",
}
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
_HF_PREPROCESSING = {
    "clip_vision_model": (OPENAI_MEAN, OPENAI_STD, _FILTERS["bicubic"]),
    "siglip_vision_model": (HALF, HALF, _FILTERS["bicubic"]),
    "siglip2_vision_model": (HALF, HALF, _FILTERS["bilinear"]),
    "dinov3_vit": (IMAGENET_MEAN, IMAGENET_STD, _FILTERS["bilinear"]),
}
"""Model type → (mean, std, filter) of its family's image processor; ImageNet's and bicubic where it isn't listed."""


@dataclass
class Tower:
    """A tower that is ready to be joined: its entry in the configuration, and the encoder with its weights."""

    entry: dict[str, Any]
    module: nn.Module
    resample: int = 3


def resolve_vision(
    vision: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> tuple[MMReasonVisionConfig, list[Tower]]:
    """(configuration, towers with their weights) of a `vision` setting: a tower's keys, a list of towers, or `towers`.

    Raises:
        ConfigError: an unknown key, source or model, weights that are not there or don't fit, towers whose grids
            differ, a tower without spatial tokens.
    """
    if not isinstance(vision, Mapping):
        vision = {"towers": list(vision)}
    common = {key: vision[key] for key in VISION_KEYS if key in vision and key != "towers"}
    if "towers" in vision:
        _check_keys(vision, VISION_KEYS, "vision")
        given = list(vision["towers"])
    else:
        _check_keys(vision, TOWER_KEYS | VISION_KEYS, "vision")
        given = [{key: value for key, value in vision.items() if key not in common}]
    if not given:
        raise ConfigError("vision.towers is empty: name at least one tower")
    if common.get("resize", "stretch") not in ("stretch", "pad", "crop"):
        raise ConfigError(f"vision.resize={common['resize']!r} must be stretch, pad or crop")
    if not _is_count(common.get("max_tiles", 1)):
        raise ConfigError(f"vision.max_tiles={common['max_tiles']!r} must be a whole number, at least 1")
    towers = [resolve_tower(tower) for tower in given]
    _check_fusion(towers)
    config = MMReasonVisionConfig(towers=[tower.entry for tower in towers], resample=towers[0].resample, **common)
    return config, towers


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _check_keys(given: Mapping[str, Any], known: Mapping[str, str], what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what}.{key} is no setting; there are {', '.join(known)}.{did_you_mean(key, known)}")


def _check_fusion(towers: Sequence[Tower]) -> None:
    shapes = [(t.entry["image_size"], tuple(t.entry["grid"]), t.entry["prefix"]) for t in towers]
    if len(set(shapes)) > 1:
        told = "; ".join(
            f"{t.entry['name']} takes {size} px and gives {grid[0]} x {grid[1]} patches, {prefix} tokens beside them"
            for t, (size, grid, prefix) in zip(towers, shapes, strict=True)
        )
        raise ConfigError(f"vision.towers can't be joined patch by patch: {told}. Set image_size and select alike")


def resolve_tower(given: Mapping[str, Any]) -> Tower:
    """One tower. Raises as `resolve_vision`."""
    _check_keys(given, TOWER_KEYS, "vision")
    source, name = given.get("source"), given.get("name")
    if source not in TOWERS:
        raise ConfigError(f"vision.source={source!r}; known: {', '.join(TOWERS)}.{did_you_mean(str(source), TOWERS)}")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"vision.name is missing: {TOWER_KEYS['name']}")
    size = given.get("image_size")
    if size is not None and not _is_count(size):
        raise ConfigError(f"vision.image_size={size!r} must be a whole number of pixels")
    layer, select = given.get("feature_layer"), given.get("select", "patch")
    if select not in ("patch", "all"):
        raise ConfigError(f"vision.select={select!r} must be patch or all")
    if layer is not None and (not isinstance(layer, int) or layer >= 0):
        raise ConfigError(f"vision.feature_layer={layer!r}: {TOWER_KEYS['feature_layer']}")
    entry = {"source": source, "name": name, "feature_layer": layer, "select": select, "settings": {}}
    tower = _RESOLVERS[source](entry, given)
    _measure(tower)
    return tower


def _measure(tower: Tower) -> None:
    """Width, grid and prefix, read off the tower's own output for a grey view."""
    entry, size = tower.entry, tower.entry["image_size"]
    tower.module.eval()
    dtype = next(tower.module.parameters()).dtype
    try:
        with torch.no_grad():
            tokens, prefix = tower.module(torch.zeros(1, 3, size, size, dtype=dtype))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"vision: {entry['name']} can't take views of {size} px: {_first_line(error)}") from error
    count = tokens.shape[1] - prefix
    side = round(count**0.5)
    if count < 1 or prefix < 0 or side * side != count:
        raise ConfigError(
            f"vision: {entry['name']} gives {tokens.shape[1]} tokens, which are no square grid of patches "
            f"({prefix} beside it). A tower needs spatial tokens or a feature map"
        )
    entry["width"], entry["grid"] = int(tokens.shape[2]), [side, side]
    entry["prefix"] = int(prefix) if entry["select"] == "all" else 0


def _statistics(entry: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> None:
    entry["mean"], entry["std"] = [float(m) for m in mean], [float(s) for s in std]


# --------------------------------------------------------------------------------------------------------------------
# timm


def _timm(entry: dict[str, Any], given: Mapping[str, Any]) -> Tower:
    import timm

    name, weights, settings = entry["name"], given.get("weights", "pretrained"), dict(given.get("config") or {})
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"vision.name={name!r} is no model of timm {timm.__version__}.{hint}")
    check_settings({"source": "timm", "name": name, "settings": settings})
    pretrained = weights == "pretrained"
    if given.get("image_size") is not None:
        settings["img_size"] = given["image_size"]
    try:
        model = _create_timm(name, settings, pretrained)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise ConfigError(f"vision.config: {name}: {_first_line(error)}") from error
        raise _no_weights(entry, error) from error
    data = timm.data.resolve_model_data_config(model)
    entry |= {"settings": settings, "image_size": int(given.get("image_size") or data["input_size"][-1])}
    _statistics(entry, data["mean"], data["std"])
    module = TOWERS["timm"](entry)
    state = model.state_dict() if weights in ("pretrained", "random") else _read_weights(weights)
    heads = model.pretrained_cfg.get("classifier") or ()
    _fill(module.encoder, state, {*model.state_dict()}, (heads,) if isinstance(heads, str) else tuple(heads), entry)
    return Tower(entry, module, _FILTERS.get(data["interpolation"], 3))


def _create_timm(name: str, settings: dict[str, Any], pretrained: bool) -> Any:
    """The library's model; `img_size` is taken out of `settings` for a model that takes any size as it is."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **settings)
    except TypeError as error:
        if "img_size" in settings and "img_size" in str(error):
            del settings["img_size"]
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **settings)
        raise ConfigError(f"vision.config: {name}: {_first_line(error)}") from error


# --------------------------------------------------------------------------------------------------------------------
# open_clip


def _open_clip(entry: dict[str, Any], given: Mapping[str, Any]) -> Tower:
    import open_clip
    from open_clip.model import CLIPVisionCfg

    name, weights = entry["name"], given.get("weights", "pretrained")
    known = open_clip.get_model_config(name)
    if known is None:
        hint = did_you_mean(name, open_clip.list_models())
        raise ConfigError(f"vision.name={name!r} is no model of open_clip {open_clip.__version__}.{hint}")
    vision = known["vision_cfg"] | dict(given.get("config") or {})
    if given.get("image_size") is not None:
        vision["image_size"] = given["image_size"]
    try:
        vision["image_size"] = CLIPVisionCfg(**vision).image_size
    except TypeError as error:
        raise ConfigError(f"vision.config: {name}: {_first_line(error)}") from error
    vision["timm_model_pretrained"] = False
    settings = {"embed_dim": known["embed_dim"], "vision_cfg": vision, "quick_gelu": known.get("quick_gelu", False)}
    entry |= {"settings": settings, "image_size": int(vision["image_size"])}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights == "pretrained":
        raise ConfigError(f"vision.weights: name one of open_clip's weights of {name}: {', '.join(tags) or 'none'}")
    from_tag = weights in tags
    preprocess = open_clip.get_pretrained_cfg(name, weights) if from_tag else {}
    _statistics(entry, preprocess.get("mean") or OPENAI_MEAN, preprocess.get("std") or OPENAI_STD)
    if from_tag:
        settings["quick_gelu"] = bool(preprocess.get("quick_gelu", settings["quick_gelu"]))
    module = TOWERS["open_clip"](entry)
    if from_tag:
        try:
            whole = open_clip.create_model(name, pretrained=weights, force_image_size=vision["image_size"])
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_weights(entry, error) from error
        _fill_open_clip(module, whole.visual.state_dict(), entry)
    elif weights != "random":
        _fill_open_clip(module, _read_weights(weights), entry)
    return Tower(entry, module, _FILTERS.get(preprocess.get("interpolation", "bicubic"), 3))


def _fill_open_clip(module: Any, state: Mapping[str, Tensor], entry: Mapping[str, Any]) -> None:
    from open_clip.model import _build_vision_tower

    whole = set(_build_vision_tower(**entry["settings"]).state_dict())
    if any(key.startswith("visual.") for key in state):  # a whole CLIP model: its text side is not wanted
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    visual = {key.removeprefix("visual."): value for key, value in state.items()}
    if module.trunk:
        visual = {key.removeprefix("trunk."): value for key, value in visual.items()}
        whole = {key.removeprefix("trunk.") for key in whole}
    _fill(module.encoder, visual, whole, (), entry)


# --------------------------------------------------------------------------------------------------------------------
# transformers


def _hf(entry: dict[str, Any], given: Mapping[str, Any]) -> Tower:
    from transformers.models.auto import CONFIG_MAPPING

    name, weights, extra = entry["name"], given.get("weights", "pretrained"), dict(given.get("config") or {})
    if name in CONFIG_MAPPING:
        config = _hf_config_of_type(name, extra)
        if weights == "pretrained":
            raise ConfigError(f"vision: {name} is a model type without weights; weights: random, a file or a folder")
    else:
        config = _hf_config(name, extra)
    settings = {"model_type": config.model_type} | config.to_diff_dict()
    for key in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        settings.pop(key, None)
    size = given.get("image_size") or getattr(config, "image_size", None) or 224
    entry |= {"settings": settings, "image_size": int(size)}
    mean, std, resample = _hf_preprocessing(name, config.model_type)
    _statistics(entry, mean, std)
    module: Any = TOWERS["hf"](entry)
    if weights == "pretrained":
        state = _hf_weights(name, config, entry)
        _fill(module.encoder, state, set(state), (), entry)
    elif weights != "random":
        _fill(module.encoder, _read_weights(weights), _hf_keys(config), (), entry)
    return Tower(entry, module, resample)


def _hf_config_of_type(model_type: str, extra: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    _check_extra(model_type, extra, config_class())
    try:
        return config_class(**extra)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"vision.config: {model_type}: {' '.join(str(error).split())}") from error


def _hf_config(name: str, extra: Mapping[str, Any]) -> Any:
    """The vision part of what is called `name`; that of a dual encoder such as CLIP is its `vision_config`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"vision.name={name!r} is neither a hub model, a folder nor a model type: {_first_line(error)}"
        ) from error
    config = getattr(config, "vision_config", config)
    _check_extra(name, extra, config)
    for key, value in extra.items():
        setattr(config, key, value)
    return config


def _check_extra(name: str, extra: Mapping[str, Any], config: Any) -> None:
    for key in extra:
        if not hasattr(config, key):
            raise ConfigError(f"vision.config: {name} has no {key}.{did_you_mean(key, config.to_dict())}")


def _hf_preprocessing(name: str, model_type: str) -> tuple[Sequence[float], Sequence[float], int]:
    """(mean, std, filter) of the model's own image processor; of its family where it comes without one."""
    from transformers import AutoImageProcessor
    from transformers.models.auto import CONFIG_MAPPING

    family = _HF_PREPROCESSING.get(model_type, (IMAGENET_MEAN, IMAGENET_STD, _FILTERS["bicubic"]))
    if name in CONFIG_MAPPING:
        return family
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        return processor.image_mean, processor.image_std, int(processor.resample)
    except (OSError, ValueError, AttributeError):
        return family


def _hf_weights(name: str, config: Any, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    from transformers import AutoModel

    try:
        model, told = AutoModel.from_pretrained(
            name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_weights(entry, error) from error
    missing = told["missing_keys"]
    return {key: value for key, value in model.state_dict().items() if key not in missing}


def _hf_keys(config: Any) -> set[str]:
    from transformers import AutoModel

    with torch.device("meta"):
        return set(AutoModel.from_config(config).state_dict())


# --------------------------------------------------------------------------------------------------------------------
# weights

_RESOLVERS = {"timm": _timm, "open_clip": _open_clip, "hf": _hf}


def _read_weights(place: str | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, or of the one in a folder. No other format: some can run code."""
    if isinstance(place, Mapping):
        return place
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(place).expanduser()
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise ConfigError(f"vision.weights={place!r} is no .safetensors file, no folder with one, no known name")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"vision.weights: {file} can't be read: {_first_line(error)}") from error


def _fill(
    encoder: Any, state: Mapping[str, Tensor], known: set[str], heads: tuple[str, ...], entry: Mapping[str, Any]
) -> None:
    """Load weights. `known`: all names that the whole library model has; `heads`: modules that were left out of it.

    Raises:
        ConfigError: weights that the tower needs are missing, some are of another shape, or belong to nothing.
    """
    wanted = encoder.state_dict()
    missing = sorted(set(wanted) - set(state))
    extra = sorted(k for k in set(state) - known if not k.startswith(tuple(f"{head}." for head in heads) or ("\0",)))
    if missing or extra:
        told = [f"missing {_some(missing)}"] if missing else []
        told += [f"of no part of it {_some(extra)}"] if extra else []
        raise ConfigError(f"vision: the weights don't fit {entry['source']} {entry['name']}: {'; '.join(told)}")
    bent = sorted(key for key in wanted if wanted[key].shape != state[key].shape)
    if bent:
        key = bent[0]
        raise ConfigError(
            f"vision: the weights don't fit {entry['source']} {entry['name']}: {key} is {tuple(state[key].shape)}, "
            f"needed is {tuple(wanted[key].shape)} ({len(bent)} such)"
        )
    encoder.load_state_dict({key: state[key] for key in wanted})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _no_weights(entry: Mapping[str, Any], error: Exception) -> ConfigError:
    return ConfigError(
        f"vision: the weights of {entry['source']} {entry['name']} can't be had: {_first_line(error)}. Name a "
        ".safetensors file or a folder with vision.weights, or use random ones"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
