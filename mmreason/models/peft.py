"""Adapters: one block of settings, any kind, on decoder, projector or vision tower; and loading saved ones safely."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmreason._adapters import (
    KINDS,
    AdapterSettings,
    adapter_settings,
    kind_of,
    no_vllm,
    read_config,
)
from mmreason._functions import did_you_mean
from mmreason.models.peft_targets import adaptable, check_saved_modules, feed_forward, resolve_targets
from mmreason.types import ConfigError

DEFAULT = "default"
"""PEFT's name for the only adapter of a model; it is saved in the folder itself, others in folders of their names."""
_SAMPLES, _SAMPLED = 4, 4


def add_adapter(model: Any, args: Any, name: str = DEFAULT) -> Any:
    """Give a model the adapter that its options describe, or another one beside those that it has.

    Nothing but the adapter (and `modules_to_save`) learns afterwards; it is the active one.

    Args:
        model: any transformers model, or a PEFT model that gets one more adapter of the same kind.
        args: ModelArguments, with `adapter` or TRL's `use_peft` and `lora_*`; without either the model stays as it is.

    Raises:
        ConfigError: unknown settings or modules (with the nearest known), or a kind that doesn't suit the model.
    """
    settings = adapter_settings(args)
    return model if settings is None else with_adapter(model, settings, name)


def with_adapter(model: Any, settings: AdapterSettings, name: str = DEFAULT) -> Any:
    """`add_adapter` for settings that have been read already."""
    from peft import PeftModel, get_peft_model

    if settings.path is not None:
        return load_adapter(model, settings.path, name, trainable=True)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = peft_config(base, settings)
    config.auto_mapping = _describe(base)
    if settings.kind == "qlora":
        _prepare_quantised(base)
    try:
        if not isinstance(model, PeftModel):
            model = get_peft_model(model, config, adapter_name=name)
        else:
            _freeze_others(model, settings.kind)
            model.add_adapter(name, config)
            activate(model, name, trainable=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"adapter (kind {settings.kind}): {_last_line(error)}") from error
    if settings.kind == "adalora":
        from mmreason.models.peft_adalora import RankTracker

        model.rank_tracker = RankTracker(model, name, settings.extra["orthogonal"])
    return model


def quantization_settings(args: Any) -> dict[str, Any]:
    """What `from_pretrained` is told for kind `qlora`: 4-bit NormalFloat weights of the decoder (arXiv 2305.14314).

    Raises: ConfigError: bitsandbytes isn't installed.
    """
    settings = adapter_settings(args)
    if settings is None or settings.kind != "qlora":
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"adapter.kind='qlora' needs bitsandbytes ({error}): pip install 'mmreason[qlora]', or use kind: lora"
        ) from error
    from transformers import BitsAndBytesConfig

    dtype = settings.extra["compute_dtype"] or ("bfloat16" if args.dtype == "bfloat16" else "float32")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=settings.extra["double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        # Towers and projectors are small, and some of their layers are used without being called.
        llm_int8_skip_modules=[
            "lm_head", "vision_tower", "vision_model", "visual", "projector", "multi_modal_projector", "connector"
        ],
    )  # fmt: skip
    return {"quantization_config": config}


def load_adapter(
    model: Any, folder: str | Path, name: str = DEFAULT, *, trainable: bool = False, any_base: bool = False
) -> Any:
    """A saved adapter on the model that it was trained on, active; the model may have others of its kind.

    Args:
        model: the base, or a PEFT model of it. name: under which `activate` finds it.
        any_base: take a base of the same class and shapes for the same one, whatever it is called.

    Raises:
        ConfigError: no adapter, or one with pickled weights; one for another base (class, name, weights or shapes:
            both are named); tensors that are missing or belong to nothing.
    """
    from peft import PeftModel

    config, saved = read_config(folder), saved_shapes(folder)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_base(base, config, folder, any_base)
    others = {str(other.peft_type.value) for other in getattr(model, "peft_config", {}).values()}
    if others - {config["peft_type"]}:
        raise ConfigError(
            f"{folder} is an adapter of kind {kind_of(config)}, and the model has one of PEFT's type "
            f"{', '.join(others)}: one model takes one kind"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error, below
            if isinstance(model, PeftModel):
                if trainable:
                    _freeze_others(model, kind_of(config))
                model.load_adapter(str(folder), name, is_trainable=trainable)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"{folder} was trained on {_trained_on(config)} and doesn't fit {_called(base)}: {_last_line(error)}"
        ) from error
    _check_tensors(model, name, saved, folder)
    activate(model, name, trainable=trainable)
    return model


def activate(model: Any, name: str | None, *, trainable: bool = False) -> None:
    """Make one adapter of a PEFT model the active one; None: the base alone.

    Args: trainable: whether it learns on; all others never do.

    Raises: ConfigError: no such adapter.
    """
    from peft.tuners.tuners_utils import BaseTuner

    placed = isinstance(model.base_model, BaseTuner)
    if name is not None and name not in model.peft_config:
        raise ConfigError(
            f"no adapter {name!r}; loaded: {', '.join(model.peft_config)}.{did_you_mean(name, model.peft_config)}"
        )
    if placed:
        model.base_model._enable_adapter_layers(enabled=name is not None)
    elif name is None:
        raise ConfigError("virtual tokens can't be left out by name: use the model's disable_adapter()")
    if name is None:
        return
    model.set_adapter(name, inference_mode=not trainable)
    for other, encoder in model.prompt_encoder.items() if not placed else ():
        encoder.requires_grad_(trainable and other == name)


def refuse_unmergeable(model: Any) -> None:
    """Refuse a PEFT model whose weights an engine can't be given. Raises ConfigError."""
    for config in model.peft_config.values():
        kind = kind_of(config.to_dict())
        if kind in KINDS and not KINDS[kind].merges:
            raise ConfigError(no_vllm(kind))
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ConfigError(no_vllm("qlora"))


def saved_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a saved adapter's tensors. Raises ConfigError: no safetensors, or a damaged file."""
    from safetensors import SafetensorError, safe_open

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        pickled = ", only pickled weights, which may run code: save it again as safetensors"
        raise ConfigError(f"{folder} has no {file.name}" + (pickled if file.with_suffix(".bin").is_file() else ""))
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} can't be read ({_last_line(error)})") from error


# --------------------------------------------------------------------------------------------------------------------
# Making one


def peft_config(base: Any, settings: AdapterSettings) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, options = KINDS[settings.kind], dict(settings.options)
    if not kind.placed:
        if "mrope_section" in (getattr(base.config.get_text_config(), "rope_parameters", None) or {}):
            raise ConfigError(
                f"adapter.kind={settings.kind!r}: {type(base).__name__} counts positions of pictures over text and "
                "pictures alone, and tokens before them shift the rest: use a kind that goes on modules, such as lora"
            )
        if kind.peft_type != "PREFIX_TUNING" and hasattr(base, "all_run_the_tower"):
            raise ConfigError(
                f"adapter.kind={settings.kind!r} hands a composed model embeddings in which its pictures are missing: "
                "use kind: prefix or p_tuning_v2"
            )
    else:
        targets = resolve_targets(base, settings)
        check_saved_modules(base, settings.modules_to_save)
        options["target_modules"] = targets
        options["modules_to_save"] = list(settings.modules_to_save) or None
        if settings.kind == "ia3":
            options.setdefault("feedforward_modules", feed_forward(targets))
        tied = _adapts_tied_embedding(base, [*targets, *settings.modules_to_save])
        if kind.peft_type == "LORA":
            # A tied head that does not follow its embedding's adapter is untied in the trainer and tied in vLLM, which
            # then samples from another policy.
            options["ensure_weight_tying"] = tied
        elif tied:
            raise ConfigError(
                f"adapter: kind {settings.kind!r} would change the embedding and not the output head, which has the "
                "same weights: leave the embedding out, or use kind: lora"
            )
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind.peft_type](task_type="CAUSAL_LM", **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"adapter (kind {settings.kind}): {_last_line(error)}") from error


def _adapts_tied_embedding(model: Any, names: list[str]) -> bool:
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    adapted = any(name.split(".")[-1] in EMBEDDING_LAYER_NAMES for name in names)
    head = model.get_output_embeddings()
    return adapted and head is not None and head.weight is model.get_input_embeddings().weight


def _prepare_quantised(base: Any) -> None:
    """Norms and embeddings in float32, as QLoRA trains."""
    from peft import prepare_model_for_kbit_training

    if not getattr(base, "is_quantized", False):
        raise ConfigError("adapter.kind='qlora' needs a model that was loaded in 4 bits: load it by load_policy_model")
    prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)


def _freeze_others(model: Any, kind: str) -> None:
    """AdaLoRA's class allows one adapter that isn't marked as finished."""
    for config in model.peft_config.values():
        config.inference_mode = config.inference_mode or kind == "adalora"


# --------------------------------------------------------------------------------------------------------------------
# Whose it is


def _describe(base: Any) -> dict[str, Any]:
    """What an adapter keeps of its base, in a field of PEFT's for such things: class, and a few of its weights."""
    return {
        "base_model_class": type(base).__name__,
        "parent_library": type(base).__module__,
        "samples": _samples(base, _sampled_names(base)),
    }


def _sampled_names(base: Any) -> list[str]:
    names = [
        name
        for name, module in adaptable(base).items()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim == 2
    ]
    return [names[(len(names) - 1) * i // (_SAMPLES - 1)] for i in range(_SAMPLES)] if names else []


def _samples(base: Any, names: list[str]) -> dict[str, list[float]]:
    """A few numbers of each weight; none of one that is quantised, split over processes or not there yet."""
    modules, found = adaptable(base), {}
    for name in names:
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.device.type == "meta":
            continue
        if weight.numel() and not hasattr(weight, "ds_id") and not hasattr(weight, "full_tensor"):
            flat = weight.detach().reshape(-1)
            places = [(flat.numel() - 1) * i // (_SAMPLED - 1) for i in range(_SAMPLED)]
            found[name] = [float(f"{flat[place].item():.6g}") for place in places]
    return found


def _check_base(base: Any, config: Mapping[str, Any], folder: str | Path, any_base: bool) -> None:
    """Refuse an adapter that was trained on another model. Raises ConfigError naming both."""
    known = config.get("auto_mapping") or {}
    here, there = _called(base), _trained_on(config)
    trained_class = known.get("base_model_class")
    if trained_class not in (None, type(base).__name__):
        raise ConfigError(f"{folder} is an adapter for {there}, a {trained_class}, not for {here}")
    if any_base:
        return
    saved = known.get("samples") or {}
    samples = _samples(base, list(saved))
    modules = adaptable(base)
    if missing := [name for name in saved if name not in modules]:
        raise ConfigError(f"{folder} is an adapter for {there}, not for {here}, which has no {missing[0]}")
    for name, values in samples.items():
        # As far apart as bfloat16 is from float32, the same weights may be.
        scale = max(map(abs, saved[name]))
        if any(abs(a - b) > 0.02 * abs(a) + 0.002 * scale for a, b in zip(saved[name], values, strict=True)):
            raise ConfigError(
                f"{folder} is an adapter for {there}, not for {here}: the weights of {name} are others. If that is "
                "meant, say any_base"
            )
    if not samples and not _same_name(config.get("base_model_name_or_path"), getattr(base, "name_or_path", "")):
        raise ConfigError(
            f"{folder} is an adapter for {there}, not for {here}. If they are the same model, say any_base"
        )


def _same_name(there: str | None, here: str) -> bool:
    """Whether two names may mean one model: the same last part, as a hub's name and its copy in a folder have."""
    return not there or not here or Path(there).name == Path(here).name


def _called(base: Any) -> str:
    return f"{getattr(base, 'name_or_path', '') or 'a model without a name'} ({type(base).__name__})"


def _trained_on(config: Mapping[str, Any]) -> str:
    return str(config.get("base_model_name_or_path") or "a model without a name")


def _check_tensors(model: Any, name: str, saved: Mapping[str, tuple[int, ...]], folder: str | Path) -> None:
    """Refuse an adapter of whose tensors some found no place, or some are missing: PEFT only warns, or says nothing."""
    from peft import get_peft_model_state_dict
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    # Whether whole embeddings are saved too is decided when saving; they are no part of the adapter.
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    extra = [key for key in saved if key not in own and not any(f".{e}." in key for e in EMBEDDING_LAYER_NAMES)]
    missing = [key for key in own if key not in saved]
    for names, what in ((missing, "lacks"), (extra, "has what belongs to nothing in the model:")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(f"{folder} {what} {names[0]}{more}. Was it trained on {_called(model.get_base_model())}?")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
