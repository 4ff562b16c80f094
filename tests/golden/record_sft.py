"""Golden curves: the losses of supervised fine-tuning on real rows, packed, as they were when they were found right.

    python -m tests.golden.record_sft              # look at the difference before keeping it

Needs the real data (see tests/conftest.py). tests/trainers/test_sft_golden.py holds the trainer to them.
"""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.trainers.sft_rows import options

FOLDER = Path(__file__).parent / "sft"
STEPS = 20
CASES: dict[str, dict[str, Any]] = {
    "gsm8k_cot": {"dataset_name": "gsm8k/train.jsonl", "prompt_template": "gsm8k"},
    "scienceqa_cot": {"dataset_name": "scienceqa/problems_150_full_fields.jsonl", "on_bad_row": "drop"},
    "tabmwp": {"dataset_name": "images/tabmwp_dev_500.parquet"},
}
"""Name → arguments of the data, below the folder of real data. TabMWP's rows have pictures."""


def observe(name: str, data_folder: Path, folder: Path) -> list[dict[str, float]]:
    """Loss and token accuracy of each step."""
    from mmreason.data.supervised import message_texts, prepare_supervised
    from mmreason.trainers.arguments import DataArguments
    from mmreason.trainers.sft import SFTTrainer, trl_config
    from mmreason.trainers.sft_data import load_rows

    given = CASES[name] | {"dataset_name": str(data_folder / CASES[name]["dataset_name"])}
    train, _ = load_rows(DataArguments(**given, max_train_samples=96, eval_samples=0), [], 0, lambda _: None)
    texts = [text for column in ("prompt", "completion") for row in train[column] for text in message_texts(row)]
    model, processor = _model(name, texts, folder)
    rows, _ = prepare_supervised(train, processor, max_length=1024, truncation="drop")
    args = options(
        folder, optim="adamw_torch", learning_rate=3e-3, max_steps=STEPS, packing=True, max_length=1024,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, save_steps=1000,
    )  # fmt: skip
    trainer = SFTTrainer(model, args, trl_config(args), rows, processor)
    assert trainer.fit()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "mean_token_accuracy")} for line in lines]


def _model(name: str, texts: list[str], folder: Path) -> tuple[Any, Any]:
    from mmreason.models.compose import from_parts
    from mmreason.models.loading import load_policy_model, load_tokenizer
    from mmreason.models.tiny import save_tiny
    from mmreason.trainers.arguments import ModelArguments
    from tests.models.parts import TIMM_VIT

    path = save_tiny(folder / "decoder", "xs", texts=texts, seed=1)
    if name == "tabmwp":
        return tuple(from_parts(TIMM_VIT, None, path, seed=1))  # type: ignore[return-value]
    args = ModelArguments(model_name_or_path=path)
    return load_policy_model(args), load_tokenizer(args)


def write(name: str, steps: list[dict[str, float]]) -> None:
    """One line per step, so that a difference can be read."""
    FOLDER.mkdir(exist_ok=True)
    versions = {package: version(package) for package in ("torch", "transformers", "trl")}
    body = ",\n".join(f"  {json.dumps(step)}" for step in steps)
    text = f'{{\n "versions": {json.dumps(versions)},\n "steps": [\n{body}\n ]\n}}\n'
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("MMREASON_DATA", root.parent / "shared" / "data"))
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            write(case, observe(case, data, Path(temporary)))
        print(f"{case}: recorded")
