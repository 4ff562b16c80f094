"""Losses inside a model against literal loops; what they don't see (rotations, heads, scale); maps of layers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mmreason.losses.representations import (
    attention_kl,
    contrastive,
    hidden_cosine,
    hidden_mse,
    layer_map,
    linear_cka,
    relation_kl,
    relational_angle,
    relational_distance,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hidden_states() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    mse = [
        sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 4
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(hidden_mse(student, teacher), torch.tensor(mse))
    cosine = [
        1 - sum(a * b for a, b in zip(s, t, strict=True)) / (math.hypot(*s) * math.hypot(*t))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(hidden_cosine(student, teacher), torch.tensor(cosine))


def test_attention() -> None:
    student, teacher = (torch.softmax(draw(2, 3, 4, 4, seed=seed), -1) for seed in (0, 1))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = []
    for row in range(2):
        queries = [i for i in range(4) if mask[row, i]]
        kl = [
            sum(
                teacher[row, a, i, j].item() * math.log(teacher[row, a, i, j].item() / student[row, a, i, j].item())
                for j in range(4)
            )
            for a in range(3)
            for i in queries
        ]
        expected.append(sum(kl) / len(kl))
    torch.testing.assert_close(attention_kl(student, teacher, mask), torch.tensor(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        attention_kl(student, teacher[:, :1], mask),
        attention_kl(student.mean(1, keepdim=True), teacher[:, :1], mask),
    )


def test_attention_with_what_is_masked() -> None:
    """Causal attention has zeros on both sides, which add nothing and give no nan."""
    causal = torch.ones(4, 4).tril()
    student, teacher = (
        torch.softmax(draw(1, 2, 4, 4, seed=seed).masked_fill(causal == 0, float("-inf")), -1).float()
        for seed in (0, 1)
    )
    student.requires_grad_()
    found = attention_kl(student, teacher, torch.ones(1, 4))
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(student.grad).all() and found.item() > 0


def test_relations() -> None:
    student, teacher, mask = draw(1, 3, 4), draw(1, 3, 6, seed=1), torch.tensor([[1, 1, 1]])

    def relations(vectors: Tensor, head: int, size: int) -> list[list[float]]:
        part = vectors[0, :, head * size : (head + 1) * size].tolist()
        rows = []
        for i in range(3):
            scores = [
                math.exp(sum(a * b for a, b in zip(part[i], part[j], strict=True)) / size**0.5) for j in range(i + 1)
            ]
            rows.append([score / sum(scores) for score in scores])
        return rows

    kls = [
        sum(p * math.log(p / q) for p, q in zip(ps, qs, strict=True))
        for head in range(2)
        for ps, qs in zip(relations(teacher, head, 3), relations(student, head, 2), strict=True)
    ]
    found = relation_kl(student, teacher, mask, heads=2)
    torch.testing.assert_close(found, torch.tensor([sum(kls) / len(kls)]), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="4 features can't be split into 3"):
        relation_kl(student, teacher, mask, heads=3)


def test_relations_with_padding() -> None:
    """Tokens behind a row's end change nothing."""
    student, teacher = draw(1, 5, 4), draw(1, 5, 4, seed=1)
    short = relation_kl(student[:, :3], teacher[:, :3], torch.ones(1, 3), heads=2)
    long = relation_kl(student, teacher, torch.tensor([[1, 1, 1, 0, 0]]), heads=2)
    torch.testing.assert_close(short, long)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def test_relational_distance() -> None:
    student, teacher = draw(4, 3), draw(4, 5, seed=1)
    pairs = list(itertools.combinations(range(4), 2))
    scaled = []
    for rows in (student, teacher):
        distances = [math.dist(rows[i].tolist(), rows[j].tolist()) for i, j in pairs]
        scaled.append([d / (sum(distances) / len(distances)) for d in distances])
    expected = sum(huber(a - b) for a, b in zip(*scaled, strict=True)) / len(pairs)
    assert relational_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert relational_distance(3 * student, student).item() == pytest.approx(0, abs=1e-9)
    assert relational_distance(student[:1], teacher[:1]).item() == 0


def test_relational_angle() -> None:
    student, teacher = draw(3, 3), draw(3, 5, seed=1)

    def cosine(rows: Tensor, i: int, j: int, k: int) -> float:
        one, two = (rows[j] - rows[i]).tolist(), (rows[k] - rows[i]).tolist()
        sizes = math.hypot(*one) * math.hypot(*two)
        return sum(a * b for a, b in zip(one, two, strict=True)) / sizes if sizes else 0.0

    triplets = list(itertools.product(range(3), repeat=3))
    expected = sum(huber(cosine(student, *t) - cosine(teacher, *t)) for t in triplets) / len(triplets)
    assert relational_angle(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_contrastive() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    scores = [[math.exp(cosine(s, t) / 0.5) for t in teacher.tolist()] for s in student.tolist()]
    expected = [-math.log(row[i] / sum(row)) for i, row in enumerate(scores)]
    torch.testing.assert_close(contrastive(student, teacher, temperature=0.5), torch.tensor(expected))


@pytest.mark.parametrize("name", ["mse", "cosine", "attention", "relation", "distance", "angle"])
def test_a_model_and_itself_are_nothing_apart_and_gradients_are_right(name: str) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    losses = {
        "mse": (hidden_mse, (5, 4)),
        "cosine": (hidden_cosine, (5, 4)),
        "attention": (lambda s, t: attention_kl(s.softmax(-1), t.softmax(-1), mask), (1, 2, 5, 5)),
        "relation": (lambda s, t: relation_kl(s, t, mask, heads=2), (1, 5, 4)),
        "distance": (relational_distance, (5, 4)),
        "angle": (relational_angle, (5, 4)),
    }
    loss, shape = losses[name]
    same = draw(*shape)
    torch.testing.assert_close(
        loss(same, same).double(), torch.zeros_like(loss(same, same)).double(), atol=1e-6, rtol=0
    )
    student, teacher = draw(*shape, seed=2).requires_grad_(), draw(*shape, seed=3)
    (gradient,) = torch.autograd.grad(loss(student, teacher).sum(), student)
    direction = draw(*shape, seed=4)
    step = 1e-3  # losses are float32 inside
    with torch.no_grad():
        ahead, behind = (loss(student + sign * step * direction, teacher).double().sum() for sign in (1, -1))
    slope = ((ahead - behind) / (2 * step)).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=2e-3)


def test_cka_sees_through_rotation_and_scale_only() -> None:
    x, y = draw(200, 6), draw(200, 6, seed=1)
    rotation = torch.linalg.qr(draw(6, 6, seed=2)).Q
    assert linear_cka(x, 5 * x @ rotation).item() == pytest.approx(1)
    assert linear_cka(x, y).item() < 0.1
    centred = [one - one.mean(0) for one in (x, y)]
    kernels = [one @ one.T for one in centred]
    expected = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert linear_cka(x, y).item() == pytest.approx(expected.item())


def test_layer_maps() -> None:
    assert layer_map("uniform", 3, 6) == [(1, 2), (2, 4), (3, 6)]
    assert layer_map("uniform", 4, 6) == [(1, 2), (2, 3), (3, 5), (4, 6)]
    assert layer_map("uniform", 4, 2) == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert layer_map("last", 2, 6) == [(1, 5), (2, 6)]
    assert layer_map([[0, 0], [2, 6]], 2, 6) == [(0, 0), (2, 6)]
    with pytest.raises(ValueError, match="the teacher has no layer 7; there are 1 to 6"):
        layer_map([[1, 7]], 2, 6)
    with pytest.raises(ValueError, match="the student has no layer 3"):
        layer_map([[3, 1]], 2, 6)
    with pytest.raises(ValueError, match="can't stand on"):
        layer_map("last", 6, 2)
    with pytest.raises(ValueError, match="uniform, last"):
        layer_map("first", 2, 6)
