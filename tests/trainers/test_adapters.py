"""Adapters in training loops: AdaLoRA's schedule against PEFT's own, and runs that go on exactly where they stopped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmreason.models.peft import add_adapter
from mmreason.models.peft_adalora import follow_ranks
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.adapters import AdapterTraining
from mmreason.types import ConfigError
from tests.models.peft_parts import IDS, arguments, logits, moved, text_loss


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_adalora_equals_pefts_own_loop() -> None:
    """PEFT's way: its penalty inside the model's loss, `update_and_allocate` called by hand."""
    from peft import AdaLoraConfig, get_peft_model

    steps, base = 10, tiny_decoder()
    block = arguments("adalora", warmup_steps=2, final_steps=3, interval=2, orthogonal=0.3)
    ours = add_adapter(copy.deepcopy(base), block)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", target_r=2, init_r=4, lora_alpha=32, tinit=2, tfinal=3, deltaT=2, orth_reg_weight=0.3,
        total_step=steps, target_modules=list(ours.peft_config["default"].target_modules),
    )  # fmt: skip
    theirs = get_peft_model(copy.deepcopy(base), config)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (ours, theirs)]
    done = 0
    follow_ranks(ours, optimizers[0], steps, lambda: done)
    for _ in range(steps):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model.train()
            text_loss(model).backward()
            optimizer.step()
            if model is theirs:
                theirs.base_model.update_and_allocate(done + 1)
            optimizer.zero_grad()
        done += 1
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert sum(ours.rank_tracker.ranks().values()) == 2 * 4  # the budget: 2 for each of 4 layers
    assert moved(ours, base) == []


def test_adalora_without_a_step_to_cut_ranks_in() -> None:
    model = add_adapter(tiny_decoder(), arguments("adalora", warmup_steps=5, final_steps=5))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ConfigError, match="warmup_steps=5 and final_steps=5 leave none of 10 steps"):
        follow_ranks(model, optimizer, 10, lambda: 0)


class Plain(AdapterTraining, Trainer):
    """transformers' Trainer with what adapters need."""


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 5


class Spy(TrainerCallback):
    """What AdaLoRA knows of its layers' importance when step 6 begins."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 5 and "rank_tracker" in vars(model):
            model.importance = {name: tensor.clone() for name, tensor in model.rank_tracker.state().items()}


def run(folder: Path, kind: str, resume: bool, stop: bool) -> Any:
    torch.manual_seed(1)
    model = add_adapter(tiny_decoder(), arguments(kind))
    data = Dataset.from_dict({"input_ids": IDS.tolist() * 4, "labels": IDS.tolist() * 4})
    args = TrainingArguments(
        output_dir=str(folder), max_steps=10, save_steps=5, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to="none", use_cpu=True, logging_strategy="no", disable_tqdm=True, seed=3,
    )  # fmt: skip
    trainer = Plain(model, args, train_dataset=data, callbacks=[Spy(), *([Stop()] if stop else [])])
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-5") if resume else None)
    return model


@pytest.mark.parametrize("kind", ["adalora", "prefix", "p_tuning", "prompt", "lora"])
def test_trainer_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    unbroken = run(tmp_path / "unbroken", kind, resume=False, stop=False)
    run(tmp_path / "broken", kind, resume=False, stop=True)
    resumed = run(tmp_path / "broken", kind, resume=True, stop=False)
    for (name, mine), other in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other), name
    assert torch.equal(logits(unbroken), logits(resumed))
    if kind == "adalora":
        wanted, found = unbroken.importance, resumed.importance
        assert wanted.keys() == found.keys() and any(name.startswith("kept.") for name in wanted)
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"adapter": {"kind": "prefix"}}, "set gradient_checkpointing: false, or use kind: prompt"),
        ({"adapter": {"kind": "prompt"}}, "at other positions .* use kind: prefix"),
        ({"adapter": {"kind": "bottleneck"}, "use_vllm": True}, "kind='bottleneck' doesn't go with vLLM"),
        ({"adapter": {"kind": "qlora"}, "use_vllm": True}, "kind='qlora' doesn't go with vLLM"),
        ({"adapter": {"kind": "lroa"}}, "Did you mean 'lora'"),
        ({"adapter": {"kind": "lora"}, "use_peft": True}, "adapter and use_peft say the same thing twice"),
    ],
)
def test_recipes_refuse_before_a_model_is_loaded(flags: dict[str, Any], said: str, tmp_path: Path) -> None:
    from recipes import grpo_math

    argv = ["--model_name_or_path", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")]
    for name, value in flags.items():
        text = "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else str(value)
        argv += [f"--{name}", text]
    with pytest.raises(ConfigError, match=said):
        grpo_math.main(argv)
    assert not (tmp_path / "out").exists()
