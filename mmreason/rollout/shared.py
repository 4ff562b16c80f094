"""Log-probabilities of completions whose prompts are read once: `completion_logps` without the repeated work.

In GRPO and its family G completions share a prompt, and separate rows read it, and encode its pictures, G times. Here a
micro-batch is one packed sequence: each prompt once, its completions behind it as branches (see
`mmreason.models.shared_attention`), no padding, and logits at the places only that a sampled token is predicted from.
The result is that of separate rows up to rounding, gradients included: a prompt's activations carry the sum of what its
completions send back.

`SharedScoring` decides for a model whether that is exact, tries it on a short example before it is believed, and takes
separate rows, with the reason said once, where it isn't.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mmreason.data.visual import VisualPrompt, collate_visual, flat_visual
from mmreason.losses.lm import token_logps
from mmreason.models.features import random_parts
from mmreason.models.packed_attention import NAME, base_model, packing_obstacle, probe_rows
from mmreason.models.positions import row_positions_of
from mmreason.rollout.scoring import ban, check_prompts_given, check_visuals, completion_logps, floating_dtype
from mmreason.types import MMReasonError

_PLAIN = "sdpa"
"""The attention that branches can be put in the place of."""

FLOAT32_BOUND = 1e-3
"""Largest |Δ log-probability| of a token, nats, between shared and separate rows in float32: rounding, no more."""

HALF_BOUND = 0.05
"""Mean |Δ log-probability| in half precision, where single tokens may differ by more."""


class SharingError(MMReasonError):
    """Shared and separate scoring give different log-probabilities."""


class Layout(NamedTuple):
    """A micro-batch as one sequence of T tokens. K is the number of completion tokens.

    ids: T. positions: (1, T), or (1 + axes, 1, T) with the plain positions first. keep, targets, places: (K,) the place
    in the sequence that each completion token is predicted from, the token, and its number in the (B, C) result.
    lengths: tokens of each group. visuals: of each group.
    """

    ids: list[int]
    positions: Tensor
    keep: list[int]
    targets: list[int]
    places: list[int]
    lengths: list[int]
    visuals: list[VisualPrompt | None]


def groups_of(numbers: Sequence[int]) -> Iterator[range]:
    """The rows of each group: neighbours with the same number."""
    start = 0
    for row in range(1, len(numbers) + 1):
        if row == len(numbers) or numbers[row] != numbers[start]:
            yield range(start, row)
            start = row


def lay_out(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    groups: Sequence[int],
    visuals: Sequence[VisualPrompt | None] | None,
) -> Layout:
    """Put B rows into one sequence; arguments as for `shared_logps`.

    A completion's last token predicts nothing that was sampled, so it isn't there.
    """
    width = max((len(completion) for completion in completions), default=0)
    axes = row_positions_of(base_model(model))
    layout = Layout([], torch.empty(0), [], [], [], [], [])
    parts: list[Tensor] = []
    for rows in groups_of(groups):
        prompt, visual = prompts[rows[0]], None if visuals is None else visuals[rows[0]]
        if any(prompts[row] is not prompt and list(prompts[row]) != list(prompt) for row in rows):
            raise ValueError(f"rows {rows[0]} to {rows[-1]} are given as one group, but their prompts differ")
        begin = len(layout.ids)
        layout.ids.extend(prompt)
        plain = list(range(len(prompt)))
        for row in rows:
            body = completions[row][:-1]
            if completions[row]:
                layout.keep.append(begin + len(prompt) - 1)
                layout.keep.extend(range(len(layout.ids), len(layout.ids) + len(body)))
                layout.targets.extend(completions[row])
                layout.places.extend(range(row * width, row * width + len(completions[row])))
            layout.ids.extend(body)
            plain.extend(range(len(prompt), len(prompt) + len(body)))
        layout.lengths.append(len(plain))
        layout.visuals.append(visual)
        places = torch.tensor(plain)[None]
        if axes is not None:
            seen = axes(torch.tensor([list(prompt)]), collate_visual([visual], len(prompt))).to(places.dtype)
            # Text goes on behind the largest place of any axis, the same on all (arXiv 2409.12191, section 2.1).
            behind = places[:, len(prompt) :] - len(prompt) + 1 + seen.max()
            places = torch.cat([places, torch.cat([seen, behind.expand(len(seen), -1)], dim=1)])
        parts.append(places)
    positions = torch.cat(parts, dim=1)
    return layout._replace(positions=positions if axes is None else positions[:, None])


def shared_logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    groups: Sequence[int],
    *,
    visuals: Sequence[VisualPrompt | None] | None = None,
    temperature: float = 1.0,
    banned_token_ids: Sequence[int] = (),
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`completion_logps`, in one forward pass that reads each group's prompt and pictures once.

    Args:
        model: as there; its attention is the packed one (`share_prompts_in`), and nothing of `sharing_obstacle` holds.
        groups: B numbers. Neighbours with the same number have the same prompt and the same pictures: those of the
            group's first row are read. Which rows these are is never guessed from the ids.
        The others: as there.

    Returns:
        logps and entropy, (B, C) float32 nats, 0 on padding. C is the longest completion.

    Raises:
        ValueError: as there, and prompts of one group that differ.
    """
    check_prompts_given(prompts)
    check_visuals(prompts, visuals)
    layout = lay_out(model, prompts, completions, groups, visuals)
    device = next(iter(model.parameters())).device
    input_ids = torch.tensor([layout.ids], device=device)
    keep = torch.tensor(layout.keep, dtype=torch.long, device=device)
    kwargs: dict[str, Any] = {"position_ids": layout.positions.to(device), "use_cache": False}
    if visuals is not None:
        kwargs |= flat_visual(layout.visuals, layout.lengths, device=device, dtype=floating_dtype(model))
    keeps = "logits_to_keep" in _forward_arguments(model)
    if keeps:
        kwargs["logits_to_keep"] = keep
    logits = model(input_ids=input_ids, **kwargs).logits[0]
    if not keeps:
        logits = logits[keep]
    logits = ban(logits, banned_token_ids)
    targets = torch.tensor(layout.targets, dtype=torch.long, device=device)
    logps, entropy = token_logps(logits, targets, temperature=temperature, with_entropy=with_entropy)

    shape = (len(prompts), max((len(completion) for completion in completions), default=0))
    places = torch.tensor(layout.places, dtype=torch.long, device=device)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(shape[0] * shape[1]).index_copy(0, places, values).view(shape)

    return spread(logps), None if entropy is None else spread(entropy)


def _forward_arguments(model: Any) -> set[str]:
    return set(inspect.signature(type(base_model(model)).forward).parameters)


# ---- whether it is exact


def sharing_obstacle(model: Any) -> str | None:
    """Why this model's completions can't share their prompt, as far as it can be read from the model; else None.

    In training mode dropout is an obstacle: separate rows draw a mask for each copy of the prompt, so that with one
    mask for all the gradient would be another random variable. Without it, and in eval mode, there is none.

    Args: model: wrapped or not; a PEFT model, too.
    """
    base = base_model(model)
    if not hasattr(base, "config") or not hasattr(base, "get_decoder"):
        return f"{type(base).__name__} is no transformers model"
    inner = model
    while (wrapped := getattr(inner, "module", getattr(inner, "_orig_mod", None))) is not None:
        inner = wrapped
    why = packing_obstacle(inner)
    if why is not None:
        return why
    if "position_ids" not in _forward_arguments(model):
        return f"{type(base).__name__} counts positions by itself"
    attention = base.get_decoder().config._attn_implementation
    if attention not in (_PLAIN, NAME):
        return f"attn_implementation is {attention}, and only {_PLAIN} can be replaced: leave the option out"
    if getattr(base.config.get_text_config(), "expert_capacity", None) is not None:
        return "its experts take a limited number of tokens, so that tokens push each other out"
    if inner.training:
        for part in random_parts(inner):
            return f"{part} draws another mask for each copy of a prompt while training; set it to 0 (disable_dropout)"
        for name, value in vars(base.config.get_text_config()).items():
            if "jitter" in name and isinstance(value, float) and value > 0:
                return f"{name} = {value} draws other noise for each copy of a prompt while training; set it to 0"
    return None


def share_prompts_in(model: Any) -> None:
    """Let a model read prompts with branches: everything else it does stays as it is."""
    decoder = base_model(model).get_decoder()
    if decoder.config._attn_implementation == _PLAIN:
        decoder.set_attn_implementation(NAME)


@torch.no_grad()
def probe_sharing(model: Any, *, half: bool) -> str | None:
    """Try a model, as a trainer runs it, on two short groups: shared and row by row. Collective for sharded models.

    It finds what a configuration doesn't say: attention that ignores positions, masks of its own, state that runs
    through the sequence.

    Args: half: the forward runs in half precision, whatever the weights' dtype.
    Returns: how far apart the two are, in words; None where they agree.
    """
    base = base_model(model)
    first, second, *completions = probe_rows(base, (7, 4, 5, 3, 6, 2, 4))
    prompts, groups = [first] * 3 + [second] * 2, [0, 0, 0, 1, 1]
    training = model.training
    model.eval()
    try:
        alone, _ = completion_logps(model, prompts, completions)
        together, _ = shared_logps(model, prompts, completions, groups)
    finally:
        model.train(training)
    scale = float(alone[alone != 0].std().clamp(min=1e-6))
    gap = float((together - alone).abs().max()) / scale
    if gap <= (0.3 if half else 2e-3):
        return None
    kind = base.config.get_text_config().model_type
    return (
        f"{type(base).__name__} ({kind}) doesn't keep completions apart: on a short example log-probabilities differ "
        f"by {gap:.2g} of their standard deviation"
    )


@dataclass
class SharedScoring:
    """`completion_logps`, with prompts shared wherever that is exact.

    Attributes:
        enabled: the user's choice; False takes separate rows always.
        autocast: the models' forward runs in half precision, whatever their weights' dtype.
        tell: is told, once for each reason, why prompts are not shared.
    """

    enabled: bool = True
    autocast: bool = False
    tell: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self._obstacles: WeakKeyDictionary[Any, dict[bool, str | None]] = WeakKeyDictionary()
        self._probed: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
        self._told: set[str] = set()

    def shares(self, model: Any) -> bool:
        """Whether `score` shares prompts with this model in its present mode. Collective at the first call."""
        if not self.enabled:
            return False
        known = self._obstacles.setdefault(model, {})
        if model.training not in known:
            why = sharing_obstacle(model)
            known[model.training] = self._probe(model) if why is None else why
            if (why := known[model.training]) is not None and why not in self._told:
                self._told.add(why)
                mode = "in updates" if model.training else "in scoring"
                self.tell(f"share_prompts: off {mode}, each completion is a row with its prompt: {why}")
        return known[model.training] is None

    def half(self, model: Any) -> bool:
        """Whether a model's forward runs in half precision."""
        return self.autocast or floating_dtype(model) in (torch.float16, torch.bfloat16)

    def _probe(self, model: Any) -> str | None:
        if model not in self._probed:
            share_prompts_in(model)
            self._probed[model] = probe_sharing(model, half=self.half(model))
        return self._probed[model]

    def score(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        groups: Sequence[int] | None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies of B completions; see `shared_logps`.

        Args: groups: None: no two rows have a prompt in common. settings: as for `completion_logps`.
        """
        if not self.shares(model):
            return completion_logps(model, prompts, completions, **settings)
        settings.pop("pad_token_id", None)
        return shared_logps(model, prompts, completions, range(len(prompts)) if groups is None else groups, **settings)

    def gaps(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        groups: Sequence[int],
        **settings: Any,
    ) -> dict[str, float]:
        """How far shared log-probabilities are from those of separate rows: {"mean", "max"} of |Δ|, nats."""
        with torch.no_grad():
            together = shared_logps(model, prompts, completions, groups, **settings)[0]
            alone = completion_logps(model, prompts, completions, **settings)[0]
        gap = (together - alone).abs()
        tokens = max(sum(len(completion) for completion in completions), 1)
        return {"mean": float(gap.sum()) / tokens, "max": float(gap.max()) if gap.numel() else 0.0}

    def drift(self, model: Any, gaps: dict[str, float]) -> str | None:
        """What to say where `gaps` are more than rounding; else None."""
        kind, bound = ("mean", HALF_BOUND) if self.half(model) else ("max", FLOAT32_BOUND)
        if gaps[kind] <= bound:  # not so for nan
            return None
        return (
            f"shared prompts give log-probabilities that differ from those of separate rows by {gaps['mean']:.2g} nats "
            f"in the mean and {gaps['max']:.2g} at most ({kind} {bound} is allowed): train with share_prompts: false, "
            "and report the model"
        )
