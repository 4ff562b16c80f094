"""Rewards in TRL's form: ``func(completions, **columns) -> list[float | None]`` (None = skip the row)."""

from mmreason.rewards.accuracy import accuracy_reward, judge, partial_credit_reward, strict_accuracy_reward
from mmreason.rewards.code import code_reward
from mmreason.rewards.environment import environment_reward, tool_use_reward
from mmreason.rewards.format import format_reward, tag_count_reward
from mmreason.rewards.length import cosine_length_reward, repetition_reward, soft_overlong_reward
from mmreason.rewards.model import reward_model_reward
from mmreason.rewards.program import program_answers, program_reward
from mmreason.rewards.registry import REWARDS, BoundReward, RewardFunc, load_rewards
from mmreason.rewards.run import RewardBatch, RewardError, compute_rewards
from mmreason.rewards.text import completion_text

__all__ = [
    "REWARDS",
    "BoundReward",
    "RewardBatch",
    "RewardError",
    "RewardFunc",
    "accuracy_reward",
    "code_reward",
    "completion_text",
    "compute_rewards",
    "cosine_length_reward",
    "environment_reward",
    "format_reward",
    "judge",
    "load_rewards",
    "partial_credit_reward",
    "program_answers",
    "program_reward",
    "repetition_reward",
    "reward_model_reward",
    "soft_overlong_reward",
    "strict_accuracy_reward",
    "tag_count_reward",
    "tool_use_reward",
]
