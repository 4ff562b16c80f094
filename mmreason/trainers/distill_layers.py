"""White-box distillation: what a student learns from inside its teacher, as terms beside the loss on distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmreason.losses.representations import (
    attention_kl,
    contrastive,
    hidden_cosine,
    hidden_mse,
    layer_map,
    linear_cka,
    relation_kl,
    relational_angle,
    relational_distance,
)
from mmreason.rollout.engines import placeholder_token_ids
from mmreason.trainers.distill_arguments import LayerOptions
from mmreason.trainers.sft_loss import Places
from mmreason.types import ConfigError

ATTRIBUTE = "distillation_projections"
FILE = "distillation_projections.safetensors"
"""In a checkpoint: the learned maps from the student's hidden sizes to the teacher's."""


class WhiteBox:
    """The terms of `layers`, and the projections that they need.

    Args: options: of `layers`. student, teacher: the models. same_rendering: both read the same ids.
    Raises: ConfigError: a layer that isn't there; a term that compares tokens which only one of them has.
    """

    def __init__(self, options: LayerOptions, student: Any, teacher: Any, *, same_rendering: bool) -> None:
        self.options = options
        self.placeholders = [placeholder_token_ids(one) for one in (student, teacher)]
        if options.features and not all(self.placeholders):
            raise ConfigError("layers.features compares what pictures become; student and teacher both have to see")
        mine, theirs = (one.config.get_text_config() for one in (student, teacher))
        try:
            self.pairs = layer_map(options.map, mine.num_hidden_layers, theirs.num_hidden_layers)
        except ValueError as error:
            raise ConfigError(f"layers.map: {error}") from None
        if options.attention and not any(s and t for s, t in self.pairs):
            raise ConfigError("layers.attention: map has no pair of layers; the embedding, layer 0, attends to nothing")
        if not same_rendering and (options.attention or options.relations):
            raise ConfigError(
                "layers.attention and layers.relations compare every token with every other one, and this teacher "
                "reads pictures in other tokens than the student; leave them at 0"
            )
        for name, size in (("student", mine.hidden_size), ("teacher", theirs.hidden_size)):
            if options.relations and size % options.relation_heads:
                raise ConfigError(
                    f"layers.relation_heads={options.relation_heads} doesn't divide the {name}'s {size} features"
                )
        if options.attention:
            for one in (student, teacher):
                one.set_attn_implementation("eager")  # no other kernel tells what it attended to
        sizes = {
            "hidden": (mine.hidden_size, theirs.hidden_size, len(self.pairs) if options.hidden else 0),
            "embedding": (mine.hidden_size, theirs.hidden_size, int(options.embedding > 0)),
            "features": (mine.hidden_size, theirs.hidden_size, int(options.features > 0)),
            "contrastive": (mine.hidden_size, theirs.hidden_size, int(options.contrastive > 0)),
        }
        self.names = [
            f"{name}_{i}" for name, (small, large, count) in sizes.items() if small != large for i in range(count)
        ]
        if self.names:
            maps = {name: nn.Linear(mine.hidden_size, theirs.hidden_size, bias=False) for name in self.names}
            dtype = next(student.parameters()).dtype
            student.add_module(ATTRIBUTE, nn.ModuleDict(maps).to(dtype=torch.float32 if dtype.itemsize < 4 else dtype))

    @property
    def forward_options(self) -> dict[str, bool]:
        """What both models are asked for beside logits."""
        return {"output_hidden_states": True} | ({"output_attentions": True} if self.options.attention else {})

    def terms(
        self,
        model: Any,
        outputs: tuple[Any, Any],
        places: tuple[Places, Places],
        batches: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        progress: float,
    ) -> dict[str, Tensor]:
        """The loss of each term, already times its weight: () float32, per supervised token.

        Args:
            model: the student, unwrapped. outputs: of student and teacher. places: in the rendering of each.
            batches: of collate_rows, in the rendering of each. progress: share of the run's steps that are done.
        """
        options, pairs, mask = self.options, self.active(progress), batches[0]["attention_mask"]
        student, teacher = (out.hidden_states for out in outputs)
        maps: Any = getattr(model, ATTRIBUTE, None)
        weights = places[0].weights
        total = weights.sum().clamp(min=torch.finfo(torch.float32).tiny)

        def at(layers: Sequence[Tensor], layer: int, which: int) -> Tensor:
            return layers[layer][places[which].row, places[which].at]

        def mapped(name: str, values: Tensor) -> Tensor:
            return maps[name](values.to(maps[name].weight.dtype)) if name in self.names else values

        def per_token(values: Tensor) -> Tensor:
            return (values * weights).sum() / total

        found: dict[str, Tensor] = {}
        distance: Callable[[Tensor, Tensor], Tensor] = hidden_mse if options.hidden_loss == "mse" else hidden_cosine
        if options.hidden:
            each = [
                per_token(distance(mapped(f"hidden_{i}", at(student, s, 0)), at(teacher, t, 1)))
                for i, (s, t) in enumerate(pairs)
            ]
            found["hidden"] = options.hidden * torch.stack(each).mean()
        if options.embedding:
            own = mapped("embedding_0", at(student, 0, 0))
            found["embedding"] = options.embedding * per_token(distance(own, at(teacher, 0, 1)))
        if options.attention:
            layers = [(outputs[0].attentions[s - 1], outputs[1].attentions[t - 1]) for s, t in pairs if s and t]
            each = [attention_kl(one, other, mask).mean() for one, other in layers]
            found["attention"] = options.attention * torch.stack(each).mean()
        if options.relations:
            s, t = pairs[-1]  # MiniLM: one layer is enough, and the deeper the better
            relations = relation_kl(student[s], teacher[t], mask, options.relation_heads)
            found["relations"] = options.relations * relations.mean()
        if options.features:
            found["features"] = options.features * self._features((student, teacher), batches, distance, mapped, total)
        found |= self._pooled_terms((student, teacher), places, mapped)
        # Maps that wait for their layer still take part in the backward pass: DDP wants to hear of all parameters.
        if maps is not None and len(pairs) < len(self.pairs):
            first = next(iter(found))
            found[first] = found[first] + 0 * sum(p.sum() for p in maps.parameters())
        return found

    def _features(
        self,
        hidden: tuple[Sequence[Tensor], Sequence[Tensor]],
        batches: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        distance: Callable[[Tensor, Tensor], Tensor],
        mapped: Callable[[str, Tensor], Tensor],
        total: Tensor,
    ) -> Tensor:
        """Mean over the rows with pictures of how far apart is what stands at their picture tokens."""
        seen = [
            [layers[0][row][torch.isin(ids[row], ids.new_tensor(marks))] for row in range(len(ids))]
            for layers, ids, marks in zip(hidden, (one["input_ids"] for one in batches), self.placeholders, strict=True)
        ]
        each = [
            distance(mapped("features_0", _resized(one, other)), _resized(other, one)).mean()
            for one, other in zip(*seen, strict=True)
            if len(one)
        ]
        if each:
            return torch.stack(each).mean()
        return mapped("features_0", hidden[0][0][:1, 0]).sum() * 0 + total * 0  # a step without pictures

    def _pooled_terms(
        self,
        hidden: tuple[Sequence[Tensor], Sequence[Tensor]],
        places: tuple[Places, Places],
        mapped: Callable[[str, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Terms between the rows of a micro-batch, each the mean of its last hidden states."""
        options, found = self.options, dict[str, Tensor]()
        if not (options.relational or options.contrastive):
            return found
        student, teacher = (_pooled(layers[-1], one) for layers, one in zip(hidden, places, strict=True))
        if options.relational:
            apart = relational_distance(student, teacher) + 2 * relational_angle(student, teacher)
            found["relational"] = options.relational * apart
        if options.contrastive:
            found["contrastive"] = options.contrastive * contrastive(mapped("contrastive_0", student), teacher).mean()
        return found

    def active(self, progress: float) -> list[tuple[int, int]]:
        """The pairs of layers that are learned at this point of the run: the first ones first (shallow to deep)."""
        if not self.options.progressive:
            return self.pairs
        share = min(1.0, progress / self.options.progressive)
        return self.pairs[: 1 + int(share * (len(self.pairs) - 1) + 1e-9)]

    @torch.no_grad()
    def similarity(self, outputs: tuple[Any, Any], places: tuple[Places, Places]) -> dict[str, float]:
        """Linear CKA of each mapped pair of layers over the places of a micro-batch, by "cka/S-T"."""
        found = {}
        for s, t in self.pairs:
            x = outputs[0].hidden_states[s][places[0].row, places[0].at]
            y = outputs[1].hidden_states[t][places[1].row, places[1].at]
            found[f"cka/{s}-{t}"] = float(linear_cka(x, y))
        return found

    # ---- the projections' way through checkpoints

    def save(self, model: Any, folder: Path) -> None:
        """Into a checkpoint, whatever of the model is saved there (of a PEFT model only the adapter is)."""
        if self.names:
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in self._maps(model).state_dict().items()}, folder / FILE
            )

    def load(self, model: Any, folder: Path) -> None:
        """From a checkpoint. Raises: ConfigError where it has none."""
        if not self.names:
            return
        if not (folder / FILE).is_file():
            raise ConfigError(f"{folder} has no {FILE}: it is not a checkpoint of this run")
        self._maps(model).load_state_dict(load_file(folder / FILE))

    def _maps(self, model: Any) -> nn.ModuleDict:
        maps = getattr(model, ATTRIBUTE)
        assert isinstance(maps, nn.ModuleDict)
        return maps


def _resized(tokens: Tensor, other: Tensor) -> Tensor:
    """(min(n, m), H): a row's n picture tokens beside the other model's m, the longer row averaged to the shorter."""
    if len(tokens) <= len(other):
        return tokens
    pooled: Tensor = torch.nn.functional.adaptive_avg_pool1d(tokens.T[None].float(), len(other))[0].T
    return pooled.to(tokens.dtype)


def _pooled(hidden: Tensor, places: Places) -> Tensor:
    """(R, H): mean over each row's places."""
    rows, index = places.row.unique(return_inverse=True)
    sums = hidden.new_zeros(len(rows), hidden.shape[-1]).index_add(0, index, hidden[places.row, places.at])
    counts = torch.bincount(index, minlength=len(rows)).to(hidden.dtype)
    return sums / counts[:, None]
