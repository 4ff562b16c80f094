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
Routes = list[Tensor]
"""Of each layer with experts, in order: (tokens, experts per token) the experts chosen."""


class _LastTopK(TorchFunctionMode):
    """Counts calls of top-k, and replaces the result of the one with a given number.

    Routers take their experts from the last one (those before choose among groups of experts).
    """

    def __init__(self, number: int | None = None, chosen: Tensor | None = None) -> None:
        super().__init__()
        self.calls, self.number, self.chosen = 0, number, chosen
        self.indices: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return found
        self.calls += 1
        if self.chosen is not None and self.calls == self.number:
            if self.chosen.shape != found.indices.shape:
                raise ValueError(
                    f"routes of {self.chosen.shape[0]} tokens were kept, but {found.indices.shape[0]} are scored: "
                    "replay takes the very same micro-batch"
                )
            scores = args[0] if args else (kwargs or {})["input"]
            found = torch.return_types.topk((scores.gather(-1, self.chosen), self.chosen))  # type: ignore[attr-defined]
        self.indices = found.indices
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
        self._calls = [1] * len(self._routers)
        for layer, router in enumerate(self._routers):
            router.forward = self._around(layer, router.forward)

    def _around(self, layer: int, forward: Any) -> Any:
        def routed(*args: Any, **kwargs: Any) -> Any:
            if self._replayed is not None:
                with _LastTopK(self._calls[layer], self._replayed[layer].to(args[0].device)):
                    return forward(*args, **kwargs)
            if self._recorded is None:
                return forward(*args, **kwargs)
            with _LastTopK() as seen:
                out = forward(*args, **kwargs)
            self._keep(layer, seen, out)
            return out

        return routed

    def _keep(self, layer: int, seen: _LastTopK, out: Any) -> None:
        experts = out[-1] if isinstance(out, tuple) else None
        if seen.indices is None or experts is None or not torch.equal(seen.indices, experts):
            name = type(self._routers[layer]).__name__
            raise ConfigError(
                f"router_replay: {name} chooses its experts in a way that can't be replayed; leave it out"
            )
        self._calls[layer] = seen.calls
        assert self._recorded is not None
        if layer == 0:  # what came before was a trial
            self._recorded.clear()
        self._recorded.append(experts.detach().to(_small(experts)))

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
        self._replayed = None if routes is None else [one.long() for one in routes]
        try:
            yield
        finally:
            self._replayed = None


def save_routes(routes: Sequence[Routes], path: Path) -> None:
    """Write the routes of several micro-batches."""
    tensors = {f"{number}.{layer}": one for number, batch in enumerate(routes) for layer, one in enumerate(batch)}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)


def load_routes(path: Path) -> list[Routes]:
    """Read what `save_routes` wrote."""
    tensors = load_file(path)
    places = sorted(tuple(int(part) for part in name.split(".")) for name in tensors)
    routes: list[Routes] = [[] for _ in range(1 + max((number for number, _ in places), default=-1))]
    for number, layer in places:
        routes[number].append(tensors[f"{number}.{layer}"])
    return routes


def _small(experts: Tensor) -> torch.dtype:
    return torch.uint8 if experts.numel() == 0 or int(experts.max()) < 256 else torch.int16
