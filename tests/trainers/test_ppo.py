"""One PPO update against a literal float64 reference, and what the critic touches and doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.batch import Samples
from tests.trainers.ppo_runs import make_ppo, make_samples, step_of
from tests.trainers.trl_parity import make_model

CASES: dict[str, dict[str, Any]] = {
    "shared": {"kl_coef": 0.0},
    "kl_in_reward": {"kl_coef": 0.1, "gamma": 0.98, "lam": 0.9},
    "kl_in_loss": {"kl_coef": 0.1, "kl_in_reward": False},
    "k3_whitened_rewards": {"kl_coef": 0.1, "kl_estimator": "k3", "whiten_rewards": True},
    "separate": {"kl_coef": 0.05, "value_model": "separate", "vf_coef": 0.5},
    "bootstrapped": {"kl_coef": 0.0, "bootstrap_truncated": True, "missing_eos_penalty": 0.5, "gamma": 0.9},
    "lora": {"kl_coef": 0.05, "peft": True},
    "no_clipping": {"kl_coef": 0.0, "cliprange_value": None, "whiten_advantages": False},
}


class Literal:
    """PPO as its papers write it: float64, one row at a time, nothing of ours but the options and the random models."""

    def __init__(self, args: Any, peft: bool) -> None:
        self.args = args
        self.policy = make_model(peft, seed=1).double()
        self.reference = make_model(False, seed=2).double()
        self.peft, self.separate = peft, args.value_model == "separate"
        self.critic = tiny_decoder(seed=3).double() if self.separate else None
        noise = torch.Generator().manual_seed(9)
        width = self.policy.config.hidden_size
        self.weight = (0.1 * torch.randn((1, width), generator=noise)).double().requires_grad_()
        self.bias = torch.tensor([0.2]).double().requires_grad_()  # as float32 has it

    def logps(self, model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        logits = model(torch.tensor([prompt + completion])).logits[0] / self.args.temperature
        logps = torch.log_softmax(logits, -1)
        return torch.stack([logps[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])

    def values(self, prompt: list[int], completion: list[int]) -> torch.Tensor:
        """Before each token and behind the last."""
        model = self.critic if self.separate else self.policy
        hidden = model(torch.tensor([prompt + completion]), output_hidden_states=True).hidden_states[-1][0]
        return (hidden @ self.weight[0] + self.bias)[len(prompt) - 1 :]

    @torch.no_grad()
    def rollout(self, samples: Samples, scores: list[float]) -> tuple[list[Any], list[Any]]:
        """(advantages, returns), a list of floats for each row."""
        args, rewards, values = self.args, [], []
        for i, score in enumerate(scores):
            pair = samples.prompt_ids[i], samples.completion_ids[i]
            row = [0.0] * len(pair[1])
            if args.kl_coef and args.kl_in_reward is not False:
                if self.peft:
                    with self.policy.disable_adapter():
                        reference = self.logps(self.policy, *pair)
                else:
                    reference = self.logps(self.reference, *pair)
                ratio = self.logps(self.policy, *pair) - reference
                kl = ratio if args.kl_estimator == "k1" else torch.exp(-ratio) - 1 + ratio
                row = [-args.kl_coef * float(k) for k in kl]
            row[-1] += score - (args.missing_eos_penalty or 0) * samples.truncated[i]
            rewards.append(row)
            values.append(self.values(*pair).tolist())
        if args.whiten_rewards:
            flat = np.concatenate(rewards)
            mean, deviation = flat.mean(), (flat.var(ddof=1) + 1e-8) ** 0.5
            rewards = [[(r - mean) / deviation + mean for r in row] for row in rewards]
        advantages, returns = [], []
        for i, row in enumerate(rewards):
            last = values[i][len(row)] if samples.truncated[i] and args.bootstrap_truncated else 0.0
            v = [*values[i][: len(row)], last]
            deltas = [row[t] + args.gamma * v[t + 1] - v[t] for t in range(len(row))]
            decay, steps = args.gamma * args.lam, range(len(row))
            a = [sum(decay ** (s - t) * deltas[s] for s in steps[t:]) for t in steps]
            advantages.append(a)
            returns.append([a[t] + v[t] for t in range(len(row))])
        if args.whiten_advantages:
            flat = np.concatenate(advantages)
            advantages = [[(a - flat.mean()) / (flat.var(ddof=1) + 1e-8) ** 0.5 for a in row] for row in advantages]
        return advantages, returns

    def loss(self, samples: Samples, advantages: list[Any], returns: list[Any]) -> torch.Tensor:
        """Mean over all tokens of the policy loss and of vf_coef · value loss."""
        args, terms = self.args, []
        for i in range(len(samples)):
            pair = samples.prompt_ids[i], samples.completion_ids[i]
            logps, values = self.logps(self.policy, *pair), self.values(*pair)
            with torch.no_grad():
                reference = self.logps(self.reference, *pair)
            for t in range(len(pair[1])):
                ratio = torch.exp(logps[t] - samples.old_logps[i][t])
                bounded = torch.clamp(ratio, 1 - args.epsilon, 1 + args.epsilon)
                policy = -torch.minimum(ratio * advantages[i][t], bounded * advantages[i][t])
                if args.kl_coef and args.kl_in_reward is False:
                    gap = reference[t] - logps[t]
                    policy = policy + args.kl_coef * (torch.exp(gap) - gap - 1) * ratio
                value = (values[t] - returns[i][t]) ** 2
                if args.cliprange_value is not None:
                    old = samples.values[i][t]
                    near = old + torch.clamp(values[t] - old, -args.cliprange_value, args.cliprange_value)
                    value = torch.maximum(value, (near - returns[i][t]) ** 2)
                terms.append(policy + args.vf_coef * 0.5 * value)
        return torch.stack(terms).mean()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Under our names."""
        found = {n: p.grad for n, p in self.policy.named_parameters() if p.grad is not None}
        head = "critic.backbone.lm_head" if self.separate else "critic.head"
        if self.critic is not None:
            pairs = self.critic.model.named_parameters()
            found |= {f"critic.backbone.model.{n}": p.grad for n, p in pairs if p.grad is not None}
        return found | {f"{head}.weight": self.weight.grad, f"{head}.bias": self.bias.grad}


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_the_literal_one(name: str, tmp_path: Path) -> None:
    options = dict(CASES[name])
    peft = options.pop("peft", False)
    trainer = make_ppo(tmp_path, peft=peft, **options)
    samples, rewards = make_samples()
    metrics, gradients = step_of(trainer, samples, rewards)

    reference = Literal(trainer.args, peft)
    advantages, returns = reference.rollout(samples, rewards[:, 0].tolist())
    for found, expected in ((samples.token_advantages, advantages), (samples.returns, returns)):
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=2e-5)
    loss = reference.loss(samples, advantages, returns)
    loss.backward()
    expected_gradients = reference.gradients()
    assert gradients.keys() == expected_gradients.keys()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient.double(), expected_gradients[key], rtol=1e-4, atol=1e-5, msg=key)
    assert gradients[next(key for key in gradients if "q_proj" in key)].abs().max() > 1e-4
    assert metrics["val/clipfrac_avg"] > 0 or trainer.args.cliprange_value is None
    assert metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"] > 0


# ---- what the critic touches


def test_a_separate_critic_and_the_policy_do_not_touch_each_other(tmp_path: Path) -> None:
    """The policy's gradient is the same whatever weight the value loss has; without advantages it is 0."""
    gradients = {}
    for weight in (0.0, 7.0):
        trainer = make_ppo(tmp_path / str(weight), value_model="separate", vf_coef=weight, kl_coef=0.0)
        gradients[weight] = step_of(trainer, *make_samples())[1]
    policy = [name for name in gradients[0.0] if not name.startswith("critic.")]
    assert policy and all(torch.equal(gradients[0.0][name], gradients[7.0][name]) for name in policy)
    critic = [name for name in gradients[7.0] if name.startswith("critic.")]
    assert all(not gradients[0.0][name].any() for name in critic)
    assert all(gradients[7.0][name].any() for name in critic if "layers" in name and name.endswith("proj.weight"))


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_while_warming_up_only_the_critic_learns(value_model: str, tmp_path: Path) -> None:
    options = {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.1, "critic_learning_rate": 1e-3}
    trainer = make_ppo(tmp_path, value_model=value_model, value_warmup_steps=2, num_iterations=4, **options)
    model = trainer.accelerator.unwrap_model(trainer.policy)
    samples, rewards = make_samples()
    trainer.ppo.score(samples)
    trainer.scorer.score_fixed(samples)
    trainer.ppo.estimate(None, rewards, samples, {})

    def moved_by_a_step() -> set[str]:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer._update(samples)
        trainer.state.step += 1
        trainer.state.updates_in_rollout += 1
        return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}

    first, second, third = (moved_by_a_step() for _ in range(3))
    assert first and all(name.startswith("critic.") for name in first | second)
    assert any(not name.startswith("critic.") for name in third)
    rates = {group.get("part"): group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["critic"] == pytest.approx(0.1 * rates[None])
    # Adam has averaged none of the policy's gradients of 0: else its first steps would be several times too long.
    steps = {name: trainer.optimizer.state[p]["step"].item() for name, p in model.named_parameters()}
    assert {name.startswith("critic."): step for name, step in steps.items()} == {True: 3, False: 1}


def test_the_policys_warm_up_begins_after_the_critics(tmp_path: Path) -> None:
    options = {"learning_rate": 1e-2, "critic_learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup"}
    trainer = make_ppo(tmp_path, value_model="shared", value_warmup_steps=3, warmup_steps=4, **options)
    rates = []
    for step in range(9):
        trainer.ppo.set_learning_rates(trainer.optimizer, 1e-2, step)
        rates.append({group.get("part"): group["lr"] for group in trainer.optimizer.param_groups})
    assert [rate["critic"] for rate in rates] == pytest.approx([1e-3] * 9)
    assert [rate[None] for rate in rates] == pytest.approx([0, 0, 0, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])


def test_completions_without_a_reward_move_nothing(tmp_path: Path) -> None:
    """A row that every function skipped gives the gradient of a batch without it."""
    options = {"kl_coef": 0.0, "whiten_advantages": False}
    samples, rewards = make_samples()
    rewards[3:] = torch.nan
    _, partly = step_of(make_ppo(tmp_path / "a", **options), samples, rewards)
    assert samples.in_loss == [True] * 3 + [False] * 5
    fewer, few_rewards = make_samples(rows=3)
    noisy = samples.slice(0, 3)
    trainer = make_ppo(tmp_path / "b", per_device_train_batch_size=3, **options)
    trainer.ppo.score(fewer)
    trainer.ppo.estimate(None, few_rewards, fewer, {})
    fewer.old_logps, fewer.values = noisy.old_logps, noisy.values  # the same noise on both
    kept: dict[str, torch.Tensor] = {}
    model = trainer.accelerator.unwrap_model(trainer.policy)
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    trainer._update(fewer)
    for name, gradient in kept.items():
        torch.testing.assert_close(partly[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_minibatches_cover_each_use_of_a_rollout_in_an_order_of_its_own(tmp_path: Path) -> None:
    trainer = make_ppo(tmp_path, shuffle_minibatches=True)
    samples = Samples(*([[i] for i in range(8)] for _ in range(2)), [[i] for i in range(8)], *([[]] * 3))  # type: ignore[arg-type]
    samples.rows = list(range(8))

    def use(number: int, which: int) -> list[int]:
        parts = [trainer.ppo.minibatch(samples, number, which * 4 + i, 2) for i in range(4)]
        assert all(part.completion_ids == [[row] for row in part.rows] for part in parts)
        return [row for part in parts for row in part.rows]

    orders = [use(number, which) for number in (1, 2) for which in (0, 1)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert use(1, 1) == orders[1]  # a function of seed, rollout and use: nothing to save


# ---- checkpoints


KINDS: dict[str, dict[str, Any]] = {"shared": {}, "separate": {"value_model": "separate"}, "lora": {"peft": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_the_critic_beside_a_policy_that_loads_alone(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    options = KINDS[kind]
    trainer = make_ppo(tmp_path, adap_kl_ctrl=True, kl_coef=0.1, learning_rate=1e-2, **options)
    samples, rewards = make_samples()
    step_of(trainer, samples, rewards)
    trainer._samples, trainer.state.step, trainer.state.updates_in_rollout = samples, 1, 1
    saved = trainer.save()
    expected = {n: p.detach().clone() for n, p in trainer.policy.named_parameters()}
    beta = trainer.ppo.kl.value
    assert beta != 0.1

    again = make_ppo(tmp_path, adap_kl_ctrl=True, kl_coef=0.1, learning_rate=1e-2, **options)
    again.resume(saved)
    assert all(torch.equal(p, expected[n]) for n, p in again.policy.named_parameters())
    assert again.ppo.kl.value == beta
    assert again._samples.values == samples.values and again._samples.returns == samples.returns

    assert all("critic" not in name for path in saved.glob("*model*.safetensors") for name in load_file(path))
    if not options.get("peft"):
        alone = AutoModelForCausalLM.from_pretrained(saved).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in alone.items() if name in expected)
    assert not [name for name in load_file(saved / "critic.safetensors") if name.startswith("critic.")]


def test_a_checkpoint_without_a_value_head_is_refused_by_name(tmp_path: Path) -> None:
    from mmreason.trainers.state import CheckpointError

    trainer = make_ppo(tmp_path)
    trainer.state.step = 1
    saved = trainer.save()
    (saved / "critic.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-1 has no critic.safetensors.*--model_name_or_path"):
        trainer.resume(saved)


def test_an_engine_gets_the_policy_alone(tmp_path: Path) -> None:
    from mmreason.rollout.weights import full_weights

    trainer = make_ppo(tmp_path, value_model="separate")
    names = [name for name, _ in full_weights(trainer.policy, trainer.accelerator)]
    assert names == [name for name, _ in make_model(False, seed=1).named_parameters()]


# ---- bad options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.2}, "kl_coef"),
        ({"gamma": 1.2}, "gamma=1.2"),
        ({"cliprange_value": 0.0}, "cliprange_value=0.0 must be above 0"),
        ({"value_model_path": "x"}, "value_model: separate"),
        ({"use_score_norm": True}, "use_score_scaling"),
        ({"adap_kl_ctrl": True, "kl_coef": 0.0}, "kl_coef"),
        ({"feature_store": "x", "value_model": "separate"}, "feature_store"),
        ({"vf_coef": -1.0}, "vf_coef=-1.0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    from mmreason.trainers.ppo_arguments import PPOConfig
    from mmreason.types import ConfigError

    with pytest.raises(ConfigError, match=message):
        PPOConfig(**options).resolve(1)


def test_one_completion_per_prompt_is_enough() -> None:
    from mmreason.trainers.ppo_arguments import PPOConfig

    args = PPOConfig(per_device_train_batch_size=3)
    args.resolve(1)
    assert args.generation_batch_size == 3 and args.updates_per_rollout == 4 and not args.aligned


# ---- processes


def launched(tmp_path: Path, accelerate: str, **options: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(metrics, gradients) of the step that two processes make of the same samples."""
    import json
    import sys

    from safetensors.torch import load_file

    from tests.recipes.launch import ROOT, run

    config = ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml"
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    done = run([*words, str(ROOT / "tests" / "trainers" / "ppo_runs.py"), str(tmp_path), json.dumps(options)])
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads((tmp_path / "metrics.json").read_text()), load_file(tmp_path / "gradients.safetensors")


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    options = {"kl_coef": 0.1, "whiten_rewards": True}
    metrics, gradients = launched(tmp_path, "cpu_ddp2", **options)
    expected, kept = step_of(make_ppo(tmp_path / "one", **options), *make_samples(), moved=0.0)
    assert gradients.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name in ("loss", "objective/kl", "returns/mean", "val/explained_variance", "loss/value_avg", "advantages/std"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
