"""Routing replay for mixtures of experts: an update scores a rollout with the experts that its old policy chose.

A small change of the weights can send a token to other experts, and its importance ratio then jumps although the policy
hardly moved. With replay the choice of experts is fixed for a rollout; how much each chosen expert counts still follows
the current router, with its gradient (GSPO, arXiv 2507.18071 sec. 5.3).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmreason.types import ConfigError

_ROUTER = re.compile(r"Top[kK]Router$")  # what transformers calls a module that gives (logits, weights, experts)
Routes = list[list[Tensor]]
"""Of each layer with experts, what each top-k of its router chose; the last one's are the experts, (tokens, k)."""


class _TopK(TorchFunctionMode):
    """Notes what calls of top-k choose, or lets them choose what they are told.

    Routers take their experts from the last one; those before choose among groups of experts.

    Args: chosen: of each call, in order.
    """

    def __init__(self, chosen: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.chosen, self.seen = chosen, list[Tensor]()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return found
        if self.chosen is not None:
            scores = args[0] if args else (kwargs or {})["input"]
            told = self.chosen[len(self.seen)].to(scores.device, torch.long)
            if told.shape != found.indices.shape:
                raise ValueError(
                    f"routes of shape {tuple(told.shape)} were kept, but {tuple(found.indices.shape)} are scored: "
                    "replay takes the very same micro-batch"
                )
            found = torch.return_types.topk((scores.gather(-1, told), told))  # type: ignore[attr-defined]
        self.seen.append(found.indices)
        return found


class RouterReplay:
    """Records the routes of a model's forward passes, and makes later passes take them.

    Args: model: any transformers model, wrapped or not.
    Raises: ConfigError where it has no router, or one that is not understood.
    """

    def __init__(self, model: Any) -> None:
        self._routers = [module for module in model.modules() if _ROUTER.search(type(module).__name__)]
        if not self._routers:
            raise ConfigError("router_replay: the model has no experts to choose from; leave it out")
        self._recorded: Routes | None = None
        self._replayed: Routes | None = None
        for layer, router in enumerate(self._routers):
            router.forward = self._around(layer, router.forward)

    def _around(self, layer: int, forward: Any) -> Any:
        def routed(*args: Any, **kwargs: Any) -> Any:
            if self._replayed is not None:
                with _TopK(self._replayed[layer]):
                    return forward(*args, **kwargs)
            if self._recorded is None:
                return forward(*args, **kwargs)
            with _TopK() as mode:
                out = forward(*args, **kwargs)
            self._keep(layer, mode.seen, out)
            return out

        return routed

    def _keep(self, layer: int, seen: list[Tensor], out: Any) -> None:
        experts = out[-1] if isinstance(out, tuple) else None
        if not seen or experts is None or not torch.equal(seen[-1], experts):
            name = type(self._routers[layer]).__name__
            raise ConfigError(f"router_replay: the way in which {name} chooses experts can't be replayed; leave it out")
        assert self._recorded is not None
        if layer == 0:  # what came before was a trial
            self._recorded.clear()
        self._recorded.append([one.detach().to(_small(one)) for one in seen])

    @contextlib.contextmanager
    def record(self) -> Iterator[Routes]:
        """A forward pass without gradient; of several the last. The list is filled once it is done."""
        routes: Routes = []
        self._recorded = routes
        try:
            yield routes
        finally:
            self._recorded = None

    @contextlib.contextmanager
    def replay(self, routes: Routes | None) -> Iterator[None]:
        """A forward pass over the very same tokens and its backward pass, in which checkpointing recomputes layers.

        Args: routes: from `record`; None changes nothing.
        """
        if routes is not None and len(routes) != len(self._routers):
            raise ValueError(f"routes of {len(routes)} layers for {len(self._routers)} routers")
        self._replayed = routes
        try:
            yield
        finally:
            self._replayed = None


def save_routes(routes: Sequence[Routes], path: Path) -> None:
    """Write the routes of several micro-batches."""
    tensors = {
        f"{number}.{layer}.{call}": one.contiguous().cpu()
        for number, batch in enumerate(routes)
        for layer, calls in enumerate(batch)
        for call, one in enumerate(calls)
    }
    save_file(tensors, path)


def load_routes(path: Path) -> list[Routes]:
    """Read what `save_routes` wrote. Raises: OSError, SafetensorError."""
    tensors = load_file(path)
    places = sorted(tuple(int(part) for part in name.split(".")) for name in tensors)
    routes: list[Routes] = []
    for number, layer, call in places:
        if number == len(routes):
            routes.append([])
        if layer == len(routes[number]):
            routes[number].append([])
        routes[number][layer].append(tensors[f"{number}.{layer}.{call}"])
    return routes


def _small(experts: Tensor) -> torch.dtype:
    return torch.uint8 if experts.numel() == 0 or int(experts.max()) < 256 else torch.int16
