"""A PPO trainer on a tiny random decoder, in this process or, as a script, under `accelerate launch` with two."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.trainers.batch import Samples
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.ppo_arguments import PPOConfig
from tests.ddp import run_in_several
from tests.trainers.trl_parity import make_model, make_rows

ROWS = 8


def make_ppo(out: Path, *, peft: bool = False, rewards: Sequence[Callable[..., Any]] = (), **options: Any) -> Any:
    """A trainer of `ROWS` completions a rollout, whose critic knows something: its head is random, not 0."""
    from datasets import Dataset

    settings: dict[str, Any] = {
        "per_device_train_batch_size": ROWS, "max_completion_length": 16, "temperature": 0.9, "use_cpu": True,
        "gradient_checkpointing": False, "optim": "sgd", "learning_rate": 0.0, "max_grad_norm": 0.0, "bf16": False,
        "shuffle_minibatches": False, "num_iterations": 2, "save_steps": 1, "max_steps": 4,
    }  # fmt: skip
    args = PPOConfig(output_dir=str(out), **(settings | options))
    accelerator = build_accelerator(args)
    separate = args.value_model == "separate"
    trainer = PolicyTrainer(
        make_model(peft, seed=1),
        args,
        reward_funcs=list(rewards),
        train_dataset=Dataset.from_dict({"prompt": [f"Is it {i}?" for i in range(6)]}),
        prompt_ids=[tiny_tokenizer()(f"Is it {i}?").input_ids for i in range(6)],
        tokenizer=tiny_tokenizer(),
        accelerator=accelerator,
        ref_model=make_model(False, seed=2) if args.kl_coef and not peft else None,
        value_model=tiny_decoder(seed=3) if separate else None,
    )
    critic = trainer.ppo.critic
    head = critic.head if critic.head is not None else critic.backbone.get_output_embeddings()
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        from accelerate.utils import DistributedType

        if trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
            head.weight.copy_(0.1 * torch.randn(head.weight.shape, generator=noise))
            head.bias.fill_(0.2)
    return trainer


def make_samples(seed: int = 11, rows: int = ROWS) -> tuple[Samples, torch.Tensor]:
    """Completions of unequal lengths, two of them cut off, and a reward for each."""
    made = make_rows(seed, vocab=len(tiny_tokenizer()))[:rows]
    completions = [row["completion"] for row in made]
    samples = Samples(
        rows=[0] * len(made),
        prompt_ids=[row["prompt"] for row in made],
        completion_ids=completions,
        sampling_logps=[[0.0] * len(ids) for ids in completions],
        truncated=[i in (1, 6) for i in range(len(made))],
        in_loss=[True] * len(made),
    )
    return samples, torch.tensor([[row["advantage"]] for row in made])


def step_of(
    trainer: Any, samples: Samples, rewards: torch.Tensor, moved: float = 0.3
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """(metrics, gradients by name) of one optimizer step on given completions and rewards of all processes.

    Args: moved: noise on what was scored, as if policy and critic had moved since: ratios and clips then play a part.
    """
    metrics: dict[str, float] = {}
    trainer.ppo.score(samples)
    trainer.scorer.score_fixed(samples)
    trainer.ppo.estimate(None, rewards, samples, metrics)
    noise = torch.Generator().manual_seed(5)
    for rows in (samples.old_logps, samples.values):
        rows[:] = [(torch.tensor(row) + moved * torch.randn(len(row), generator=noise)).tolist() for row in rows]
    kept: dict[str, torch.Tensor] = {}
    model = trainer.accelerator.unwrap_model(trainer.policy)
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    metrics |= trainer._update(samples)
    return metrics, kept


def main(out: str, options: str) -> None:
    """A step on this process's half of the samples; gradients and metrics into `out`."""
    from safetensors.torch import save_file

    settings = json.loads(options)
    trainer = make_ppo(Path(out) / "run", per_device_train_batch_size=ROWS // 2, **settings)
    rank = trainer.parallel.rank
    samples, rewards = make_samples()
    half = samples.slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    metrics, gradients = step_of(trainer, half, rewards, moved=0.0)
    if trainer.accelerator.is_main_process:
        save_file({n: g.contiguous() for n, g in gradients.items()}, Path(out) / "gradients.safetensors")
        (Path(out) / "metrics.json").write_text(json.dumps(metrics))
    trainer.close()


if __name__ == "__main__":
    run_in_several(lambda: main(*sys.argv[1:]))
