"""FSDP2 with two CPU processes learns what DDP learns, and a killed run ends where an unbroken one ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.recipes.launch import RECIPE, ROOT, SMALL, command, metrics, run, run_and_signal

FLAGS = (*SMALL, "--num_iterations", "2", "--beta", "0.02")


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipes/accelerate/fsdp2.yaml for two CPU processes."""
    config = yaml.safe_load((ROOT / "recipes" / "accelerate" / "fsdp2.yaml").read_text(encoding="utf-8"))
    config |= {"num_processes": 2, "use_cpu": True}
    # Loading on one process and broadcasting needs an accelerator's memory; on the CPU all load.
    config["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] = False
    path = tmp_path_factory.mktemp("fsdp") / "fsdp2_cpu.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def words(config: Path, folder: Path, *flags: str) -> list[str]:
    script = str(Path(__file__).with_name("fsdp_on_cpu.py"))
    return [script if word == str(RECIPE) else word for word in command(folder, *flags, accelerate=str(config))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for path in (folder / "checkpoint-6").glob("*.safetensors")
        for name, value in load_file(path).items()
    }


@pytest.mark.slow
def test_fsdp2_learns_what_ddp_learns_and_resumes(tmp_path: Path, fsdp: Path) -> None:
    sharded, whole, broken = tmp_path / "fsdp", tmp_path / "ddp", tmp_path / "broken"
    done = run(words(fsdp, sharded, *FLAGS))
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((sharded / "checkpoint-6" / "state").glob("pytorch_model_fsdp_*")), "FSDP did not run"
    done = run(command(whole, *FLAGS, accelerate="cpu_ddp2"))
    assert done.returncode == 0, done.stderr[-3000:]
    for want, got in zip(metrics(whole), metrics(sharded), strict=True):
        assert want.keys() == got.keys()
        for name in ("loss", "grad_norm", "kl", "entropy", "learning_rate", "reward", "completions/mean_length"):
            if name in want:
                assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-6), (want["step"], name)
    expected = weights(whole)
    found = weights(sharded)
    # The head is tied to the embedding, so either name may be stored.
    assert set(found) - {"lm_head.weight"} == set(expected) - {"lm_head.weight"}
    assert all(found[name].shape == value.shape for name, value in expected.items())
    assert max((found[name] - value).abs().max().item() for name, value in expected.items()) < 1e-4

    run_and_signal(words(fsdp, broken, *FLAGS), broken, step=3, number=signal.SIGKILL)
    assert len(metrics(broken)) < 6, "the run ended before it could be killed"
    again = run(words(fsdp, broken, *FLAGS))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Continuing from" in again.stdout
    after = weights(broken)
    assert after.keys() == found.keys() and all(torch.equal(after[name], found[name]) for name in found)
    for want, got in zip(metrics(sharded), metrics(broken), strict=True):
        assert {k: v for k, v in want.items() if not k.startswith("time/")} == {
            k: v for k, v in got.items() if not k.startswith("time/")
        }
