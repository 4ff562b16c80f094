"""Load any Hugging Face decoder, or vision-language model, as a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
            f"model_name_or_path={source!r}: no tokenizer could be loaded ({_first_line(error)})"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"model_name_or_path={source!r}: its tokenizer has neither a padding nor an end-of-sequence token; "
                "set eos_token in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if args.chat_template_path is not None:
        tokenizer.chat_template = _read_chat_template(args.chat_template_path)
    return tokenizer


def _read_chat_template(path: str) -> str:
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

    Weights come from safetensors only, and no code that ships with a checkpoint runs unless `trust_remote_code` is set.

    Args:
        args: ModelArguments. accelerator: with tensor parallelism in its parallelism_config, weights are split while
            loading, by the plan of the model's transformers class.

    Raises:
        ConfigError: nothing can be loaded from `model_name_or_path`; the message has transformers' reason.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    source = args.model_name_or_path
    common = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    split = _tensor_parallel_settings(accelerator)
    try:
        config = AutoConfig.from_pretrained(source, **common)
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        return auto.from_pretrained(
            source,
            config=config,
            dtype=args.dtype if args.dtype == "auto" else getattr(torch, args.dtype),
            attn_implementation=args.attn_implementation,
            use_safetensors=True,
            **common,
            **split,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model_name_or_path={source!r} can't be loaded: {_first_line(error)}") from error


def _tensor_parallel_settings(accelerator: Any) -> dict[str, Any]:
    parallelism = getattr(accelerator, "parallelism_config", None)
    if parallelism is None or not parallelism.tp_enabled:
        return {}
    from transformers.distributed import DistributedConfig

    mesh = accelerator.torch_device_mesh["tp"]
    return {"distributed_config": DistributedConfig(tp_size=parallelism.tp_size), "device_mesh": mesh}


def add_lora(model: Any, args: Any) -> Any:
    """Wrap the model with the LoRA adapter that ModelArguments describe (arXiv 2106.09685).

    Raises:
        ConfigError: no module of the model is among `lora_target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    targets = args.lora_target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=args.lora_modules_to_save,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        # A tied head that does not follow its embedding's adapter is untied in the trainer and tied in vLLM, which then
        # samples from another policy.
        ensure_weight_tying=_adapts_tied_embedding(model, targets, args.lora_modules_to_save),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"lora_target_modules={args.lora_target_modules}: {_first_line(error)}") from error


def _adapts_tied_embedding(model: Any, targets: str | list[str] | None, saved: list[str] | None) -> bool:
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    names = [*([] if targets is None or isinstance(targets, str) else targets), *(saved or [])]
    adapted = any(name.split(".")[-1] in EMBEDDING_LAYER_NAMES for name in names)
    head = model.get_output_embeddings()
    return adapted and head is not None and head.weight is model.get_input_embeddings().weight


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
