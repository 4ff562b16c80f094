"""The SFT recipe through its command line: it learns, resumes bit for bit, and says what is wrong before it trains."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.launch import ROOT, metrics, run, run_and_signal

SETTINGS = [
    "--max_steps", "8", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--tiny_size", "xs",
    "--learning_rate", "1e-2", "--warmup_steps", "0", "--gradient_checkpointing", "false", "--use_cpu",
    "--logging_steps", "1", "--save_steps", "2",
    "--eval_samples", "4", "--eval_steps", "3", "--max_completion_length", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> str:
    from data_builders.arithmetic import build

    folder = tmp_path_factory.mktemp("data") / "sums"
    build(folder, n=128, n_test=16, seed=1, level=1)
    return str(folder)


def command(output_dir: Path, data: str, *flags: str, accelerate: str | None = None) -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        start += ["-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{accelerate}.yaml"]
    files = ["--config", "recipes/configs/sft/embedded.yaml", "--dataset_name", data, "--output_dir", str(output_dir)]
    return [*start, "recipes/sft.py", *files, "--extra_test_splits", "null", *SETTINGS, *flags]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(sums: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "run"
    done = run(command(folder, sums))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "held out: 4 held_out" in done.stdout and "after (step 8)" in done.stdout
    return folder


@pytest.mark.slow
def test_what_a_run_leaves_behind(unbroken: Path) -> None:
    lines = [line for line in metrics(unbroken) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    evaluation = json.loads((unbroken / "evaluation.json").read_text())
    assert {name: entry["step"] for name, entry in evaluation.items()} == {"step 3": 3, "step 6": 6, "after": 8}
    assert [line["step"] for line in metrics(unbroken) if "eval/held_out/greedy" in line] == [3, 6]
    for name in ("config.yaml", "run.json", "checkpoint-8", "final/tokenizer.json", "evaluations", "report.html"):
        assert (unbroken / name).exists(), name
    assert not (unbroken / "rollouts").exists()
    final, last = weights(unbroken / "final"), weights(unbroken / "checkpoint-8")
    assert all(torch.equal(final[name], last[name]) for name in last)


@pytest.fixture(scope="module")
def mixed(sums: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run over two sets, packed, five or so steps an epoch, with a held-out loss."""
    from data_builders.arithmetic import build

    folder = tmp_path_factory.mktemp("mixed")
    for name, n, level in (("easy", 24, 1), ("hard", 16, 2)):
        build(folder / name, n=n, n_test=4, seed=2, level=level)
    datasets = [{"name": str(folder / "easy"), "weight": 2}, {"name": str(folder / "hard"), "weight": 1}]
    return [
        "--datasets", json.dumps(datasets), "--dataset_name", "null", "--dataset_test_split", "null",
        "--packing", "--max_length", "64", "--per_device_train_batch_size", "2", "--packing_window", "16",
        "--max_steps", "24", "--save_steps", "2", "--eval_steps", "12",
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_in_mid_epoch_packed_and_mixed(mixed: list[str], sums: str, tmp_path: Path) -> None:
    """Killed twice, in the second epoch and in a later one: the same weights, metrics and evaluations as unbroken."""
    unbroken, words = tmp_path / "unbroken", command(tmp_path / "run", sums, *mixed)
    done = run(command(unbroken, sums, *mixed))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in metrics(unbroken) if "loss" in line]
    assert {"loss/easy", "loss/hard"} <= set().union(*lines) and lines[-1]["epoch"] > 2
    assert [line["step"] for line in metrics(unbroken) if "eval/held_out/loss" in line] == [12, 24]
    for step in (9, 17):
        run_and_signal(words, tmp_path / "run", step=step, number=signal.SIGKILL)
        assert len(metrics(tmp_path / "run")) < len(metrics(unbroken)), "the run ended before it could be killed"
    again = run(words)
    assert again.returncode == 0 and "Continuing from" in again.stdout, again.stderr[-3000:]
    assert metrics(tmp_path / "run") == metrics(unbroken)
    evaluations = [(folder / "evaluation.json").read_text() for folder in (unbroken, tmp_path / "run")]
    assert evaluations[0] == evaluations[1]
    want, got = weights(unbroken / "final"), weights(tmp_path / "run" / "final")
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.slow
def test_a_finished_run_has_nothing_to_do(unbroken: Path, sums: str) -> None:
    before, words = metrics(unbroken), command(unbroken, sums)
    finished = run(words)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert metrics(unbroken) == before


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_go_on(sums: str, tmp_path: Path) -> None:
    words = command(tmp_path / "run", sums, "--max_steps", "2000", "--save_steps", "2000", "--eval_steps", "null")
    output = run_and_signal(words, tmp_path / "run", step=2, number=signal.SIGINT)
    assert "Run the same command to continue" in output
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_two_processes(accelerate: str, unbroken: Path, sums: str, tmp_path: Path) -> None:
    """Half the batch on each of two: the same rows at the first step, so the same loss."""
    flags = ["--gradient_accumulation_steps", "1", "--per_device_train_batch_size", "4", "--max_steps", "3"]
    one = run(command(tmp_path / "one", sums, *flags, "--per_device_train_batch_size", "8"))
    done = run(command(tmp_path / "two", sums, *flags, accelerate=accelerate))
    assert one.returncode == 0 and done.returncode == 0, done.stderr[-3000:]
    left, right = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in right if "loss" in line] == [1, 2, 3]
    assert right[0]["loss"] == pytest.approx(left[0]["loss"], rel=1e-5)
    whole, gathered = weights(tmp_path / "one" / "final"), weights(tmp_path / "two" / "final")
    assert {name: t.shape for name, t in gathered.items()} == {name: t.shape for name, t in whole.items()}


@pytest.mark.slow
def test_lora(unbroken: Path, sums: str, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", str(unbroken / "final"), "--use_peft", "--lora_target_modules", "all-linear"]
    done = run(command(tmp_path / "run", sums, *flags, "--max_steps", "2"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()


BAD: list[tuple[list[str], list[str]]] = [
    (["--learning_rat", "1"], ["learning_rat", "learning_rate"]),
    (["--max_length", "12"], ["too_long", "max_length", "on_bad_row"]),
    (["--dataset_name", "nowhere/at_all.jsonl"], ["nowhere/at_all.jsonl"]),
    (["--model_name_or_path", "no/such/folder"], ["no/such/folder"]),
    (["--resume", "checkpoint-7"], ["--resume checkpoint-7", "no whole checkpoint"]),
    (["--save_steps", "0"], ["save_steps=0"]),
    (["--vision", "{source: timm}"], ["vision need decoder"]),
    (["--packing", "--max_length", "null"], ["packing needs max_length"]),
    (["--loss_on", "{answr: 1.0}"], ["loss_on", "answr", "answer"]),
    (["--unfreeze_at", "{layres.0: 3}"], ["unfreeze_at", "layres.0"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "said"), BAD, ids=[flags[0] for flags, _ in BAD])
def test_bad_input_is_named_before_training(flags: list[str], said: list[str], sums: str, tmp_path: Path) -> None:
    done = run(command(tmp_path / "run", sums, *flags))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert all(word in done.stderr for word in said), done.stderr[-2000:]
    assert not metrics(tmp_path / "run")


@pytest.mark.slow
def test_another_run_is_not_continued(unbroken: Path, sums: str) -> None:
    done = run(command(unbroken, sums, "--seed", "7"))
    assert done.returncode == 1 and "seed: 42 there, 7 now" in done.stderr


def test_real_solutions_become_labels(shared_data: Path) -> None:
    """GSM8K's own solutions, as recipes/configs/sft/qwen2.5-0.5b.yaml learns them: each ends with its answer."""
    from mmreason.data.supervised import prepare_supervised
    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.arguments import DataArguments
    from mmreason.trainers.sft_data import load_rows

    data = DataArguments(
        dataset_name=str(shared_data / "gsm8k"), prompt_template="gsm8k", max_train_samples=200, eval_samples=0
    )
    train, _ = load_rows(data, [], 0, lambda _: None)
    tokenizer = tiny_tokenizer()
    rows, dropped = prepare_supervised(train, tokenizer, max_length=4096)
    assert len(rows) == 200 and not dropped
    for i, example in enumerate(train):
        learned = [token for token, weight in zip(rows[i].ids, rows[i].weights, strict=True) if weight]
        text = tokenizer.decode(learned, skip_special_tokens=True)
        assert example["answer"] in text.replace(",", "")
    assert (ROOT / "recipes" / "configs" / "sft" / "qwen2.5-0.5b.yaml").is_file()


@pytest.mark.slow
def test_pictures_into_a_composed_model(tmp_path: Path) -> None:
    """Parts become a model; tower frozen, its features stored; packed rows of generated pictures; a model that sees."""
    from transformers import AutoProcessor

    from tests.models.parts import TIMM_VIT, save_decoder

    flags = [
        "--decoder", save_decoder(tmp_path / "decoder"), "--vision", json.dumps(TIMM_VIT),
        "--freeze_modules", "vision_tower", "--feature_store", str(tmp_path / "store"), "--dataset_name", "null",
        "--shapes", "{level: 1, n: 24, n_test: 8, n_unseen: 0, seed: 3}", "--dataset_test_split", "test",
        "--packing", "--max_length", "400", "--per_device_train_batch_size", "1", "--max_steps", "6",
        "--max_prompt_length", "null",
    ]  # fmt: skip
    done = run(command(tmp_path / "run", "null", *flags))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    (measured,) = [line for line in metrics(tmp_path / "run") if line["step"] == 3 and "eval/held_out/loss" in line]
    assert 0 <= measured["eval/held_out/greedy"] <= 1
    assert AutoProcessor.from_pretrained(tmp_path / "run" / "final").image_token
    assert list((tmp_path / "store").rglob("*")), "no feature was stored"


@pytest.mark.slow
def test_frozen_modules_stay(sums: str, tmp_path: Path) -> None:
    frozen = ("--freeze_modules", "embed_tokens", "layers.0", "--max_steps", "2", "--eval_samples", "0")
    done = run(command(tmp_path / "run", sums, *frozen))
    assert done.returncode == 0, done.stderr[-3000:]
    before = load_file(tmp_path / "run" / "tiny_model" / "model.safetensors")
    after = weights(tmp_path / "run" / "final")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and not any("layers.0." in name or "embed_tokens" in name for name in moved)


@pytest.mark.slow
def test_a_model_that_sees_keeps_its_processor(sums: str, tmp_path: Path) -> None:
    """Trained on text, it is shown pictures by a later stage."""
    from transformers import AutoProcessor

    from tests.tiny_vlms import tiny_vlm

    model = (
        "--model_name_or_path",
        tiny_vlm("qwen2_5_vl", tmp_path / "model"),
        "--max_steps",
        "1",
        "--eval_samples",
        "0",
    )
    done = run(command(tmp_path / "run", sums, *model))
    assert done.returncode == 0, done.stderr[-3000:]
    assert AutoProcessor.from_pretrained(tmp_path / "run" / "final").image_token == "<|image_pad|>"
