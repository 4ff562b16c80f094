"""PPO on problems with pictures: the critic sees them, and a run that goes on ends where an unbroken one ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.data import check_prompts
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.ppo_arguments import PPOConfig
from tests.pictures import save_seeing, varied_reward
from tests.trainers.test_policy_images import lines, problems


def make(path: str, out: Path, **options: Any) -> Any:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 5,
        "max_completion_length": 5, "use_cpu": True, "save_steps": 1, "save_total_limit": None, "learning_rate": 1e-3,
        "bf16": False, "gradient_checkpointing": False, "kl_coef": 0.1, "adap_kl_ctrl": True, "target": 0.01,
        "use_score_scaling": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = PPOConfig(output_dir=str(out), **(settings | options))
    processor = AutoProcessor.from_pretrained(path)
    rows, prompt_ids, _ = check_prompts(problems(8), processor, None)
    load = AutoModelForImageTextToText.from_pretrained
    return PolicyTrainer(
        load(path),
        args,
        reward_funcs=[varied_reward],
        train_dataset=rows,
        prompt_ids=prompt_ids,
        tokenizer=processor,
        accelerator=build_accelerator(args),
        checkpoint=path,
        ref_model=load(path),
        value_model=load(path) if args.value_model == "separate" else None,
    )


@pytest.mark.parametrize(("kind", "value_model"), [("qwen2_5_vl", "shared"), ("mmreason", "separate")])
def test_values_depend_on_the_picture_and_runs_go_on_exactly(kind: str, value_model: str, tmp_path: Path) -> None:
    path = save_seeing(kind, tmp_path / "model")
    whole = make(path, tmp_path / "whole", value_model=value_model)
    whole.train()
    critic = whole.ppo.critic
    head = critic.head if critic.head is not None else critic.backbone.get_output_embeddings()
    assert head.weight.any(), "the critic learned nothing"

    # Another picture, same text: other values.
    row = next(i for i, row in enumerate(whole.dataset) if row["images"])
    visual = whole.visuals[row]
    pixels = next(name for name, value in visual.inputs.items() if value.is_floating_point())
    values = []
    for factor in (1.0, 0.0):
        seen = type(visual)(**(vars(visual) | {"inputs": visual.inputs | {pixels: visual.inputs[pixels] * factor}}))
        with torch.no_grad(), critic.watching():
            whole.scorer.score(
                whole.policy, [whole.prompt_ids[row]], [[5, 6]], [seen], temperature=1.0, with_entropy=False
            )
        values.append(critic.take())
    assert (values[0] - values[1]).abs().max() > 1e-6

    broken = make(path, tmp_path / "broken", value_model=value_model, max_steps=3)
    broken.train()
    again = make(path, tmp_path / "broken", value_model=value_model)
    again.resume(tmp_path / "broken" / "checkpoint-3")
    assert again.ppo.kl.value != 0.1 and again.ppo.scaling.count == 8
    again.train()
    expected = dict(whole.policy.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in again.policy.named_parameters())
    for left, right in zip(lines(tmp_path / "whole"), lines(tmp_path / "broken"), strict=True):
        assert left["loss"] == right["loss"] and left["val/clipfrac_avg"] == right["val/clipfrac_avg"]
