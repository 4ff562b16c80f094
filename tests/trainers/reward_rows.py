"""Rows with a planted order, and trainers of reward models on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmreason.data.schema import to_dataset
from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.trainers.reward_arguments import RewardOptions
from mmreason.trainers.reward_data import COLUMNS, prepare_reward

WORTH = {"sand": -3, "fog": -2, "rope": -1, "tin": 0, "oak": 1, "silk": 2, "gold": 3}
"""The planted taste: what an answer is worth is the sum over its words."""


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def worth(text: str) -> int:
    return sum(WORTH[word] for word in text.split())


def planted(n: int, seed: int, completions: int = 4) -> list[dict[str, Any]]:
    """Rankings of answers by what they are worth; answers that are worth the same tie."""
    draw, rows = random.Random(seed), []
    while len(rows) < n:
        texts = [" ".join(draw.choices(list(WORTH), k=4)) for _ in range(completions)]
        levels = sorted({worth(text) for text in texts}, reverse=True)
        if len(levels) == 1 or len(set(texts)) < completions:
            continue
        ranking = [{"completion": said(text), "rank": levels.index(worth(text))} for text in texts]
        rows.append(example(f"{seed}/{len(rows)}", completion=said(texts[0]), meta={"ranking": ranking}))
    return rows


def example(name: str, **cells: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "bring something"}]
    return {"prompt": asked, "id": name, "source": "planted", "meta": {}, "images": [], **cells}


def pair(name: str, chosen: str, rejected: str, **meta: Any) -> dict[str, Any]:
    return example(name, chosen=said(chosen), rejected=said(rejected), meta=meta)


def tokenizer() -> Any:
    return tiny_tokenizer([" ".join(WORTH), "bring something"] * 40, vocab_size=320)


def dataset(rows: Sequence[dict[str, Any]]) -> Any:
    return to_dataset(rows, COLUMNS)  # type: ignore[arg-type]


def options(output_dir: Path, **changes: Any) -> RewardOptions:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "use_cpu": True, "gradient_checkpointing": False, "logging_steps": 1,
        "lr_scheduler_type": "constant", "max_steps": 1, "per_device_train_batch_size": 4,
    }  # fmt: skip
    return RewardOptions(**settings | changes)


def trainer(
    output_dir: Path,
    rows: Sequence[dict[str, Any]],
    head: Any = "preference",
    *,
    model: Any = None,
    processor: Any = None,
    **changes: Any,
) -> Any:
    from mmreason.models.reward import with_reward_head
    from mmreason.trainers.reward import RewardTrainer, hf_config

    args = options(output_dir, **changes)
    args.check()
    processor = processor or tokenizer()
    prepared, _ = prepare_reward(dataset(rows), processor, head, args, "error")
    if model is None:
        model = with_reward_head(tiny_decoder("xs", vocab_size=len(processor), seed=1), head)
    return RewardTrainer(model, args, hf_config(args), prepared, processor)
