"""Rows, trainers and a literal loop that the supervised trainer is held to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmreason.data.mixture import RowOrder
from mmreason.data.supervised import SupervisedRow
from mmreason.data.visual import render_visual_prompt
from mmreason.trainers.sft_arguments import SFTOptions
from tests.pictures import ask, cell, picture


class ListedRows:
    """Rows in memory, as `SFTTrainer` takes them."""

    def __init__(self, rows: Sequence[SupervisedRow]) -> None:
        self.rows = list(rows)
        self.lengths = [len(row.ids) for row in self.rows]
        self.sources = [row.source for row in self.rows]

        self.image_counts = [0 if row.visual is None else len(row.visual.images) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def without_images(self, index: int) -> SupervisedRow:
        return replace(self.rows[index], visual=None)

    def __getitem__(self, index: int) -> SupervisedRow:
        return self.rows[index]


def random_rows(n: int, seed: int = 0, longest: int = 24) -> list[SupervisedRow]:
    """Texts of two sources; most have a supervised end, some a hole in it, some weights other than 1."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        length = draw.randint(3, longest)
        ids = [draw.randrange(5, 200) for _ in range(length)]
        start = draw.randint(1, length - 1)
        weights = [0.0] * start + [draw.choice([1.0, 1.0, 1.0, 0.5, 2.0]) for _ in range(length - start)]
        if length - start > 3 and i % 3 == 0:
            weights[start + 1] = 0.0
        rows.append(SupervisedRow(ids, weights, f"row {i}", "ab"[i % 2]))
    return rows


_TEXTS = ["what is it", "how many dots do you see here?", "hm", "compare them"]


def picture_rows(processor: Any, images: Sequence[int]) -> list[SupervisedRow]:
    """A question and its answer for each number of pictures; with 0 a row of text."""
    rows = []
    for i, count in enumerate(images):
        text = _TEXTS[i % len(_TEXTS)]
        cells = [cell(picture(30 + 17 * j + 9 * i, 40 + 5 * i, seed=10 * i + j)) for j in range(count)]
        visual = render_visual_prompt(ask(text, count), cells, processor) if count else None
        ids = visual.ids if visual else processor.tokenizer(text)["input_ids"]
        answer = processor.tokenizer(f"answer {i} is {i * 7}")["input_ids"]
        weights = [0.0] * len(ids) + [1.0] * len(answer)
        rows.append(SupervisedRow(ids + answer, weights, f"row {i}", "set", visual))
    return rows


def options(output_dir: Path, **changes: Any) -> SFTOptions:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "use_cpu": True, "gradient_checkpointing": False, "optim": "sgd",
        "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1,
        "per_device_train_batch_size": 4, "logging_steps": 1,
    }  # fmt: skip
    return SFTOptions(**settings | changes)


def trained(
    output_dir: Path,
    model: Any,
    rows: Sequence[SupervisedRow],
    *,
    order: RowOrder | None = None,
    processor: Any = None,
    **changes: Any,
) -> Any:
    """A trainer after its steps on these rows."""
    trainer = untrained(output_dir, model, rows, order=order, processor=processor, **changes)
    assert trainer.fit()
    return trainer


def untrained(
    output_dir: Path,
    model: Any,
    rows: Sequence[SupervisedRow],
    *,
    order: RowOrder | None = None,
    processor: Any = None,
    **changes: Any,
) -> Any:
    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.sft import SFTTrainer, trl_config

    args = options(output_dir, **changes)
    args.check()
    return SFTTrainer(model, args, trl_config(args), ListedRows(rows), processor or tiny_tokenizer(), order=order)


def double_loop(
    model: Any, steps: Sequence[Sequence[SupervisedRow]], learning_rate: float
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Plain SGD, row by row in float64: (loss of each step, the weights afterwards).

    The loss is written out: -Σ w log p(token) / Σ w over all the step's tokens that have a weight.
    """
    model = model.double()
    losses = []
    for rows in steps:
        total, weight = torch.zeros((), dtype=torch.float64), 0.0
        for row in rows:
            logits = model(input_ids=torch.tensor([row.ids])).logits[0]
            for place in range(1, len(row.ids)):
                if row.weights[place]:
                    log_probs = torch.log_softmax(logits[place - 1], dim=-1)
                    total = total - row.weights[place] * log_probs[row.ids[place]]
                    weight += row.weights[place]
        loss = total / weight
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= learning_rate * parameter.grad
        losses.append(loss.item())
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}
