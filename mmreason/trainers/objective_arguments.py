"""Options of the RL loop's objective and of which prompts it asks: losses, estimators, dynamic sampling, selection.

As in mmreason.trainers.arguments, names and defaults are TRL's wherever TRL has the option; what is ours is marked so.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmreason.trainers._options import _opt
from mmreason.types import ConfigError

NO_GROUP = frozenset({"reinforce_plus_plus", "spo"})
"""Advantage estimators that take a single completion of a prompt."""
KL_IN_REWARD = frozenset({"rloo", "reinforce_plus_plus"})
"""Advantage estimators whose paper subtracts the KL from the reward."""

UNCLIPPED = frozenset({"cispo", "sapo", "vespo"})
"""Surrogates without the clipped and unclipped terms of PPO, so without a place for `delta`."""


@dataclass
class ObjectiveOptions:
    """What is maximised, and on which prompts."""

    # objective
    num_generations: int = _opt(8, "Completions per prompt, G.")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = _opt(
        "dapo", "Surrogate and average of token losses, see mmreason.losses.policy and docs/grpo.md."
    )
    importance_sampling_level: Literal["token", "sequence", "sequence_token", "sequence_sum"] = _opt(
        "token",
        "What π/π_old is a ratio of: tokens, or completions (sequence: GSPO; sequence_token: GSPO-token; sequence_sum "
        "(ours): RLOO).",
    )
    advantage_estimator: Literal["group", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "spo"] = _opt(
        "group", "(ours) How rewards become advantages: against the group (GRPO), or as docs/grpo.md has it."
    )
    beta: float = _opt(0.0, "Weight of the KL to the reference model; 0 loads no reference.")
    kl_in_reward: bool | None = _opt(
        None, "(ours) Subtract the KL from the reward, not in the loss. None: as the estimator's paper has it."
    )
    use_bias_correction_kl: bool = _opt(True, "Multiply the KL by the importance ratio (arXiv 2512.02556).")
    epsilon: float = _opt(0.2, "Clip range, lower (and upper, unless epsilon_high is given).")
    epsilon_high: float | None = _opt(
        None, "Upper clip range (DAPO recommends 0.28); with loss_type cispo the bound of the ratio itself (5.0)."
    )
    delta: float | None = _opt(None, "Two-sided clipping: bound of the unclipped ratio.")
    sapo_temperature_pos: float = _opt(1.0, "loss_type sapo: temperature for positive advantages.")
    sapo_temperature_neg: float = _opt(1.05, "loss_type sapo: temperature for the others.")
    vespo_k_pos: float = _opt(2.0, "loss_type vespo: exponent of the weight, advantages from 0 on.")
    vespo_lambda_pos: float = _opt(3.0, "loss_type vespo: decay of the weight, advantages from 0 on.")
    vespo_k_neg: float = _opt(3.0, "loss_type vespo: exponent of the weight, negative advantages.")
    vespo_lambda_neg: float = _opt(2.0, "loss_type vespo: decay of the weight, negative advantages.")
    off_policy_mask_threshold: float | None = _opt(
        None, "Leave out completions with a negative advantage from which the policy moved further than this, nats."
    )
    top_entropy_quantile: float = _opt(
        1.0, "Share of tokens, those of highest entropy, that the policy loss takes (arXiv 2506.01939 recommends 0.2)."
    )
    scale_rewards: Literal["group", "batch", "none"] = _opt(
        "group", "Divide advantages by the standard deviation of the group, of the batch, or not."
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = _opt(
        "sum_then_normalize", "Order of summing the rewards and normalising them."
    )
    normalize_advantages: bool = _opt(
        False,
        "(ours for GRPO; of TRL's RLOO) rloo: bring advantages to mean 0 and standard deviation 1 over the batch.",
    )
    spo: dict[str, Any] | None = _opt(
        None, "(ours) advantage_estimator spo: {rho_min, rho_max, half_life, prior} of its value tracker."
    )
    mask_truncated_completions: bool = _opt(
        False, "Leave completions that hit the length limit out of the loss (DAPO)."
    )
    disable_dropout: bool = _opt(False, "Set every dropout of the policy to 0.")

    # which prompts are asked
    dynamic_sampling: bool = _opt(
        False, "(ours) Replace groups whose rewards are all equal by those of further prompts (DAPO)."
    )
    dynamic_sampling_max_rounds: int = _opt(
        10, "(ours) Times that prompts are asked for one rollout; then it goes on with what there is, and says so."
    )
    dynamic_sampling_reward: str | None = _opt(
        None, "(ours) The reward function that must tell a group apart, e.g. accuracy. None: the weighted sum."
    )
    prompt_selection: dict[str, Any] | None = _opt(
        None,
        "(ours) {min_pass_rate, max_pass_rate, after, return_after, curriculum, difficulty, replay_hard, …}: which "
        "problems are asked, by how often they were solved; see docs/grpo.md.",
    )

    def check_objective(self) -> None:
        """Refuse what can't work together.

        Raises:
            ConfigError: naming the fields and what to do.
        """
        if self.num_generations < (2 if self.compares_group else 1):
            raise ConfigError(
                f"num_generations={self.num_generations}: a group needs at least 2 completions to compare"
                if self.num_generations < 1 or self.advantage_estimator == "group"
                else f"num_generations={self.num_generations}: advantage_estimator={self.advantage_estimator} compares "
                f"the completions of a prompt and needs at least 2; {' and '.join(sorted(NO_GROUP))} need no group"
            )
        if self.dynamic_sampling and self.num_generations < 2:
            raise ConfigError("dynamic_sampling compares the completions of a prompt: set num_generations to 2 or more")
        if self.dynamic_sampling_max_rounds < 1:
            raise ConfigError(f"dynamic_sampling_max_rounds={self.dynamic_sampling_max_rounds} must be at least 1")
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            raise ConfigError(
                f"loss_type cispo: epsilon_high={self.epsilon_high} is the bound of the importance ratio itself, so it "
                "must be given, from 1 on; 5.0 is recommended"
            )
        if self.loss_type == "luspo" and not self.importance_sampling_level.startswith("sequence"):
            raise ConfigError("loss_type luspo weighs whole completions: set importance_sampling_level to sequence")
        if self.loss_type == "vespo" and self.importance_sampling_level != "token":
            raise ConfigError("loss_type vespo weighs whole completions: leave importance_sampling_level at token")
        if not 0 < self.top_entropy_quantile <= 1:
            raise ConfigError(f"top_entropy_quantile={self.top_entropy_quantile} must be above 0, and at most 1")
        if self.kl_in_reward and self.beta == 0:
            raise ConfigError("kl_in_reward: true has no effect with beta=0; set beta, e.g. 0.05")
        self._check_advantages()
        self._check_delta()
        if self.spo is not None and self.advantage_estimator != "spo":
            raise ConfigError(f"spo: {self.spo} has no effect with advantage_estimator={self.advantage_estimator}")

    def _check_advantages(self) -> None:
        """Refuse what the estimator would leave unread."""
        estimator = f"advantage_estimator={self.advantage_estimator}"
        summed = self.multi_objective_aggregation == "sum_then_normalize"
        if not summed and self.advantage_estimator != "group":
            raise ConfigError(
                f"multi_objective_aggregation: {self.multi_objective_aggregation} has no effect with {estimator}, "
                "which takes the sum of rewards: use multi_objective_aggregation: sum_then_normalize"
            )
        if not summed and self.penalizes_reward:
            raise ConfigError(
                "kl_in_reward subtracts from the sum of rewards: use multi_objective_aggregation: sum_then_normalize"
            )
        if self.scale_rewards != "group" and self.advantage_estimator != "group":
            raise ConfigError(
                f"scale_rewards: {self.scale_rewards} has no effect with {estimator}, which scales in its own way: "
                "leave it out"
            )
        if self.scale_rewards != "group" and not summed:
            raise ConfigError(
                f"scale_rewards: {self.scale_rewards} has no effect with multi_objective_aggregation: "
                f"{self.multi_objective_aggregation}, which divides each reward by its group's standard deviation: "
                "leave it out"
            )
        if self.normalize_advantages and self.advantage_estimator != "rloo":
            raise ConfigError(
                f"normalize_advantages: true has no effect with {estimator}: leave it out, or set "
                "advantage_estimator: rloo"
            )
        if not self.dynamic_sampling:
            for name, default in (("dynamic_sampling_reward", None), ("dynamic_sampling_max_rounds", 10)):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} has no effect without dynamic sampling: set dynamic_sampling: "
                        "true, or leave it out"
                    )

    def _check_delta(self) -> None:
        if self.delta is None:
            return
        if self.loss_type in UNCLIPPED:
            raise ConfigError(f"delta={self.delta} has no effect with loss_type {self.loss_type}: leave it out")
        if self.delta <= 1 + self.upper_clip:
            name = "epsilon" if self.epsilon_high is None else "epsilon_high"
            raise ConfigError(
                f"delta={self.delta} must be above 1 + {name} = {1 + self.upper_clip:g}, where the clipped term ends"
            )

    @property
    def compares_group(self) -> bool:
        """The advantage of a completion depends on the others of its prompt."""
        return self.advantage_estimator not in NO_GROUP

    @property
    def upper_clip(self) -> float:
        """ε_high: `epsilon` unless it is given."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def penalizes_reward(self) -> bool:
        """The KL to the reference is subtracted from the reward; otherwise, where beta > 0, it is in the loss."""
        in_reward = self.advantage_estimator in KL_IN_REWARD if self.kl_in_reward is None else self.kl_in_reward
        return self.beta > 0 and in_reward
