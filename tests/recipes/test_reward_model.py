"""The reward-model recipe through its command line: it learns, resumes bit for bit, and names what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmreason.data.schema import to_dataset
from mmreason.models.tiny import save_tiny
from mmreason.trainers.reward_data import COLUMNS
from tests.recipes.killing import Moment, assert_killed_run_ends_alike
from tests.recipes.launch import ROOT, metrics, run
from tests.trainers.reward_rows import WORTH, example, planted, said

SETTINGS = [
    "--max_steps", "6", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--use_cpu",
    "--learning_rate", "3e-3", "--gradient_checkpointing", "false", "--logging_steps", "1", "--save_steps", "2",
    "--eval_samples", "6", "--eval_steps", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run: a random decoder, planted rankings."""
    folder = tmp_path_factory.mktemp("reward")
    model = save_tiny(folder / "model", texts=[" ".join(WORTH), "bring something"] * 40, vocab_size=320, seed=1)
    rows = [row | {"prompt": [{"role": "user", "content": f"bring something {number}"}]}
            for number, row in enumerate(planted(40, 0))]  # fmt: skip
    to_dataset(rows, COLUMNS).to_parquet(folder / "train.parquet")  # type: ignore[arg-type]
    return ["--model_name_or_path", model, "--dataset_name", str(folder / "train.parquet")]


def command(output_dir: Path, flags: list[str], *more: str, accelerate: str | None = None) -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        start += ["-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{accelerate}.yaml"]
    return [*start, "recipes/reward_model.py", "--output_dir", str(output_dir), *flags, *SETTINGS, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    done = run(command(folder, small))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "34 rows for a preference head, 136 sequences" in done.stdout
    assert "held_out, after (step 6):" in done.stdout and f"path: {folder}/final" in done.stdout
    return folder


@pytest.mark.slow
def test_what_a_run_leaves_behind(unbroken: Path) -> None:
    from mmreason.rewards import reward_model_reward

    lines = [line for line in metrics(unbroken) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert {"accuracy", "margin", "mean_reward", "grad_norm"} <= set(lines[0])
    evaluation = json.loads((unbroken / "evaluation.json").read_text())
    assert {name: entry["step"] for name, entry in evaluation.items()} == {
        "before": 0, "step 2": 2, "step 4": 4, "after": 6,
    }  # fmt: skip
    after = evaluation["after"]["sets"]["held_out"]
    assert after["pair_accuracy"]["n"] > 20 and after["reliability"]
    assert after["pair_accuracy"]["value"] > evaluation["before"]["sets"]["held_out"]["pair_accuracy"]["value"]
    (last,) = [line for line in metrics(unbroken) if line["step"] == 6 and "loss" not in line]
    assert last["eval/held_out/pair_accuracy"] == after["pair_accuracy"]["value"]
    for name in ("config.yaml", "run.json", "checkpoint-6", "final/tokenizer.json", "report.html"):
        assert (unbroken / name).exists(), name
    prompts = [example("a")["prompt"]] * 2
    rewards = reward_model_reward([said("gold gold"), said("sand sand")], prompts, path=str(unbroken / "final"))
    assert None not in rewards and rewards[0] != rewards[1]


@pytest.mark.slow
def test_killed_run_ends_like_an_unbroken_one(small: list[str], unbroken: Path, tmp_path: Path) -> None:
    """Once within step 3, between its two micro-batches, and once while the checkpoint of step 4 is written."""
    assert_killed_run_ends_alike(
        lambda folder: command(folder, small),
        tmp_path,
        Moment("mmreason.trainers.reward:RewardTrainer.compute_loss", call=6),
        Moment("mmreason.trainers.reward:RewardTrainer._save", call=1, after=True),
        unbroken=unbroken,
    )


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_two_processes(accelerate: str, small: list[str], unbroken: Path, tmp_path: Path) -> None:
    """Half the batch on each of two: the same rows in each step, so the same loss and the same measurement."""
    shorter = ("--gradient_accumulation_steps", "1", "--max_steps", "3")
    done = run(command(tmp_path, small, *shorter, accelerate=accelerate))
    assert done.returncode == 0, done.stderr[-3000:]
    left, right = ([line for line in metrics(folder) if "loss" in line] for folder in (unbroken, tmp_path))
    assert [line["step"] for line in right] == [1, 2, 3]
    for one, other in zip(left[:2], right[:2], strict=True):
        for name in ("loss", "accuracy", "margin", "mean_reward"):
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-5), name
    before = [json.loads((f / "evaluation.json").read_text())["before"]["sets"] for f in (unbroken, tmp_path)]
    assert before[1]["held_out"]["mean_margin"]["value"] == pytest.approx(
        before[0]["held_out"]["mean_margin"]["value"], abs=1e-5
    )
    assert {n: t.shape for n, t in weights(tmp_path).items()} == {n: t.shape for n, t in weights(unbroken).items()}


@pytest.mark.slow
def test_lora_from_a_reward_model(small: list[str], unbroken: Path, tmp_path: Path) -> None:
    """A finished reward model goes on with an adapter, whose head is saved with it."""
    from mmreason.models.reward import load_reward_model

    flags = ["--model_name_or_path", str(unbroken / "final"), *small[2:], "--use_peft", "--max_steps", "2"]
    done = run(command(tmp_path, flags))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "final" / "adapter_model.safetensors").is_file()
    ids = torch.arange(5, 20)[None]
    one, other = (load_reward_model(folder / "final").eval()(ids).logits for folder in (unbroken, tmp_path))
    assert one.shape == other.shape and not torch.equal(one, other)


BAD: list[tuple[list[str], list[str]]] = [
    (["--ranking_los", "pairs"], ["ranking_los", "ranking_loss"]),
    (["--max_length", "8"], ["too_long", "max_length=8", "on_bad_row"]),
    (["--head", "outcome"], ["missing_label", "outcome head"]),
    (["--model_name_or_path", "no/such/folder"], ["no/such/folder"]),
    (["--adapter", "{kind: prompt}"], ["adapter.kind='prompt'", "lora"]),
    (["--shapes", "{level: 1}"], ["shapes has no meaning"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "wanted"), BAD, ids=[flags[0] for flags, _ in BAD])
def test_bad_input_is_named_before_training(
    flags: list[str], wanted: list[str], small: list[str], tmp_path: Path
) -> None:
    done = run(command(tmp_path / "run", small, *flags))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert all(word in done.stderr for word in wanted), done.stderr[-2000:]
    assert not metrics(tmp_path / "run")


@pytest.mark.slow
def test_another_run_is_not_continued(unbroken: Path, small: list[str]) -> None:
    done = run(command(unbroken, small, "--ranking_loss", "plackett_luce"))
    assert done.returncode == 1 and "ranking_loss: 'pairs' there, 'plackett_luce' now" in done.stderr


def test_made_rankings_are_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each problem: right steps over a slip over a bare wrong answer, by the verifier."""
    from data_builders._preferences.word_rankings import rankings
    from data_builders.word_problems import SetOptions
    from mmreason.answers import verify
    from mmreason.rewards.text import completion_text

    rows = rankings(60, "train", SetOptions(level="1-2", seed=3))
    assert len(rows) > 50 and rows == rankings(60, "train", SetOptions(level="1-2", seed=3))
    for row in rows:
        ranking = row["meta"]["ranking"]
        right = [verify(completion_text(entry["completion"]), str(row["answer"])).correct for entry in ranking]
        assert right == [True, False, False] and [entry["rank"] for entry in ranking] == [0, 1, 2]
        assert "reasoning_content" in ranking[1]["completion"][0] and len(ranking[2]["completion"][0]) == 2
    assert (ROOT / "recipes" / "warm_start" / "model.safetensors").is_file()
