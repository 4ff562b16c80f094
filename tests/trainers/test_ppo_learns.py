"""PPO reaches the known optimum of two small tasks: a bandit, and a chain whose reward comes at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.models.tiny import tiny_tokenizer
from tests.trainers.ppo_runs import make_ppo

ARMS = list(range(20, 28))
MEANS = [0.1, 0.3, 0.2, 0.9, 0.5, 0.7, 0.4, 0.0]
LEFT, RIGHT, LENGTH = 30, 31, 5

LEARNING: dict[str, Any] = {
    "optim": "adamw_torch", "per_device_train_batch_size": 64, "learning_rate": 2e-3, "critic_learning_rate": 5e-3,
    "temperature": 1.0, "lr_scheduler_type": "constant", "shuffle_minibatches": True,
    "num_iterations": 2, "kl_coef": 0.0, "vf_coef": 0.5,
    "max_grad_norm": 1.0, "save_steps": 0, "logging_steps": 1000, "cliprange_value": None,
}  # fmt: skip


def restrict(trainer: Any, allowed: list[int]) -> None:
    """Only these tokens can be sampled, and all others have probability 0 in scoring, too."""
    banned = [token for token in range(trainer.policy.config.vocab_size) if token not in allowed]
    trainer.engine.banned_token_ids = trainer.scorer.banned_token_ids = banned


def first_token(trainer: Any) -> torch.Tensor:
    """(V,) the policy's distribution after its first prompt."""
    with torch.no_grad():
        logits = trainer.policy(torch.tensor([trainer.prompt_ids[0]])).logits[0, -1]
    logits[trainer.scorer.banned_token_ids] = -torch.inf
    return torch.softmax(logits, -1)


@pytest.mark.slow
@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_a_bandit_is_played_at_its_best_arm(value_model: str, tmp_path: Path) -> None:
    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [MEANS[ARMS.index(ids[0])] for ids in completion_ids]

    options = LEARNING | {"max_completion_length": 1, "max_steps": 80, "value_model": value_model}
    trainer = make_ppo(tmp_path, rewards=[reward], **options)
    restrict(trainer, ARMS)
    before = first_token(trainer)[ARMS[3]]
    trainer.train()
    assert before < 0.5 and first_token(trainer)[ARMS[3]] > 0.9
    with torch.no_grad(), trainer.ppo.critic.watching():
        trainer.policy(torch.tensor([trainer.prompt_ids[0]]))
    assert trainer.ppo.critic.take()[0, -1].item() == pytest.approx(0.9, abs=0.15)  # what the best arm brings


@pytest.mark.slow
def test_a_chain_is_walked_to_its_end(tmp_path: Path) -> None:
    """Five steps to the right bring 1, and only then; going left at once brings 0.02 for certain."""

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1.0 if all(t == RIGHT for t in ids) else 0.02 * (ids[0] == LEFT) for ids in completion_ids]

    options = LEARNING | {"max_completion_length": LENGTH, "max_steps": 80, "gamma": 1.0, "lam": 0.95}
    trainer = make_ppo(tmp_path, rewards=[reward], **options)
    restrict(trainer, [LEFT, RIGHT])
    assert len(tiny_tokenizer()) > RIGHT
    trainer.train()
    from tests.trainers.test_policy_images import lines

    rewards = [line["reward"] for line in lines(tmp_path) if "reward" in line]
    assert sum(rewards[:3]) / 3 < 0.2 and sum(rewards[-5:]) / 5 > 0.95, rewards
