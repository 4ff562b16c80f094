"""AdaLoRA's schedule (arXiv 2303.10512) for any trainer: it hangs on the optimizer, which every loop has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmreason.types import ConfigError


class RankTracker:
    """Gives ranks to the layers that need them, and keeps the factors orthogonal.

    PEFT has the allocation. Its penalty is added only where a model computes its own loss, and once for each
    accumulated batch; here it is a gradient of the step, whatever the loss. What is masked is saved as zeros: a saved
    adapter has the shapes with which training goes on.

    Args:
        model: a PEFT model with an AdaLoRA adapter. name: of the adapter. orthogonal: weight of the penalty.
    """

    def __init__(self, model: Any, name: str, orthogonal: float) -> None:
        from peft.tuners.adalora.layer import RankAllocator

        self.model, self.name, self.orthogonal = model, name, orthogonal
        self.tuner, self.config = model.base_model, model.peft_config[name]
        self.tuner.trainable_adapter_name = name
        self.tuner.rankallocator = RankAllocator(self.tuner.model, self.config, name)
        self.kept: dict[str, list[bool]] | None = None
        self.handles: list[Any] = []

    def follow(self, optimizer: Any, total_steps: int, steps_done: Callable[[], int]) -> None:
        """Take part in every step of an optimizer.

        Args: steps_done: optimizer steps before the one that is about to be taken.

        Raises:
            ConfigError: a schedule that leaves no step for cutting ranks, or weights that are spread over processes.
        """
        warmup, final = self.config.tinit, self.config.tfinal
        if warmup >= total_steps - final:
            raise ConfigError(
                f"adapter: warmup_steps={warmup} and final_steps={final} leave none of {total_steps} steps in which "
                "AdaLoRA cuts ranks"
            )
        split = any(hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in self.model.parameters())
        if split or type(optimizer).__name__.startswith("DeepSpeed"):
            raise ConfigError("adapter.kind='adalora' needs whole gradients: use DDP instead of DeepSpeed or FSDP")
        self.config.total_step = total_steps
        inner = getattr(optimizer, "optimizer", optimizer)
        for handle in self.handles:
            handle.remove()
        self.handles = [
            inner.register_step_pre_hook(lambda *_: self.before_step()),
            inner.register_step_post_hook(lambda *_: self.after_step(steps_done() + 1)),
        ]

    def before_step(self) -> None:
        """Add the gradient of the orthogonality penalty (equation 4, with PEFT's norm in place of its square)."""
        named = self._factors()
        params = list(named.values())
        with torch.enable_grad():
            distances = [_distance(p if ".lora_A." in name else p.T) for name, p in named.items()]
            penalty = self.orthogonal * torch.stack(distances).mean()
        for p, grad in zip(params, torch.autograd.grad(penalty, params), strict=True):
            p.grad = grad if p.grad is None else p.grad.add_(grad)
        for p in self.tuner.model.parameters():  # a layer that this batch left out has no say
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)

    def after_step(self, step: int) -> None:
        """Measure importance and mask to the budget of this step, counted from 1."""
        self.config.rank_pattern = self.kept
        self.tuner.update_and_allocate(step)
        # With a pattern PEFT would save the kept ranks alone, with which training couldn't go on.
        self.kept, self.config.rank_pattern = self.config.rank_pattern, None

    def ranks(self) -> dict[str, int]:
        """Layer → ranks that it has left."""
        return {name.split(".lora_E")[0]: sum(kept) for name, kept in (self.kept or {}).items()}

    def state(self) -> dict[str, Tensor]:
        """What continuing needs beside the adapter's weights."""
        allocator = self.tuner.rankallocator
        found = {f"importance.{n}": t for n, t in allocator.exp_avg_ipt.items()}
        found |= {f"uncertainty.{n}": t for n, t in allocator.exp_avg_unc.items()}
        return found | {f"kept.{n}": torch.tensor(kept) for n, kept in (self.kept or {}).items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        allocator = self.tuner.rankallocator
        parts = {what: {n.removeprefix(f"{what}."): t for n, t in state.items() if n.startswith(f"{what}.")}
                 for what in ("importance", "uncertainty", "kept")}  # fmt: skip
        device = next(iter(self._factors().values())).device
        allocator.exp_avg_ipt = {n: t.to(device) for n, t in parts["importance"].items()}
        allocator.exp_avg_unc = {n: t.to(device) for n, t in parts["uncertainty"].items()}
        allocator.ipt = {n: torch.zeros_like(t) for n, t in allocator.exp_avg_ipt.items()}
        self.kept = {n: t.tolist() for n, t in parts["kept"].items()} or None

    def _factors(self) -> dict[str, Tensor]:
        """Singular vectors by name: rows of lora_A, columns of lora_B."""
        ends = (f".lora_A.{self.name}", f".lora_B.{self.name}")
        return {n: p for n, p in self.tuner.model.named_parameters() if n.endswith(ends)}


def _distance(rows: Tensor) -> Tensor:
    """‖P Pᵀ − 1‖ of the rows of P, a scalar."""
    gram = rows @ rows.T
    return torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype))


def follow_ranks(model: Any, optimizer: Any, total_steps: int, steps_done: Callable[[], int]) -> None:
    """Let an AdaLoRA adapter take part in an optimizer's steps; nothing for any other model. See RankTracker.follow."""
    while hasattr(model, "module"):
        model = model.module
    tracker = vars(model).get("rank_tracker")
    if tracker is not None:
        tracker.follow(optimizer, total_steps, steps_done)
