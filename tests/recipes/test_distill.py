"""The distillation recipe through its command line: it resumes bit for bit, on one process or two; bad input."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmreason.types import ConfigError
from recipes.distill import main
from tests.recipes.launch import metrics, run, run_and_signal

SETTINGS = [
    "--max_steps", "6", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
    "--learning_rate", "1e-2", "--warmup_steps", "0", "--gradient_checkpointing", "false", "--use_cpu",
    "--logging_steps", "1", "--save_steps", "2", "--eval_samples", "6", "--eval_num_generations", "0",
    "--max_completion_length", "6", "--max_length", "null", "--max_prompt_length", "null",
]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a random student, a random teacher with its tokenizer, and a small set of problems."""
    from data_builders import word_problems
    from mmreason.models.tiny import save_tiny

    folder = tmp_path_factory.mktemp("parts")
    student, teacher = save_tiny(folder / "student", seed=1), save_tiny(folder / "teacher", "s", seed=2)
    data = word_problems.cached(n=60, n_test=12, n_unseen=0, level="1")
    return ["--model_name_or_path", student, "--teacher_model_name_or_path", teacher, "--dataset_name", str(data),
            "--dataset_test_split", "test", "--prompt_template", "null"]  # fmt: skip


def command(output_dir: Path, *flags: str, accelerate: str | None = None) -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        start += ["-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{accelerate}.yaml"]
    return [*start, "recipes/distill.py", "--output_dir", str(output_dir), *SETTINGS, *flags]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


MODES = {
    "stored": ("--teacher_logits", "stored", "--top_k", "20", "--alpha", "0.8", "--sample_by_gap", "1.0"),
    "on_policy": ("--mode", "on_policy", "--lmbda", "0.5"),
    "proxy": (
        "--mode",
        "proxy",
        "--teacher_model_name_or_path",
        "null",
        "--proxy",
        "{model_name_or_path: TEACHER, max_steps: 3, per_device_train_batch_size: 4, learning_rate: 1.0e-3}",
    ),
    "white_box": ("--mode", "white_box", "--layers", "{hidden: 1.0, relations: 0.5, relation_heads: 2}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_killed_twice_ends_as_an_unbroken_one(mode: str, parts: list[str], tmp_path: Path) -> None:
    flags = [flag.replace("TEACHER", parts[parts.index("--teacher_model_name_or_path") + 1]) for flag in MODES[mode]]
    done = run(command(tmp_path / "whole", *parts, *flags))
    assert done.returncode == 0 and "after (step 6)" in done.stdout, done.stderr[-3000:]
    assert len(losses(tmp_path / "whole")) == 6 and (tmp_path / "whole" / "report.html").exists()
    words = command(tmp_path / "run", *parts, *flags)
    for step in (2, 4):
        run_and_signal(words, tmp_path / "run", step=step, number=signal.SIGKILL)
        assert len(losses(tmp_path / "run")) < 6, "the run ended before it could be killed"
    again = run(words)
    assert again.returncode == 0 and "Continuing from" in again.stdout, again.stderr[-3000:]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    want, got = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "run"))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    check_bill(tmp_path / "run", want)


def check_bill(folder: Path, student: dict[str, torch.Tensor]) -> None:
    """Of three models; the student's numbers are those of its file and of the evaluation."""
    lines = json.loads((folder / "bill.json").read_text())
    teacher, before, after = lines
    assert teacher["name"].startswith("teacher ") and [before["name"], after["name"]] == [
        "student before",
        "student after",
    ]
    assert after["parameters"] == before["parameters"] == sum(one.numel() for one in student.values())
    assert teacher["parameters"] > 5 * after["parameters"] and teacher["disk_bytes"] > 5 * after["disk_bytes"]
    assert after["disk_bytes"] == (folder / "final" / "model.safetensors").stat().st_size
    measured = json.loads((folder / "evaluation.json").read_text())["after"]["sets"]["held_out"]["greedy"]
    assert after["accuracy"]["held_out"] == measured
    for line in lines:
        assert line["accuracy"]["held_out"]["n"] == 6 and line["latency_s"] > 0 and line["tokens_per_s"] > 0
        assert line["name"] in (folder / "report.html").read_text()


@pytest.mark.slow
def test_two_processes_are_one(parts: list[str], tmp_path: Path) -> None:
    flags = ("--optim", "sgd", "--gradient_accumulation_steps", "1", "--max_steps", "3", "--eval_samples", "0")
    one = run(command(tmp_path / "one", *parts, *flags, "--per_device_train_batch_size", "8"))
    two = run(command(tmp_path / "two", *parts, *flags, accelerate="cpu_ddp2"))
    assert one.returncode == 0 and two.returncode == 0, one.stderr[-3000:] + two.stderr[-3000:]
    for key in ("loss", "distill/divergence", "distill/agreement", "distill/teacher_calibration"):
        left, right = ([line[key] for line in metrics(tmp_path / name) if key in line] for name in ("one", "two"))
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_sharded_models_and_adapters(parts: list[str], tmp_path: Path) -> None:
    """A ZeRO-3 teacher says what a whole one says; a student may be an adapter."""
    flags = ("--max_steps", "2", "--eval_samples", "0", "--gradient_accumulation_steps", "1", "--max_grad_norm", "0")
    one = run(command(tmp_path / "one", *parts, *flags, "--per_device_train_batch_size", "8"))
    zero = run(command(tmp_path / "zero", *parts, *flags, accelerate="cpu_zero3"))
    assert one.returncode == 0 and zero.returncode == 0, zero.stderr[-3000:]
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    lora = run(command(tmp_path / "lora", *parts, *flags, "--adapter", "{kind: lora, r: 4}"))
    assert lora.returncode == 0, lora.stderr[-3000:]
    assert (tmp_path / "lora" / "final" / "adapter_model.safetensors").exists()


def test_another_vocabulary_is_refused_before_training(parts: list[str], tmp_path: Path) -> None:
    from mmreason.models.tiny import save_tiny

    other = save_tiny(tmp_path / "other", texts=["hello hello world"] * 9, vocab_size=300)
    with pytest.raises(ConfigError, match=r"another vocabulary than the student .* mode: hard"):
        main([*parts, *SETTINGS, "--teacher_model_name_or_path", other, "--output_dir", str(tmp_path / "run")])


def test_a_store_of_another_teacher_is_refused(parts: list[str], tmp_path: Path) -> None:
    from mmreason.models.tiny import save_tiny

    stored = ["--teacher_logits", "stored", "--teacher_store", str(tmp_path / "kept"), "--max_steps", "1"]
    quick = [*SETTINGS, "--eval_samples", "0"]
    main([*parts, *quick, *stored, "--output_dir", str(tmp_path / "first")])
    manifest = json.loads((tmp_path / "kept" / "0" / "manifest.json").read_text())
    assert manifest["key"]["k"] == 64 and manifest["files"].keys() == {"000000.npz"}
    other = save_tiny(tmp_path / "other", "s", seed=3)
    with pytest.raises(ConfigError, match="of another teacher"):
        main([*parts, *quick, *stored, "--teacher_model_name_or_path", other, "--output_dir", str(tmp_path / "second")])
    with pytest.raises(ConfigError, match="for other rows"):
        main([*parts, *quick, *stored, "--max_train_samples", "20", "--output_dir", str(tmp_path / "third")])


@pytest.mark.parametrize("mode", ["hard", "soft", "step_by_step"])
def test_real_chains_of_thought(mode: str, parts: list[str], shared_data: Path, tmp_path: Path) -> None:
    """SVAMP's solutions by a teacher of another kind: their texts, another model's view of them, two tasks."""
    flags = [*parts, *SETTINGS, "--dataset_name", str(shared_data / "sft_cot" / "svamp_nl_cot.jsonl")]
    flags += ["--max_train_samples", "40", "--dataset_test_split", "null", "--max_steps", "1", "--bill", "false"]
    if mode != "soft":
        flags += ["--teacher_model_name_or_path", "null"]
    main([*flags, "--mode", mode, "--output_dir", str(tmp_path / "run")])
    (line,) = (line for line in metrics(tmp_path / "run") if "loss" in line)
    assert 0 < line["loss"] < 20 and ("distill/divergence" in line) == (mode == "soft")
