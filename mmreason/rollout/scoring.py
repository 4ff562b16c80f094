"""Log-probabilities of given completions under a model: the trainer's side of the importance ratio."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmreason.data.visual import VisualPrompt, collate_visual
from mmreason.losses.lm import token_logps
from mmreason.models.packed_attention import base_model


def completion_mask(completions: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """(B, C) float32: 1 on the tokens of each completion, 0 on the padding to the right."""
    lengths = torch.tensor([len(ids) for ids in completions], device=device)
    width = int(lengths.max()) if len(completions) else 0
    return (torch.arange(width, device=device) < lengths[:, None]).float()


def pad_right(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(B, longest row), each row at the left."""
    width = max((len(row) for row in rows), default=0)
    out = torch.full((len(rows), width), value, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return out.to(device)


def floating_dtype(model: Any) -> torch.dtype:
    """The dtype that a model's pixel values come in: that of its first floating-point weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def check_visuals(prompts: Sequence[Sequence[int]], visuals: Sequence[VisualPrompt | None] | None) -> None:
    """Raise ValueError where a prompt's ids are not those that its pictures were rendered with."""
    for i, (prompt, visual) in enumerate(zip(prompts, visuals or [None] * len(prompts), strict=True)):
        if visual is not None and list(prompt) != visual.ids:
            raise ValueError(
                f"prompt {i} of the batch has {len(prompt)} tokens that are not the {len(visual.ids)} that its "
                f"{len(visual.images)} image(s) were rendered with"
            )


def check_prompts_given(prompts: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where a prompt is empty."""
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt has no tokens: the first completion token can't be scored (add a BOS token)")


def ban(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """The same logits (..., V), with probability 0 for some tokens."""
    if not token_ids:
        return logits
    return logits.index_fill(-1, torch.tensor(list(token_ids), device=logits.device), float("-inf"))


def completion_logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    visuals: Sequence[VisualPrompt | None] | None = None,
    temperature: float = 1.0,
    banned_token_ids: Sequence[int] = (),
    with_entropy: bool = False,
    pad_token_id: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """log π(completion token | everything before it), one forward pass for B rows.

    Rows are padded on the right and no attention mask is passed: a causal model never looks at what follows, so padding
    is invisible to the tokens that count, absolute positions stay right, and the fast causal attention kernels apply.

    Args:
        model: any causal LM or vision-language model (wrapped or not) whose forward gives `.logits` (B, T, V).
        prompts, completions: B lists of token ids each; prompts may not be empty, completions may.
        visuals: the pictures of each prompt, None for one of text; None where no prompt has any.
        temperature: the one that was sampled with.
        banned_token_ids: tokens that the sampler could not choose; they get probability 0 here too, or the ratio would
            drift.
        with_entropy: also give the entropy of each token's distribution.

    Returns:
        logps and entropy, (B, C) float32 nats, 0 on padding. C is the longest completion.

    Raises:
        ValueError: a prompt is empty, so its first completion token has nothing to be predicted from; or a prompt is
            not the one that its pictures were rendered for.
    """
    check_prompts_given(prompts)
    check_visuals(prompts, visuals)
    device = next(iter(model.parameters())).device
    rows = [list(p) + list(c) for p, c in zip(prompts, completions, strict=True)]
    input_ids = pad_right(rows, pad_token_id, torch.long, device)
    first = min(len(prompt) for prompt in prompts) - 1  # the earliest position whose logits are needed
    kwargs: dict[str, Any] = {"use_cache": False}
    if visuals is not None:
        kwargs |= collate_visual(visuals, input_ids.shape[1], device=device, dtype=floating_dtype(model))
    keeps = "logits_to_keep" in inspect.signature(type(base_model(model)).forward).parameters
    if keeps:
        kwargs["logits_to_keep"] = input_ids.shape[1] - first
    logits = model(input_ids=input_ids, **kwargs).logits
    if not keeps:
        logits = logits[:, first:]
    # The last position predicts nothing that was sampled. It stays in, with an arbitrary target that is masked below:
    # cutting it off would make the logits non-contiguous, and flattening them would copy them whole.
    targets = pad(input_ids[:, first + 1 :], (0, 1))
    logits = ban(logits, banned_token_ids)
    logps, entropy = token_logps(logits, targets, temperature=temperature, with_entropy=with_entropy)

    starts = [len(prompt) - 1 - first for prompt in prompts]
    return _aligned(logps, starts, completions), None if entropy is None else _aligned(entropy, starts, completions)


def _aligned(values: Tensor, starts: Sequence[int], completions: Sequence[Sequence[int]]) -> Tensor:
    """(B, positions) → (B, C): each row's values from its start on, 0 behind its completion."""
    mask = completion_mask(completions, values.device)
    columns = torch.tensor(starts, device=values.device)[:, None] + torch.arange(mask.shape[1], device=values.device)
    return torch.where(mask.bool(), values.gather(1, columns.clamp(max=values.shape[1] - 1)), 0.0)
