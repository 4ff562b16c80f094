"""Toolformer's filter (arXiv:2302.04761, section 2, equations 2 and 3): is a call worth its place?

    L_i(z) = - sum over j >= i of  w_{j-i} log p(x_j | z, x_1 ... x_{j-1})
    w_t    = v_t / sum over s of v_s,   v_t = max(0, 1 - 0.2 t)                   (section 4.1: five tokens, sum 3)
    L+     = L_i(e(c, r)),   L- = min(L_i(empty), L_i(e(c, empty)));   kept where  L- - L+ >= tau

As in the paper the call stands in front of the whole text, not in its middle, since the model has not learned yet to
read calls there. Where fewer than five tokens follow, their weights stay as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.types import ConfigError

WEIGHTS = tuple(max(0.0, 1 - 0.2 * t) / 3 for t in range(5))


@dataclass(frozen=True, slots=True)
class Judged:
    """The three losses of a call, in nats. gain: L- − L+."""

    with_result: float
    with_call: float
    without: float

    @property
    def gain(self) -> float:
        return min(self.without, self.with_call) - self.with_result


class CallLosses:
    """Judges calls by a local causal model.

    Args:
        model, tokenizer: of transformers; the tokenizer must be a fast one, which knows where tokens stand.
        batch_size: sequences in one forward pass.
        max_length: tokens of a sequence; of longer texts the earliest are left out.

    Raises: ConfigError for a tokenizer that can't.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 16, max_length: int | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"scorer: {type(tokenizer).__name__} is no fast tokenizer: it can't tell token places")
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError("scorer: the tokenizer has neither a BOS nor an EOS token to begin a text with")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        limits = [max_length, getattr(model.config, "max_position_embeddings", None)]
        self.max_length = min((limit for limit in limits if limit), default=4096)
        self._start = int(start)
        self._lock = threading.Lock()  # one model, several tasks

    def judge(self, text: str, calls: Sequence[tuple[int, str, str]]) -> list[Judged]:
        """The losses of each call by itself.

        Args: calls: (place in the text, e(c), e(c, r)).
        Raises: ValueError for a place at which no text follows.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        rows: list[tuple[list[int], list[int]]] = []
        for place, bare, full in calls:
            first = next((number for number, end in enumerate(ends) if end > place), None)
            if first is None:
                raise ValueError(f"nothing follows place {place} of the text, which has {len(text)} characters")
            rows += [self._row(prefix, ids, first) for prefix in (full, bare, "")]
        losses = self._losses(rows)
        return [Judged(*losses[k : k + 3]) for k in range(0, len(losses), 3)]

    def _row(self, prefix: str, ids: list[int], first: int) -> tuple[list[int], list[int]]:
        """(what stands before, the tokens that are scored)."""
        front = [self._start]
        if prefix:
            front += self.tokenizer(f"{prefix} ", add_special_tokens=False)["input_ids"]
        scored = ids[first : first + len(WEIGHTS)]
        room = max(0, self.max_length - len(front) - len(scored))
        return front + ids[max(0, first - room) : first], scored

    def _losses(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        import torch

        from mmreason.rollout.scoring import completion_logps

        losses = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda k: len(rows[k][0]))  # rows of like lengths side by side
        weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        with self._lock, torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                logps, _ = completion_logps(self.model, [rows[k][0] for k in batch], [rows[k][1] for k in batch])
                found = -(logps.double().cpu() * weights[: logps.shape[1]]).sum(1)
                for k, loss in zip(batch, found.tolist(), strict=True):
                    losses[k] = loss
        return losses


def load_losses(name: str, *, device: str = "auto", dtype: str = "auto", batch_size: int = 16) -> CallLosses:
    """The filter with a checkpoint.

    Raises: ConfigError where the checkpoint can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(place)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"scorer {name!r} can't be loaded as a causal language model: {error}") from error
    return CallLosses(model, tokenizer, batch_size=batch_size)
