"""The loop in an environment: what is learned from, what is told, and that a killed run ends as an unbroken one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mmreason.losses.policy import BatchSize
from mmreason.rollout.environment import load_environment
from mmreason.rollout.multi_turn import EnvironmentSettings
from mmreason.trainers.batch import StepMetrics
from tests.rollout import worlds
from tests.trainers.test_invariance import make_samples, make_trainer
from tests.trainers.trl_parity import make_rows


def test_gradients_come_from_sampled_tokens_only(tmp_path: Path) -> None:
    """Against a literal loop over the rows: sum of −A · log π over the policy's tokens, over their number (DAPO)."""
    trainer = make_trainer(tmp_path, 8, 1, {}, loss_type="dapo")
    samples = make_samples(make_rows(seed=3, vocab=200), masked=False)
    generator = torch.Generator().manual_seed(0)
    samples.sampled = [(torch.rand(len(ids), generator=generator) < 0.6).tolist() for ids in samples.completion_ids]
    samples.sampled[0] = [False] * len(samples.sampled[0])  # all of it came from the environment
    count = sum(map(sum, samples.sampled))
    assert samples.loss_tokens() == count
    loss = trainer.loss(samples, BatchSize(len(samples), count, 1), StepMetrics())
    loss.backward()
    model = trainer.accelerator.unwrap_model(trainer.policy)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = torch.zeros(())
    for prompt, ids, mine, advantage in zip(
        samples.prompt_ids, samples.completion_ids, samples.sampled, samples.advantages, strict=True
    ):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0] / trainer.args.temperature
        for place, (token, counts) in enumerate(zip(ids, mine, strict=True)):
            if counts:
                expected = expected - advantage * torch.log_softmax(logits[len(prompt) + place - 1], -1)[token]
    (expected / count).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name
    # What the environment said changes nothing but as context: other log-probabilities there, the same gradient.
    samples.sampling_logps = [[-9.0] * len(ids) for ids in samples.completion_ids]
    assert trainer.loss(samples, BatchSize(len(samples), count, 1), StepMetrics()).item() == pytest.approx(loss.item())


def make(out: Path, environment: Any, on_error: Any = "observe", rows: int = 8, **options: Any) -> Any:
    from mmreason.data.schema import to_dataset
    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
    from mmreason.rewards import load_rewards
    from mmreason.trainers.arguments import PolicyConfig
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.policy import PolicyTrainer

    settings = {
        "num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 4, "max_completion_length": 40,
        "use_cpu": True, "save_steps": 1, "save_total_limit": None, "learning_rate": 1e-3,
        "gradient_checkpointing": False,
    }  # fmt: skip
    args = PolicyConfig(output_dir=str(out), **(settings | options))
    examples: list[Any] = [
        {"id": f"r{i}", "prompt": [{"role": "user", "content": f"go {i}"}], "answer": "1"} for i in range(rows)
    ]
    dataset, tokenizer = to_dataset(examples), tiny_tokenizer()
    model = tiny_decoder()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 140)]  # turns that do end
    ids = [tokenizer.apply_chat_template(e["prompt"], add_generation_prompt=True, return_dict=False) for e in examples]
    return PolicyTrainer(
        model,
        args,
        reward_funcs=load_rewards(["environment"]),
        train_dataset=dataset,
        prompt_ids=[list(row) for row in ids],
        tokenizer=tokenizer,
        accelerator=build_accelerator(args),
        environment=EnvironmentSettings(load_environment(environment), max_turns=3, limit_s=5.0, on_error=on_error),
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_in_an_environment_and_its_continuation(tmp_path: Path) -> None:
    """Turns, rewards and messages are told; from a checkpoint with a rollout in flight it ends bit for bit the same."""
    whole = make(tmp_path / "whole", worlds.Dice, num_iterations=2)
    whole.train()
    whole.close()
    told = lines(tmp_path / "whole")
    assert told[0]["environment/turns"] > 1 and told[0]["environment/failed"] == 0
    assert told[0]["sampling/sampling_logp_difference/max"] <= 1e-4
    assert any(line["grad_norm"] > 0 for line in told)
    table = pq.read_table(tmp_path / "whole" / "rollouts" / "rollout-000001.parquet").to_pylist()
    assert {len(row["completion_ids"]) for row in table} and table[0]["environment_turns"] >= 1
    assert any(row["environment_reward"] for row in table)
    roles = {message["role"] for row in table for message in _messages(row)}
    assert roles == {"assistant", "user"}
    for row in table:
        if row["environment_reward"] is not None:
            assert row["rewards/environment_reward"] == row["environment_reward"]

    resumed = make(tmp_path / "resumed", worlds.Dice, num_iterations=2)
    resumed.resume(tmp_path / "whole" / "checkpoint-3")
    assert resumed._samples is not None and resumed._samples.sampled
    resumed.train()
    resumed.close()
    want, got = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "resumed"))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)


def test_info_is_recorded_and_averaged(tmp_path: Path) -> None:
    """Each number of an environment's info: a column of the parquet under info/, its mean in metrics.jsonl."""
    trainer = make(tmp_path, Tells, max_steps=1)
    trainer.train()
    trainer.close()
    table = pq.read_table(tmp_path / "rollouts" / "rollout-000001.parquet").to_pylist()
    assert all(row["info/length"] == row["environment_reward"] and row["answer"] == "1" for row in table)
    assert "length" not in table[0] and table[0]["info/kind"] == "short"
    told = lines(tmp_path)[0]
    assert told["environment/info/length"] == pytest.approx(sum(row["info/length"] for row in table) / len(table))
    assert told["environment/info/even"] == pytest.approx(sum(row["info/even"] for row in table) / len(table))
    assert told["environment/turns"] == 1 and "environment/info/kind" not in told


class Tells(worlds.Endless):
    """Says how long a turn was."""

    def step(self, action: str) -> Any:
        n = len(action)
        return worlds.Step(reward=float(n), done=True, info={"length": n, "even": n % 2 == 0, "kind": "short"})


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = row["messages"]
    return list(json.loads(found) if isinstance(found, str) else found)


class Sick(worlds.Endless):
    """Fails for every second row."""

    def reset(self, row: Any, *, seed: int) -> None:
        self.bad = int(row["id"][1:]) % 2 == 1

    def step(self, action: str) -> Any:
        if self.bad:
            raise RuntimeError("out of order")
        return worlds.Step(reward=float(len(action)), done=True)


def test_failed_rows_are_masked(tmp_path: Path) -> None:
    """No reward and no gradient of theirs; the others' stay."""
    trainer = make(tmp_path, Sick, on_error="mask", max_steps=1, per_device_train_batch_size=32)
    trainer.train()
    trainer.close()
    table = pq.read_table(tmp_path / "rollouts" / "rollout-000001.parquet").to_pylist()
    sick = [row for row in table if int(row["id"][1:]) % 2 and row["environment_error"] is not None]
    assert sick and all(math.isnan(row["reward"]) and row["advantage"] == 0 for row in sick)
    assert lines(tmp_path)[0]["environment/failed"] == pytest.approx(len(sick) / len(table))
    assert any(not math.isnan(row["reward"]) for row in table)
