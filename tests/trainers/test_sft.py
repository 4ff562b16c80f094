"""The supervised step against a float64 loop, whatever the batch; whole checkpoints; options that reach TRL."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.data.mixture import ShuffledOrder
from mmreason.data.order import StepOrder
from mmreason.data.supervised import SupervisedRow
from mmreason.trainers.hf_loop import unwritten_checkpoint
from mmreason.trainers.sft_arguments import OURS, SFTOptions
from mmreason.types import ConfigError
from tests.trainers.sft_rows import double_loop, options, random_rows, trained, untrained

ROWS = random_rows(24, seed=3)
STEPS = 20


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def decoder() -> Any:
    from mmreason.models.tiny import tiny_decoder

    return tiny_decoder(seed=4)


def steps_of(trainer: Any, steps: int) -> list[list[SupervisedRow]]:
    """The rows of each step, as another reading of the trainer's order has them: fillers left out."""
    out: list[list[SupervisedRow]] = []
    order: StepOrder = trainer._sampler
    epoch = 0
    while len(out) < steps:
        order.set_epoch(epoch)
        bins = list(order)
        for start in range(0, len(bins), order.per_step):
            out.append([ROWS[row] for one in bins[start : start + order.per_step] for row in one if row >= 0])
        epoch += 1
    return out[:steps]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


BATCHES: dict[str, dict[str, Any]] = {
    "8x1": {"per_device_train_batch_size": 8},
    "1x8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "padding-free": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "padding_free": True},
    "packed": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "packing": True, "max_length": 48},
}


@pytest.mark.parametrize("batch", BATCHES)
def test_twenty_steps_equal_a_float64_loop(batch: str, tmp_path: Path) -> None:
    """24 rows in steps of 8, or bins of 48 tokens, so several epochs; weights other than 1, holes in the answers."""
    trainer = trained(tmp_path, decoder(), ROWS, max_steps=STEPS, learning_rate=0.2, **BATCHES[batch])
    losses, weights = double_loop(decoder(), steps_of(trainer, STEPS), 0.2)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, loss in zip(lines, losses, strict=True):
        assert line["loss"] == pytest.approx(loss, abs=1e-5), line["step"]
    assert abs(losses[-1] - losses[0]) > 0.3, "a loss that doesn't move would prove little"
    found = dict(trainer.model.named_parameters())
    for name, want in weights.items():
        assert torch.allclose(found[name].double(), want, atol=2e-5), name


def first_gradient(folder: Path, rows: list[SupervisedRow], **changes: Any) -> torch.Tensor:
    """The gradient of a first SGD step at learning rate 1: how far the weights went."""
    before = torch.cat([p.detach().flatten() for p in decoder().parameters()]).double()
    trainer = trained(folder, decoder(), rows, learning_rate=1.0, **changes)
    return before - torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double()


def test_how_a_step_is_cut_changes_nothing(tmp_path: Path) -> None:
    """1 × 8, 8 × 1, without padding, and packed in one bin: one gradient. (Two processes: tests/recipes.)"""
    rows = random_rows(8, seed=5)
    batches = BATCHES | {"packed": {"per_device_train_batch_size": 1, "packing": True, "max_length": 400}}
    batches["checkpointed"] = batches["packed"] | {"gradient_checkpointing": True}
    found = {name: first_gradient(tmp_path / name, rows, **changes) for name, changes in batches.items()}
    want = found.pop("8x1")
    assert want.norm() > 0.1
    for name, gradient in found.items():
        assert (gradient - want).norm() / want.norm() <= 1e-5, name


def test_the_last_step_of_an_epoch_repeats_nothing(tmp_path: Path) -> None:
    """10 rows in steps of 4: the third has 2, filled up with rows that carry no loss."""
    rows = random_rows(10, seed=6)
    trainer = trained(tmp_path, decoder(), rows, max_steps=-1, num_train_epochs=1, learning_rate=0.1)
    bins = list(trainer._sampler)
    assert len(bins) == 12 and sorted(row for one in bins for row in one if row >= 0) == list(range(10))
    last = [rows[row] for one in bins[8:] for row in one if row >= 0]
    steps = [[rows[row] for one in bins[start : start + 4] for row in one] for start in (0, 4)]
    losses, _ = double_loop(decoder(), [*steps, last], 0.1)
    assert [line["loss"] for line in metrics(tmp_path)] == pytest.approx(losses, abs=1e-5)


def test_losses_by_source(tmp_path: Path) -> None:
    rows = random_rows(8, seed=7)
    trained(tmp_path, decoder(), rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    (line,) = metrics(tmp_path)
    for source in "ab":
        (want,), _ = double_loop(decoder(), [[row for row in rows if row.source == source]], 0.0)
        assert line[f"loss/{source}"] == pytest.approx(want, abs=1e-5)


def test_token_accuracy_counts_supervised_tokens(tmp_path: Path) -> None:
    rows = random_rows(8, seed=8)
    trained(tmp_path, decoder(), rows, per_device_train_batch_size=8)
    right = total = 0
    for row in rows:
        best = decoder()(input_ids=torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
        for place in range(1, len(row.ids)):
            if row.weights[place]:
                right, total = right + (best[place - 1] == row.ids[place]), total + 1
    (line,) = metrics(tmp_path)
    assert line["mean_token_accuracy"] == pytest.approx(right / total, abs=1e-9)


def test_held_out_loss(tmp_path: Path) -> None:
    from tests.trainers.sft_rows import ListedRows

    held = random_rows(7, seed=9)
    (want,), _ = double_loop(decoder(), [held], 0.0)
    for padding_free in (False, True):
        trainer = untrained(tmp_path / str(padding_free), decoder(), ROWS, padding_free=padding_free)
        assert trainer.held_out_loss(ListedRows(held)) == pytest.approx(want, abs=1e-5)


def test_a_given_order_is_followed(tmp_path: Path) -> None:
    order = ShuffledOrder([3, 1], 0, shuffle=False)
    trainer = trained(tmp_path, decoder(), ROWS, order=order, per_device_train_batch_size=1, max_steps=2)
    losses, _ = double_loop(decoder(), [[ROWS[3]], [ROWS[1]]], 0.5)
    assert trainer._sampler.bins_per_epoch == 2
    assert [line["loss"] for line in metrics(tmp_path)] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"neftune_noise_alpha": 5.0}], ids=["none", "neftune"])
def test_neftune_reaches_the_embeddings(changes: dict[str, Any], tmp_path: Path) -> None:
    """The first loss is another with noise; after training the hook is gone."""
    trainer = trained(tmp_path, decoder(), ROWS[:4], **changes)
    (want,), _ = double_loop(decoder(), [ROWS[:4]], 0.0)
    (line,) = metrics(tmp_path)
    assert (abs(line["loss"] - want) > 1e-4) == bool(changes)
    assert not trainer.model.get_input_embeddings()._forward_hooks


def test_every_option_is_ours_or_trls_with_its_default() -> None:
    from trl import SFTConfig

    theirs = {f.name: f for f in dataclasses.fields(SFTConfig)}
    differs = set()
    for field in dataclasses.fields(SFTOptions):
        if field.name not in theirs:
            assert field.name in OURS, field.name
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc, operator]
        if theirs[field.name].default != default:
            differs.add(field.name)
    assert differs == {"output_dir", "save_total_limit", "report_to"}


def test_options_reach_trl(tmp_path: Path) -> None:
    from mmreason.trainers.sft import trl_config

    config = trl_config(options(tmp_path, adam_beta2=0.9, warmup_steps=7, seed=3, neftune_noise_alpha=5.0))
    assert (config.adam_beta2, config.warmup_steps, config.seed, config.optim) == (0.9, 7, 3, "sgd")
    assert config.use_cpu and not config.bf16 and config.neftune_noise_alpha == 5.0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_steps": 0}, "max_steps"),
    ({"logging_steps": 0}, "logging_steps"),
    ({"eval_steps": 0}, "eval_steps"),
    ({"save_steps": 0}, "save_steps"),
    ({"packing": True, "max_length": None}, "packing needs max_length"),
    ({"packing_window": 8}, "packing_window=8"),
    ({"packing": True, "neftune_noise_alpha": 1.0}, "neftune_noise_alpha"),
    ({"layer_lr_decay": 0.0}, "layer_lr_decay"),
    ({"layer_lr_decay": 1.5}, "layer_lr_decay"),
    ({"module_learning_rates": {"lm_head": "fast"}}, "module_learning_rates: lm_head"),
    ({"unfreeze_at": {"lm_head": 0}}, "unfreeze_at: lm_head"),
    ({"early_stopping_patience": 0}, "early_stopping_patience"),
    ({"early_stopping_patience": 2}, "needs eval_steps"),
    ({"replay": {"name": "x", "share": 0.1}}, "replay needs datasets"),
    ({"feature_store_gib": 0.0}, "feature_store_gib"),
    ({"use_liger_kernel": True}, "use_liger_kernel"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[said for _, said in BAD])
def test_values_that_cant_work(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        options(tmp_path, **changes).check()


def test_half_written_checkpoints_are_not_taken(tmp_path: Path) -> None:
    from mmreason.trainers.hf_loop import find_checkpoint, whole_checkpoints

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
    trained(tmp_path, decoder(), ROWS, max_steps=3)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {"loss", "mean_token_accuracy", "learning_rate"} <= lines[0].keys()


def test_an_unwritten_checkpoint_names_the_last_whole_one(tmp_path: Path) -> None:
    error = OSError(28, "No space left on device")
    told = str(unwritten_checkpoint(tmp_path, 4, error))
    assert f"{tmp_path}/checkpoint-4: the checkpoint could not be written" in told and "No space left" in told
    assert "There is no earlier one" in told
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2}', encoding="utf-8")
    assert f"The last whole one is {tmp_path}/checkpoint-2" in str(unwritten_checkpoint(tmp_path, 4, error))
