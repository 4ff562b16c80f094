"""How far a student's next-token distribution is from its teacher's, whole or by the teacher's k likeliest tokens.

Shapes: N places of a text (rows of logits), V tokens of the vocabulary, k alternatives that a teacher gave. Every
function gives one number per place, (N,) float32 in nats, differentiable with respect to the student's logits; what it
is weighted by and averaged over is the caller's matter. Nothing is differentiated with respect to the teacher.

A temperature T divides both logits before the softmax. Gradients then shrink with 1/T², so that `soften` multiplies by
T² and the mix with hard labels keeps its meaning (Hinton et al., arXiv 1503.02531, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "tv"]
DIVERGENCES: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jsd", "tv")
_CHUNK_ROWS = 64  # rows whose probabilities exist at a time beside the logits
NO_TOKEN = -1
"""Id of a place's alternative that the teacher did not give."""


def divergence(
    student_logps: Tensor, teacher_logps: Tensor, kind: Divergence = "forward_kl", *, beta: float = 0.5
) -> Tensor:
    """The divergence of two distributions over the same outcomes.

    forward_kl: KL(p ‖ q) = Σ p (log p - log q), p the teacher's, q the student's: the student covers all of p.
    reverse_kl: KL(q ‖ p): the student keeps to where p is high (MiniLLM, arXiv 2306.08543, eq. 1).
    jsd: β KL(p ‖ m) + (1-β) KL(q ‖ m) with m = β p + (1-β) q (GKD, arXiv 2306.13649, eq. 1). With β = ½ it is the
        Jensen-Shannon divergence; divided by β it tends to the forward KL for β → 0, and to the reverse one at the
        other end.
    tv: ½ Σ |p - q|, total variation (f-DISTILL, arXiv 2307.15190, eq. 9).

    Args:
        student_logps, teacher_logps: (N, V) log-probabilities, nats; -inf is probability 0.
        beta: of jsd, between 0 and 1.

    Returns: (N,) float, never below 0 but by rounding; inf where the KL is.
    """
    _check(kind, beta)
    p, q = teacher_logps, student_logps
    if kind == "forward_kl":
        return _kl(p, q)
    if kind == "reverse_kl":
        return _kl(q, p)
    if kind == "tv":
        return 0.5 * (p.exp() - q.exp()).abs().sum(-1)
    shares = p.new_tensor([beta, 1 - beta]).log()
    # where both are 0, logaddexp has no derivative; such an outcome has no part in the divergence
    never = torch.isneginf(p) & torch.isneginf(q)
    p_, q_ = p.masked_fill(never, 0.0), q.masked_fill(never, 0.0)
    mixture = torch.logaddexp(p_ + shares[0], q_ + shares[1]).masked_fill(never, float("-inf"))
    return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)


def _check(kind: str, beta: float) -> None:
    if kind not in DIVERGENCES:
        raise ValueError(f"unknown divergence {kind!r}; known: {', '.join(DIVERGENCES)}")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(f"beta={beta} must be between 0 and 1; its ends are forward_kl and reverse_kl")


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p - log q) of log-probabilities; outcomes without probability under p add 0, not nan."""
    never = torch.isneginf(p)
    log_p = p.masked_fill(never, 0.0)
    log_q = q.masked_fill(never, 0.0)
    return (p.exp() * (log_p - log_q)).sum(-1)


def logits_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: Divergence = "forward_kl",
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """`divergence` at a temperature, of logits over one vocabulary.

    Beside the logits and their gradient no tensor of their size is made. Differentiable once.

    Args: student_logits, teacher_logits: (N, V) any float dtype; computed in float32, float64 stays.
    """
    _check(kind, beta)
    found: Tensor = _LogitsDivergence.apply(student_logits, teacher_logits.detach(), kind, float(temperature), beta)
    return found


class _LogitsDivergence(torch.autograd.Function):
    """`divergence` of logits, with its gradient worked out beside it, some rows at a time.

    With g = ∂D/∂q the gradient for the logits is q (g - Σ q g) / T; g is -p/q for the forward KL, log q/p + 1 for the
    reverse one, (1-β) log q/m for jsd and ½ sign(q - p) for total variation.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, kind: Divergence, temperature: float, beta: float
    ) -> Tensor:
        exact = torch.float64 if student.dtype == torch.float64 else torch.float32
        out = torch.empty(student.shape[0], dtype=exact, device=student.device)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for start in range(0, student.shape[0], _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            q, p = (_logps(logits[rows], temperature) for logits in (student, teacher))
            out[rows] = divergence(q, p.to(exact), kind, beta=beta)
            if gradient is not None:
                gradient[rows] = _logits_gradient(q, p.to(exact), kind, beta).div_(temperature).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None, None


def _logits_gradient(log_q: Tensor, log_p: Tensor, kind: Divergence, beta: float) -> Tensor:
    """∂D/∂(student's logits at temperature 1), (rows, V)."""
    q = log_q.exp()
    if kind == "forward_kl":
        return q.sub_(log_p.exp())
    if kind == "reverse_kl":
        slope = log_q - log_p
    elif kind == "tv":
        slope = 0.5 * torch.sign(q - log_p.exp())
    else:
        shares = log_q.new_tensor([beta, 1 - beta]).log()
        slope = (1 - beta) * (log_q - torch.logaddexp(log_p + shares[0], log_q + shares[1]))
    slope.masked_fill_(q == 0, 0.0)  # what the student can't say it can't learn to say
    return slope.sub_((q * slope).sum(-1, keepdim=True)).mul_(q)


def top_k_logps(logits: Tensor, k: int, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """A teacher's k likeliest tokens, at a temperature, as `top_k_divergence` takes them.

    Args: logits: (N, V). k: V at most counts.
    Returns: ids (N, k) int64, the likeliest first; their log-probabilities (N, k) float32 over the whole vocabulary.
    """
    found = _logps(logits, temperature).topk(min(k, logits.shape[-1]), dim=-1)
    return found.indices, found.values


def top_k_divergence(
    student_logits: Tensor,
    ids: Tensor,
    teacher_logps: Tensor,
    kind: Divergence = "forward_kl",
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """`divergence` over k + 1 outcomes: the teacher's k likeliest tokens, and all other tokens together.

    The probability of the others is exact on both sides: the teacher's is what its k leave, the student's is summed
    over its vocabulary. Merging outcomes never makes a divergence larger, so this is a lower bound of the divergence
    over the whole vocabulary, and equals it where k = V.

    Args:
        student_logits: (N, V).
        ids: (N, k) int64, different tokens of each place, NO_TOKEN where the teacher gave fewer.
        teacher_logps: (N, k) nats, over the teacher's whole vocabulary and at this same temperature.
    """
    logps = _logps(student_logits, temperature)
    there = ids != NO_TOKEN
    places = ids.clamp(min=0)
    known = logps.gather(-1, places).masked_fill(~there, float("-inf"))
    # added, not set: the fillers of a place go to token 0, which may be one of its alternatives
    taken = torch.zeros_like(logps).scatter_add(-1, places, there.to(logps.dtype)) > 0
    # Where nothing is left for a gradient to go to, logsumexp of nothing but -inf has none (nan).
    whole = taken.all(-1, keepdim=True)
    rest = torch.logsumexp(logps.masked_fill(taken & ~whole, float("-inf")), dim=-1, keepdim=True)
    teacher = teacher_logps.detach().to(logps.dtype).masked_fill(~there, float("-inf"))
    mass = torch.logsumexp(teacher, dim=-1, keepdim=True)
    # Rounding may leave a little more than nothing where the k are everything, or more than 1.
    teacher = torch.where(whole | (mass > 0), teacher - mass, teacher)
    # What rounds to nothing is still a little: 0 would be infinitely far from a student that has something there.
    left = torch.where(whole, float("-inf"), _log1mexp(mass.clamp(max=-torch.finfo(logps.dtype).eps)))
    student = torch.cat([known, rest.masked_fill(whole, float("-inf"))], dim=-1)
    return divergence(student, torch.cat([teacher, left], dim=-1), kind, beta=beta)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp x) for x < 0 without cancellation (Mächler 2012)."""
    near = x > -0.6931
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _logps(logits: Tensor, temperature: float) -> Tensor:
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(exact if temperature == 1 else exact / temperature, dim=-1)


def span_divergence(
    student_logps: Tensor,
    student_spans: Tensor,
    teacher_logps: Tensor,
    teacher_spans: Tensor,
    count: int,
    kind: Divergence = "forward_kl",
    *,
    beta: float = 0.5,
) -> Tensor:
    """`divergence` over two outcomes for each span of a text: that it is written here, and that anything else is.

    A span's probability is the product over its tokens, however it is cut into tokens; where both cut alike, this is
    `top_k_divergence` of the one token that stands there. For models whose vocabularies differ.

    Args:
        student_logps, teacher_logps: (S,), (S',) of the tokens of one text in both tokenizations, nats.
        student_spans, teacher_spans: (S,), (S',) int64 number of each token's span, -1 for tokens in none.
        count: number of spans.

    Returns: (count,).
    """
    sums = []
    for logps, spans in ((student_logps, student_spans), (teacher_logps.detach(), teacher_spans)):
        there = spans >= 0
        each = logps.new_zeros(count).index_add(0, spans[there], logps[there])
        # what is certain leaves no other outcome, and no derivative
        sure = each.clamp(max=-torch.finfo(torch.float32).eps)
        sums.append(torch.stack([sure, _log1mexp(sure)], dim=-1))
    return divergence(sums[0], sums[1].to(sums[0].dtype), kind, beta=beta)


def soften(nll: Tensor, divergence: Tensor, *, alpha: float | Tensor, temperature: float = 1.0) -> Tensor:
    """(1 - α) · nll + α · T² · divergence (arXiv 1503.02531, section 2).

    Args: nll: (N,) of the hard labels at temperature 1. alpha: weight of the teacher's distribution, in [0, 1], one for
        all places or (N,).
    """
    if isinstance(alpha, float) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be between 0 and 1")
    return (1 - alpha) * nll + alpha * temperature**2 * divergence


def in_chunks(compute: Callable[..., Tensor], *rows: Tensor, size: int = 256) -> Tensor:
    """`compute(*rows)` for `size` places at a time, so that what it makes on the way exists for one chunk only.

    Each chunk is computed again in the backward pass. With `compute` applying the heads of student and teacher, no
    logits of all places ever exist: memory is size × V instead of N × V, for one more matrix product.

    Args:
        compute: chunks of the rows -> (chunk,) or a tensor with the chunk in front. It may use parameters of its own.
        rows: tensors (N, ...).

    Returns: what `compute` gives for all N places, equal to it but for rounding, gradients included.
    """
    count = rows[0].shape[0]
    if count <= size:
        return compute(*rows)
    parts = [
        checkpoint(compute, *(one[start : start + size] for one in rows), use_reentrant=False)
        for start in range(0, count, size)
    ]
    return torch.cat(parts)
