"""The supervised step against a float64 loop; checkpoints that are whole; options that reach TRL."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.trainers.sft_arguments import OURS, SFTOptions
from mmreason.types import IGNORE_INDEX, ConfigError

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9, 3], "labels": [IGNORE_INDEX] * 3 + [8, 9, 3], "length": 6},
    {"input_ids": [15, 16, 3], "labels": [IGNORE_INDEX, 16, 3], "length": 3},
    {"input_ids": [40, 41, 42, 43, 44, 45, 46, 3], "labels": [IGNORE_INDEX] * 6 + [46, 3], "length": 8},
    {"input_ids": [50, 51, 52, 53], "labels": [IGNORE_INDEX] * 2 + [52, 53], "length": 4},
]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def options(output_dir: Path, **changes: Any) -> SFTOptions:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "use_cpu": True, "gradient_checkpointing": False, "optim": "sgd",
        "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1,
        "per_device_train_batch_size": 4, "logging_steps": 1,
    }  # fmt: skip
    return SFTOptions(**settings | changes)


def trained(output_dir: Path, **changes: Any) -> Any:
    """A trainer after its steps on ROWS from the same random decoder."""
    from datasets import Dataset

    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
    from mmreason.trainers.sft import SFTTrainer, trl_config

    args = options(output_dir, **changes)
    trainer = SFTTrainer(tiny_decoder(seed=4), args, trl_config(args), Dataset.from_list(ROWS), tiny_tokenizer())
    assert trainer.fit()
    return trainer


def reference_step(learning_rate: float) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, weights after one SGD step) of -mean log p(label) over all completion tokens, row by row in float64."""
    from mmreason.models.tiny import tiny_decoder

    model = tiny_decoder(seed=4).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        for position, label in enumerate(row["labels"]):
            if label != IGNORE_INDEX:
                total = total - torch.log_softmax(logits[position - 1], -1)[label]
                count += 1
    loss = total / count
    loss.backward()
    with torch.no_grad():
        weights = {name: p - learning_rate * p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), weights


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_the_step_equals_a_float64_loop(batch: int, accumulation: int, tmp_path: Path) -> None:
    """Rows of 3, 2, 2 and 2 completion tokens: a mean of micro-batch means would give another loss."""
    trainer = trained(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    loss, weights = reference_step(0.5)
    (line, *_) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["step"] == 1 and line["loss"] == pytest.approx(loss, abs=1e-5)
    found = dict(trainer.model.named_parameters())
    for name, want in weights.items():
        assert torch.allclose(found[name].double(), want, atol=1e-6), name


def test_every_option_is_ours_or_trls_with_its_default() -> None:
    from trl import SFTConfig

    theirs = {f.name: f for f in dataclasses.fields(SFTConfig)}
    differs = set()
    for field in dataclasses.fields(SFTOptions):
        if field.name in OURS:
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        if theirs[field.name].default != default:
            differs.add(field.name)
    assert differs == {"output_dir", "save_total_limit", "report_to"}


def test_options_reach_trl(tmp_path: Path) -> None:
    from mmreason.trainers.sft import trl_config

    config = trl_config(options(tmp_path, adam_beta2=0.9, warmup_steps=7, seed=3))
    assert (config.adam_beta2, config.warmup_steps, config.seed, config.optim) == (0.9, 7, 3, "sgd")
    assert config.use_cpu and not config.bf16


@pytest.mark.parametrize(
    ("field", "value"), [("max_steps", 0), ("logging_steps", 0), ("eval_steps", 0), ("save_steps", 0)]
)
def test_values_that_cant_work(field: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=field):
        options(tmp_path, **{field: value}).check()


def test_half_written_checkpoints_are_not_taken(tmp_path: Path) -> None:
    from mmreason.trainers.sft import find_checkpoint, whole_checkpoints

    for step, text in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"global_st'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert find_checkpoint(str(tmp_path), "auto") == tmp_path / "checkpoint-10"
    assert find_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-5")) == tmp_path / "checkpoint-5"
    with pytest.raises(ConfigError, match=r"no whole checkpoint.*checkpoint-5, checkpoint-10"):
        find_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-15"))
    with pytest.raises(ConfigError, match="never"):
        find_checkpoint(str(tmp_path), "never")
    assert find_checkpoint(str(tmp_path / "nothing"), "auto") is None


def test_metrics_are_finite_and_without_the_summary(tmp_path: Path) -> None:
    trained(tmp_path, max_steps=3)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {"loss", "mean_token_accuracy", "learning_rate"} <= lines[0].keys()
