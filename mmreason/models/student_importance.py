"""How much each part of a decoder does on calibration rows, and which parts a student keeps for it.

Layers by block influence (ShortGPT, arXiv 2403.03853), neurons, heads and channels by their activations (Minitron,
arXiv 2407.14679). One pass over the rows measures all of them; no gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from mmreason.models.student import Kept, language_model
from mmreason.models.student_sizes import Sizes, Wanted, decoder_config, largest, select_layers, sizes_of
from mmreason.types import IGNORE_INDEX, DataError

Batch = Mapping[str, Tensor]
"""What the model's forward takes, with attention_mask (B, T) and labels (B, T), IGNORE_INDEX where nothing is counted.
The label at a place is predicted from those before it."""

_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Importance:
    """Means over all tokens of the calibration rows, padding left out. float64, on the CPU.

    Attributes:
        layers: (L,) block influence: 1 - cos(input, output) of each layer.
        neurons: (L, intermediate size) mean |activation| of each MLP neuron, as it goes into down_proj.
        heads: (L, query heads) mean L2 norm of each head's output, as it goes into o_proj.
        channels: name of each norm → (hidden size,) mean |output|.
        loss: mean negative log-likelihood of the labels, nats a token. tokens: how many labels.
    """

    layers: Tensor
    neurons: Tensor
    heads: Tensor
    channels: dict[str, Tensor]
    loss: float
    tokens: int


class _Sums:
    """Sums over the tokens that the current batch's mask lets through."""

    def __init__(self) -> None:
        self.mask = torch.ones(1, 1)
        self.tokens = 0
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Args: values: (B, T) or (B, T, D)."""
        values = values.float().reshape(*self.mask.shape, -1)
        total = (values * self.mask.to(values.device)[..., None]).sum((0, 1)).double().cpu()
        self.values[name] = self.values[name] + total if name in self.values else total

    def mean(self, name: str) -> Tensor:
        return self.values[name] / self.tokens


@torch.no_grad()
def measure_importance(model: Any, batches: Iterable[Batch]) -> Importance:
    """Args: model: a decoder or composed model that `student_sizes.decoder_config` takes, in evaluation mode.

    Raises: DataError: no batch, or no label in any.
    """
    decoder, sums = language_model(model).get_decoder(), _Sums()
    head_dim, count = sizes_of(decoder_config(model.config)).head_dim, len(decoder.layers)
    with _hooked(decoder, sums, head_dim):
        loss, labels = _run(model, batches, sums)
    norms = [f"layers.{layer}.{norm}" for layer in range(count) for norm in _NORMS] + ["norm"]
    return Importance(
        layers=torch.cat([sums.mean(f"layers.{layer}") for layer in range(count)]),
        neurons=torch.stack([sums.mean(f"layers.{layer}.neurons") for layer in range(count)]),
        heads=torch.stack([sums.mean(f"layers.{layer}.heads") for layer in range(count)]),
        channels={norm: sums.mean(norm) for norm in norms},
        loss=loss,
        tokens=labels,
    )


@torch.no_grad()
def measure_loss(model: Any, batches: Iterable[Batch]) -> float:
    """Mean negative log-likelihood of the labels, nats a token. Raises as `measure_importance`."""
    return _run(model, batches, _Sums())[0]


def _run(model: Any, batches: Iterable[Batch], sums: _Sums) -> tuple[float, int]:
    """(loss, labels) of a pass over the rows, with the mask of each batch in `sums` while it goes through."""
    total, labels = 0.0, 0
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        wanted = batch.pop("labels")[:, 1:]
        sums.mask = batch["attention_mask"].float()
        sums.tokens += int(batch["attention_mask"].sum())
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
        total, labels = total + float(loss), labels + int((wanted != IGNORE_INDEX).sum())
    if not labels:
        raise DataError("the calibration rows have no token to predict", reason="empty")
    return total / labels, labels


@contextmanager
def _hooked(decoder: Any, sums: _Sums, head_dim: int) -> Iterator[None]:
    """What the modules of a decoder are given and give is added up in `sums` while the block runs."""
    handles = []
    for place, layer in enumerate(decoder.layers):
        name = f"layers.{place}"
        handles += [
            layer.register_forward_hook(_influence(sums, name), with_kwargs=True),
            layer.mlp.down_proj.register_forward_pre_hook(_neurons(sums, name)),
            layer.self_attn.o_proj.register_forward_pre_hook(_heads(sums, name, head_dim)),
            *[getattr(layer, norm).register_forward_hook(_channels(sums, f"{name}.{norm}")) for norm in _NORMS],
        ]
    handles.append(decoder.norm.register_forward_hook(_channels(sums, "norm")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _influence(sums: _Sums, name: str) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        sums.add(name, 1 - cosine_similarity(before.float(), after.float(), dim=-1))

    return hook


def _neurons(sums: _Sums, name: str) -> Callable[..., None]:
    return lambda module, args: sums.add(f"{name}.neurons", args[0].abs())


def _heads(sums: _Sums, name: str, head_dim: int) -> Callable[..., None]:
    return lambda module, args: sums.add(f"{name}.heads", args[0].float().unflatten(-1, (-1, head_dim)).norm(dim=-1))


def _channels(sums: _Sums, name: str) -> Callable[..., None]:
    return lambda module, args, output: sums.add(name, output.abs())


# --------------------------------------------------------------------------------------------------------------------
# Choosing


def choose(found: Importance, text: Any, wanted: Wanted, sizes: Sizes, selection: str = "uniform") -> Kept:
    """The most important parts. A width that stays the teacher's is kept whole.

    Channels are the same in all layers, as the residual stream joins them: their importance is the sum over the norms
    of the kept layers and the last norm. Neurons and heads are each layer's own.

    Args:
        text: the teacher's decoder's configuration. sizes: of the student, from `student_sizes(text, wanted)`.
        selection: how layers are chosen where `wanted.layers` is a number, see `student_sizes.select_layers`.
    """
    teacher = sizes_of(text)
    layers = (
        tuple(wanted.layers)
        if isinstance(wanted.layers, list)
        else select_layers(sizes.layers, teacher.layers, selection, found.layers)
    )
    channels = neurons = heads = kv_heads = None
    if sizes.hidden_size < teacher.hidden_size:
        norms = [f"layers.{layer}.{norm}" for layer in layers for norm in _NORMS] + ["norm"]
        channels = largest(torch.stack([found.channels[norm] for norm in norms]).sum(0), sizes.hidden_size)
    if sizes.intermediate_size < teacher.intermediate_size:
        neurons = [largest(found.neurons[layer], sizes.intermediate_size) for layer in layers]
    if (sizes.heads, sizes.kv_heads) != (teacher.heads, teacher.kv_heads):
        pairs = [choose_heads(found.heads[layer], teacher.kv_heads, sizes.heads, sizes.kv_heads) for layer in layers]
        heads, kv_heads = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Kept(layers=layers, channels=channels, neurons=neurons, heads=heads, kv_heads=kv_heads)


def choose_heads(scores: Tensor, groups: int, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    """The query heads and key-value heads of a layer that stay: each kept group keeps its most important query heads.

    Query heads that share a key-value head (GQA, arXiv 2305.13245) stand next to each other, and all groups must be
    equally large. A group is as important as those of its query heads that would stay, together.

    Args: scores: (query heads,). groups: key-value heads. heads, kv_heads: how many stay.
    Returns: (heads,) and (kv_heads,) int64.
    """
    size, each = len(scores) // groups, heads // kv_heads
    grouped = scores.cpu().view(groups, size)
    kept = largest(grouped.sort(dim=1, descending=True).values[:, :each].sum(1), kv_heads)
    return torch.cat([group * size + largest(grouped[group], each) for group in kept.tolist()]), kept
