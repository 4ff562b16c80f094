"""Learning rates by layer and module, modules that wait, and stopping early: on a tiny model, number for number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.trainers.sft_layers import Unfreezing, layer_factors, module_factors, split_groups
from mmreason.trainers.sft_stopping import EarlyStopping
from mmreason.types import ConfigError
from tests.trainers.sft_rows import options, random_rows, trained, untrained

ROWS = random_rows(8, seed=1)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def decoder(**settings: Any) -> Any:
    from mmreason.models.tiny import tiny_decoder

    return tiny_decoder(seed=4, tie_word_embeddings=False, **settings)


def moved(model: Any) -> dict[str, float]:
    """How far each parameter went from where `decoder` put it."""
    start = dict(decoder().named_parameters())
    return {name: float((p - start[name]).detach().norm()) for name, p in model.named_parameters()}


def test_factors_by_layer() -> None:
    factors = layer_factors(decoder(), 0.5)
    assert factors["model.embed_tokens.weight"] == 0.25
    assert factors["model.layers.0.mlp.up_proj.weight"] == 0.5
    assert (
        factors["model.layers.1.mlp.up_proj.weight"] == factors["model.norm.weight"] == factors["lm_head.weight"] == 1
    )


def test_tower_and_decoder_have_stacks_of_their_own(tmp_path: Path) -> None:
    from tests.models.parts import TIMM_VIT, compose, save_decoder

    model, _ = compose(TIMM_VIT, None, save_decoder(tmp_path))
    factors = layer_factors(model, 0.5)
    by_end = {name.split("vision_tower.")[-1]: value for name, value in factors.items()}
    blocks = {name.split("blocks.")[1][0]: value for name, value in by_end.items() if "blocks." in name}
    assert blocks == {"0": 0.25, "1": 0.5, "2": 1.0}
    assert {value for name, value in by_end.items() if "patch_embed" in name} == {0.125}
    assert {value for name, value in factors.items() if name.startswith("projector")} == {1.0}
    assert factors["language_model.model.layers.0.mlp.up_proj.weight"] == 0.5
    assert factors["language_model.model.embed_tokens.weight"] == 0.25


def test_one_sgd_step_goes_as_far_as_the_rates_say(tmp_path: Path) -> None:
    plain = moved(trained(tmp_path / "plain", decoder(), ROWS, learning_rate=0.1).model)
    rates: dict[str, Any] = {"layer_lr_decay": 0.5, "module_learning_rates": {"layers.0.mlp": 0.3}}
    trainer = trained(tmp_path / "rates", decoder(), ROWS, learning_rate=0.1, **rates)
    for name, distance in moved(trainer.model).items():
        factor = 3.0 if ".layers.0.mlp" in name else 0.5 if ".layers.0." in name else 0.25 if "embed" in name else 1.0
        assert distance == pytest.approx(factor * plain[name], rel=2e-3), name
    (line,) = [json.loads(text) for text in (tmp_path / "rates" / "metrics.jsonl").read_text().splitlines()]
    assert line["learning_rate"] == pytest.approx(0.3), "the highest of the rates is the one in the logs"


def test_groups_keep_their_weight_decay() -> None:
    model = decoder()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1.0,
    )
    split_groups(optimizer, model, layer_factors(model, 0.5))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1.0, 0.1), (1.0, 0.0), (0.5, 0.1), (0.5, 0.0), (0.25, 0.1)
    ]  # fmt: skip
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_modules_wait_for_their_step(tmp_path: Path) -> None:
    """Frozen for two steps, with AdamW: then it learns as from a fresh start, its first step as large as any."""
    settings: dict[str, Any] = {
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "unfreeze_at": {"layers.0": 2, "embed_tokens": 99},
    }
    two = trained(tmp_path / "two", decoder(), ROWS, max_steps=2, **settings)
    three = trained(tmp_path / "three", decoder(), ROWS, max_steps=3, **settings)
    after_two, after_three = moved(two.model), moved(three.model)
    name = "model.layers.0.mlp.up_proj.weight"
    assert after_two[name] == after_three["model.embed_tokens.weight"] == 0 and after_two["lm_head.weight"] > 0
    count = dict(three.model.named_parameters())[name].numel()
    assert after_three[name] == pytest.approx(1e-3 * count**0.5, rel=0.05), "the first step of Adam is lr everywhere"


def test_what_is_frozen_is_a_function_of_the_step() -> None:
    model = decoder()
    unfreezing = Unfreezing(model, {"layers.1": 5, "layers.0": 3})
    for step, waiting in ((0, {"0", "1"}), (3, {"1"}), (4, {"1"}), (5, set()), (2, {"0", "1"})):
        unfreezing.set(step)
        assert {name.split("layers.")[1][0] for name in unfreezing.frozen()} == waiting


def test_patterns_that_fit_nothing() -> None:
    model = decoder()
    with pytest.raises(ConfigError, match=r"unfreeze_at: 'lm_haed' fits no module.*lm_head"):
        Unfreezing(model, {"lm_haed": 5})
    with pytest.raises(ConfigError, match="nothing is left that learns"):
        Unfreezing(model, {"model": 5, "lm_head": 5})
    with pytest.raises(ConfigError, match=r"module_learning_rates: 'projektor' fits no module"):
        module_factors(model, {"projektor": 1.0}, 1e-3)
    model.lm_head.requires_grad_(False)
    with pytest.raises(ConfigError, match="has no parameter that is trained"):
        Unfreezing(model, {"lm_head": 5})


# ---- stopping


def test_it_stops_where_the_loss_no_longer_falls(tmp_path: Path) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0, 0.5])
    trainer = untrained(
        tmp_path, decoder(), ROWS, max_steps=20, eval_steps=2, early_stopping_patience=2, save_steps=100
    )
    trainer.while_training = lambda last: {"eval/held_out/loss": next(losses)}
    assert trainer.fit() and trainer.stopping.ended
    assert trainer.state.global_step == 8 and (tmp_path / "checkpoint-8").is_dir()
    assert "best at step 4 (2.0000)" in trainer.stopping.told()


def test_a_continued_run_remembers(tmp_path: Path) -> None:
    """What was measured up to the checkpoint counts, what came after doesn't."""
    seen = [(2, 3.0), (4, 2.0), (6, 2.5), (8, 2.2)]
    lines = [json.dumps({"step": step, "eval/held_out/loss": loss}) for step, loss in seen]
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    settings = options(tmp_path, eval_steps=2, early_stopping_patience=3)
    stopping = EarlyStopping(settings, 6)
    assert (stopping.best, stopping.best_step, stopping.waited) == (2.0, 4, 1)
    stopping.see(8, {"eval/held_out/loss": 2.2})
    assert not stopping.ended
    stopping.see(10, {"eval/held_out/loss": 2.0})
    assert stopping.ended


def test_accuracy_is_better_when_it_is_higher(tmp_path: Path) -> None:
    settings = options(
        tmp_path, eval_steps=2, early_stopping_patience=1, metric_for_best_model="accuracy",
        early_stopping_threshold=0.1,
    )  # fmt: skip
    stopping = EarlyStopping(settings, 0)
    for step, value in ((2, 0.2), (4, 0.5)):
        stopping.see(step, {"eval/held_out/greedy": value})
        assert not stopping.ended
    stopping.see(6, {"eval/held_out/greedy": 0.55})
    assert stopping.ended
    with pytest.raises(ConfigError, match=r"eval/held_out/greedy isn't measured; there are eval/held_out/loss"):
        stopping.see(8, {"eval/held_out/loss": 1.0})
