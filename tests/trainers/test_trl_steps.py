"""Twenty optimizer steps with shared prompts are those of TRL's GRPOTrainer on the same samples: text and pictures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from mmreason.data.schema import to_dataset
from mmreason.data.visual import render_visual_prompt
from mmreason.models.packed_attention import NAME
from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.policy import PolicyTrainer
from tests.pictures import ask, cell, picture
from tests.tiny_vlms import tiny_vlm

STEPS, G, RATE = 20, 4, 0.02
SETTINGS: dict[str, Any] = {
    "loss_type": "dapo", "temperature": 0.9, "num_generations": G, "max_completion_length": 12, "use_cpu": True,
    "per_device_train_batch_size": 2 * G, "gradient_accumulation_steps": 1, "bf16": False, "max_grad_norm": 0.5,
    "gradient_checkpointing": False, "report_to": [], "max_steps": STEPS,
}  # fmt: skip


class Problems:
    """Two prompts, and for each step fixed completions and advantages."""

    def __init__(self, processor: Any, images: list[int]) -> None:
        self.processor, self.images = processor, images
        self.pictures = [[picture(60, 40 + 10 * n, 5 * i + n) for n in range(count)] for i, count in enumerate(images)]
        self.prompts = [ask(f"Question {i}?", count) for i, count in enumerate(images)]
        cells = [[cell(one) for one in each] for each in self.pictures]
        rows: Any = [
            {"id": str(i), "prompt": p, "images": c} for i, (p, c) in enumerate(zip(self.prompts, cells, strict=True))
        ]
        if any(images):
            self.ids = [render_visual_prompt(row["prompt"], row["images"], processor).ids for row in rows]
            self.dataset = to_dataset(rows, ("id", "prompt", "images"))
        else:
            self.ids = [processor(f"A question, number {i * i * 100}?")["input_ids"] for i in range(len(images))]
            self.dataset = Dataset.from_dict({"prompt": [str(i) for i in range(len(images))]})
        self.rows = [i for i in range(len(images)) for _ in range(G)]

    def step(self, number: int) -> tuple[list[list[int]], list[float]]:
        rng = random.Random(number)
        completions = [[rng.randrange(60, 120) for _ in range(rng.randint(1, 12))] for _ in self.rows]
        return completions, [rng.uniform(-2, 2) for _ in self.rows]


def ours(model: Any, problems: Problems, out: Path) -> tuple[list[float], dict[str, Tensor]]:
    args = PolicyConfig(output_dir=str(out), optim="sgd", learning_rate=RATE, lr_scheduler_type="constant", **SETTINGS)
    trainer = PolicyTrainer(
        model, args, reward_funcs=[], train_dataset=problems.dataset, prompt_ids=problems.ids,
        tokenizer=problems.processor, accelerator=build_accelerator(args),
    )  # fmt: skip
    trainer.scorer.banned_token_ids = []  # TRL bans placeholders while sampling, but doesn't mask them while scoring
    losses = []
    for number in range(STEPS):
        completions, advantages = problems.step(number)
        samples = Samples(
            rows=problems.rows,
            prompt_ids=[problems.ids[row] for row in problems.rows],
            completion_ids=completions,
            sampling_logps=[[0.0] * len(ids) for ids in completions],
            truncated=[False] * len(completions),
            in_loss=[True] * len(completions),
            advantages=advantages,
        )
        losses.append(trainer._update(samples)["loss"])
    assert model.get_decoder().config._attn_implementation == NAME and trainer.scorer.sharing.shares(trainer.policy)
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


def trl(model: Any, problems: Problems, out: Path) -> tuple[list[float], dict[str, Tensor]]:
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(output_dir=str(out), **SETTINGS),
        train_dataset=Dataset.from_dict({"prompt": [ask("x")] * 8}),
        processing_class=problems.processor,
    )
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    wrapped.train()
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    prompts = [problems.ids[row] for row in problems.rows]
    width = max(map(len, prompts))
    inputs: dict[str, Any] = {
        "prompt_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
    }
    visual: dict[str, Any] = {}
    if any(problems.images):
        rendered = problems.processor.apply_chat_template
        visual = dict(
            problems.processor(
                text=[
                    rendered(problems.prompts[row], add_generation_prompt=True, tokenize=False)
                    for row in problems.rows
                ],
                images=[problems.pictures[row] for row in problems.rows],
                return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
            )
        )  # fmt: skip
        inputs["num_images"] = [problems.images[row] for row in problems.rows]
        assert torch.equal(visual.pop("input_ids") * visual["attention_mask"], inputs["prompt_ids"])
        visual.pop("attention_mask")
    losses = []
    for number in range(STEPS):
        completions, advantages = problems.step(number)
        longest = max(map(len, completions))
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in completions])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in completions])
        step = inputs | visual | {"completion_ids": ids, "completion_mask": mask, "num_items_in_batch": mask.sum()}
        step["advantages"] = torch.tensor(advantages)
        if "mm_token_type_ids" in visual:
            step["mm_token_type_ids"] = torch.cat([visual["mm_token_type_ids"], torch.zeros_like(ids)], 1)
        loss = trainer.compute_loss(wrapped, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "qwen2_5_vl", "llava"])
def test_twenty_steps_equal_trl(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if kind == "text":
        problems = Problems(tiny_tokenizer(), [0, 0])
        models = [tiny_decoder(seed=1) for _ in range(2)]
    else:
        path = tiny_vlm(kind, tmp_path / "model")
        problems = Problems(AutoProcessor.from_pretrained(path), [1, 2])
        models = [AutoModelForImageTextToText.from_pretrained(path) for _ in range(2)]
    start = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    theirs, their_weights = trl(models[0], problems, tmp_path / "trl")
    found, weights = ours(models[1], problems, tmp_path / "ours")
    assert found == pytest.approx(theirs, abs=1e-5)
    moved = max(float((their_weights[name] - start[name]).abs().max()) for name in start)
    gap = max(float((weights[name] - their_weights[name]).abs().max()) for name in start)
    assert moved > 1e-3 and gap <= 1e-4 * moved, (gap, moved)
