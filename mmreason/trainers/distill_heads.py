"""Logits of a few places at a time: a forward pass that stops before the head, and the head by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmreason.trainers.sft_loss import Places, place_logits

Head = Callable[[Tensor], Tensor]


def output_head(model: Any) -> Any:
    """The module that makes logits of hidden states; None where the model names none."""
    while hasattr(model, "module"):
        model = model.module
    found = getattr(model, "get_output_embeddings", None)
    return None if found is None else found()


@contextmanager
def _head_off(head: Any) -> Iterator[None]:
    """Let the head give back what it is given."""
    own = vars(head).get("forward")  # of a hook that Accelerate or bitsandbytes has put there
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def place_hidden(model: Any, batch: Mapping[str, Any], places: Places, **more: Any) -> tuple[Tensor, Head, Any]:
    """One forward pass without the head: ((S, H) what the head would get, the head, all that the model gave)."""
    head = output_head(model)
    with _head_off(head):
        hidden, out = place_logits(model, batch, places, **more)
    return hidden, head, out


@torch.no_grad()
def head_stands_alone(model: Any, batch: Mapping[str, Any], places: Places) -> bool:
    """Whether the head's output is the model's logits: it isn't where they are capped or scaled behind it.

    Two forward passes without dropout. Collective where the model's weights are spread over processes.
    """
    if output_head(model) is None:
        return False
    training = model.training
    model.eval()
    logits, _ = place_logits(model, batch, places)
    hidden, head, _ = place_hidden(model, batch, places)
    model.train(training)
    alone = head(hidden)
    near = 1e-2 if logits.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return bool(alone.shape == logits.shape and torch.allclose(alone.float(), logits.float(), atol=near, rtol=near))
