"""Pairs, trainers and a literal loop that the preference trainer is held to."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from mmreason.data.schema import to_dataset
from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.trainers.preference_arguments import PreferenceOptions
from mmreason.trainers.preference_data import Pair, PairRows, prepare_pairs
from tests.pictures import ask, cell, picture

COLUMNS = ("prompt", "chosen", "rejected", "completion", "label", "images", "id", "source")
_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "plus", "minus", "is", "so"]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def text_pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Examples with answers of different lengths."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        chosen, rejected = (" ".join(draw.choices(_WORDS, k=draw.randint(1, 6))) for _ in range(2))
        rows.append({"id": f"row {i}", "source": "ab"[i % 2], "prompt": ask(f"{draw.choice(_WORDS)} {i}?"),
                     "chosen": say(chosen + " good"), "rejected": say(rejected)})  # fmt: skip
    return rows


def picture_pairs(n: int) -> list[dict[str, Any]]:
    """Each with one picture of its own, the second with two, and one of text."""
    rows = text_pairs(n)
    for i, row in enumerate(rows):
        count = {1: 2, 2: 0}.get(i, 1)
        row["prompt"] = ask(f"what is {i}?", count)
        row["images"] = [cell(picture(32 + 8 * j, 40 + 4 * i, seed=10 * i + j)) for j in range(count)]
    return rows


def dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    return to_dataset(rows, COLUMNS)  # type: ignore[arg-type]


def pair_rows(rows: Sequence[Mapping[str, Any]], processor: Any = None, *, unpaired: bool = False) -> PairRows:
    found, dropped = prepare_pairs(dataset(rows), processor or tiny_tokenizer(), unpaired=unpaired)
    assert not dropped
    return found


def decoder(seed: int = 4) -> Any:
    return tiny_decoder(seed=seed)


def options(output_dir: Path, **changes: Any) -> PreferenceOptions:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "use_cpu": True, "gradient_checkpointing": False, "optim": "sgd",
        "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1,
        "per_device_train_batch_size": 4, "logging_steps": 1,
    }  # fmt: skip
    return PreferenceOptions(**settings | changes)


def untrained(output_dir: Path, model: Any, rows: PairRows, processor: Any = None, **changes: Any) -> Any:
    """A trainer; `changes` are options, and further arguments of the trainer."""
    from mmreason.trainers.preference import PreferenceTrainer, hf_config

    parts = {name: changes.pop(name) for name in ("reference", "adapter_off", "stores") if name in changes}
    args = options(output_dir, **changes)
    args.check()
    return PreferenceTrainer(model, args, hf_config(args), rows, processor or tiny_tokenizer(), **parts)


def trained(output_dir: Path, model: Any, rows: PairRows, processor: Any = None, **changes: Any) -> Any:
    trainer = untrained(output_dir, model, rows, processor, **changes)
    trainer.measures_at_ends = False
    assert trainer.fit()
    return trainer


def flat(model: Any) -> torch.Tensor:
    """All weights, float64."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()


def literal_logps(model: Any, pair: Pair) -> list[torch.Tensor]:
    """Of both sides, token by token: log π of each token with a weight, from plain logits."""
    out = []
    for row in (pair.first, pair.second):
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0], dim=-1)
        places = [place for place in range(1, len(row.ids)) if row.weights[place]]
        out.append(torch.stack([log_probs[place - 1, row.ids[place]] for place in places]))
    return out
