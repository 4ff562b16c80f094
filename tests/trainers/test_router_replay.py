"""Routing replay in the loop: every update of a rollout takes the experts of its old policy, also after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.trainers.state import CheckpointError, find_checkpoint
from mmreason.types import ConfigError


def make(out: Path, steps: int, **options: Any) -> PolicyTrainer:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": steps, "num_generations": 4, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2, "max_completion_length": 6,
        "learning_rate": 3e-2, "use_cpu": True, "gradient_checkpointing": True, "save_steps": 3, "router_replay": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False}, "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = PolicyConfig(**(settings | options))
    return PolicyTrainer(
        Qwen3MoeForCausalLM(config),
        args,
        reward_funcs=[lambda completion_ids, **_: [float(sum(ids) % 5) for ids in completion_ids]],
        train_dataset=Dataset.from_dict({"prompt": [f"row {i}" for i in range(6)]}),
        prompt_ids=[[i + 3, i + 4, i + 5] for i in range(6)],
        tokenizer=tokenizer,
        accelerator=build_accelerator(args),
    )


def watched(trainer: PolicyTrainer) -> list[tuple[bool, list[torch.Tensor]]]:
    """(whether with gradient, the experts of each layer) of every scoring pass; the first also tries sharing."""
    seen: list[tuple[bool, list[torch.Tensor]]] = []
    logps, scorer = trainer.scorer.logps, trainer.scorer
    routers = [module for module in trainer.policy.modules() if type(module).__name__.endswith("TopKRouter")]
    for router in routers:
        router.register_forward_hook(lambda module, args, out: seen[-1][1].append(out[-1].clone()) if seen else None)

    def scored(*args: Any, **kwargs: Any) -> Any:
        seen.append((torch.is_grad_enabled(), []))
        return logps(*args, **kwargs)

    scorer.logps = scored  # type: ignore[method-assign]
    return seen


def test_all_updates_of_a_rollout_take_its_experts(tmp_path: Path) -> None:
    trainer = make(tmp_path, 4)
    seen = watched(trainer)
    trainer.train()
    old, updates = [one[-2:] for grad, one in seen if not grad], [one for grad, one in seen if grad]
    assert len(old) == 2 and len(updates) == 4
    for number, experts in enumerate(updates):
        # Backward recomputes layers under checkpointing, last layer first.
        wanted = [*old[number % 2], *reversed(old[number % 2])]
        assert len(experts) == 4 and all(torch.equal(a, b) for a, b in zip(experts, wanted, strict=True))
    free = make(tmp_path / "free", 4, router_replay=False)
    seen = watched(free)
    free.train()
    old, updates = [one[-2:] for grad, one in seen if not grad], [one for grad, one in seen if grad]
    assert any(not torch.equal(a, b) for a, b in zip(updates[3][:2], old[1], strict=True)), "nothing moved"


def test_a_run_continued_within_a_rollout_is_the_unbroken_one(tmp_path: Path) -> None:
    straight = make(tmp_path / "a", 4)
    straight.train()
    first = make(tmp_path / "b", 4)
    first.args.save_steps = 3
    first.train()
    again = make(tmp_path / "b", 4)
    again.resume(tmp_path / "b" / "checkpoint-3")
    assert [len(routes) for routes in again.scorer.routes] == [2, 2]
    (folder,) = (tmp_path / "b").glob("checkpoint-3")
    (folder / "routes-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"routes-00000\.safetensors"):
        make(tmp_path / "b", 4).resume(folder)
    again.train()
    assert find_checkpoint(tmp_path / "b", "auto") == tmp_path / "b" / "checkpoint-4"
    want, got = straight.policy.state_dict(), again.policy.state_dict()
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_where_it_means_nothing_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="several updates per rollout"):
        PolicyConfig(router_replay=True).resolve(1)
    with pytest.raises(ConfigError, match="PPO cuts a rollout"):
        PPOConfig(router_replay=True).resolve(1)
