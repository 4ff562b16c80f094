"""Loss and gradient of one optimizer step, by TRL's GRPOTrainer and by ours, on the same samples.

Used in one process by test_trl_parity.py, and under `accelerate launch` with two (then this file is the script).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

from tests.ddp import run_in_several

G, ROWS, TEMPERATURE = 4, 8, 0.9
CASES: dict[str, dict[str, Any]] = {
    "on_policy": {},
    "off_policy": {"old": True, "epsilon_high": 0.28},
    "reference": {"beta": 0.04},
    "reference_off_policy": {"beta": 0.04, "old": True},
    "lora": {"peft": True},
    "lora_reference_off_policy": {"peft": True, "beta": 0.04, "old": True},
    "delta": {"old": True, "delta": 1.3},
}
# What belongs to some losses only, or changes all of them in the same way: (case, losses that it is tried with).
GSPO = {"importance_sampling_level": "sequence"}
MORE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gspo": (GSPO | {"old": True, "epsilon": 3e-2, "epsilon_high": 4e-2}, ("grpo", "dapo", "bnpo", "luspo")),
    "gspo_reference": (GSPO | {"old": True, "beta": 0.04}, ("grpo", "luspo")),
    "cispo": ({"old": True, "epsilon_high": 1.1}, ("cispo",)),
    "cispo_reference": ({"beta": 0.04, "epsilon_high": 5.0}, ("cispo",)),
    "sapo": ({"old": True, "sapo_temperature_neg": 1.4}, ("sapo",)),
    "vespo": ({"old": True, "vespo_k_pos": 1.5}, ("vespo",)),
    "vespo_on_policy": ({"beta": 0.04}, ("vespo",)),
    "off_policy_mask": ({"old": True, "off_policy_mask_threshold": 0.02}, ("dapo", "grpo")),
    "top_entropy": ({"top_entropy_quantile": 0.3}, ("dapo", "grpo")),
    "top_entropy_off_policy": ({"old": True, "beta": 0.04, "top_entropy_quantile": 0.2}, ("dapo",)),
    "tools": ({"old": True, "beta": 0.04, "tools": True}, ("grpo", "dapo", "dr_grpo", "bnpo")),
}
NOT_OPTIONS = ("old", "peft", "tools")


def options(case: dict[str, Any]) -> dict[str, Any]:
    """What both configurations get."""
    return {name: value for name, value in case.items() if name not in NOT_OPTIONS}


def make_rows(seed: int, vocab: int) -> list[dict[str, Any]]:
    """ROWS samples with prompts and completions of unequal lengths; a group shares its prompt."""
    rng = random.Random(seed)
    rows = []
    for _ in range(ROWS // G):
        prompt = [rng.randrange(vocab) for _ in range(rng.randint(3, 12))]
        for _ in range(G):
            completion = [rng.randrange(vocab) for _ in range(rng.randint(1, 16))]
            rows.append({"prompt": prompt, "completion": completion, "advantage": rng.uniform(-2, 2)})
    return rows


def tool_masks(rows: list[dict[str, Any]]) -> list[list[int]]:
    """0 on the tokens that a tool wrote, 1 on the policy's: every third token, and at times all."""
    return [[int((i + place) % 3 > 0) for place in range(len(r["completion"]))] for i, r in enumerate(rows)]


def make_model(peft: bool, seed: int) -> Any:
    from mmreason.models.tiny import tiny_decoder

    model = tiny_decoder(seed=seed)
    if peft:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.0)
        model = get_peft_model(model, config)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "lora_B" in name:
                    param.normal_(std=0.05)
    return model


def _pad(rows: list[list[Any]], value: float, left: bool, dtype: torch.dtype) -> torch.Tensor:
    width = max(map(len, rows))
    out = torch.full((len(rows), width), value, dtype=dtype)
    for i, row in enumerate(rows):
        part = slice(width - len(row), None) if left else slice(0, len(row))
        out[i, part] = torch.tensor(row, dtype=dtype)
    return out


def trl_step(case: dict[str, Any], loss_type: str, rows: list[dict[str, Any]], accumulation: int, out: Path) -> Any:
    """(loss, gradients by name, old logps, reference logps) of this process's rows, averaged over processes by DDP."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from mmreason.models.tiny import tiny_tokenizer

    micro = len(rows) // accumulation
    config = GRPOConfig(
        output_dir=str(out), loss_type=loss_type, temperature=TEMPERATURE, num_generations=G, max_completion_length=16,
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], **options(case),
    )  # fmt: skip
    model = make_model(case.get("peft", False), seed=1)
    reference = out.parent / "reference"
    if case.get("beta") and not case.get("peft"):
        model.config._name_or_path = str(reference)  # where TRL loads its reference model from
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["x"] * 8}),
        processing_class=tiny_tokenizer(),
    )
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    wrapped.train()
    trainer.current_gradient_accumulation_steps = accumulation
    prompt_ids = _pad([r["prompt"] for r in rows], 0, True, torch.long)
    completion_ids = _pad([r["completion"] for r in rows], 0, False, torch.long)
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": _pad([[1] * len(r["prompt"]) for r in rows], 0, True, torch.long),
        "completion_ids": completion_ids,
        "completion_mask": _pad([[1] * len(r["completion"]) for r in rows], 0, False, torch.long),
        "advantages": torch.tensor([r["advantage"] for r in rows]),
    }
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    tokens = inputs["completion_mask"].sum()
    if case.get("tools"):
        inputs["tool_mask"] = _pad(tool_masks(rows), 1, False, torch.long)
        tokens = (inputs["completion_mask"] * inputs["tool_mask"]).sum()

    def logps(which: Any) -> torch.Tensor:
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(which, ids, mask, completion_ids.shape[1])[0]

    if case.get("old"):
        noise = torch.Generator().manual_seed(7)
        current = logps(wrapped)
        inputs["old_per_token_logps"] = current + 0.3 * torch.randn(current.shape, generator=noise)
    if case.get("beta"):
        if case.get("peft"):
            with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
                inputs["ref_per_token_logps"] = logps(wrapped)
        else:
            inputs["ref_per_token_logps"] = logps(trainer.ref_model)
    loss = torch.zeros(())
    for start in range(0, len(rows), micro):
        part = {k: v[start : start + micro] for k, v in inputs.items()}
        part["num_items_in_batch"] = trainer.accelerator.gather(tokens).sum()
        share = trainer.compute_loss(wrapped, part)
        share.backward()
        loss += share.detach()
    grads = {
        n: p.grad.clone() for n, p in trainer.accelerator.unwrap_model(wrapped).named_parameters() if p.grad is not None
    }
    mean_loss = trainer.accelerator.gather(loss).mean().item()
    return mean_loss, grads, inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")


def our_step(
    case: dict[str, Any], loss_type: str, rows: list[dict[str, Any]], accumulation: int, out: Path,
    old: torch.Tensor | None,
) -> Any:  # fmt: skip
    """The same by PolicyTrainer. Reference log-probabilities are its own; only the noisy old ones are handed over."""
    from datasets import Dataset

    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.arguments import PolicyConfig
    from mmreason.trainers.batch import Samples, unpad
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.policy import PolicyTrainer

    args = PolicyConfig(
        output_dir=str(out), loss_type=loss_type, temperature=TEMPERATURE, num_generations=G, max_completion_length=16,
        per_device_train_batch_size=len(rows) // accumulation, gradient_accumulation_steps=accumulation, use_cpu=True,
        gradient_checkpointing=False, optim="sgd", learning_rate=0.0, max_grad_norm=0.0,
        num_iterations=2 if case.get("old") else 1, **options(case),
    )  # fmt: skip
    accelerator = build_accelerator(args)
    trainer = PolicyTrainer(
        make_model(case.get("peft", False), seed=1),
        args,
        reward_funcs=[],
        train_dataset=Dataset.from_dict({"prompt": ["x"]}),
        prompt_ids=[[1]],
        tokenizer=tiny_tokenizer(),
        accelerator=accelerator,
        ref_model=make_model(False, seed=2) if case.get("beta") and not case.get("peft") else None,
    )
    completions = [r["completion"] for r in rows]
    samples = Samples(
        rows=[i // G for i in range(len(rows))],
        prompt_ids=[r["prompt"] for r in rows],
        completion_ids=completions,
        sampling_logps=[[0.0] * len(c) for c in completions],
        truncated=[False] * len(rows),
        in_loss=[True] * len(rows),
        advantages=[r["advantage"] for r in rows],
    )
    if case.get("tools"):
        samples.sampled = [[bool(mine) for mine in row] for row in tool_masks(rows)]
    trainer.scorer.score_fixed(samples)
    if old is not None:
        samples.old_logps = unpad(old, completions)
    kept: dict[str, torch.Tensor] = {}
    model = accelerator.unwrap_model(trainer.policy)
    # The step zeroes the gradients, so they are read where the optimizer would.
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    metrics = trainer._update(samples)
    return metrics["loss"], kept, samples


def compare(name: str, loss_type: str, accumulation: int, out: Path) -> dict[str, float]:
    """Largest differences between the two trainers on this process's slice of ROWS × processes rows."""
    from accelerate import PartialState

    from mmreason.models.tiny import tiny_tokenizer

    state = PartialState(cpu=True)
    case = CASES[name] if name in CASES else MORE[name][0]
    if state.is_main_process:
        make_model(False, seed=2).save_pretrained(out / "reference")
    state.wait_for_everyone()
    rows = make_rows(seed=3 + state.process_index, vocab=len(tiny_tokenizer()))
    theirs, their_grads, old, reference = trl_step(
        case, loss_type, rows, accumulation, out / f"trl{state.process_index}"
    )
    ours, our_grads, samples = our_step(case, loss_type, rows, accumulation, out / "ours", old)
    assert their_grads.keys() == our_grads.keys() and our_grads, "the two trainers train different parameters"
    scale = max(g.abs().max().item() for g in their_grads.values())
    result = {
        "loss": abs(theirs - ours),
        "gradient": max((their_grads[n] - our_grads[n]).abs().max().item() for n in their_grads),
        "scale": scale,
    }
    if reference is not None:
        used = samples.sampled_mask(reference.device)  # ours are 0 where the policy sampled nothing
        result["reference"] = max(
            ((reference[i, : len(row)] - torch.tensor(row)) * used[i, : len(row)]).abs().max().item()
            for i, row in enumerate(samples.ref_logps)
        )
    return result


def main(folder: Path, cases: list[str]) -> None:
    """Write this process's figures of the cases into `folder`."""
    from accelerate import PartialState

    found = {
        f"{name}/{loss_type}/{accumulation}": compare(name, loss_type, accumulation, folder)
        for name, loss_type, accumulation in (case.split("/") for case in cases)
        for accumulation in [int(accumulation)]
    }
    state = PartialState()
    (folder / f"result-{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()


if __name__ == "__main__":
    run_in_several(lambda: main(Path(sys.argv[1]), sys.argv[2:]))
