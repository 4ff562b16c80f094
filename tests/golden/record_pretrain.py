"""The first steps of pretraining on a real book, as they were when they were found right.

    python -m tests.golden.record_pretrain ../shared/data        # look at the difference before keeping it

The file holds the flags, and per step the numbers that they gave.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "curves"
GOLDEN = FOLDER / "pretrain_text.json"
BOOK = "text/gutenberg_alice.txt"
NUMBERS = ("loss", "grad_norm", "learning_rate", "eval/loss", "eval/perplexity", "eval/bits_per_byte")
SETTINGS = (
    "--use_cpu", "--bf16", "false", "--max_steps", "40", "--eval_steps", "8", "--logging_steps", "2",
    "--save_steps", "40", "--max_length", "64", "--per_device_train_batch_size", "8",
    "--packing_window", "16", "--warmup_steps", "2",
    "--lr_scheduler_kwargs", "{num_decay_steps: 10, decay_type: 1-sqrt}", "--train_tokenizer", "{vocab_size: 512}",
    "--config_overrides", "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, "
    "intermediate_size: 128, tie_word_embeddings: true}", "--learning_rate", "1e-2", "--eval_samples", "16",
)  # fmt: skip
# As for the other golden runs: other CPUs add up in another order, which Adam raises.
RELATIVE = 5e-4


def flags(book: Path) -> list[str]:
    """The command line of the run, without an output folder."""
    return ["--config", "recipes/configs/pretrain/text-small.yaml", "--dataset_name", str(book), *SETTINGS]


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def check(golden: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """AssertionError names the step and number that differ."""
    found = _numbers(lines)
    assert golden["settings"] == list(SETTINGS), "recorded with other flags: python -m tests.golden.record_pretrain"
    assert [row["step"] for row in found] == [row["step"] for row in golden["steps"]]
    for want, got in zip(golden["steps"], found, strict=True):
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), f"step {want['step']}: {name}"


def _numbers(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": line["step"]} | {name: line[name] for name in NUMBERS if name in line} for line in lines]


if __name__ == "__main__":
    from recipes.pretrain import main
    from tests.recipes.launch import metrics

    with tempfile.TemporaryDirectory() as temporary:
        main([*flags(Path(sys.argv[1]) / BOOK), "--output_dir", str(Path(temporary) / "run")])
        rows = _numbers(metrics(Path(temporary) / "run"))
    body = ",\n".join(f"  {json.dumps(row, separators=(',', ':'))}" for row in rows)
    versions = {package: version(package) for package in ("torch", "transformers", "tokenizers")}
    FOLDER.mkdir(exist_ok=True)
    GOLDEN.write_text(
        f'{{\n "settings": {json.dumps(list(SETTINGS))},\n "versions": {json.dumps(versions)},\n'
        f' "steps": [\n{body}\n ]\n}}\n',
        encoding="utf-8",
    )
