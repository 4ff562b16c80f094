"""The canary within a training run: it watches, changes nothing, and stops a run that has lost its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mmreason.rollout.shared as shared
from mmreason.trainers.arguments import DataArguments, PolicyConfig
from mmreason.trainers.canary import CanaryError
from mmreason.trainers.problems import check_problems
from mmreason.types import ConfigError
from tests.tiny_vlms import tiny_vlm
from tests.trainers.test_policy_images import lines, make, problems


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl"))


CHECKED = {"canary_steps": 2, "canary_samples": 4}


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith(("time/", "canary/"))}


def test_it_changes_nothing(checkpoint: str, tmp_path: Path) -> None:
    """A run with checks before steps 1 and 3 computes what the run without them does, bit for bit; M-RoPE included."""
    plain = make(checkpoint, tmp_path / "plain", problems(8), max_steps=3, num_iterations=2)
    plain.train()
    watched = make(checkpoint, tmp_path / "watched", problems(8), max_steps=3, num_iterations=2, **CHECKED)
    watched.train()
    want, got = (load_file(tmp_path / name / "checkpoint-3" / "model.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(want[name], got[name]) for name in want)
    first, second = lines(tmp_path / "plain"), lines(tmp_path / "watched")
    assert [without_times(line) for line in first] == [without_times(line) for line in second]
    assert [any(name.startswith("canary/") for name in line) for line in second] == [True, False, True]
    for line in second[::2]:
        assert line["canary/training/reacting"] == line["canary/hf/reacting"] == 1
        assert line["canary/hf/difference_max"] < 1e-4
        assert {"canary/training/logp_true", "canary/training/gain", "canary/hf/accuracy_blank", "time/canary"} <= set(
            line
        )


def test_held_out_problems_are_shown_if_they_have_pictures(checkpoint: str, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    held = {"text": problems(3, 40, text_every=1), "seen": problems(5, 20)}
    train, _, sets = check_problems(problems(8), held, processor, DataArguments(), None, lambda _: None)
    trainer = make(checkpoint, tmp_path, train, sets, **CHECKED)
    assert trainer.canary is not None
    assert all(20 <= int(example["id"][1:]) < 25 for example in trainer.canary.rows.examples)


def test_lost_pictures_stop_the_run_at_once(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(checkpoint, tmp_path, problems(8), **CHECKED)
    collate = shared.flat_visual

    def dropping(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {
            name: torch.zeros_like(value) if name == "pixel_values" else value
            for name, value in collate(*args, **kwargs).items()
        }

    monkeypatch.setattr(shared, "flat_visual", dropping)  # what scoring reads pictures through; the engine doesn't
    with pytest.raises(CanaryError, match=r"canary at step 0:[\s\S]*FAIL  training: images don't reach the model"):
        trainer.train()
    assert trainer.state.step == 0 and not list(tmp_path.glob("checkpoint-*"))


def test_what_was_learned_before_is_saved(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine loses its pictures after the first check; going on from the checkpoint meets the same check."""
    trainer = make(checkpoint, tmp_path, problems(8), save_steps=0, **CHECKED)
    generate = trainer.engine.generate

    def blind_after_a_step(requests: Any, sampling: Any, seed: int) -> Any:
        if trainer.state.step:
            for request in requests:
                if request.visual is not None:
                    request.visual.inputs["pixel_values"] *= 0
        return generate(requests, sampling, seed)

    monkeypatch.setattr(trainer.engine, "generate", blind_after_a_step)
    with pytest.raises(CanaryError, match=r"canary at step 2:[\s\S]*FAIL  [\s\S]*Saved: .*checkpoint-2\."):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "run_state.json").is_file() and len(lines(tmp_path)) == 2


def test_nothing_to_look_for(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="canary_steps=2: no problem has an image"):
        make(checkpoint, tmp_path, problems(4, text_every=1), **CHECKED)
    for name in ("canary_steps", "canary_samples"):
        with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
            PolicyConfig(**{name: 0}).resolve(1)
