"""The loop with shared prompts: the same step as with separate rows, checked while it trains, off where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.models import packed_attention
from mmreason.models.shared_attention import Row
from mmreason.models.tiny import tiny_tokenizer
from mmreason.rollout.shared import SharingError
from mmreason.trainers.arguments import PolicyConfig
from mmreason.types import ConfigError
from tests.trainers.test_invariance import make_samples, make_trainer
from tests.trainers.trl_parity import make_rows


def widths(trainer: Any) -> list[int]:
    """Filled with the tokens of each pass through the policy's first layer (rows × places)."""
    seen: list[int] = []
    layer = trainer.accelerator.unwrap_model(trainer.policy).get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    return seen


@pytest.mark.parametrize("peft", [False, True])
def test_a_step_is_that_of_separate_rows(peft: bool, tmp_path: Path) -> None:
    rows = make_rows(3, len(tiny_tokenizer()))
    case = {"beta": 0.05, "peft": peft}
    found = []
    for share in (True, False):
        trainer = make_trainer(
            tmp_path / str(share), 8, 1, case, share_prompts=share, verify_sharing=1 if share else None
        )
        samples = make_samples(rows, masked=False)
        trainer.scorer.score_fixed(samples)
        tokens = widths(trainer)
        metrics = trainer._update(samples)
        found.append((metrics["loss"], metrics["grad_norm"], metrics["entropy"], samples.ref_logps[0][0], tokens[-1]))
        checked = {name for name in metrics if name.startswith("sharing/")}
        assert checked == ({"sharing/logp_difference/mean", "sharing/logp_difference/max"} if share else set())
        assert all(0 <= metrics[name] <= 1e-5 for name in checked)
    assert found[0][:4] == pytest.approx(found[1][:4], abs=1e-6, rel=1e-5) and found[0][4] < 0.8 * found[1][4]


def test_drift_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial at the start was good; something changes attention later on."""
    trainer = make_trainer(tmp_path, 8, 1, {}, verify_sharing=2)
    samples = make_samples(make_rows(3, len(tiny_tokenizer())), masked=False)
    assert "sharing/logp_difference/max" in trainer._update(samples)
    monkeypatch.setattr(packed_attention, "rows_of", lambda ids: [Row(0, ids.shape[1], ())])
    trainer.state.step = 1
    trainer._update(samples)  # not a step that is looked at
    trainer.state.step = 2
    with pytest.raises(SharingError, match=r"step 2: shared prompts give log-probabilities that differ [\s\S]*false"):
        trainer._update(samples)
    with pytest.raises(ConfigError, match="verify_sharing=0 must be at least 1"):
        PolicyConfig(verify_sharing=0).resolve(1)


def test_dropout_shares_scoring_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, 8, 1, {"peft": True, "beta": 0.05})
    adapted = [m for m in trainer.policy.modules() if hasattr(m, "lora_dropout")]
    for module in adapted:
        module.lora_dropout["default"] = torch.nn.Dropout(0.1)
    tokens = widths(trainer)
    samples = make_samples(make_rows(3, len(tiny_tokenizer())), masked=False)
    trainer.scorer.score_fixed(samples)
    shared = tokens[-1]
    trainer._update(samples)
    assert shared < tokens[-1]
    said = "".join(capsys.readouterr())
    assert said.count("share_prompts: off in updates") == 1 and "lora_dropout" in said
