"""What PPO (arXiv 1707.06347) adds to the loop: values, rewards per token, GAE, and the loss of the values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from mmreason.losses.advantages import GroupAdvantages, without_signal
from mmreason.losses.policy import BatchSize, aggregate
from mmreason.losses.value import (
    clipped_value_loss,
    explained_variance,
    gae,
    kl_per_token,
    masked_moments,
    token_rewards,
    whiten,
)
from mmreason.models.value import CRITIC, Critic, attach_critic
from mmreason.rollout.parallel import tensor_parallel_size
from mmreason.rollout.scoring import completion_mask, pad_right
from mmreason.trainers.batch import Samples, StepMetrics, unpad
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.kl_control import KLControl, ScoreScaling
from mmreason.trainers.objective import policy_loss
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.trainers.scorer import Scorer, micro_batches
from mmreason.trainers.state import Stateful
from mmreason.types import ConfigError


def build_critic(model: Any, args: Any, accelerator: Accelerator, value_model: Any) -> Critic | None:
    """Attach the critic that `args` ask for, None unless they are PPO's; before the model is prepared.

    Args: value_model: of a separate critic.
    Raises: ConfigError: FSDP or tensor parallelism, under which a critic hasn't been proven.
    """
    if not isinstance(args, PPOConfig):
        return None
    if accelerator.distributed_type == DistributedType.FSDP or tensor_parallel_size(accelerator) > 1:
        raise ConfigError("PPO's critic runs on one process, DDP and DeepSpeed, not under FSDP or tensor parallelism")
    if (value_model is None) == (args.value_model == "separate"):
        raise ValueError(f"value_model={args.value_model!r}: a separate critic needs a model, a shared one takes none")
    try:
        critic = attach_critic(model, value_model)
    except ValueError as error:
        raise ConfigError(f"value_model={args.value_model}: {error}") from error
    critic.autocast = accelerator.autocast
    return critic


class ActorCritic:
    """PPO's part of the loop.

    Attributes: parts: what a checkpoint keeps of it beside the critic's weights.
    """

    def __init__(
        self,
        args: PPOConfig,
        accelerator: Accelerator,
        policy: Any,
        critic: Critic,
        scorer: Scorer,
        parallel: DataParallel,
    ) -> None:
        self.args, self.accelerator, self.policy, self.critic = args, accelerator, policy, critic
        self.scorer, self.parallel = scorer, parallel
        self.kl = KLControl(args.kl_coef, args.target if args.adap_kl_ctrl else None, args.horizon)
        self.scaling = ScoreScaling(args.use_score_scaling, args.use_score_norm, args.score_clip)
        self.parts: dict[str, Stateful] = {"kl_control": self.kl, "score_scaling": self.scaling}

    # ---- once per rollout

    @torch.no_grad()
    def score(self, samples: Samples) -> None:
        """Fill in old log-probabilities and values of a rollout, in one pass."""
        training = self.policy.training
        self.policy.eval()
        for batch in micro_batches(samples, self.args.per_device_train_batch_size):
            with self.critic.watching():
                logps, _ = self.scorer.logps(self.policy, batch, with_entropy=False)
            samples.old_logps += unpad(logps, batch.completion_ids)
            values = values_at(self.critic.take(), batch).tolist()
            samples.values += [row[: len(ids) + 1] for row, ids in zip(values, batch.completion_ids, strict=True)]
        self.policy.train(training)

    def estimate(
        self, weights: Sequence[float] | None, per_func: Tensor, samples: Samples, metrics: dict[str, float]
    ) -> GroupAdvantages:
        """Fill in the samples' advantages and returns, token by token. Collective.

        A completion that no function scored moves neither policy nor critic.

        Args: per_func: (N, R) the rewards of all processes, nan where a function abstained. samples: of this process,
            with the log-probabilities that stay fixed, and values.
        """
        args, device, total = self.args, per_func.device, self.parallel.sum
        factors = torch.tensor(weights or [1.0] * per_func.shape[1], device=device)
        unscored = torch.isnan(per_func).all(dim=1)
        rewards = torch.nansum(per_func.float() * factors, dim=1).masked_fill(unscored, torch.nan)
        self.scaling.update(rewards[~unscored].tolist())
        start = self.parallel.rank * len(samples)
        own = rewards[start : start + len(samples)].tolist()
        samples.in_loss = [used and r == r for used, r in zip(samples.in_loss, own, strict=True)]
        scores = torch.tensor(
            [self._score(r, cut) for r, cut in zip(own, samples.truncated, strict=True)], device=device
        )

        mask = samples.loss_mask(device)
        values, last = self._values(samples, device)
        kl, penalties = self._kl(samples, mask)
        per_token = token_rewards(scores, penalties, mask)
        if args.whiten_rewards:
            per_token = whiten(per_token, mask, masked_moments(per_token, mask, total), shift_mean=False)
        cut = torch.tensor(samples.truncated, device=device) & args.bootstrap_truncated
        advantages, returns = gae(per_token, values, mask, gamma=args.gamma, lam=args.lam, bootstrap=last * cut)
        moments = masked_moments(advantages, mask, total)
        metrics |= self._rollout_metrics(samples, scores, kl, penalties, values, returns, mask)
        metrics |= {"advantages/mean": moments.mean, "advantages/std": moments.variance**0.5}
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, moments)
        samples.token_advantages = unpad(advantages, samples.completion_ids)
        samples.returns = unpad(returns, samples.completion_ids)
        means = (advantages * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        samples.advantages = means.tolist()
        return GroupAdvantages(self.parallel.gather(means), rewards, self._zero_std(rewards))

    def _score(self, reward: float, truncated: bool) -> float:
        score = self.scaling(0.0 if reward != reward else reward)
        return score - (self.args.missing_eos_penalty or 0.0) if truncated else score

    def _values(self, samples: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, C) before each token, and (B,) behind the last one that was sampled."""
        values = pad_right(samples.values, 0.0, torch.float32, device)
        lengths = torch.tensor([len(ids) for ids in samples.completion_ids], device=device)
        return values[:, :-1], values.gather(1, lengths.unsqueeze(1)).squeeze(1)

    def _kl(self, samples: Samples, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C) log-ratios to the reference, and what the rewards lose by them."""
        zeros = torch.zeros_like(mask)
        if self.args.kl_coef == 0:
            return zeros, zeros
        old = pad_right(samples.old_logps, 0.0, torch.float32, mask.device)
        reference = pad_right(samples.ref_logps, 0.0, torch.float32, mask.device)
        kl = kl_per_token(old, reference) * mask
        if not self.args.penalizes_reward:
            return kl, zeros
        return kl, self.kl.value * kl_per_token(old, reference, self.args.kl_estimator) * mask

    def _rollout_metrics(
        self,
        samples: Samples,
        scores: Tensor,
        kl: Tensor,
        penalties: Tensor,
        values: Tensor,
        returns: Tensor,
        mask: Tensor,
    ) -> dict[str, float]:
        """TRL's names where it had them: `objective/…` are means over completions of sums over their tokens."""
        used = torch.tensor(samples.in_loss, device=mask.device).float()
        sums = torch.stack([used.sum(), (scores * used).sum(), kl.sum(), penalties.sum()]).double()
        count, score, drift, lost = self.parallel.sum(sums).tolist()
        count = max(count, 1)
        found = {
            "objective/scores": score / count,
            "objective/kl": drift / count,
            "objective/non_score_reward": -lost / count,
            "objective/rlhf_reward": (score - lost) / count,
            "objective/kl_coef": self.kl.value,
        }
        if self.args.kl_coef > 0:  # what was measured steers the next rollout
            self.kl.update(drift / count, int(count))
        total = self.parallel.sum
        of_values, of_returns = masked_moments(values, mask, total), masked_moments(returns, mask, total)
        return found | {
            "val/mean": of_values.mean,
            "val/explained_variance": explained_variance(values, returns, mask, total),
            "returns/mean": of_returns.mean,
            "returns/var": of_returns.variance,
        }

    def _zero_std(self, rewards: Tensor) -> Tensor:
        """(N/G,): groups whose rewards are all equal. Without groups there are none, and the critic needs none."""
        if self.args.num_generations == 1:
            return torch.zeros_like(rewards, dtype=torch.bool)
        return without_signal(rewards, self.args.num_generations)

    # ---- at each update

    def minibatch(self, samples: Samples, number: int, update: int, rows: int) -> Samples:
        """The rows of one optimizer step: the next ones of this use's order.

        Args: number: of the rollout. update: optimizer steps already taken from it. rows: of a step.
        """
        start = (update * rows) % len(samples)
        if not self.args.shuffle_minibatches:
            return samples.slice(start, start + rows)
        use = update * rows // len(samples)
        order = np.random.default_rng([self.args.seed, number, use, self.parallel.rank]).permutation(len(samples))
        return samples.take(order[start : start + rows].tolist())

    def loss(self, batch: Samples, size: BatchSize, measured: StepMetrics, step: int) -> Tensor:
        """This micro-batch's share of policy loss + vf_coef · value loss; while warming up, of the second alone."""
        args = self.args
        warming = step < args.value_warmup_steps
        with self.critic.watching(detached=warming):
            logps, entropy = self.scorer.logps(self.policy, batch, with_entropy=True)
        device = logps.device
        mask, width = batch.loss_mask(device), logps.shape[1]
        old = pad_right(batch.values, 0.0, torch.float32, device)[:, :width]
        returns = pad_right(batch.returns, 0.0, torch.float32, device)
        value = clipped_value_loss(values_at(self.critic.take(), batch)[:, :width], old, returns, args.cliprange_value)
        value_share = aggregate(value.loss, mask, "dapo", size, args.max_completion_length)
        policy_share = policy_loss(replace(args, beta=self.kl.value), batch, logps, entropy, size, measured)
        gap = (logps.detach() - pad_right(batch.old_logps, 0.0, torch.float32, device)) * mask
        measured.mean("policy/approxkl_avg", 0.5 * gap.square().sum(), mask.sum())
        measured.mean("loss/value_avg", (value.loss * mask).sum(), mask.sum())
        measured.mean("val/clipfrac_avg", (value.clipped * mask).sum(), mask.sum())
        # A product with 0 keeps the policy in the graph, whose gradient every process waits for.
        return policy_share * (0.0 if warming else 1.0) + args.vf_coef * value_share

    def set_learning_rates(self, optimizer: Any, factor: float, step: int) -> None:
        """Args: factor: the policy's learning rate at this step; the critic's has the same schedule."""
        args = self.args
        scale = 1.0
        if args.critic_learning_rate is not None and args.learning_rate:
            scale = args.critic_learning_rate / args.learning_rate
        for group in optimizer.param_groups:
            if group.get("part") == CRITIC:
                group["lr"] = factor * scale
            else:  # at 0 there is no weight decay, either
                group["lr"] = 0.0 if step < args.value_warmup_steps else min(factor, self._ramp(step))

    def _ramp(self, step: int) -> float:
        """The policy's own warm-up, which begins when the critic's is over: the highest learning rate at this step.

        Only for a number of steps: a share of all steps counts from the first, in the schedule itself.
        """
        args = self.args
        if args.value_warmup_steps == 0 or args.warmup_steps <= 1:
            return math.inf
        return float(args.learning_rate * (step - args.value_warmup_steps + 1) / args.warmup_steps)

    def before_step(self, optimizer: Any, step: int) -> None:
        """While the critic warms up, take the policy's gradients of 0 away from the optimizer.

        Adam would average them in: after n of them and k real ones, its mean of squares is that of k in n + k, and the
        policy's first steps are up to √((n + k) / k) times too long. (DeepSpeed's engine steps by itself, with them.)
        """
        if step < self.args.value_warmup_steps:
            for group in optimizer.param_groups:
                if group.get("part") != CRITIC:
                    for parameter in group["params"]:
                        parameter.grad = None


def values_at(values: Tensor, batch: Samples) -> Tensor:
    """(B, positions) → (B, C + 1): the value before each completion token, and behind the last; 0 from there on.

    Positions are those of `completion_logps`: all of the rows', padded on the right, or those from the end of the
    shortest prompt on.
    """
    first = min(len(prompt) for prompt in batch.prompt_ids) - 1
    whole = max(len(p) + len(c) for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True))
    if values.shape[1] == whole:
        values = values[:, first:]
    starts = torch.tensor([len(prompt) - 1 - first for prompt in batch.prompt_ids], device=values.device)
    mask = completion_mask([[*ids, 0] for ids in batch.completion_ids], values.device)
    columns = starts[:, None] + torch.arange(mask.shape[1], device=values.device)
    return torch.where(mask.bool(), values.gather(1, columns.clamp(max=values.shape[1] - 1)), 0.0)
