"""Adapters as things to calculate with: sums of several, one merged into its base, one taken out of two checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmreason._adapters import KINDS, kind_of, read_block, read_config
from mmreason._files import whole_folder
from mmreason._functions import did_you_mean
from mmreason.models.peft import DEFAULT, load_adapter, with_adapter
from mmreason.models.peft_targets import resolve_targets
from mmreason.types import ConfigError

METHODS: dict[str, str] = {
    "linear": "cat",
    "svd": "svd",
    "ties": "ties_svd",
    "dare": "dare_linear_svd",
    "dare_ties": "dare_ties_svd",
}
"""Method → PEFT's `combination_type`. All of them add what adapters do to a weight, ΔW = s·BA, not A and B each on its
own, as PEFT's types `linear`, `ties` and `dare_linear` do: products of sums have cross terms.

linear: Σ wᵢ ΔWᵢ exactly, with the ranks added up. svd: the same, cut to a rank. ties: arXiv 2306.01708. dare: arXiv
2311.03099. dare_ties: DARE's dropping before TIES' signs.
"""
_PROCESSOR_FILES = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "*processor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Combined:
    """What a combination came to.

    Attributes:
        rank: of the new adapter. captured: the share of the wanted change's energy that it has, 1 where nothing was
            cut off; None for DARE, whose dropping is random and not kept.
    """

    rank: int
    captured: float | None


@dataclass(frozen=True)
class Extracted:
    """A difference of two checkpoints as an adapter.

    Attributes:
        modules: layers that changed and have an adapter now. captured: share of their changes' energy, Σσ² kept / Σσ².
        worst: (layer, its share). others: tensors that changed and are not in the adapter.
    """

    modules: int
    captured: float
    worst: tuple[str, float]
    others: tuple[str, ...]


def combine(
    model: Any,
    adapters: Sequence[tuple[str, float]],
    out: str | Path,
    *,
    method: str = "linear",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    any_base: bool = False,
) -> Combined:
    """A new LoRA adapter of several, by PEFT's `add_weighted_adapter`.

    Args:
        model: their base; it is used up. adapters: (folder, weight) each, of kind lora or rslora.
        rank: of the new adapter, where the method isn't linear. None: the sum of their ranks.
        density: share of numbers that TIES and DARE keep. seed: of DARE's dropping.

    Raises:
        ConfigError: an unknown method; adapters of other kinds, of another base, or with modules trained in full.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r}; known: {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    if len(adapters) == 1 and method not in ("linear", "svd"):
        raise ConfigError(f"method={method!r} needs two adapters or more")
    if not adapters or not 0 < density <= 1 or (rank is not None and rank < 1):
        raise ConfigError(
            f"{len(adapters)} adapters, density={density}, rank={rank}: each must be above 0, density ≤ 1"
        )
    names = [f"part{i}" for i in range(len(adapters))]
    for name, (part, _) in zip(names, adapters, strict=True):
        check_addable(part)
        model = load_adapter(model, part, name, any_base=any_base)
    for name in names:
        # The new adapter takes these fields over from the first. What rsLoRA changes is in the layers' scaling already.
        config = model.peft_config[name]
        config.use_rslora = False
        config.target_modules = {where for where, layer in _lora_layers(model) if _has(layer, name)}
    ranks = sum(max([config.r, *config.rank_pattern.values()]) for config in model.peft_config.values())
    weights = [float(weight) for _, weight in adapters]
    if len(names) == 1:  # which PEFT would copy, whatever the rank
        names, weights = names * 2, [*weights, 0.0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.base_model.add_weighted_adapter(
            names, weights, DEFAULT, METHODS[method], svd_rank=rank or ranks, density=density, svd_full_matrices=False
        )
    with new_folder(out) as folder:
        model.save_pretrained(str(folder), selected_adapters=[DEFAULT])
    captured = None if method.startswith("dare") else _captured(model, names, weights, method, density)
    return Combined(int(model.peft_config[DEFAULT].r), captured)


def merge(model: Any, adapter: str | Path, processor: Any, out: str | Path, *, any_base: bool = False) -> float:
    """A whole model with an adapter in its weights, as a checkpoint.

    Args: model: the base; it is used up. processor: the base's processor or tokenizer, written beside it.

    Returns: the largest difference of logits that the merging itself makes, as a share of the largest logit.

    Raises:
        ConfigError: an adapter of another base, or of a kind that no weight can hold.
    """
    check_mergeable(adapter)
    model = load_adapter(model.eval(), adapter, any_base=any_base)
    ids = (
        torch.arange(1, 33, device=model.device).unsqueeze(0)
        % model.get_base_model().config.get_text_config().vocab_size
    )
    with torch.no_grad():
        before = model(input_ids=ids).logits.float()
        model = model.merge_and_unload(safe_merge=True)
        gap = (model(input_ids=ids).logits.float() - before).abs().max() / before.abs().max()
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        # A run may have had a chat template or tokens of its own.
        for pattern in _PROCESSOR_FILES:
            for file in Path(adapter).glob(pattern):
                shutil.copy2(file, folder / file.name)
    return float(gap)


def extract(
    base: Any, tuned: Any, out: str | Path, *, rank: int, target_modules: Sequence[str] = ("all-linear",)
) -> Extracted:
    """The LoRA adapter that comes nearest to a fine-tuned model: layers' changes cut to their largest singular values.

    That is the best there is of a rank (Eckart and Young, 1936), as mergekit extracts it (arXiv 2403.13257).

    Args:
        base, tuned: models of one architecture. target_modules: layers that are looked at, as in an `adapter:` block.

    Raises:
        ConfigError: two architectures or shapes (both are named), no such modules, or nothing that changed.
    """
    _check_alike(base, tuned)
    block = {"kind": "lora", "r": rank, "alpha": rank, "modules": "all"}
    looked_at = read_block({**block, "target_modules": list(target_modules)})
    changes = {}
    for name in _linear_names(base, resolve_targets(base, looked_at)):
        change = _matrix(tuned.get_submodule(name)) - _matrix(base.get_submodule(name))
        if change.any():
            changes[name] = change
    covered = {f"{name}.weight" for name in changes}
    others = [n for (n, a), b in zip(_tensors(base), _values(tuned), strict=True) if n not in covered and _differ(a, b)]
    if not changes:
        raise ConfigError(
            f"no layer among target_modules={list(target_modules)} changed" + (f"; {others[0]} did" if others else "")
        )
    model = with_adapter(base, read_block({**block, "target_modules": list(changes)}))
    kept: dict[str, tuple[float, float]] = {}
    for name, layer in _lora_layers(model):
        u, s, vh = torch.linalg.svd(changes[name], full_matrices=False)
        root = s[:rank].sqrt()
        with torch.no_grad():
            for factor, value in ((layer.lora_A, root[:, None] * vh[:rank]), (layer.lora_B, u[:, :rank] * root)):
                weight = factor[DEFAULT].weight
                weight.zero_()[: value.shape[0], : value.shape[1]] = value.to(weight.dtype)
        kept[name] = (s[:rank].square().sum().item(), s.square().sum().item())
    with new_folder(out) as folder:
        model.save_pretrained(str(folder))
    shares = {name: part / whole for name, (part, whole) in kept.items()}
    worst = min(shares, key=lambda name: shares[name])
    captured = sum(part for part, _ in kept.values()) / sum(whole for _, whole in kept.values())
    return Extracted(len(kept), captured, (worst, shares[worst]), tuple(others))


def check_new(out: str | Path) -> None:
    """Before anything is computed for it. Raises ConfigError where there is something of that name."""
    if Path(out).exists():
        raise ConfigError(f"out={out} is there already: name another folder")


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder that is there once it is complete. Raises ConfigError where there is one of that name."""
    check_new(out)
    with whole_folder(Path(out)) as writing:
        yield writing


def check_mergeable(folder: str | Path) -> None:
    """Refuse a saved adapter that no weight can hold. Raises ConfigError."""
    kind = kind_of(read_config(folder))
    if kind in KINDS and not KINDS[kind].merges:
        able = ", ".join(name for name, known in KINDS.items() if known.merges)
        raise ConfigError(f"{folder}: an adapter of kind {kind!r} can't be merged into weights; {able} can")


def check_addable(folder: str | Path) -> None:
    """Refuse a saved adapter that `combine` can't add to others. Raises ConfigError."""
    config = read_config(folder)
    kind = kind_of(config)
    if kind not in ("lora", "rslora"):
        raise ConfigError(f"{folder} is of kind {kind}: only lora and rslora are sums that can be added up")
    for key in ("modules_to_save", "target_parameters", "trainable_token_indices"):
        if config.get(key):
            raise ConfigError(f"{folder} has {key}={config[key]}, which can't be added up")
    if config.get("bias", "none") != "none":
        raise ConfigError(f"{folder} trains biases (bias={config['bias']!r}), which can't be added up")


def _lora_layers(model: Any) -> list[tuple[str, Any]]:
    """(name in the base, layer) in the order in which PEFT combines them."""
    from peft.tuners.lora import LoraLayer

    return [(n, layer) for n, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)]


def _has(layer: Any, name: str) -> bool:
    return name in layer.lora_A or name in layer.lora_embedding_A


def _captured(model: Any, names: Sequence[str], weights: Sequence[float], method: str, density: float) -> float:
    """How much of the change that a method makes is left after a rank has cut it."""
    from peft.utils import merge_utils

    lost = total = 0.0
    for _, layer in _lora_layers(model):
        there = [(name, weight) for name, weight in zip(names, weights, strict=True) if _has(layer, name)]
        deltas = [layer.get_delta_weight(name) for name, _ in there]
        scales = torch.tensor([weight for _, weight in there], device=deltas[0].device)
        if method == "ties":
            wanted = merge_utils.ties(deltas, scales, density)
        else:
            wanted = merge_utils.task_arithmetic(deltas, scales)
        total += wanted.square().sum().item()
        lost += (wanted - layer.get_delta_weight(DEFAULT)).square().sum().item()
    return 1 - lost / total if total else 1.0


def _check_alike(base: Any, tuned: Any) -> None:
    names = [f"{getattr(m, 'name_or_path', '') or 'a model'} ({type(m).__name__})" for m in (base, tuned)]
    if type(base) is not type(tuned):
        raise ConfigError(f"{names[0]} and {names[1]} are models of two architectures")
    shapes = [{name: tuple(tensor.shape) for name, tensor in _tensors(model)} for model in (base, tuned)]
    odd = sorted(n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n))
    if odd:
        here, there = (shape.get(odd[0]) for shape in shapes)
        raise ConfigError(f"{names[0]} and {names[1]} differ in shape: {odd[0]} is {here} and {there}")


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    return sorted(model.state_dict().items())


def _values(model: Any) -> list[Tensor]:
    return [tensor for _, tensor in _tensors(model)]


def _differ(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b.to(a.device, a.dtype))


def _matrix(module: Any) -> Tensor:
    """A linear layer's weight (outputs, inputs) in float32 at least."""
    weight: Tensor = module.weight.detach()
    weight = weight if isinstance(module, nn.Linear) else weight.T
    return weight if weight.dtype == torch.float64 else weight.float()


def _linear_names(model: Any, targets: Sequence[str]) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return [name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)]
