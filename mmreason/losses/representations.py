"""What a student may learn from inside its teacher: hidden states, attention, relations, and how alike layers are.

Shapes: N places or N pooled rows, H features, B rows of T tokens, A heads. Hidden sizes of student and teacher may
differ only where it is said; elsewhere project the student first. Nothing is differentiated with respect to the
teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over features of (s - t)² (FitNets, arXiv 1412.6550, eq. 3; TinyBERT, 1909.10351, eq. 8).

    Args: student, teacher: (N, H). Returns: (N,) float32.
    """
    return (student.float() - teacher.detach().float()).square().mean(-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t) (DistilBERT, arXiv 1910.01108, section 3). Args: (N, H) each. Returns: (N,) float32."""
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over heads and queries of KL(teacher's attention ‖ student's) (MiniLM, arXiv 2002.10957, eq. 5).

    Where the numbers of heads differ, both are averaged over heads first.

    Args:
        student: (B, A, T, T) attention probabilities; teacher: (B, A', T, T).
        mask: (B, T) 1 on the tokens that count as queries.

    Returns: (B,) float32.
    """
    s, t = student.float(), teacher.detach().float()
    if s.shape[1] != t.shape[1]:
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    return _mean_over_queries(_kl_of_probabilities(t, s), mask)


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL between the self-attention relations softmax(X Xᵀ / √d) of queries, keys or values.

    MiniLMv2 (arXiv 2012.15828, eq. 5-7): the vectors are split anew into `heads` relation heads, the same number on
    both sides, so neither hidden size nor number of heads has to agree. Tokens see only themselves and those before.

    Args:
        student: (B, T, H), teacher: (B, T, H'); both divisible by `heads`. mask: (B, T) 1 on the tokens that count.
    Returns: (B,) float32, mean over relation heads and tokens.
    Raises: ValueError where a size can't be split into `heads`.
    """
    relations = [_relations(one.float(), mask, heads) for one in (student, teacher.detach())]
    return _mean_over_queries(_kl_of_log_probabilities(relations[1], relations[0]), mask)


def _relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(B, heads, T, T) log of the relations."""
    rows, tokens, size = vectors.shape
    if size % heads:
        raise ValueError(f"{size} features can't be split into {heads} relation heads")
    split = vectors.view(rows, tokens, heads, size // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / (size // heads) ** 0.5
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=vectors.device).tril()
    # a token that doesn't count still sees itself, so that no row is empty
    itself = torch.eye(tokens, dtype=torch.bool, device=vectors.device)
    seen = (causal & mask.bool()[:, None, :]) | itself
    return torch.log_softmax(scores.masked_fill(~seen[:, None], float("-inf")), dim=-1)


def _kl_of_probabilities(p: Tensor, q: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return _kl_of_log_probabilities(p.clamp(min=tiny).log(), q.clamp(min=tiny).log())


def _kl_of_log_probabilities(p: Tensor, q: Tensor) -> Tensor:
    never = torch.isneginf(p)
    return (p.exp() * (p.masked_fill(never, 0.0) - q.masked_fill(never, 0.0))).sum(-1)


def _mean_over_queries(values: Tensor, mask: Tensor) -> Tensor:
    """(B, A, T) -> (B,): mean over heads and the queries that count."""
    weights = mask.float()
    return (values.mean(1) * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs of rows, each divided by its own mean (RKD-D, 1904.05068, eq. 4-6).

    Args: student: (N, H), teacher: (N, H'). Returns: () float32; 0 for fewer than two rows.
    """
    s, t = _scaled_distances(student.float()), _scaled_distances(teacher.detach().float())
    return F.smooth_l1_loss(s, t) if len(s) else student.float().sum() * 0


def _scaled_distances(rows: Tensor) -> Tensor:
    distances = F.pdist(rows)
    positive = distances[distances > 0]
    return distances / positive.mean() if len(positive) else distances


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles that all triplets of rows make (RKD-A, arXiv 1904.05068, eq. 7-8).

    Args: student: (N, H), teacher: (N, H'). Returns: () float32; N³ numbers are made on the way.
    """
    s, t = _angles(student.float()), _angles(teacher.detach().float())
    return F.smooth_l1_loss(s, t)


def _angles(rows: Tensor) -> Tensor:
    """(N, N, N): the cosine at row i of the triangle j, i, k."""
    sides = F.normalize(rows[None, :, :] - rows[:, None, :], dim=-1)
    return sides @ sides.transpose(-1, -2)


def contrastive(student: Tensor, teacher: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE: which of N teacher rows belongs to this student row? (arXiv 1807.03748, eq. 4; CRD, 1910.10699.)

    Args: student, teacher: (N, H) pooled, of the same N inputs. Returns: (N,) float32 nats.
    """
    s, t = F.normalize(student.float(), dim=-1), F.normalize(teacher.detach().float(), dim=-1)
    logits = s @ t.T / temperature
    return F.cross_entropy(logits, torch.arange(len(s), device=s.device), reduction="none")


@torch.no_grad()
def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Centred kernel alignment with a linear kernel: ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), columns centred (1905.00414, eq. 3).

    1 for representations that are equal up to rotation and scale, near 0 for unrelated ones of many rows.

    Args: x: (N, H), y: (N, H') of the same N inputs. Returns: () float64; nan where one of them does not vary.
    """
    x, y = (one.double() - one.double().mean(0) for one in (x, y))
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def layer_map(how: str | Sequence[Sequence[int]], student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Which layer of the student learns from which of the teacher, counted from 1; 0 is what the embedding gives.

    Args:
        how: "uniform" spreads the student's layers over the teacher's, the last on the last; "last" maps the student's
            one after another to the teacher's last ones; or pairs [[student, teacher], …].

    Raises: ValueError for a layer that is not there, naming it, and for "last" where the teacher is less deep.
    """
    if how == "uniform":
        steps = range(1, student_layers + 1)
        return [(layer, -(-layer * teacher_layers // student_layers)) for layer in steps]
    if how == "last":
        if teacher_layers < student_layers:
            raise ValueError(f"layer map 'last': {student_layers} layers can't stand on the last of {teacher_layers}")
        return [(layer, teacher_layers - student_layers + layer) for layer in range(1, student_layers + 1)]
    if isinstance(how, str):
        raise ValueError(f"layer map {how!r}: uniform, last or pairs [[student, teacher], …]")
    well = isinstance(how, Sequence) and how and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in how)
    if not well or not all(isinstance(layer, int) for pair in how for layer in pair):
        raise ValueError(f"layer map {how!r}: uniform, last or pairs [[student, teacher], …]")
    pairs = [(student, teacher) for student, teacher in how]
    for whose, layer, count in [("student", s, student_layers) for s, _ in pairs] + [
        ("teacher", t, teacher_layers) for _, t in pairs
    ]:
        if not 0 <= layer <= count:
            raise ValueError(f"layer map: the {whose} has no layer {layer}; there are 1 to {count}, and 0 (embedding)")
    return pairs
