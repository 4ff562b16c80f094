"""Options of PPO: those of the loop, and what the critic and the KL add.

Names and defaults are those of TRL's last PPOConfig where it had the option; the controlled KL and the scaling of
scores are of the one before it. Imports no torch: `--help` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmreason.trainers._options import _opt
from mmreason.trainers.arguments import PolicyConfig
from mmreason.types import ConfigError


@dataclass
class PPOConfig(PolicyConfig):
    """The loop with a critic: rollout, reward per token, GAE, clipped policy and value losses."""

    output_dir: str = _opt("outputs/ppo", "Checkpoints, rollouts, metrics and the final model.")

    # batch
    num_generations: int = _opt(1, "Completions per prompt; the critic is the baseline, so 1 will do.")
    num_iterations: int = _opt(4, "Times each rollout is used (TRL's num_ppo_epochs).")
    shuffle_minibatches: bool = _opt(
        True, "(ours) Cut the rollout into other mini-batches each time it is used. Rows stay on their process."
    )

    # critic
    value_model: Literal["shared", "separate"] = _opt(
        "shared", "(ours) A head on the policy's last hidden states, or a model of its own."
    )
    value_model_path: str | None = _opt(
        None, "(ours) Checkpoint that a separate critic begins as. None: the policy's own."
    )
    value_warmup_steps: int = _opt(0, "(ours) First optimizer steps in which only the critic learns.")
    critic_learning_rate: float | None = _opt(
        None, "(ours) Peak learning rate of the critic, under the policy's schedule. None: the policy's."
    )
    vf_coef: float = _opt(0.1, "Weight of the value loss.")
    cliprange_value: float | None = _opt(0.2, "Clip range of the value loss. None: no clipping.")

    # advantages
    advantage_estimator: Literal["gae"] = _opt("gae", "Generalised advantage estimation (arXiv 1506.02438).")  # type: ignore[assignment]
    gamma: float = _opt(1.0, "Discount per token.")
    lam: float = _opt(0.95, "λ of GAE: 0 trusts the critic alone, 1 the rewards alone.")
    bootstrap_truncated: bool = _opt(
        False, "(ours) Where a completion was cut off, let the critic say what would have come behind it."
    )
    whiten_advantages: bool = _opt(True, "(ours) To mean 0 and variance 1 over the rollout's tokens, as TRL's PPO did.")
    whiten_rewards: bool = _opt(False, "Token rewards to variance 1 over the rollout's tokens; their mean stays.")

    # rewards
    missing_eos_penalty: float | None = _opt(None, "Subtracted from the score of a completion that was cut off.")
    use_score_scaling: bool = _opt(False, "Divide scores by the standard deviation of all scores so far.")
    use_score_norm: bool = _opt(False, "Subtract their mean, too; needs use_score_scaling.")
    score_clip: float | None = _opt(None, "Bound of a score's size, after scaling.")

    # KL
    kl_coef: float = _opt(0.05, "β, coefficient of the KL to the reference model; 0 loads no reference.")
    kl_in_reward: bool | None = _opt(  # type: ignore[assignment]
        None, "(ours) Take β · KL of each token off its reward; False: add it to the loss. None: True."
    )
    kl_estimator: Literal["k1", "k3"] = _opt("k1", "Estimate of a token's KL in the reward: log-ratio, or k3.")
    adap_kl_ctrl: bool = _opt(False, "Let β follow the KL so that it stays at `target`.")
    target: float = _opt(6.0, "KL of a completion that adap_kl_ctrl holds, nats.")
    horizon: int = _opt(10_000, "Completions in which adap_kl_ctrl corrects an error of 1, at most once a rollout.")

    beta: float = _opt(0.0, "GRPO's name of the KL coefficient: PPO takes kl_coef.")

    @property
    def penalizes_reward(self) -> bool:
        """The KL is part of the reward."""
        return self.kl_coef > 0 and self.kl_in_reward is not False

    @property
    def compares_group(self) -> bool:
        """The critic is the baseline, not the other completions of the group."""
        return False

    def identity(self) -> dict[str, Any]:
        """What may not change when a run is continued, beside what holds for every run of the loop."""
        names = ("value_model", "value_model_path", "shuffle_minibatches")
        return {name: getattr(self, name) for name in names}

    def _check_values(self) -> None:
        if self.beta not in (0.0, self.kl_coef):
            raise ConfigError(f"beta={self.beta}: PPO's coefficient of the KL is kl_coef; leave beta out")
        if self.router_replay:
            raise ConfigError("router_replay: PPO cuts a rollout into other mini-batches each time; leave it out")
        if self.verify_sharing is not None:
            raise ConfigError(f"verify_sharing={self.verify_sharing}: PPO shares no prompts to compare; leave it out")
        self.beta = self.kl_coef  # under which the loop knows it
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be from 0 to 1")
        for name in ("kl_coef", "vf_coef", "value_warmup_steps", "missing_eos_penalty", "critic_learning_rate"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value} must not be negative")
        for name in ("cliprange_value", "score_clip", "target", "horizon"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be above 0")
        if self.value_model_path is not None and self.value_model != "separate":
            raise ConfigError("value_model_path needs value_model: separate; a shared critic is a head on the policy")
        if self.use_score_norm and not self.use_score_scaling:
            raise ConfigError("use_score_norm needs use_score_scaling: true")
        if self.adap_kl_ctrl and self.kl_coef == 0:
            raise ConfigError("adap_kl_ctrl multiplies kl_coef, which is 0: give it a first value, e.g. kl_coef: 0.05")
        if self.feature_store is not None and self.value_model == "separate":
            raise ConfigError(
                "feature_store: a separate critic encodes images with a tower of its own; use value_model: shared"
            )
        super()._check_values()
