"""How much memory a training takes, before it is started: an estimate by formula, part by part.

Parameters are counted exactly, on the meta device. States of the optimizer, gradients and their sharding are those of
ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054, section 3.1 and figure 1). Activations are counted as Korthikanti et
al. do (2022, arXiv 2205.05198, section 4.1), for the layer of a Llama-like decoder: RMS norms, gated MLP, fused
attention. What allocators and kernels take beside these (CUDA's context, fragmentation, workspaces; often 1 to 2 GiB
and a tenth of the rest) is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.types import ConfigError

GIB = 2**30
OPTIMIZER_STATES: dict[str, int] = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0}
"""Optimizer -> numbers it keeps for each trained parameter."""
_FOUR_BITS = 4.127 / 8  # bytes of a number with its share of the scales
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model decides its memory.

    Attributes:
        parameters: of all parts; tied weights once. linear: of them, those of the decoder's linear layers, which QLoRA
            keeps in 4 bits.
        decoder_layers, hidden, intermediate, query, key_value, heads: of the decoder; query and key_value are heads x
            head size.
        vocabulary: rows of the output layer.
    """

    parameters: int
    linear: int
    decoder_layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    heads: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingShape:
    """What of a run decides its memory, for one device.

    Attributes:
        tokens: of a micro-batch, padding included: rows x the longest row, or packed sequences x max_length.
        longest: tokens of the longest sequence, which eager attention is quadratic in.
        dtype: of the weights. bf16: autocast to bfloat16.
        optim: key of OPTIMIZER_STATES.
        trainable: parameters that are trained; None: all.
        gradient_checkpointing: activations are recomputed layer by layer.
        attention: "fused" (sdpa, flash, flex) or "eager".
        supervised_share: of the positions, those that predict a supervised token: the output layer runs on them only.
        zero_stage: 0 for none, 1 to 3. processes: that share in it.
        deepspeed: DeepSpeed's bf16 keeps 16-bit weights and gradients, and float32 weights in the optimizer.
        quantised: QLoRA: the decoder's linear layers in 4.127 bits (Dettmers et al. 2023, arXiv 2305.14314, section 3).
    """

    tokens: int
    longest: int
    dtype: str = "float32"
    bf16: bool = False
    optim: str = "adamw_torch_fused"
    trainable: int | None = None
    gradient_checkpointing: bool = True
    attention: str = "fused"
    supervised_share: float = 1.0
    zero_stage: int = 0
    processes: int = 1
    deepspeed: bool = False
    quantised: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, list(_WIDTHS)),
            ("optim", self.optim, list(OPTIMIZER_STATES)),
            ("attention", self.attention, ["fused", "eager"]),
        ):
            if value not in known:
                hint = did_you_mean(value, known)
                raise ConfigError(f"memory estimate: unknown {name} {value!r}; known: {', '.join(known)}.{hint}")
        if not 0 <= self.zero_stage <= 3:
            raise ConfigError(f"memory estimate: zero_stage={self.zero_stage} must be from 0 to 3")


def estimate_memory(model: ModelSize, run: TrainingShape) -> dict[str, int]:
    """Bytes of each part on one device: weights, gradients, optimizer, casts, activations, logits and their total.

    With Ψ parameters of w bytes, Ψ_t of them trained, N processes, K states of the optimizer:
        weights      w Ψ (ZeRO 3: / N)
        gradients    w Ψ_t (ZeRO 2 and 3: / N)
        optimizer    K w Ψ_t; with DeepSpeed's bf16 (4 K + 4) Ψ_t, as figure 1 has it (ZeRO 1 and up: / N)
        casts        2 Ψ under bfloat16 autocast over float32 weights: the copies that matrix products read
        activations  see `activation_bytes`; with checkpointing e h bytes a token and layer (section 5, "full
                     recomputation"), and one layer's own
        logits       V (e + 4 + 4) bytes for each supervised position: as they come out, in float32, their gradient
    """
    width = 2 if run.deepspeed and (run.bf16 or run.dtype != "float32") else _WIDTHS[run.dtype]
    trained = model.parameters if run.trainable is None else run.trainable
    states = OPTIMIZER_STATES[run.optim]
    per_state = 4 * states + 4 if run.deepspeed and width == 2 else states * width
    shared = {stage: run.processes if run.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    computed = 2 if run.bf16 or width == 2 else 4
    stream = width if not (run.bf16 and width == 4) else 4  # autocast leaves the residual stream in float32
    layer = activation_bytes(model, run, computed, stream)
    kept = model.hidden * stream * run.tokens * model.decoder_layers
    packed = model.linear if run.quantised else 0
    parts = {
        "weights": ((model.parameters - packed) * width + int(packed * _FOUR_BITS)) // shared[3],
        "gradients": trained * width // shared[2],
        "optimizer": trained * per_state // shared[1],
        "casts": 2 * (model.parameters - packed) if run.bf16 and width == 4 else 0,
        "activations": kept + layer if run.gradient_checkpointing else layer * model.decoder_layers,
        "logits": round(run.tokens * run.supervised_share) * model.vocabulary * (computed + 8),
    }
    return {**parts, "total": sum(parts.values())}


def activation_bytes(model: ModelSize, run: TrainingShape, computed: int, stream: int) -> int:
    """Bytes that one decoder layer keeps for its backward pass.

    Per token, in numbers of `computed` bytes: the inputs of the query, key and value products (h) and of the MLP's (h);
    queries, keys, values and attention's output (2 q + 2 kv); the MLP's gate, up, activation and product (4 f). In
    numbers of `stream` bytes: the inputs of both norms and their scaled products (4 h). Eager attention adds a s
    probabilities a token in float32, and in 16 bits their copy.
    """
    inner = 2 * model.hidden + 2 * model.query + 2 * model.key_value + 4 * model.intermediate
    if run.attention == "eager":
        inner += model.heads * run.longest * (1 if computed == 4 else 3)
    return run.tokens * (computed * inner + stream * 4 * model.hidden)


def meta_model(config: Any) -> Any:
    """The model of a transformers configuration on the meta device: every parameter's shape, no memory.

    Raises: ConfigError for a configuration of no causal language model and no vision-language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for kind in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in kind._model_mapping:
            with torch.device("meta"):
                return kind.from_config(config)
    raise ConfigError(f"memory estimate: {type(config).__name__} is no language model's configuration")


def measure_model(model: Any) -> ModelSize:
    """The size of a model, which may be on the meta device."""
    import torch

    text = model.config.get_text_config()
    decoder = getattr(model, "language_model", None) or model.get_decoder()
    linear = [m for name, m in decoder.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for m in linear),
        decoder_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        query=heads * size,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * size,
        heads=heads,
        vocabulary=text.vocab_size,
    )
