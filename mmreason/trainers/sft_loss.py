"""The loss of supervised stages: Σ weight · nll / Σ weight over the whole step, and what it is made of.

The sums run over the supervised tokens of all micro-batches of a step on all processes, so neither accumulation nor the
number of processes nor packing changes the loss or its gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmreason.losses.lm import token_logps
from mmreason.models.packed_attention import base_model
from mmreason.trainers.distributed import DataParallel


@dataclass(frozen=True)
class TokenLosses:
    """The S supervised tokens of a micro-batch.

    nll: (S,) float32 nats, differentiable. weights: (S,) float32. correct: (S,) whether the token is the likeliest.
    row_numbers: (S,) of the row that each belongs to, from 0. aux: a mixture of experts' load-balancing loss.
    """

    nll: Tensor
    weights: Tensor
    correct: Tensor
    row_numbers: Tensor
    aux: Tensor | None = None

    def total(self) -> Tensor:
        """Σ weight · nll."""
        return (self.nll * self.weights).sum()


@dataclass(frozen=True)
class Places:
    """The S places of a micro-batch that predict a supervised token, row after row.

    row, at: (S,) of the place itself. tokens: (S,) what stands behind it. weights, row_numbers: (S,) of that token.
    columns: (K,) the different `at`, ascending; column: (S,) each place's among them.
    """

    row: Tensor
    at: Tensor
    tokens: Tensor
    weights: Tensor
    row_numbers: Tensor
    columns: Tensor
    column: Tensor

    def pick(self, values: Tensor) -> Tensor:
        """(B, K, …) values at the columns of every row -> (S, …) at the places."""
        # With one row (always so without padding) the columns are the places themselves, in their order.
        return values[0] if values.shape[0] == 1 else values[self.row, self.column]


def supervised_places(batch: Mapping[str, Any]) -> Places:
    """Of `mmreason.data.collate.collate_rows`. A batch without a supervised token gives one place of weight 0, so that
    every process has a graph to go back through."""
    weights = batch["loss_weights"][:, 1:]
    row, at = (weights != 0).nonzero(as_tuple=True)
    if not len(at):
        row, at = row.new_zeros(1), at.new_zeros(1)
    columns, column = at.unique(return_inverse=True)
    tokens, numbers = batch["input_ids"][row, at + 1], batch["row_numbers"][row, at + 1]
    return Places(row, at, tokens, weights[row, at], numbers, columns, column)


def token_losses(model: Any, batch: Mapping[str, Any], *, with_aux: bool = False) -> TokenLosses:
    """One forward pass of a micro-batch, the head only on those positions that predict a supervised token.

    Args:
        model: any causal LM or vision-language model, wrapped or not.
        batch: of `mmreason.data.collate.collate_rows`.
        with_aux: also ask a mixture of experts for its load-balancing loss.
    """
    places = supervised_places(batch)
    picked, out = place_logits(model, batch, places, **({"output_router_logits": True} if with_aux else {}))
    aux = out.get("aux_loss") if with_aux else None
    logps, _ = token_logps(picked, places.tokens)
    with torch.no_grad():
        correct = picked.argmax(-1) == places.tokens
    return TokenLosses(-logps, places.weights, correct, places.row_numbers, aux)


def place_logits(model: Any, batch: Mapping[str, Any], places: Places, **more: Any) -> tuple[Tensor, Any]:
    """One forward pass: ((S, V) logits at the places, all that the model gave).

    Args: batch: see `token_losses`. more: of the model's forward.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "loss_weights", "row_numbers")}
    columns = places.columns + _virtual_tokens(model)
    keeps = "logits_to_keep" in inspect.signature(type(base_model(model)).forward).parameters
    if keeps:
        inputs["logits_to_keep"] = columns
    out = model(**inputs, **more, use_cache=False)
    return places.pick(out.logits if keeps else out.logits[:, columns]), out


def _virtual_tokens(model: Any) -> int:
    """Tokens that a prompt-tuning adapter puts before each row; a prefix of keys and values isn't part of the row."""
    while hasattr(model, "module"):
        model = model.module
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning or adapter.peft_type == "PREFIX_TUNING":
        return 0
    return int(adapter.num_virtual_tokens)


class SourceLosses:
    """Σ weight · nll and Σ weight by source, and the share of likeliest tokens, since they were last asked for.

    Args: sources: names, the same on all processes.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = list(sources)
        self._sums = torch.zeros(len(self.sources) + 1, 2, dtype=torch.float64)

    def add(self, losses: TokenLosses, row_sources: Tensor) -> None:
        """row_sources: (R,) each row's place among the sources."""
        which = row_sources.to(losses.row_numbers.device)[losses.row_numbers]
        parts = torch.stack([losses.nll.detach() * losses.weights, losses.weights], dim=1).double()
        counted = losses.weights != 0
        sums = torch.zeros(len(self._sums), 2, dtype=torch.float64, device=parts.device).index_add_(0, which, parts)
        sums[-1, 0], sums[-1, 1] = (losses.correct & counted).sum(), counted.sum()
        self._sums = self._sums.to(parts.device) + sums

    def collect(self, parallel: DataParallel) -> dict[str, float]:
        """Means over all processes; forgets what was added. Collective.

        Returns: "loss/<source>" where there are several and some of it was seen, "mean_token_accuracy".
        """
        sums = parallel.sum(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        named = zip(self.sources, sums[:-1], strict=True)
        out = {
            f"loss/{name}": total / weight for name, (total, weight) in named if weight > 0 and len(self.sources) > 1
        }
        right, counted = sums[-1]
        return out | ({"mean_token_accuracy": right / counted} if counted else {})
