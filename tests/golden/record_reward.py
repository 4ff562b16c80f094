"""The golden curve of a reward model: hh-rlhf's pairs, as its loss fell when it was found right.

    python -m tests.golden.record_reward           # look at the difference before keeping it

Needs the real data (see tests/conftest.py). tests/trainers/test_reward_golden.py holds the trainer to it.
"""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.trainers.reward_rows import options

FILE = Path(__file__).parent / "reward_hh_rlhf.json"
STEPS = 30


def observe(data_folder: Path, folder: Path) -> list[dict[str, Any]]:
    """Loss, accuracy and margin of each step on the short ones of 100 pairs, several passes over them."""
    from mmreason.data.supervised import message_texts
    from mmreason.models.loading import load_tokenizer
    from mmreason.models.reward import model_to_train
    from mmreason.models.tiny import save_tiny
    from mmreason.trainers.arguments import ModelArguments
    from mmreason.trainers.reward import RewardTrainer, hf_config
    from mmreason.trainers.reward_arguments import RewardData
    from mmreason.trainers.reward_data import load_reward_rows, prepare_reward

    source = str(data_folder / "preference" / "hh_harmless_1k.jsonl")
    data = RewardData(source, max_train_samples=100, eval_samples=0, on_bad_row="drop")
    train, _ = load_reward_rows(data, 0, lambda _: None)
    texts = [text for column in ("prompt", "chosen") for row in train[column] for text in message_texts(row)]
    model = ModelArguments(model_name_or_path=save_tiny(folder / "decoder", "xs", texts=texts, seed=1))
    args = options(
        folder, optim="adamw_torch", learning_rate=3e-3, max_steps=STEPS, per_device_train_batch_size=8,
        center_rewards_coefficient=0.01, max_length=160, truncation="drop", save_steps=1000,
    )  # fmt: skip
    processor = load_tokenizer(model)
    rows, _ = prepare_reward(train, processor, "preference", args, "drop")
    trainer = RewardTrainer(model_to_train(model, "preference"), args, hf_config(args), rows, processor)
    assert trainer.fit()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "accuracy", "margin")} for line in lines]


def write(steps: list[dict[str, Any]]) -> None:
    """One line per step, so that a difference can be read."""
    versions = {package: version(package) for package in ("torch", "transformers")}
    body = ",\n".join(f"  {json.dumps(step)}" for step in steps)
    FILE.write_text(f'{{\n "versions": {json.dumps(versions)},\n "steps": [\n{body}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as temporary:
        write(observe(Path(os.environ.get("MMREASON_DATA", root.parent / "shared" / "data")), Path(temporary)))
    print("recorded")
