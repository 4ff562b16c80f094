"""Log-probabilities and entropies of tokens under a language model's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of logits that are upcast to float32 at a time. Bounds the float32 scratch to chunk × V (256 × 150k × 4 B =
# 154 MB) whatever B × T is; the result does not depend on it.
_CHUNK_ROWS = 256


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(logits / T)[token] without ever holding a float32 copy of all the logits.

    The only full-size tensors alive are the logits themselves (kept for the backward) and their gradient. The softmax
    is rebuilt chunk by chunk in the backward from the saved normaliser.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logps = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
        normaliser = torch.empty_like(logps)
        entropy = torch.empty_like(logps) if with_entropy else logps.new_empty(0)
        for start in range(0, tokens.numel(), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            scaled = logits[rows].float()
            if temperature != 1.0:
                scaled = scaled / temperature
            lse = torch.logsumexp(scaled, dim=-1)
            normaliser[rows] = lse
            logps[rows] = scaled.gather(-1, tokens[rows, None]).squeeze(-1) - lse
            if with_entropy:
                # H = -E[log p]; a banned token (log p = -inf) has probability 0 and must add 0, not nan
                all_logps = scaled - lse[:, None]
                probs = torch.exp(all_logps)
                entropy[rows] = -(probs * all_logps.masked_fill(probs == 0, 0.0)).sum(-1)
        ctx.save_for_backward(logits, tokens, normaliser)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    @once_differentiable  # the saved normaliser is a constant here: a second derivative would be wrong
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, tokens, normaliser = ctx.saved_tensors
        grad_logps = grads[0] / ctx.temperature
        grad_logits = torch.empty_like(logits)
        for start in range(0, tokens.numel(), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            grad = torch.exp(logits[rows].float() / ctx.temperature - normaliser[rows, None])
            grad *= -grad_logps[rows, None]
            grad.scatter_add_(-1, tokens[rows, None], grad_logps[rows, None])
            grad_logits[rows] = grad.to(grad_logits.dtype)
        return grad_logits, None, None, None


def token_logps(
    logits: Tensor, tokens: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token, and on request the entropy of the distribution that it was drawn from.

    Args:
        logits: (..., V) any float dtype; `logits[..., :]` predicts `tokens[...]`. -inf marks a banned token.
        tokens: (...) int64 in [0, V).
        temperature: the logits are divided by it first, as the sampler does.
        with_entropy: also return the entropy (no gradient flows through it).

    Returns:
        logps (...) float32 in nats, differentiable (once) with respect to `logits`; entropy (...) float32 in nats, or
        None.
    """
    vocab = logits.shape[-1]
    flat_logps, flat_entropy = _TokenLogProbs.apply(
        logits.reshape(-1, vocab), tokens.reshape(-1), float(temperature), with_entropy
    )
    return flat_logps.view(tokens.shape), flat_entropy.view(tokens.shape) if with_entropy else None
