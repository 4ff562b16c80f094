"""Batch options: what follows from them, what is refused and with what advice. Learning-rate schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.distributed import lr_schedule
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.types import ConfigError


@pytest.mark.parametrize(
    ("options", "world", "batch", "micro_batches", "updates", "aligned"),
    [
        ({}, 1, 8, 1, 1, True),
        ({"gradient_accumulation_steps": 4}, 2, 64, 4, 1, True),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2, 64, 4, 2, False),
        ({"generation_batch_size": 64}, 2, 64, 4, 4, False),
        ({"num_iterations": 3}, 1, 8, 1, 3, False),
        ({"per_device_train_batch_size": 2}, 4, 8, 1, 1, True),
    ],
)
def test_batch_arithmetic(
    options: dict[str, Any], world: int, batch: int, micro_batches: int, updates: int, aligned: bool
) -> None:
    args = PolicyConfig(**options)
    args.resolve(world)
    assert args.generation_batch_size == batch
    assert args.micro_batches_per_rollout == micro_batches
    assert args.updates_per_rollout == updates
    assert args.aligned == aligned


@pytest.mark.parametrize(
    ("options", "world", "words"),
    [
        ({"num_generations": 6}, 1, r"num_generations=6 doesn't divide the batch of 8 .*one of \[2, 4, 8\]"),
        ({"num_generations": 8, "per_device_train_batch_size": 1}, 1, "make the batch larger"),
        ({"num_generations": 8, "per_device_train_batch_size": 3}, 2, r"3 × 2 processes.*one of \[2, 3, 6\]"),
        ({"generation_batch_size": 12}, 1, "generation_batch_size=12 must be a multiple"),
        ({"generation_batch_size": 8, "steps_per_generation": 1}, 1, "not both"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, 1, "a rollout feeds whole optimizer steps"),
        ({"num_generations": 1}, 1, "at least 2 completions"),
        ({"temperature": 0.0}, 1, "identical samples give no advantage"),
        ({"max_steps": -2}, 1, "or -1 to count epochs"),
        ({"logging_steps": 0}, 1, "logging_steps=0 must be at least 1"),
        ({"vllm_importance_sampling_clip_min": 3.0}, 1, "must be below"),
        ({"vllm_importance_sampling_clip_max": 0.0}, 1, "must be above 0, since it bounds a ratio"),
        ({"verify_sharing": 5, "share_prompts": False}, 1, "share_prompts: false shares none: leave one of them out"),
        ({"eval_steps": 0}, 1, "eval_steps=0 must be a whole number of steps"),
        ({"eval_steps": 2.5}, 1, "eval_steps=2.5 must be a whole number of steps"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], world: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PolicyConfig(**options).resolve(world)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"verify_sharing": 5}, "PPO shares no prompts"),
        ({"scale_rewards": "none"}, "scale_rewards: none has no effect with advantage_estimator=gae"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "has no effect with advantage_estimator=gae"),
        ({"normalize_advantages": True}, "normalize_advantages: true has no effect with advantage_estimator=gae"),
    ],
)
def test_what_ppo_would_not_read_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PPOConfig(**options).resolve(1)
    PPOConfig().resolve(1)


@pytest.mark.parametrize(
    ("eval_steps", "total", "expected"),
    [(None, 10, []), (3, 10, [3, 6, 9]), (5.0, 10, [5, 10]), (11, 10, []), (0.25, 10, [3, 6, 9]), (0.5, 10, [5, 10])],
)
def test_steps_with_an_evaluation(eval_steps: float | None, total: int, expected: list[int]) -> None:
    """A share of all steps is rounded up, as in transformers."""
    args = PolicyConfig(eval_steps=eval_steps)
    args.resolve(1)
    assert [step for step in range(1, total + 1) if args.evaluates_after(step, total)] == expected


def test_properties_before_resolve_say_so() -> None:
    with pytest.raises(ConfigError, match="resolve"):
        _ = PolicyConfig().updates_per_rollout


@pytest.mark.parametrize(
    ("kind", "warmup", "kwargs"),
    [
        ("linear", 0, None),
        ("linear", 3, None),
        ("cosine", 0.2, None),
        ("constant", 0, None),
        ("constant_with_warmup", 4, None),
        ("inverse_sqrt", 2, None),
        ("cosine_with_restarts", 2, {"num_cycles": 2}),
        ("cosine_with_min_lr", 2, {"min_lr": 1e-5}),
        ("polynomial", 2, {"lr_end": 1e-5}),
    ],
)
def test_schedule_is_the_one_of_transformers(kind: str, warmup: float, kwargs: dict[str, Any] | None) -> None:
    """As a function of the step it gives what stepping transformers' scheduler beside an optimizer gives."""
    from transformers import get_scheduler

    steps, rate = 12, 2e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    warmup_steps = int(steps * warmup) if 0 < warmup < 1 else int(warmup)
    theirs = get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs=kwargs,
    )
    args = PolicyConfig(learning_rate=rate, lr_scheduler_type=kind, warmup_steps=warmup, lr_scheduler_kwargs=kwargs)
    ours = lr_schedule(args, steps)
    for step in range(steps):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=0), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("kind", ["lineer", "reduce_lr_on_plateau"])
def test_schedules_that_cannot_be_used(kind: str) -> None:
    with pytest.raises(ConfigError, match=kind):
        lr_schedule(PolicyConfig(lr_scheduler_type=kind), 10)
