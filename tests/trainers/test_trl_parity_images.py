"""The same samples of prompts with pictures give TRL's loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from mmreason.data import check_prompts
from mmreason.data.schema import to_dataset
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.policy import PolicyTrainer
from tests.pictures import ask, cell, picture
from tests.tiny_vlms import tiny_vlm

BOUND = 1e-6
GRADIENT_BOUND = 5e-6  # of the largest gradient: attention with padding at the left is another kernel in float32
G, TEMPERATURE = 2, 0.9
PROMPTS = [("How many?", [picture(60, 40, 1)]), ("Which of the two is it?", [picture(90, 60, 2), picture(40, 120, 3)])]
COMPLETIONS = [[70, 71, 72, 73, 74], [80], [90, 91, 92], [100, 101, 102, 103, 104, 105, 106]]
ADVANTAGES = [1.3, -0.4, 0.7, -1.1]
SETTINGS: dict[str, Any] = {
    "loss_type": "dapo", "temperature": TEMPERATURE, "num_generations": G, "max_completion_length": 8,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "use_cpu": True, "bf16": False,
    "gradient_checkpointing": False, "report_to": [],
}  # fmt: skip


def load(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)


def trl_step(path: str, out: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """TRL's inputs are made by the processor on the whole batch, padded at the left."""
    from trl import GRPOConfig, GRPOTrainer

    model, processor = load(path)
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(output_dir=str(out), **SETTINGS),
        train_dataset=Dataset.from_dict({"prompt": [ask("x")] * 8}),
        processing_class=processor,
    )
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    wrapped.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [prompt for prompt in PROMPTS for _ in range(G)]
    batch = processor(
        text=[
            processor.apply_chat_template(ask(text, len(images)), add_generation_prompt=True, tokenize=False)
            for text, images in rows
        ],
        images=[images for _, images in rows],
        return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False,
    )  # fmt: skip
    width = max(map(len, COMPLETIONS))
    completion_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in COMPLETIONS])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in COMPLETIONS])
    prompt = {"prompt_ids": batch.pop("input_ids"), "prompt_mask": batch.pop("attention_mask")}
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(completion_ids)], 1)
    inputs = {
        **prompt,
        **batch,
        "completion_ids": completion_ids,
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES),
        "num_images": [len(images) for _, images in rows],
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer.compute_loss(wrapped, inputs)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def our_step(path: str, out: Path) -> tuple[float, dict[str, torch.Tensor]]:
    model, processor = load(path)
    rows = to_dataset(
        [
            {"id": str(i), "prompt": ask(text, len(images)), "images": [cell(image) for image in images]}
            for i, (text, images) in enumerate(PROMPTS)
        ],  # type: ignore[arg-type]
        ("id", "prompt", "images"),
    )
    rows, prompt_ids, _ = check_prompts(rows, processor, None)
    args = PolicyConfig(output_dir=str(out), optim="sgd", learning_rate=0.0, max_grad_norm=0.0, **SETTINGS)
    trainer = PolicyTrainer(
        model, args, reward_funcs=[], train_dataset=rows, prompt_ids=prompt_ids, tokenizer=processor,
        accelerator=build_accelerator(args),
    )  # fmt: skip
    trainer.scorer.banned_token_ids = []  # TRL bans placeholders while sampling, but doesn't mask them while scoring
    numbers = [row for row in range(len(PROMPTS)) for _ in range(G)]
    samples = Samples(
        rows=numbers,
        prompt_ids=[prompt_ids[row] for row in numbers],
        completion_ids=COMPLETIONS,
        sampling_logps=[[0.0] * len(ids) for ids in COMPLETIONS],
        truncated=[False] * len(numbers),
        in_loss=[True] * len(numbers),
        advantages=ADVANTAGES,
    )
    kept: dict[str, torch.Tensor] = {}
    # The step zeroes the gradients, so they are read where the optimizer would.
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    return trainer._update(samples)["loss"], kept


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "llava", "smolvlm"])
def test_loss_and_gradient_equal_trl(kind: str, tmp_path: Path) -> None:
    path = tiny_vlm(kind, tmp_path / "model")
    theirs, their_grads = trl_step(path, tmp_path / "trl")
    ours, our_grads = our_step(path, tmp_path / "ours")
    assert their_grads.keys() == our_grads.keys() and any("vis" in name for name in our_grads)
    scale = max(grad.abs().max().item() for grad in their_grads.values())
    assert scale > 1e-3, "the gradient vanishes: this would prove nothing"
    assert abs(theirs - ours) <= BOUND
    gap = max((their_grads[name] - our_grads[name]).abs().max().item() for name in their_grads)
    assert gap <= GRADIENT_BOUND * scale, (gap, scale)
