"""token_logps against torch.log_softmax in float64 and against torch.distributions, values, gradients and memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.losses.lm import _CHUNK_ROWS, token_logps


def plain(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """The textbook formula, in the dtype of the logits."""
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def draw(rows: tuple[int, ...], vocab: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """(logits float64, tokens, weights of the outputs in a scalar loss)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*rows, vocab, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, vocab, rows, generator=generator)
    return logits, tokens, torch.randn(rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize(
    "rows", [0, 1, _CHUNK_ROWS - 1, _CHUNK_ROWS, _CHUNK_ROWS + 1, 2 * _CHUNK_ROWS, 2 * _CHUNK_ROWS + 1]
)
def test_values_and_gradients_around_the_chunk_size(rows: int, temperature: float) -> None:
    logits, tokens, weights = draw((rows,), 31)
    reference = logits.clone().requires_grad_()
    expected = plain(reference, tokens, temperature)
    (expected * weights).sum().backward()

    ours = logits.float().requires_grad_()
    found, entropy = token_logps(ours, tokens, temperature=temperature)
    (found * weights.float()).sum().backward()
    assert entropy is None
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad.double(), reference.grad, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    vocab=st.integers(1, 40),
    temperature=st.floats(0.1, 10),
    scale=st.floats(0.01, 30),
    seed=st.integers(0, 10_000),
)
def test_any_shape(shape: list[int], vocab: int, temperature: float, scale: float, seed: int) -> None:
    logits, tokens, weights = draw(tuple(shape), vocab, seed, scale)
    reference = logits.float().double().requires_grad_()  # what float32 can hold is the common ground
    expected = plain(reference, tokens, temperature)
    (expected * weights).sum().backward()
    ours = logits.float().requires_grad_()
    found, entropy = token_logps(ours, tokens, temperature=temperature, with_entropy=True)
    (found * weights.float()).sum().backward()
    assert found.shape == tokens.shape and entropy is not None and entropy.shape == tokens.shape
    # an error of one part in 2^23 of the largest scaled logit is what float32 has
    bound = 1e-6 * (1 + logits.abs().max().item() / temperature)
    torch.testing.assert_close(found.double(), expected, atol=4 * bound, rtol=1e-5)
    torch.testing.assert_close(ours.grad.double(), reference.grad, atol=4 * bound / temperature + 1e-7, rtol=1e-4)


def test_strided_logits_and_tokens() -> None:
    logits, tokens, weights = draw((3, 7), 11)
    leaf = logits.float().requires_grad_()
    found, _ = token_logps(leaf[:, 1:], tokens.t().contiguous().t()[:, :-1])
    (found * weights[:, 1:].float()).sum().backward()
    reference = logits.clone().requires_grad_()
    expected = plain(reference[:, 1:], tokens[:, :-1], 1.0)
    (expected * weights[:, 1:]).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), reference.grad, atol=1e-6, rtol=1e-5)


def test_banned_tokens_have_no_probability_no_gradient_and_no_nan() -> None:
    logits, tokens, weights = draw((5,), 13)
    banned = [2, 9]
    tokens[tokens == 2] = 3
    tokens[tokens == 9] = 4
    kept = [i for i in range(13) if i not in banned]
    reference = logits[:, kept].clone().requires_grad_()
    expected = plain(reference, torch.tensor([kept.index(t) for t in tokens.tolist()]), 0.8)
    (expected * weights).sum().backward()

    ours = logits.float().index_fill(-1, torch.tensor(banned), float("-inf")).requires_grad_()
    found, entropy = token_logps(ours, tokens, temperature=0.8, with_entropy=True)
    (found * weights.float()).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad[:, kept].double(), reference.grad, atol=1e-6, rtol=1e-5)
    assert (ours.grad[:, banned] == 0).all()
    whole = torch.distributions.Categorical(logits=reference.detach() / 0.8).entropy()
    torch.testing.assert_close(entropy.double(), whole, atol=2e-6, rtol=1e-6)
    never, _ = token_logps(ours.detach(), torch.full((5,), 2))
    assert (never == float("-inf")).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_entropy_is_that_of_the_sampled_distribution(temperature: float) -> None:
    logits, tokens, _ = draw((4, _CHUNK_ROWS // 3), 17)
    _, entropy = token_logps(logits.float(), tokens, temperature=temperature, with_entropy=True)
    expected = torch.distributions.Categorical(logits=logits / temperature).entropy()
    torch.testing.assert_close(entropy.double(), expected, atol=3e-6, rtol=1e-6)
    certain, _ = torch.full((1, 5), -1e4), None
    certain[0, 2] = 1e4
    _, zero = token_logps(certain, torch.tensor([2]), with_entropy=True)
    assert zero.item() == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_through_the_entropy() -> None:
    logits, tokens, _ = draw((3,), 7)
    leaf = logits.float().requires_grad_()
    logps, entropy = token_logps(leaf, tokens, with_entropy=True)
    assert logps.requires_grad and not entropy.requires_grad


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """The result is as exact as if the bfloat16 logits had been float32; only the gradient is rounded, once."""
    logits, tokens, weights = draw((300,), 1000)
    rounded = logits.bfloat16()
    reference = rounded.double().requires_grad_()
    expected = plain(reference, tokens, 0.9)
    (expected * weights).sum().backward()
    ours = rounded.clone().requires_grad_()
    found, _ = token_logps(ours, tokens, temperature=0.9)
    (found * weights.float()).sum().backward()
    assert found.dtype == torch.float32 and ours.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=3e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad.double(), reference.grad, atol=1e-7, rtol=2**-8)


def test_no_float32_copy_of_the_logits_is_kept() -> None:
    """What waits for the backward pass is the logits as they came (same storage) and vectors of one number per row."""
    logits, tokens, _ = draw((4, 200), 64)
    leaf = logits.bfloat16().requires_grad_()
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps, _ = token_logps(leaf, tokens, with_entropy=True)
    assert logps.requires_grad
    large = [t for t in saved if t.numel() >= leaf.numel()]
    assert [t.data_ptr() for t in large] == [leaf.data_ptr()]
    assert all(t.numel() <= tokens.numel() for t in saved if t.data_ptr() != leaf.data_ptr())


def test_scratch_memory_does_not_grow_with_the_rows() -> None:
    """Largest single allocation of forward and backward, besides the gradient itself: one chunk of float32 rows."""
    vocab, rows = 512, 16 * _CHUNK_ROWS
    logits = torch.randn(rows, vocab).bfloat16().requires_grad_()
    tokens = torch.randint(0, vocab, (rows,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        logps, _ = token_logps(logits, tokens, temperature=0.7, with_entropy=True)
        logps.sum().backward()
    sizes = [e.cpu_memory_usage for e in profile.events() if e.name in ("aten::empty", "aten::empty_strided")]
    chunk, gradient = _CHUNK_ROWS * vocab * 4, rows * vocab * 2
    assert max(sizes) >= chunk  # the profiler sees what it has to see
    assert [size for size in sizes if size > 2 * chunk and size != gradient] == []


def test_second_derivative_is_refused() -> None:
    logits, tokens, _ = draw((3,), 7)
    leaf = logits.float().requires_grad_()
    (grad,) = torch.autograd.grad(token_logps(leaf, tokens)[0].sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        grad.pow(2).sum().backward()
