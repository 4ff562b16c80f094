"""The RL loop on problems with pictures: what is learned from, measured, kept and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from mmreason.data import check_prompts
from mmreason.data.schema import RL_COLUMNS, to_dataset
from mmreason.data.visual import visuals_of
from mmreason.trainers.arguments import DataArguments, PolicyConfig
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.evaluation import Evaluations
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.problems import HeldOut, check_problems
from tests.pictures import SEEING, ask, cell, picture, save_seeing, varied_reward

COLUMNS = (*RL_COLUMNS, "images")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def get(kind: str) -> str:
        if kind not in made:
            made[kind] = save_seeing(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


def problems(count: int, first: int = 0, text_every: int = 4) -> Dataset:
    """Rows with no, one or two pictures of different sizes."""
    rows = []
    for i in range(first, first + count):
        images = 0 if i % text_every == text_every - 1 else 1 + i % 2
        rows.append(
            {
                "prompt": ask(f"What is {i}?", images),
                "images": [cell(picture(30 + 7 * (i % 5), 60 - 5 * (i % 4), 10 * i + j)) for j in range(images)],
                "answer": str(i),
                "id": f"p{i}",
                "source": "test",
                "meta": {},
            }
        )
    return to_dataset(rows, COLUMNS)  # type: ignore[arg-type]


def make(path: str, out: Path, rows: Dataset, held_out: dict[str, HeldOut] | None = None, **options: Any) -> Any:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    settings = {
        "num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4,
        "max_completion_length": 6, "use_cpu": True, "save_steps": 1, "save_total_limit": None, "learning_rate": 1e-3,
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    args = PolicyConfig(output_dir=str(out), **(settings | options))
    processor = AutoProcessor.from_pretrained(path)
    rows, prompt_ids, _ = check_prompts(rows, processor, None)
    return PolicyTrainer(
        AutoModelForImageTextToText.from_pretrained(path),
        args,
        reward_funcs=[varied_reward],
        train_dataset=rows,
        prompt_ids=prompt_ids,
        tokenizer=processor,
        accelerator=build_accelerator(args),
        checkpoint=path,
        held_out=held_out,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", SEEING)
def test_the_policy_learns_from_pictures(kind: str, checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """Every step samples from the policy that is scored; decoder, projector and tower all move; the result loads."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = checkpoint(kind)
    trainer = make(path, tmp_path, problems(8), max_steps=3, gradient_checkpointing=kind == "llava")
    trainer.train()
    for line in lines(tmp_path):
        assert line["sampling/sampling_logp_difference/max"] <= 1e-4
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert line["grad_norm"] > 0
    saved = tmp_path / "checkpoint-3"
    before = AutoModelForImageTextToText.from_pretrained(path).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(saved).state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for part in ("visual|vision", "merger|connector|projector", "language_model|text_model"):
        assert any(piece in name for piece in part.split("|") for name in moved), (part, moved)
    assert type(AutoProcessor.from_pretrained(saved)).__name__ == type(trainer.processor).__name__
    rows = pq.read_table(tmp_path / "rollouts" / "rollout-000001.parquet").to_pylist()
    assert [row["images"] for row in rows] == [len(trainer.dataset[int(row["id"][1:])]["images"]) for row in rows]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "smolvlm"])
def test_resumed_run_ends_like_an_unbroken_one(kind: str, checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """From a checkpoint with a rollout in flight, which keeps row numbers: its pictures are rendered anew."""
    options = {"num_iterations": 2, "beta": 0.0, "max_steps": 5}
    whole = make(checkpoint(kind), tmp_path / "whole", problems(8), **options)
    whole.train()
    kept = pq.read_table(tmp_path / "whole" / "checkpoint-3" / "samples-00000.parquet")
    assert "rows" in kept.column_names and "pixel_values" not in kept.column_names and kept.nbytes < 20_000

    resumed = make(checkpoint(kind), tmp_path / "resumed", problems(8), **options)
    resumed.resume(tmp_path / "whole" / "checkpoint-3")
    assert resumed.state.step == 3 and resumed._samples is not None
    resumed.train()
    want, got = (load_file(tmp_path / name / "checkpoint-5" / "model.safetensors") for name in ("whole", "resumed"))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    for left, right in zip(lines(tmp_path / "whole")[3:], lines(tmp_path / "resumed"), strict=True):
        assert {k: v for k, v in left.items() if not k.startswith("time/")} == {
            k: v for k, v in right.items() if not k.startswith("time/")
        }


def test_pictures_are_what_is_learned_from(checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """Other pictures of the same size give other log-probabilities. A policy that dropped them would not care."""
    found = []
    for seed in (0, 1):
        rows = problems(4, text_every=99)
        other = [[cell(picture(44, 44, 100 * seed + j)) for j, _ in enumerate(images)] for images in rows["images"]]
        rows = rows.remove_columns("images").add_column("images", other, feature=rows.features["images"])
        trainer = make(checkpoint("qwen2_5_vl"), tmp_path / str(seed), rows, num_iterations=2)
        samples = trainer._rollout({})
        samples.completion_ids = [[65 + i, 66, 67] for i in range(len(samples))]
        found.append(trainer.scorer.score_all(trainer.policy, samples))
    assert found[0] != found[1]
    gaps = [abs(a - b) for left, right in zip(*found, strict=True) for a, b in zip(left, right, strict=True)]
    assert max(gaps) > 0.05


def test_held_out_sets_with_pictures(checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """Measured with their own pictures; what was read is kept, but no picture."""
    from transformers import AutoProcessor

    path = checkpoint("llava")
    processor = AutoProcessor.from_pretrained(path)
    held = {"seen": problems(5, 20), "text": problems(3, 40, text_every=1)}
    train, _, sets = check_problems(problems(8), held, processor, DataArguments(), None, lambda _: None)
    assert sets["seen"].visuals is not None and sets["seen"].visuals.max_images == 2
    trainer = make(path, tmp_path, train, sets, max_steps=1)
    evaluations = Evaluations(trainer, sets, 3, str(tmp_path))
    evaluations.run("before")
    rows = pq.read_table(tmp_path / "evaluations" / "step-000000-seen.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(20, 25)] and "images" not in rows[0]
    # The answers are those of each problem alone, by the model itself.
    model, tokenizer = trainer.policy, processor.tokenizer
    for i, row in enumerate(rows):
        visual = sets["seen"].visuals[i]
        extra = {} if visual is None else visual.inputs
        ids = torch.tensor([sets["seen"].prompt_ids[i]])
        banned = trainer.banned_token_ids
        out = model.generate(input_ids=ids, **extra, max_new_tokens=6, do_sample=False, suppress_tokens=banned)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == row["completion"]


def test_text_rows_are_computed_as_without_pictures(checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    """A set of text through a processor takes the same steps as through its tokenizer."""
    rows = problems(8, text_every=1)
    assert visuals_of(rows.remove_columns("images"), [], None) is None
    losses = []
    for name, dataset in (("with", rows), ("without", rows.remove_columns("images"))):
        trainer = make(checkpoint("qwen3_vl"), tmp_path / name, dataset, max_steps=2)
        trainer.rewarder.funcs = [lambda completions, **_: [float(len(turn[0]["content"]) % 3) for turn in completions]]
        trainer.train()
        losses.append([(line["loss"], line["grad_norm"]) for line in lines(tmp_path / name)])
    assert losses[0] == losses[1]
