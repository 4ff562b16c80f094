"""Load any Hugging Face decoder, or vision-language model, as a policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmreason._files import nearest_path
from mmreason.types import ConfigError


def load_tokenizer(args: Any) -> Any:
    """The tokenizer of `args.model_name_or_path`, with a padding token and, where asked for, another chat template.

    Args:
        args: ModelArguments.
    """
    from transformers import AutoTokenizer

    source = args.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=args.model_revision, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_name_or_path={source!r}: no tokenizer could be loaded ({_first_line(error)}){_meant(source)}"
        ) from error
    _set_padding(tokenizer, source)
    if args.chat_template_path is not None:
        tokenizer.chat_template = read_chat_template(args.chat_template_path)
    return tokenizer


def load_processor(args: Any) -> Any:
    """The processor of a checkpoint that has one, prepared as by `load_tokenizer`; else its tokenizer.

    Args:
        args: ModelArguments.
    """
    from transformers import AutoProcessor
    from transformers.utils import cached_file

    from mmreason.models.processing import MMReasonProcessor
    from mmreason.models.templates import template_with_images

    source = args.model_name_or_path
    names = ("processor_config.json", "preprocessor_config.json")
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": False}
    try:
        if not any(cached_file(source, name, revision=args.model_revision, **quiet) for name in names):
            return load_tokenizer(args)
        processor = AutoProcessor.from_pretrained(
            source, revision=args.model_revision, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"model_name_or_path={source!r}: its processor can't be loaded ({_first_line(error)}){_meant(source)}"
        ) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:  # an image processor alone, or a tokenizer
        return load_tokenizer(args)
    _set_padding(tokenizer, source)
    if args.chat_template_path is not None:
        tokenizer.chat_template = read_chat_template(args.chat_template_path)
        if isinstance(processor, MMReasonProcessor):
            tokenizer.chat_template = template_with_images(tokenizer, processor.image_token)
        processor.chat_template = tokenizer.chat_template
    return processor


def _set_padding(tokenizer: Any, source: str) -> None:
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"model_name_or_path={source!r}: its tokenizer has neither a padding nor an end-of-sequence token; "
            "set eos_token in tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token


def read_chat_template(path: str) -> str:
    """The template in a file, or that of a tokenizer (folder or hub id). Raises ConfigError where there is none."""
    if Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        template = AutoTokenizer.from_pretrained(path).chat_template
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template_path={path!r} is neither a file nor a tokenizer ({_first_line(error)})"
        ) from error
    if not template:
        raise ConfigError(f"chat_template_path={path!r}: that tokenizer has no chat template")
    return str(template)


def load_policy_model(args: Any, accelerator: Any = None) -> Any:
    """The model, as an AutoModelForCausalLM or, for vision-language checkpoints, AutoModelForImageTextToText.

    Args:
        args: ModelArguments. accelerator: with tensor parallelism in its parallelism_config, weights are split while
            loading, by the plan of the model's transformers class.

    Raises: ConfigError, see `load_checked`; or an adapter on 4-bit weights (kind qlora) without bitsandbytes.
    """
    from mmreason.models.peft import quantization_settings

    return load_checked(
        args.model_name_or_path,
        "model_name_or_path",
        dtype=args.dtype,
        revision=args.model_revision,
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
        settings=_tensor_parallel_settings(accelerator) | quantization_settings(args),
    )


def load_checked(
    source: str,
    option: str,
    *,
    dtype: Any = "auto",
    revision: str = "main",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    text_only: bool = False,
    kind: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A checkpoint as the model that its configuration names, with every weight found.

    Weights come from safetensors only, and no code that ships with a checkpoint runs unless `trust_remote_code` is set.

    Args:
        source: hub id or folder. option: the name of the setting that said so, for errors.
        dtype: a torch dtype, its name, or "auto" for the checkpoint's.
        text_only: refuse vision-language models.
        kind: an Auto class such as AutoModelForMaskedLM, in place of the one that generates.
        settings: more arguments of `from_pretrained`.

    Raises:
        ConfigError: nothing can be loaded (with transformers' reason), or weights are missing, or, for a composed
            model, there are some that belong to nothing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        if sees and text_only:
            raise ConfigError(f"{option}={source!r} is a vision-language model itself: train it as it is")
        auto = kind or (AutoModelForImageTextToText if sees else AutoModelForCausalLM)
        model, told = auto.from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **common,
            **(settings or {}),
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{option}={source!r} can't be loaded: {_first_line(error)}{_meant(source)}") from error
    _check_weights(told, config, f"{option}={source!r}")
    return model


def _check_weights(told: Mapping[str, Any], config: Any, what: str) -> None:
    """Refuse random weights in place of missing ones; transformers only warns."""
    missing = sorted(told["missing_keys"])
    extra = sorted(told["unexpected_keys"]) if config.model_type == "mmreason" else []
    for names, word in ((missing, "lacks weights"), (extra, "has weights that belong to nothing")):
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ConfigError(f"{what} {word}: {listed}. Is it another model's file, or an unfinished copy?")


@contextmanager
def whole_models() -> Iterator[None]:
    """What is loaded or built in here is whole, also under a trainer's ZeRO-3, which would split it over all processes.

    For models that one process makes alone, or that are an engine's own.
    """
    from transformers.integrations import deepspeed

    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def _tensor_parallel_settings(accelerator: Any) -> dict[str, Any]:
    parallelism = getattr(accelerator, "parallelism_config", None)
    if parallelism is None or not parallelism.tp_enabled:
        return {}
    from transformers.distributed import DistributedConfig

    mesh = accelerator.torch_device_mesh["tp"]
    return {"distributed_config": DistributedConfig(tp_size=parallelism.tp_size), "device_mesh": mesh}


def _meant(source: str) -> str:
    """What to say, beside the hub's error, of a name that is no folder: which one was meant, if one looks like it."""
    path = Path(source).expanduser()
    hint = "" if path.exists() else nearest_path(path)
    return hint if "Did you mean" in hint or source.startswith(("/", ".", "~")) else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
