"""The reward trainer: TRL's loss on pairs, the same step however it is cut, a planted ranking, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.models.reward import load_reward_model, model_to_train, with_reward_head
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.reward_arguments import RewardOptions
from mmreason.trainers.reward_data import prepare_reward
from mmreason.trainers.reward_metrics import measured
from tests.trainers.reward_rows import dataset, example, options, pair, planted, said, tokenizer, trainer

PAIRS = [
    pair("a", "gold silk", "fog sand rope"),
    pair("b", "oak", "tin tin tin tin"),
    pair("c", "silk oak gold gold", "sand"),
    pair("d", "gold", "rope fog"),
]


def step_of(made: Any, rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one step over these rows, as the trainer takes it."""
    batch = made.data_collator([made.train_dataset.rows[i] for i in rows])
    items = made._get_num_items_in_batch([batch], torch.device("cpu"))
    made.model.train()
    loss = made.compute_loss(made.model, made._prepare_inputs(batch), num_items_in_batch=items)
    made.model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("margins", "centring"), [(False, None), (True, None), (False, 0.1), (True, 0.01)])
@pytest.mark.parametrize("ranking_loss", ["pairs", "plackett_luce"])
def test_loss_and_gradient_are_trls(margins: bool, centring: float | None, ranking_loss: str, tmp_path: Path) -> None:
    """TRL's RewardTrainer on transformers' classifier with the same weights and the same token ids."""
    from datasets import Dataset
    from transformers import Qwen2ForSequenceClassification
    from trl import RewardConfig
    from trl import RewardTrainer as TRLRewardTrainer

    rows = [dict(row, meta={"margin": 0.3 * i - 0.2} if margins else {}) for i, row in enumerate(PAIRS)]
    ours = trainer(tmp_path / "ours", rows, center_rewards_coefficient=centring, ranking_loss=ranking_loss)
    loss, gradients = step_of(ours, [0, 1, 2, 3])

    words, bare = tokenizer(), ours.model
    config = bare.backbone.config.__class__(**(bare.backbone.config.to_dict() | {"num_labels": 1}))
    theirs = Qwen2ForSequenceClassification(config)
    theirs.model.load_state_dict(bare.backbone.state_dict())
    theirs.score.load_state_dict(bare.score.state_dict())
    sides: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
    for row in rows:
        for side in ("chosen", "rejected"):
            text = words.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            sides[f"{side}_ids"].append(words(text)["input_ids"])
    sides |= {"margin": [row["meta"]["margin"] for row in rows]} if margins else {}
    args = RewardConfig(str(tmp_path / "trl"), center_rewards_coefficient=centring, use_cpu=True, bf16=False,
                        report_to="none", gradient_checkpointing=False)  # fmt: skip
    peer = TRLRewardTrainer(theirs, args, train_dataset=Dataset.from_dict(sides), processing_class=words)
    batch = peer.data_collator([peer.train_dataset[i] for i in range(4)])
    expected = peer.compute_loss(theirs.train(), batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in theirs.named_parameters():
        mine = gradients[name.replace("model.", "backbone.", 1) if name.startswith("model.") else name]
        torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("ranking_loss", ["pairs", "plackett_luce"])
def test_a_step_is_the_same_however_it_is_cut(ranking_loss: str, tmp_path: Path) -> None:
    """Rankings of 2 to 4 completions: 6 × 1, 2 × 3 accumulated and 4 × 2 with fillers, under SGD."""
    rows = [*planted(3, 0), *planted(2, 1, completions=3), PAIRS[0]]
    weights = []
    for size, accumulation in ((6, 1), (2, 3), (4, 2)):
        made = trainer(
            tmp_path / f"{size}", rows, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, max_steps=2, ranking_loss=ranking_loss,
        )  # fmt: skip
        assert made.fit()
        weights.append({name: p.detach().clone() for name, p in made.model.named_parameters()})
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_steps_count_once_each_however_the_batch_is_cut(tmp_path: Path) -> None:
    rows = [example(str(n), completions=["oak"] * n, labels=[i % 2 == 0 for i in range(n)]) for n in (1, 2, 4, 3)]
    made = trainer(tmp_path, rows, "process")
    whole, gradient = step_of(made, [0, 1, 2, 3])
    batches = [made.data_collator([made.train_dataset.rows[i] for i in part]) for part in ([0, 1], [2, 3])]
    items = made._get_num_items_in_batch(batches, torch.device("cpu"))
    assert items.item() == 10
    made.model.zero_grad()
    parts = [made.compute_loss(made.model, made._prepare_inputs(batch), num_items_in_batch=items) for batch in batches]
    sum(parts).backward()  # type: ignore[union-attr]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
    for name, parameter in made.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradient[name], atol=1e-6, rtol=1e-4)


def held_out(made: Any, rows: list[dict[str, Any]], head: Any = "preference") -> dict[str, Any]:
    prepared, _ = prepare_reward(dataset(rows), tokenizer(), head, made.options, "error")
    return measured(prepared, made.scores(prepared))


@pytest.mark.slow
@pytest.mark.parametrize("ranking_loss", ["pairs", "plackett_luce"])
def test_a_planted_ranking_is_recovered(ranking_loss: str, tmp_path: Path) -> None:
    made = trainer(
        tmp_path, planted(320, 0), ranking_loss=ranking_loss, max_steps=60, per_device_train_batch_size=16,
        learning_rate=3e-3, center_rewards_coefficient=0.01, logging_steps=10,
    )  # fmt: skip
    new = planted(100, 1)
    before = held_out(made, new)
    assert made.fit()
    after = held_out(made, new)
    assert before["pair_accuracy"]["value"] < 0.7
    assert after["pair_accuracy"]["value"] >= 0.95 and after["kendall_tau"]["value"] >= 0.9
    assert after["mean_margin"]["value"] > 1 and after["mean_margin"]["value"] > 5 * before["mean_margin"]["value"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (
        lines[-1]["accuracy"] > 0.95 and lines[-1]["margin"] > lines[0]["margin"] and abs(lines[-1]["mean_reward"]) < 2
    )


@pytest.mark.slow
def test_outcomes_and_steps_are_learned(tmp_path: Path) -> None:
    """Right is an answer whose last word is gold; of steps those that hold no sand."""
    draw = torch.Generator().manual_seed(0)
    words = ["oak", "silk", "sand", "gold"]
    lines = [[words[i] for i in torch.randint(0, 4, (3,), generator=draw)] for _ in range(500)]
    outcomes = [example(str(n), completion=said(" ".join(line)), label=line[-1] == "gold")
                for n, line in enumerate(lines)]  # fmt: skip
    steps = [example(str(n), completions=[f"{n % 7} {word}" for word in line], labels=[word != "sand" for word in line])
             for n, line in enumerate(lines)]  # fmt: skip
    settings: dict[str, Any] = {"max_steps": 80, "per_device_train_batch_size": 16, "learning_rate": 3e-3}
    made = trainer(tmp_path / "outcome", outcomes[:400], "outcome", **settings)
    assert made.fit()
    found = held_out(made, outcomes[400:], "outcome")
    assert found["accuracy"]["value"] >= 0.97 and found["roc_auc"]["value"] >= 0.99
    made = trainer(tmp_path / "process", steps[:400], "process", **settings)
    assert made.fit()
    found = held_out(made, steps[400:], "process")
    assert found["step_accuracy"]["value"] >= 0.97 and found["first_error_f1"]["value"] >= 0.95


def test_adapter_head_and_checkpoint(tmp_path: Path) -> None:
    """A LoRA run's checkpoint holds the trained head, and what is loaded from it scores as the trainer did."""
    folder = tmp_path / "base"
    words = tokenizer()
    tiny_decoder("xs", vocab_size=len(words), seed=1).save_pretrained(folder)
    words.save_pretrained(folder)
    model = model_to_train(
        ModelArguments(model_name_or_path=str(folder), use_peft=True, lora_dropout=0.0), "preference"
    )
    made = trainer(tmp_path / "run", PAIRS, model=model, max_steps=3, save_steps=3, learning_rate=1e-2)
    before = made.scores(made.train_dataset.rows)
    assert made.fit()
    after = made.scores(made.train_dataset.rows)
    assert before != after
    made.save_final(tmp_path / "final", words)
    for place in (tmp_path / "final", tmp_path / "run" / "checkpoint-3"):
        again = trainer(tmp_path / "again", PAIRS, model=load_reward_model(place))
        assert again.scores(again.train_dataset.rows) == after


def test_pictures_reach_the_loss(tmp_path: Path) -> None:
    """Both sides of a pair share its pictures; blank ones in their place give another loss and other rewards."""
    from PIL import Image

    from mmreason.models.loading import load_processor
    from tests.pictures import ask, cell, picture, save_seeing

    args = ModelArguments(model_name_or_path=save_seeing("mmreason", tmp_path / "model"))
    processor = load_processor(args)
    found = {}
    for name, image in (("seen", picture(40, 50, 1)), ("blank", Image.new("RGB", (40, 50)))):
        rows = [row | {"prompt": ask("which?", 1), "images": [cell(image)]} for row in PAIRS]
        made = trainer(tmp_path / name, rows, model=model_to_train(args, "preference"), processor=processor)
        assert made.train_dataset.rows.image_counts == [2] * 4
        found[name] = step_of(made, [0, 1, 2, 3]), made.scores(made.train_dataset.rows)
    (loss, gradients), scores = found["seen"]
    assert abs(loss - found["blank"][0][0]) > 1e-4 and scores != found["blank"][1]
    assert any("projector" in name and g.abs().max() > 0 for name, g in gradients.items())


def test_dropout_is_off_as_in_trl(tmp_path: Path) -> None:
    model = with_reward_head(tiny_decoder("xs", vocab_size=len(tokenizer()), attention_dropout=0.0), "preference")
    model.score = torch.nn.Sequential(torch.nn.Dropout(0.5), model.score)
    model.score.weight = model.score[1].weight
    made = trainer(tmp_path, PAIRS, model=model)
    assert made.model.score[0].p == 0.0
    assert options(tmp_path).disable_dropout and RewardOptions().learning_rate == 1e-4
