"""Rewards that put a run to the test: one draws random numbers, one fails on some of its rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def noisy(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Length plus noise of the generators of Python, NumPy and torch, which a continued run must find as they were."""
    return [
        len(ids) + 0.1 * (random.random() + float(np.random.rand()) + float(torch.rand(()))) for ids in completion_ids
    ]


def failing(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Fails on completions whose token ids have an odd sum."""
    if any(sum(ids) % 2 for ids in completion_ids):
        raise RuntimeError("odd")
    return [float(sum(ids) % 7) for ids in completion_ids]
