"""Divergences against literal float64 loops, TRL and finite differences; a teacher's k tokens against all of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.losses.distill import (
    DIVERGENCES,
    NO_TOKEN,
    divergence,
    in_chunks,
    logits_divergence,
    soften,
    span_divergence,
    top_k_divergence,
    top_k_logps,
)


def draw(rows: int, vocab: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """(student's logits, teacher's), float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def literal(p: list[float], q: list[float], kind: str, beta: float) -> float:
    """Teacher p, student q: the sums as they are written down."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    if kind == "tv":
        return sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("kind", DIVERGENCES)
@settings(max_examples=25)
@given(
    rows=st.integers(1, 4),
    vocab=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    beta=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_divergences_are_what_a_loop_over_floats_gives(
    kind: str, rows: int, vocab: int, temperature: float, beta: float, seed: int
) -> None:
    student, teacher = draw(rows, vocab, seed)
    expected = [
        literal(softmax(t, temperature), softmax(s, temperature), kind, beta)
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    found = logits_divergence(student, teacher, kind, temperature=temperature, beta=beta)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-9)
    single = logits_divergence(student.float(), teacher.float(), kind, temperature=temperature, beta=beta)  # type: ignore[arg-type]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_by_finite_differences(kind: str) -> None:
    student, teacher = draw(3, 7)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: logits_divergence(s, teacher, kind, temperature=1.7, beta=0.3), (student,)
    )  # type: ignore[arg-type]
    ids, logps = top_k_logps(teacher, 3, temperature=1.7)
    assert torch.autograd.gradcheck(
        lambda s: top_k_divergence(s, ids, logps, kind, temperature=1.7, beta=0.3),  # type: ignore[arg-type]
        (student,),
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_trl_gives_the_same(beta: float) -> None:
    from trl.experimental.gold.gold_trainer import GOLDTrainer

    student, teacher = draw(5, 11)
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
    theirs = GOLDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=2.0, reduction="none"
    )
    ours = logits_divergence(student, teacher, kind, temperature=2.0, beta=beta)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs[0].sum(-1))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_equal_distributions_have_no_divergence_and_no_gradient(kind: str) -> None:
    logits = draw(4, 9)[0].float().requires_grad_()
    found = logits_divergence(logits, logits.detach().clone(), kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-6, rtol=0)
    found.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(4, 9), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_banned_tokens_add_nothing(kind: str) -> None:
    """A token that both sides can't say is as if it weren't there, gradients included."""
    student, teacher = draw(3, 6)
    shut = torch.full((3, 1), float("-inf"), dtype=torch.float64)
    inner = student.clone().requires_grad_()
    wide = torch.cat([inner, shut], dim=1)
    found = logits_divergence(wide, torch.cat([teacher, shut], dim=1), kind)  # type: ignore[arg-type]
    found.sum().backward()
    reference = student.clone().requires_grad_()
    expected = logits_divergence(reference, teacher, kind)  # type: ignore[arg-type]
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inner.grad, reference.grad)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_k_of_the_whole_vocabulary_is_the_whole_divergence(kind: str, temperature: float, dtype: torch.dtype) -> None:
    student, teacher = (one.to(dtype) for one in draw(5, 9))
    whole, part = student.clone().requires_grad_(), student.clone().requires_grad_()
    expected = logits_divergence(whole, teacher, kind, temperature=temperature)  # type: ignore[arg-type]
    ids, logps = top_k_logps(teacher, 9, temperature=temperature)
    found = top_k_divergence(part, ids, logps, kind, temperature=temperature)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(part.grad, whole.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
@settings(max_examples=25)
@given(vocab=st.integers(2, 12), seed=st.integers(0, 1000), data=st.data())
def test_fewer_tokens_are_a_lower_bound_with_an_exact_tail(
    kind: str, vocab: int, seed: int, data: st.DataObject
) -> None:
    student, teacher = draw(2, vocab, seed)
    k = data.draw(st.integers(1, vocab - 1))
    ids, logps = top_k_logps(teacher, k)
    found = top_k_divergence(student, ids, logps, kind)  # type: ignore[arg-type]
    expected = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(s, 1.0), softmax(t, 1.0)
        kept = sorted(range(vocab), key=lambda i: -p[i])[:k]
        merged = [[one[i] for i in kept] + [sum(one[i] for i in range(vocab) if i not in kept)] for one in (p, q)]
        expected.append(literal(merged[0], merged[1], kind, 0.5))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-6)
    assert (found <= logits_divergence(student, teacher, kind) + 1e-9).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_places_with_fewer_alternatives(kind: str) -> None:
    """NO_TOKEN fills up; what was given is compared as if it had been alone."""
    student, teacher = draw(1, 8)
    ids, logps = top_k_logps(teacher, 2)
    alone = top_k_divergence(student, ids, logps, kind)  # type: ignore[arg-type]
    filled = torch.tensor([[*ids[0].tolist(), NO_TOKEN, NO_TOKEN]])
    padded = torch.cat([logps, torch.zeros(1, 2, dtype=logps.dtype)], dim=1)
    torch.testing.assert_close(top_k_divergence(student, filled, padded, kind), alone)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_teachers_that_are_sure(kind: str) -> None:
    """k tokens that round to all there is in float32 leave a little for the others: no divergence is infinite."""
    student, teacher = (one.float() for one in draw(40, 50))
    teacher = 60 * teacher
    student.requires_grad_()
    ids, logps = top_k_logps(teacher, 8)
    found = top_k_divergence(student, ids, logps, kind)  # type: ignore[arg-type]
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(student.grad).all()


def test_teachers_that_round_their_numbers() -> None:
    """Probabilities that add up to a little more than 1, as float16 servers send them, leave no tail and no nan."""
    student = draw(1, 5)[0].float().requires_grad_()
    logps = torch.tensor([[0.7, 0.3005]]).log()
    found = top_k_divergence(student, torch.tensor([[1, 3]]), logps)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 9])
def test_chunked_is_unchunked(rows: int) -> None:
    """Heads, hidden states and the student's head's gradient, in chunks of 4."""
    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(rows, 6).double(), torch.randn(rows, 5).double()
    weights = torch.rand(rows).double()
    heads = [torch.nn.Linear(6, 13).double() for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    teacher_head = torch.nn.Linear(5, 13).double()
    states = [hidden.clone().requires_grad_() for _ in range(2)]
    found = []
    for state, head, size in zip(states, heads, (4, 1000), strict=True):

        def compute(mine: Tensor, theirs: Tensor, head: torch.nn.Module = head) -> Tensor:
            return logits_divergence(head(mine), teacher_head(theirs), "jsd")

        out = in_chunks(compute, state, teacher_hidden, size=size)
        (out * weights).sum().backward()
        found.append(out)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(states[0].grad, states[1].grad)
    torch.testing.assert_close(heads[0].weight.grad, heads[1].weight.grad)


def test_the_mix_with_hard_labels() -> None:
    nll, far = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])
    torch.testing.assert_close(soften(nll, far, alpha=0.75, temperature=2.0), torch.tensor([1.75, 1.25]))
    with pytest.raises(ValueError, match="alpha"):
        soften(nll, far, alpha=1.5)


def test_temperature_leaves_the_size_of_gradients() -> None:
    """T² is what keeps a soft loss comparable: at a high temperature its gradient is T times smaller twice."""
    student, teacher = draw(1, 50, scale=0.1)
    sizes = []
    for temperature in (20.0, 40.0):
        leaf = student.clone().requires_grad_()
        far = logits_divergence(leaf, teacher, temperature=temperature)
        soften(torch.zeros(1), far, alpha=1.0, temperature=temperature).sum().backward()
        sizes.append(leaf.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)


def test_unknown_names_are_refused() -> None:
    one = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="forward_kl, reverse_kl, jsd, tv"):
        divergence(one, one, "kl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        divergence(one, one, "jsd", beta=1.0)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_spans_are_two_outcomes(kind: str) -> None:
    """Probabilities of a span's tokens are multiplied; it is written, or something else is."""
    q, p = [0.5, 0.8, 0.9, 0.3], [0.6, 0.7, 0.25]
    student = torch.tensor(q, dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor(p, dtype=torch.float64).log()
    spans = torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1, 1])
    found = span_divergence(student, spans[0], teacher, spans[1], 2, kind, beta=0.3)  # type: ignore[arg-type]
    pairs = [(0.5 * 0.8, 0.6), (0.9, 0.7 * 0.25)]
    expected = [literal([p_, 1 - p_], [q_, 1 - q_], kind, 0.3) for q_, p_ in pairs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-9)
    assert torch.autograd.gradcheck(
        lambda s: span_divergence(s, spans[0], teacher, spans[1], 2, kind, beta=0.3),  # type: ignore[arg-type]
        (student,),
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_spans_of_one_token_are_the_token_and_all_others(kind: str) -> None:
    student, teacher = draw(4, 9)
    tokens = torch.tensor([2, 0, 8, 5])
    q, p = (torch.log_softmax(one, -1).gather(1, tokens[:, None])[:, 0] for one in (student, teacher))
    found = span_divergence(q, torch.arange(4), p, torch.arange(4), 4, kind)  # type: ignore[arg-type]
    expected = top_k_divergence(student, tokens[:, None], p[:, None], kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_certain_spans_have_gradients() -> None:
    student = torch.tensor([0.0, -1e-12]).requires_grad_()
    found = span_divergence(student, torch.tensor([0, 1]), torch.tensor([0.0, -0.5]), torch.tensor([0, 1]), 2)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(student.grad).all()
