"""RLOO by TRL's RLOOTrainer and by ours: the same samples and rewards give the same advantages, loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.estimators import estimate_advantages
from tests.trainers.trl_parity import make_model

G, BOUND = 4, 2e-6
PROMPTS = ["1+1=", "2+12="]
TABLE = [1.0, 0.0, 0.5, None, 2.0, 0.25, 0.0, 1.0]


def trl_trainer(out: Path, beta: float, normalize: bool) -> Any:
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    from mmreason.models.tiny import tiny_tokenizer

    make_model(False, seed=2).save_pretrained(out / "reference")
    config = RLOOConfig(
        output_dir=str(out / "trl"), beta=beta, normalize_advantages=normalize, num_generations=G, temperature=0.9,
        max_completion_length=6, per_device_train_batch_size=len(TABLE), use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, num_iterations=2,
    )  # fmt: skip
    model = make_model(False, seed=1)
    model.config._name_or_path = str(out / "reference")  # where TRL loads its reference model from
    return RLOOTrainer(
        model,
        reward_funcs=lambda completions, **_: TABLE,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tiny_tokenizer(),
    )


def ours(out: Path, beta: float, normalize: bool) -> Any:
    from datasets import Dataset

    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.policy import PolicyTrainer

    args = PolicyConfig(
        output_dir=str(out / "ours"), advantage_estimator="rloo", importance_sampling_level="sequence_sum",
        loss_type="grpo", beta=beta, normalize_advantages=normalize, num_generations=G, temperature=0.9,
        max_completion_length=6, per_device_train_batch_size=len(TABLE), use_cpu=True, gradient_checkpointing=False,
        optim="sgd", learning_rate=0.0, max_grad_norm=0.0, num_iterations=2,
    )  # fmt: skip
    accelerator = build_accelerator(args)
    return PolicyTrainer(
        make_model(False, seed=1),
        args,
        reward_funcs=[],
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        prompt_ids=[[1], [1]],
        tokenizer=tiny_tokenizer(),
        accelerator=accelerator,
        ref_model=make_model(False, seed=2) if beta else None,
    )


def unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(("beta", "normalize"), [(0.0, False), (0.05, False), (0.2, True)])
def test_advantages_loss_and_gradient_equal_trl(tmp_path: Path, beta: float, normalize: bool) -> None:
    theirs = trl_trainer(tmp_path, beta, normalize)
    theirs.model.train()
    torch.manual_seed(0)
    inputs = theirs._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(G)])
    trainer = ours(tmp_path, beta, normalize)
    completions = unpadded(inputs["completion_ids"], inputs["completion_mask"])
    samples = Samples(
        rows=[0] * G + [1] * G,
        prompt_ids=unpadded(inputs["prompt_ids"], inputs["prompt_mask"]),
        completion_ids=completions,
        sampling_logps=[[0.0] * len(ids) for ids in completions],
        truncated=[False] * len(completions),
        in_loss=[True] * len(completions),
    )
    trainer.scorer.score_fixed(samples)
    per_func = torch.tensor([[float("nan") if r is None else r] for r in TABLE])
    estimate_advantages(trainer.args, None, per_func, samples, trainer.parallel)
    torch.testing.assert_close(torch.tensor(samples.advantages), inputs["advantages"], atol=BOUND, rtol=1e-5)
    assert inputs["advantages"].abs().max() > 0.1

    noise = torch.Generator().manual_seed(4)  # as if updates had moved the policy
    shifts = [0.1 * torch.randn(len(ids), generator=noise) for ids in completions]
    samples.old_logps = [(torch.tensor(row) + s).tolist() for row, s in zip(samples.old_logps, shifts, strict=True)]
    inputs["old_logps"] = inputs["old_logps"] + torch.stack([s.sum() for s in shifts])
    theirs.current_gradient_accumulation_steps = 1
    loss = theirs.compute_loss(theirs.model, inputs)
    loss.backward()
    expected = {name: p.grad for name, p in theirs.model.named_parameters() if p.grad is not None}
    kept: dict[str, torch.Tensor] = {}
    model = trainer.accelerator.unwrap_model(trainer.policy)
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    found = trainer._update(samples)
    assert found["loss"] == pytest.approx(loss.item(), abs=BOUND)
    assert found["clip_ratio/high_mean"] + found["clip_ratio/low_mean"] > 0, "nothing is clipped: this proves little"
    assert kept.keys() == expected.keys() and max(g.abs().max().item() for g in expected.values()) > 1e-3
    assert max((kept[name] - expected[name]).abs().max().item() for name in kept) <= BOUND
