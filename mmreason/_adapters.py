"""The `adapter:` block of a YAML: kinds of adapters, what each of them takes, and what it can be used for.

Imports nothing of the training stack, so that a wrong block is refused before a library or a model is loaded. What the
settings do to a model is in mmreason.models.peft.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmreason._files import nearest_path
from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

PARTS = ("decoder", "projector", "vision_tower")
"""Parts of a model that adapters go on."""
ALL_PARTS = "all"
"""Every part that a model has."""
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Setting:
    """A number, word or switch of a kind: PEFT's name for it, its default, and its least value (of a number)."""

    peft: str
    default: Any
    least: float | None = None
    below: float | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    Attributes:
        peft_type: its name in PEFT and in adapter_config.json. source: the paper.
        settings: our key → what it is. fixed: PEFT's fields that make this kind of its type.
        placed: it goes on modules; else it is virtual tokens before the text.
        merges: its effect can be put into the base's weights. serves: vLLM takes it per request as it is.
        uses_cache: its tokens lie in the key/value cache, which gradient checkpointing drops.
        has_encoder: a network makes its tokens; only the tokens are kept in adapter_model.safetensors.
    """

    peft_type: str
    source: str
    settings: Mapping[str, Setting]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    placed: bool = True
    merges: bool = True
    serves: bool = False
    uses_cache: bool = False
    has_encoder: bool = False


_RANK = {"r": Setting("r", 16, least=1), "alpha": Setting("lora_alpha", 32, least=1e-9)}
_DROPOUT = {"dropout": Setting("lora_dropout", 0.0, least=0.0, below=1.0)}
_STABLE = {"rslora": Setting("use_rslora", False)}
_LORA = {**_RANK, **_DROPOUT, **_STABLE}
_TOKENS = {"tokens": Setting("num_virtual_tokens", 20, least=1)}

KINDS: dict[str, Kind] = {
    "lora": Kind("LORA", "arXiv 2106.09685", _LORA, serves=True),
    "rslora": Kind("LORA", "arXiv 2312.03732", {**_RANK, **_DROPOUT}, {"use_rslora": True}, serves=True),
    "dora": Kind("LORA", "arXiv 2402.09353", _LORA, {"use_dora": True}),
    "qlora": Kind(
        "LORA",
        "arXiv 2305.14314",
        {**_LORA, "double_quant": Setting("", True), "compute_dtype": Setting("", "", words=("float32", "bfloat16"))},
        merges=False,  # adding to 4-bit weights rounds the sum: what was trained is gone
    ),
    "adalora": Kind(
        "ADALORA",
        "arXiv 2303.10512",
        {
            "r": Setting("target_r", 8, least=1),
            "init_r": Setting("init_r", 12, least=2),
            "alpha": Setting("lora_alpha", 32, least=1e-9),
            **_DROPOUT,
            "warmup_steps": Setting("tinit", 0, least=0),
            "final_steps": Setting("tfinal", 0, least=0),
            "interval": Setting("deltaT", 1, least=1),
            "beta1": Setting("beta1", 0.85, least=1e-9, below=1.0),
            "beta2": Setting("beta2", 0.85, least=1e-9, below=1.0),
            "orthogonal": Setting("", 0.5, least=0.0),
        },
        # The penalty is added by mmreason.models.peft_adalora, which also knows how many steps there are: PEFT adds it
        # only where a model computes its own loss, and once for each accumulated batch.
        {"orth_reg_weight": 0.0, "total_step": 2**31},
    ),
    "ia3": Kind("IA3", "arXiv 2205.05638", {}),
    "oft": Kind(
        "OFT",
        "arXiv 2306.07280",
        {
            "block_size": Setting("oft_block_size", 32, least=2),
            "dropout": Setting("module_dropout", 0.0, least=0.0, below=1.0),
            "constrained": Setting("coft", False),
            "share_blocks": Setting("block_share", False),
        },
        {"use_cayley_neumann": False},  # the exact Cayley transform: the series is no rotation, and merges less exactly
    ),
    "vera": Kind(
        "VERA",
        "arXiv 2310.11454",
        {
            "r": Setting("r", 256, least=1),
            "dropout": Setting("vera_dropout", 0.0, least=0.0, below=1.0),
            "d_initial": Setting("d_initial", 0.1),
        },
    ),
    "bottleneck": Kind(
        "BOTTLENECK",
        "arXiv 1902.00751",
        {
            "r": Setting("r", 64, least=1),
            "dropout": Setting("dropout", 0.0, least=0.0, below=1.0),
            "activation": Setting("activation", "gelu", words=("gelu", "relu", "silu", "tanh")),
        },
        merges=False,
    ),
    "prefix": Kind(
        "PREFIX_TUNING",
        "arXiv 2101.00190",
        {**_TOKENS, "hidden": Setting("encoder_hidden_size", None, least=1)},
        {"prefix_projection": True},
        placed=False,
        merges=False,
        uses_cache=True,
        has_encoder=True,
    ),
    "p_tuning_v2": Kind(
        "PREFIX_TUNING",
        "arXiv 2110.07602",
        _TOKENS,
        {"prefix_projection": False},
        placed=False,
        merges=False,
        uses_cache=True,
    ),
    "prompt": Kind("PROMPT_TUNING", "arXiv 2104.08691", _TOKENS, placed=False, merges=False),
    "p_tuning": Kind(
        "P_TUNING",
        "arXiv 2103.10385",
        {
            **_TOKENS,
            "hidden": Setting("encoder_hidden_size", None, least=1),
            "encoder": Setting("encoder_reparameterization_type", "MLP", words=("MLP", "LSTM")),
        },
        placed=False,
        merges=False,
        has_encoder=True,
    ),
}
"""Kind → what it is. `prefix` makes its tokens by an MLP, as its paper does; `p_tuning_v2` learns them as they are."""

_PLACEMENT = ("target_modules", "exclude_modules", "modules", "modules_to_save")
SHORTHAND = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "rslora",
    "use_dora": "kind",
}
"""TRL's options → keys of the block that they stand for."""


@dataclass(frozen=True)
class AdapterSettings:
    """A checked block.

    Attributes:
        kind: a key of KINDS. options: PEFT's fields and their values. extra: our keys that PEFT has no field for.
        target_modules: names or patterns of modules; None: by kind and architecture.
        modules: of PARTS, where they are looked for; or ALL_PARTS alone.
        path: folder of an adapter to go on with, which has settings of its own.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    target_modules: tuple[str, ...] | None = None
    exclude_modules: tuple[str, ...] = ()
    modules: tuple[str, ...] = ("decoder",)
    modules_to_save: tuple[str, ...] = ()
    path: str | None = None


def adapter_block(args: Any) -> dict[str, Any] | None:
    """The `adapter:` block that options ask for: as it is given, or built of TRL's names; None: no adapter.

    Args:
        args: ModelArguments.

    Raises:
        ConfigError: the block and TRL's options are both given.
    """
    defaults = {name: type(args).__dataclass_fields__[name].default for name in ("use_peft", *SHORTHAND)}
    if args.adapter is not None:
        given = [name for name, default in defaults.items() if getattr(args, name) != default]
        if given:
            keys = ", ".join(dict.fromkeys(SHORTHAND.get(name, "kind") for name in given))
            raise ConfigError(f"adapter and {', '.join(given)} say the same thing twice: write it in adapter ({keys})")
        return dict(args.adapter)
    if not args.use_peft:
        return None
    block = {key: getattr(args, name) for name, key in SHORTHAND.items() if key != "kind"}
    block["kind"] = "dora" if args.use_dora else "lora"
    if block["target_modules"] is not None:  # TRL's names hold for the whole model, PEFT's own choice is a decoder's
        block["modules"] = ALL_PARTS
    return {key: value for key, value in block.items() if value is not None}


def adapter_settings(args: Any) -> AdapterSettings | None:
    """What `adapter_block(args)` says, checked; None: no adapter. Raises ConfigError, see `read_block`."""
    block = adapter_block(args)
    return None if block is None else read_block(block)


def read_block(block: Mapping[str, Any]) -> AdapterSettings:
    """Check a block.

    Raises:
        ConfigError: an unknown kind, key or part, with the nearest known one; a value that can't be.
    """
    if "path" in block:
        return _read_path(block)
    name = block.get("kind")
    if name not in KINDS:
        what = "adapter.kind is missing" if name is None else f"adapter.kind={name!r} is no kind of adapter"
        raise ConfigError(f"{what}; known: {', '.join(KINDS)}.{did_you_mean(str(name), KINDS)}")
    kind = KINDS[name]
    known = ["kind", *kind.settings, *(_PLACEMENT if kind.placed else ()), *(["feedforward_modules"] * (name == "ia3"))]
    for key in block:
        if key not in known:
            raise ConfigError(
                f"adapter.{key} is no setting of kind {name!r}, which takes {', '.join(known[1:]) or 'none'}."
                f"{did_you_mean(str(key), known)}"
            )
    values = {key: _value(key, setting, block) for key, setting in kind.settings.items()}
    options = {s.peft: values[key] for key, s in kind.settings.items() if s.peft and values[key] is not None}
    settings = AdapterSettings(
        name,
        {**options, **kind.fixed},
        {key: values[key] for key, s in kind.settings.items() if not s.peft},
        None if block.get("target_modules") is None else _names("target_modules", block),
        _names("exclude_modules", block),
        _names("modules", block) or ("decoder",),
        _names("modules_to_save", block),
    )
    for part in settings.modules:
        if part not in PARTS and settings.modules != (ALL_PARTS,):
            parts = (*PARTS, ALL_PARTS)
            raise ConfigError(f"adapter.modules: {part!r}; known: {', '.join(parts)}.{did_you_mean(part, parts)}")
    if name == "adalora" and values["init_r"] <= values["r"]:
        raise ConfigError(f"adapter.init_r={values['init_r']} must be above r={values['r']}, to which ranks are cut")
    if name == "ia3" and block.get("feedforward_modules") is not None:
        fed = {"feedforward_modules": list(_names("feedforward_modules", block))}
        settings = replace(settings, options={**settings.options, **fed})
    return settings


def check_adapter(args: Any, training: Any) -> AdapterSettings | None:
    """`adapter_settings`, and what an adapter can't go with in a run, before a model is loaded.

    Args: args: ModelArguments. training: TrainingOptions of any recipe.

    Raises:
        ConfigError: naming the option and what to do.
    """
    settings = adapter_settings(args)
    if settings is None:
        return None
    kind = KINDS[settings.kind]
    if kind.uses_cache and training.gradient_checkpointing:
        raise ConfigError(
            f"adapter.kind={settings.kind!r} puts its tokens into the key/value cache, and checkpointed layers run "
            "again without it: set gradient_checkpointing: false, or use kind: prompt"
        )
    if not kind.placed and not kind.uses_cache and hasattr(training, "num_generations"):
        raise ConfigError(
            f"adapter.kind={settings.kind!r}: transformers samples rows of different lengths at other positions than "
            "they are scored at, once there are tokens before them: use kind: prefix or p_tuning_v2"
        )
    if not kind.merges and getattr(training, "use_vllm", False):
        raise ConfigError(no_vllm(settings.kind))
    return settings


def no_vllm(kind: str) -> str:
    """Why an adapter of this kind can't go to vLLM, for errors."""
    why = {
        "qlora": "its base has 4-bit weights, of which vLLM would get the packed bytes",
        "bottleneck": "a bottleneck is a network of its own, which no weight can hold",
    }.get(kind, "prompt, prefix and P-tuning can't be merged into weights")
    return f"adapter.kind={kind!r} doesn't go with vLLM: {why}. Set use_vllm: false, or use LoRA"


def kind_of(config: Mapping[str, Any]) -> str:
    """The kind of a saved adapter, by its adapter_config.json; PEFT's own name for one that is none of ours."""
    fitting = [name for name, kind in KINDS.items() if kind.peft_type == config.get("peft_type")]
    if config.get("peft_type") == "LORA":
        return "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    if config.get("peft_type") == "PREFIX_TUNING":
        return "prefix" if config.get("prefix_projection") else "p_tuning_v2"
    return fitting[0] if fitting else str(config.get("peft_type"))


def read_config(folder: str | Path) -> dict[str, Any]:
    """adapter_config.json of a folder. Raises ConfigError where there is none that can be read."""
    file = Path(folder) / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        where = f"it holds no {file.name}" if file.parent.is_dir() else f"no such folder{nearest_path(file.parent)}"
        raise ConfigError(f"{folder} is no adapter: {where}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no adapter: {file.name} can't be read ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ConfigError(f"{folder} is no adapter: {file.name} names no peft_type")
    return config


def _read_path(block: Mapping[str, Any]) -> AdapterSettings:
    if len(block) > 1:
        others = ", ".join(f"adapter.{key}" for key in block if key != "path")
        raise ConfigError(f"adapter.path goes on with a saved adapter, which has its own settings: leave out {others}")
    path = str(block["path"])
    kind = kind_of(read_config(path))
    if kind not in KINDS:
        raise ConfigError(f"adapter.path={path!r} is of PEFT's type {kind}; known: {', '.join(KINDS)}")
    if not KINDS[kind].placed or kind == "adalora":
        raise ConfigError(f"adapter.path={path!r}: a saved adapter of kind {kind!r} can't be trained on")
    return AdapterSettings(kind, path=path)


def _value(key: str, setting: Setting, block: Mapping[str, Any]) -> Any:
    value = block.get(key, setting.default)
    if value is None or key not in block:
        return setting.default
    if setting.words:
        if value not in setting.words:
            raise ConfigError(
                f"adapter.{key}={value!r}; known: {', '.join(setting.words)}.{did_you_mean(str(value), setting.words)}"
            )
    elif isinstance(setting.default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"adapter.{key}={value!r} must be true or false")
    else:
        whole = not isinstance(setting.default, float) and setting.peft != "lora_alpha"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ConfigError(f"adapter.{key}={value!r} must be a {'whole ' if whole else ''}number")
        if (setting.least is not None and value < setting.least) or (setting.below and value >= setting.below):
            above = "above 0" if setting.least == 1e-9 else f"at least {setting.least}"
            raise ConfigError(f"adapter.{key}={value} must be {above}" + (" and below 1" if setting.below else ""))
    return value


def _names(key: str, block: Mapping[str, Any]) -> tuple[str, ...]:
    value = block.get(key)
    names = [value] if isinstance(value, str) else (value or [])
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"adapter.{key}={value!r} must be a name or a list of names")
    return tuple(names)
