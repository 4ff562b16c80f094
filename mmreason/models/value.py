"""A critic beside a policy: values of the text so far, from the policy's own hidden states or from a model of its own.

The critic is a submodule of the policy and runs in its forward pass, so there is one model to prepare, to shard and to
put together gradients of, while sampling, adapters and saving go on seeing the policy alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

CRITIC = "critic"
"""Name of the submodule, and the beginning of its parameters' names."""


class ValuedOutput(NamedTuple):
    """What the policy returns while its critic is watching. values (B, K): one for each position that has logits."""

    logits: Tensor
    values: Tensor


class Critic(nn.Module):
    """V(s), a linear function of the last hidden state. It begins as V = 0.

    Args:
        backbone: a model of its own (`separate`): any causal LM or vision-language model, whose head is replaced.
            None (`shared`): the hidden states are those that the policy's head reads.
        width: of the hidden states, for a shared critic.
    """

    def __init__(self, backbone: Any = None, width: int = 0) -> None:
        super().__init__()
        self.head: nn.Linear | None = None
        self.backbone = backbone
        if backbone is None:
            self.head = _zero_head(width)
        else:
            head = _zero_head(_width_of(backbone), next(backbone.parameters()))
            for config in {id(c): c for c in (backbone.config, backbone.config.get_text_config())}.values():
                config.tie_word_embeddings = False
            backbone.set_output_embeddings(head)
        self.autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
        self._watching, self._detached = False, False
        self._hidden: Tensor | None = None
        self._values: Tensor | None = None

    @contextlib.contextmanager
    def watching(self, detached: bool = False) -> Iterator[None]:
        """Forward passes of the policy in here give values, too: see `take`.

        Args: detached: of a shared critic, no gradient flows into the policy.
        """
        self._watching, self._detached = True, detached
        try:
            yield
        finally:
            self._watching, self._hidden = False, None

    def take(self) -> Tensor:
        """(B, K) float32: the values of the last forward pass, at the positions that it gave logits for."""
        if self._values is None:
            raise RuntimeError("no forward pass was watched: call the policy within `watching`")
        values, self._values = self._values, None
        return values

    def remember(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the policy's head."""
        if self._watching:
            self._hidden = args[0]

    def value(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the policy: the same inputs valued. In the same pass, so DDP and ZeRO know what was used."""
        if not self._watching:
            return None
        with self.autocast():
            if self.head is None:
                values = self.backbone(*args, **kwargs).logits
            elif self._hidden is None:
                raise RuntimeError("the policy's head was not called, so there are no hidden states to value")
            else:
                hidden = self._hidden.detach() if self._detached else self._hidden
                values = self.head(hidden.to(self.head.weight.dtype))
        self._hidden, self._values = None, values.squeeze(-1).float()
        return ValuedOutput(output.logits, self._values)


def _zero_head(width: int, like: Tensor | None = None) -> nn.Linear:
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head if like is None else head.to(like.device, like.dtype)


def _width_of(model: Any) -> int:
    """Width of what the model's head reads."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings that a value head could stand beside")
    return int(getattr(head, "in_features", 0) or model.config.get_text_config().hidden_size)


def attach_critic(model: Any, backbone: Any = None) -> Critic:
    """Give a policy, PEFT model or not, its critic; before it is prepared for training.

    Args: backbone: for a separate critic, see `Critic`.
    """
    critic = Critic(backbone, 0 if backbone is not None else _width_of(model))
    if backbone is None:
        critic.to(next(model.parameters()).device)
        model.get_output_embeddings().register_forward_pre_hook(critic.remember)
    model.add_module(CRITIC, critic)
    model.register_forward_hook(critic.value, with_kwargs=True)
    return critic


@contextlib.contextmanager
def without_critic(model: Any) -> Iterator[Critic | None]:
    """The policy alone, for what goes through all of a model's modules (saving, loading). Gives the critic, if any."""
    critic: Critic | None = model._modules.pop(CRITIC, None)
    try:
        yield critic
    finally:
        if critic is not None:
            model._modules[CRITIC] = critic


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the policy's tensors, the critic's) of the state dict of both."""
    prefix = f"{CRITIC}."
    policy = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return policy, {name.removeprefix(prefix): state[name] for name in state.keys() - policy.keys()}
