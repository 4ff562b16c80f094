"""The tokenizer and the model of a pretraining run: what is there, or what begins here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.models.loading import load_checked, load_processor, load_tokenizer
from mmreason.models.rope import extend_context
from mmreason.models.tiny import TINY_SIZES
from mmreason.models.tokenizer_training import bytes_per_token, check_training, save_tokenizer, train_tokenizer
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.pretrain_arguments import FreshModelArguments, PretrainOptions
from mmreason.types import ConfigError

_TINY_VOCABULARY = 1024
_SAMPLED_TEXTS = 200  # of the corpus, for how well a new tokenizer fits it
TINY_KINDS = {"clm": "qwen2", "infill": "qwen2", "mlm": "bert", "span": "t5", "ul2": "t5"}
"""Objective → kind of the tiny random model that learns by it where none is named."""


def tokenizer_of_run(
    model: ModelArguments,
    fresh: FreshModelArguments,
    options: PretrainOptions,
    texts: Callable[[], Iterable[str]],
    special: Sequence[str],
    say: Callable[[str], None],
) -> Any:
    """The tokenizer, or processor, of the model; for a new model one by name, or learned from the corpus here.

    A learned one is kept in the output folder, and found there when the run goes on. For one process at a time, the
    main one first.

    Args: texts: of the corpus. special: tokens that a learned tokenizer gets for the objective.
    """
    if model.model_name_or_path is not None:
        return load_processor(model)
    if fresh.tokenizer_name is not None:
        return load_tokenizer(ModelArguments(model_name_or_path=fresh.tokenizer_name))
    settings = fresh.train_tokenizer or {"vocab_size": _TINY_VOCABULARY}
    check_training(settings, special)
    folder = Path(options.output_dir) / "tokenizer"
    if not (folder / "tokenizer_config.json").is_file():
        trained = train_tokenizer(texts(), **settings, special=special)
        save_tokenizer(trained, folder, max(options.max_length, 2048))
        sample = [text for text, _ in zip(texts(), range(_SAMPLED_TEXTS), strict=False)]
        say(f"Tokenizer: {len(trained)} tokens learned, {bytes_per_token(trained, sample):.2f} bytes per token of it.")
    return load_tokenizer(ModelArguments(model_name_or_path=str(folder)))


def is_encoder_decoder(model: ModelArguments, fresh: FreshModelArguments, objective: str) -> bool:
    """Does the run's model have an encoder and a decoder?"""
    from transformers import AutoConfig

    if model.model_name_or_path is None:
        return bool(_config_class(fresh.model_type or TINY_KINDS[objective])().is_encoder_decoder)
    try:
        config = AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.model_revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"model_name_or_path={model.model_name_or_path!r} can't be loaded: {first}") from error
    return bool(config.is_encoder_decoder)


def _auto_class(objective: str, encoder_decoder: bool) -> Any:
    import transformers

    if objective == "mlm":
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModelForSeq2SeqLM if encoder_decoder else None


def model_of_run(
    model: ModelArguments,
    fresh: FreshModelArguments,
    options: PretrainOptions,
    tokenizer: Any,
    encoder_decoder: bool,
    say: Callable[[str], None],
) -> Any:
    """The model that learns, ready for the tokenizer: loaded, or new with random weights.

    Its embeddings get rows for tokens that were added, its context is extended, a mixture of experts shows its router.

    Raises: ConfigError, also where the model is of another kind than the objective's.
    """
    kind = _auto_class(options.objective, encoder_decoder)
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if model.model_name_or_path is None:
        made = _new_model(fresh, options, inner, kind, model)
    else:
        made = load_checked(
            model.model_name_or_path,
            "model_name_or_path",
            dtype=model.dtype,
            revision=model.model_revision,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
            kind=kind,
        )
    rows = made.get_input_embeddings().weight.shape[0]
    rows = getattr(made.get_input_embeddings().weight, "ds_shape", (rows,))[0]  # ZeRO-3 leaves an empty piece here
    if len(inner) > rows:
        made.resize_token_embeddings(len(inner))
        say(f"The embedding has {len(inner) - rows} rows more, for new tokens.")
    if fresh.rope_scaling is not None:
        before, after = extend_context(made, fresh.rope_scaling)
        inner.model_max_length = max(after, inner.model_max_length if inner.model_max_length < 10**9 else after)
        say(f"The context is extended from {before} to {after} tokens ({fresh.rope_scaling['rope_type']}).")
    _check_length(made, options)
    _show_router(made, options, say)
    return made


def _config_class(model_type: str) -> Any:
    from transformers.models.auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        known = list(CONFIG_MAPPING)
        raise ConfigError(f"model_type={model_type!r} is no kind of transformers.{did_you_mean(model_type, known)}")
    return CONFIG_MAPPING[model_type]


def _new_model(
    fresh: FreshModelArguments, options: PretrainOptions, tokenizer: Any, kind: Any, model: ModelArguments
) -> Any:
    """A model with random weights, the same on every process: the generators are left as they were."""
    import torch
    from transformers import AutoModelForCausalLM

    config = new_config(fresh, options, tokenizer)
    auto = kind or AutoModelForCausalLM
    if type(config) not in auto._model_mapping:
        raise ConfigError(f"model_type={config.model_type!r} can't learn by objective {options.objective}")
    dtype = torch.float32 if model.dtype == "auto" else getattr(torch, model.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return auto.from_config(config, dtype=dtype, attn_implementation=model.attn_implementation)


def new_config(fresh: FreshModelArguments, options: PretrainOptions, tokenizer: Any) -> Any:
    """The configuration of a new model: transformers' of that kind with the overrides, or a tiny one.

    Raises: ConfigError: an unknown kind or setting (with the nearest one), settings that don't fit together.
    """
    from huggingface_hub.errors import StrictDataclassError

    model_type = fresh.model_type or TINY_KINDS[options.objective]
    config_class = _config_class(model_type)
    settings = dict(fresh.config_overrides or {})
    known = config_class().to_dict()
    for key in settings:
        if key not in known and key not in config_class.attribute_map and key != "head_dim":  # many models read it
            raise ConfigError(f"config_overrides: {model_type} has no {key}.{did_you_mean(key, known)}")
    if fresh.model_type is None:
        settings = _tiny(model_type, fresh.tiny_size)
    settings |= {
        "vocab_size": settings.get("vocab_size", len(tokenizer)),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    longest = options.max_length if fresh.rope_scaling is None else round(options.max_length / _factor(fresh))
    for name in ("max_position_embeddings", "n_positions"):
        if name in known and name not in settings:
            settings[name] = max(longest, 2048) if fresh.rope_scaling is None else longest
    if config_class().is_encoder_decoder:
        settings.setdefault("decoder_start_token_id", tokenizer.pad_token_id)
    try:
        return config_class(**settings)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"config_overrides: {model_type}: {' '.join(str(error).split())}") from error


def _factor(fresh: FreshModelArguments) -> float:
    factor = (fresh.rope_scaling or {}).get("factor", 1.0)
    return float(factor) if isinstance(factor, int | float) and factor > 1 else 1.0


def _tiny(model_type: str, size: str) -> dict[str, Any]:
    hidden, layers, heads, kv_heads, mlp = TINY_SIZES[size]
    if model_type == "t5":
        return {
            "d_model": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "d_kv": hidden // heads,
            "d_ff": mlp,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
        }
    settings: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "tie_word_embeddings": True,
    }
    if model_type == "bert":
        return settings | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return settings | {"num_key_value_heads": kv_heads}


def _check_length(model: Any, options: PretrainOptions) -> None:
    """Refuse rows that are longer than the positions a model has a table for."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None)
    dynamic = isinstance(rotary, dict) and rotary.get("rope_type") == "dynamic"
    if isinstance(longest, int) and options.max_length > longest and not dynamic:
        raise ConfigError(
            f"max_length={options.max_length}: {type(model).__name__} has positions for {longest} tokens; lower it"
            + (f", or extend the context: rope_scaling: {{rope_type: yarn, factor: {options.max_length / longest:g}}}"
               if rotary else "")
        )  # fmt: skip


def _show_router(model: Any, options: PretrainOptions, say: Callable[[str], None]) -> None:
    """Have a mixture of experts give its router's logits: without them its load-balancing loss is silently left out."""
    config = model.config.get_text_config()
    given = options.router_aux_loss_coef
    if not hasattr(config, "router_aux_loss_coef") or not hasattr(config, "output_router_logits"):
        if given is not None:
            raise ConfigError(
                f"router_aux_loss_coef={given}: {type(model).__name__} is no mixture of experts with such a loss"
            )
        return
    config.output_router_logits = True
    if given is not None:
        config.router_aux_loss_coef = model.router_aux_loss_coef = given  # transformers' own loss reads the latter
    say(f"A mixture of experts: its load-balancing loss is added, times {config.router_aux_loss_coef}.")
