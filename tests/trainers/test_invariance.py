"""How a batch is cut up does not change what is learned from it: micro-batches, accumulation, processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.rollout.types import Request
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.prompt_order import PromptOrder, PromptStream
from tests.trainers.trl_parity import ROWS, G, make_model, make_rows

BOUND = 1e-6
CUTS = [(8, 1), (4, 2), (2, 4), (1, 8)]  # (micro-batch, accumulation)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "reference": {"beta": 0.05},
    "lora_reference": {"beta": 0.05, "peft": True},
    "masked": {"masked": True},
    "reference_masked": {"beta": 0.05, "masked": True, "epsilon_high": 0.28},
}
Gradients = dict[str, torch.Tensor]


def make_samples(rows: list[dict[str, Any]], masked: bool) -> Samples:
    completions = [row["completion"] for row in rows]
    # As mask_truncated_completions does it: one row of each group is left out, and one micro-batch has no row at all.
    cut = [masked and (i % G == 1 or i in (2, 3)) for i in range(len(rows))]
    return Samples(
        rows=[i // G for i in range(len(rows))],
        prompt_ids=[row["prompt"] for row in rows],
        completion_ids=completions,
        sampling_logps=[[0.0] * len(ids) for ids in completions],
        truncated=cut,
        in_loss=[not c for c in cut],
        advantages=[row["advantage"] for row in rows],
    )


def make_trainer(out: Path, micro: int, accumulation: int, case: dict[str, Any], **options: Any) -> Any:
    from datasets import Dataset

    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.distributed import build_accelerator

    args = PolicyConfig(
        output_dir=str(out), num_generations=G, max_completion_length=16, temperature=0.9, use_cpu=True,
        gradient_checkpointing=False, optim="sgd", learning_rate=0.0, max_grad_norm=0.0, beta=case.get("beta", 0.0),
        epsilon_high=case.get("epsilon_high"), per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation, **({"steps_per_generation": ROWS // micro} | options),
    )  # fmt: skip
    peft = case.get("peft", False)
    return PolicyTrainer(
        make_model(peft, seed=1),
        args,
        reward_funcs=[],
        train_dataset=Dataset.from_dict({"prompt": ["x"]}),
        prompt_ids=[[1]],
        tokenizer=tiny_tokenizer(),
        accelerator=build_accelerator(args),
        ref_model=make_model(False, seed=2) if case.get("beta") and not peft else None,
    )


def take_steps(trainer: Any, samples: Samples, steps: int) -> list[tuple[float, Gradients]]:
    """(loss, gradient) of each of `steps` optimizer steps on one rollout."""
    trainer.scorer.score_fixed(samples)
    if samples.old_logps:
        noise = torch.Generator().manual_seed(5)
        samples.old_logps = [
            (torch.tensor(row) + 0.3 * torch.randn(len(row), generator=noise)).tolist() for row in samples.old_logps
        ]
    kept: list[Gradients] = []
    model = trainer.accelerator.unwrap_model(trainer.policy)
    # A step zeroes the gradients, so they are read where the optimizer would.
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: kept.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    losses = []
    for _ in range(steps):
        losses.append(trainer._update(samples)["loss"])
        trainer.state.updates_in_rollout += 1
    assert len(kept) == steps
    return list(zip(losses, kept, strict=True))


def one_step(out: Path, micro: int, accumulation: int, case: dict[str, Any], loss_type: str) -> tuple[float, Gradients]:
    from mmreason.models.tiny import tiny_tokenizer

    rows = make_rows(seed=11, vocab=len(tiny_tokenizer()))
    # num_iterations=2 keeps old log-probabilities apart from the current ones, so that ratio and clip play their part.
    trainer = make_trainer(out, micro, accumulation, case, loss_type=loss_type, num_iterations=2)
    return take_steps(trainer, make_samples(rows, case.get("masked", False)), 1)[0]


def difference(left: Gradients, right: Gradients) -> float:
    assert left.keys() == right.keys() and left
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("name", CASES)
def test_gradient_does_not_depend_on_the_cut(tmp_path: Path, name: str, loss_type: str) -> None:
    whole_loss, whole = one_step(tmp_path, *CUTS[0], CASES[name], loss_type)
    assert max(g.abs().max().item() for g in whole.values()) > 1e-3, "the gradient vanishes: this would prove nothing"
    for micro, accumulation in CUTS[1:]:
        loss, gradient = one_step(tmp_path, micro, accumulation, CASES[name], loss_type)
        assert abs(loss - whole_loss) <= BOUND, (micro, accumulation)
        assert difference(gradient, whole) <= BOUND, (micro, accumulation)


@pytest.mark.parametrize("name", ["plain", "reference", "masked"])
def test_bnpo_is_the_mean_over_micro_batches(tmp_path: Path, name: str) -> None:
    """BNPO averages inside each micro-batch, so it alone changes with the cut, and by exactly that."""
    from mmreason.models.tiny import tiny_tokenizer

    case = CASES[name]
    _, whole = one_step(tmp_path, 8, 1, case, "bnpo")
    loss, cut = one_step(tmp_path, 2, 4, case, "bnpo")
    assert difference(whole, cut) > 1e-4
    rows = make_rows(seed=11, vocab=len(tiny_tokenizer()))
    # Each micro-batch as a step of its own: four optimizer steps that don't move, on one rollout.
    trainer = make_trainer(tmp_path, 2, 1, case, loss_type="bnpo", num_iterations=2)
    parts = take_steps(trainer, make_samples(rows, case.get("masked", False)), 4)
    mean = {name: torch.stack([gradient[name] for _, gradient in parts]).mean(0) for name in cut}
    assert abs(sum(value for value, _ in parts) / 4 - loss) <= BOUND
    assert difference(mean, cut) <= BOUND


def test_steps_per_generation_walks_through_the_rollout(tmp_path: Path) -> None:
    """A rollout of 8 rows feeds two optimizer steps of 4 (2 × 2), and all of it again in the second iteration."""
    from mmreason.models.tiny import tiny_tokenizer

    rows = make_rows(seed=11, vocab=len(tiny_tokenizer()))
    options = {"loss_type": "dapo", "num_iterations": 2}
    trainer = make_trainer(tmp_path, 2, 2, {}, **options)
    assert trainer.args.updates_per_rollout == 4 and not trainer.args.aligned
    steps = take_steps(trainer, make_samples(rows, False), 4)
    assert difference(steps[0][1], steps[2][1]) <= BOUND and difference(steps[1][1], steps[3][1]) <= BOUND
    # DAPO's mean over the step's tokens: weighted by their tokens, the halves make the whole.
    _, whole = one_step(tmp_path, 8, 1, {}, "dapo")
    counts = [sum(len(row["completion"]) for row in rows[i : i + 4]) for i in (0, 4)]
    parts = [{n: g * count / sum(counts) for n, g in steps[i][1].items()} for i, count in enumerate(counts)]
    assert difference({n: parts[0][n] + parts[1][n] for n in whole}, whole) <= BOUND
    assert difference(steps[0][1], steps[1][1]) > 1e-4


# ---- which prompts each process samples


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_requests_cover_every_slot_once(data: st.DataObject) -> None:
    world = data.draw(st.integers(1, 6), "processes")
    micro = data.draw(st.integers(1, 6), "micro-batch")
    steps = data.draw(st.integers(1, 4), "steps per generation")
    total = world * micro * steps
    group = data.draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]), "num_generations")
    rows = data.draw(st.integers(1, 9), "rows")
    rollout = data.draw(st.integers(0, 30), "rollout")
    prompts = [[100 + row] for row in range(rows)]
    every: list[int] = []
    for rank in range(world):
        trainer = SimpleNamespace(
            args=PolicyConfig(per_device_train_batch_size=micro, steps_per_generation=steps, num_generations=group),
            parallel=SimpleNamespace(rank=rank, size=world),
            prompts=PromptStream(PromptOrder(rows, seed=3, shuffle=True)),
            _request=lambda row, n: Request(prompts[row], n),
        )
        trainer.prompts.drawn = rollout * (total // group)
        asked = PolicyTrainer._ask(trainer, total // group)  # type: ignore[arg-type]
        requests, mine = asked.requests, asked.mine
        assert sum(request.n for request in requests) == len(mine) == micro * steps
        assert all(1 <= request.n <= group for request in requests)
        # One request per group: the engine reads a prompt once.
        slots = range(rank * micro * steps, (rank + 1) * micro * steps)
        assert len(requests) == len({slot // group for slot in slots})
        assert [request.prompt_ids for request in requests for _ in range(request.n)] == [prompts[r] for r in mine]
        every += mine
    order = PromptOrder(rows, seed=3, shuffle=True)
    first = rollout * (total // group)
    assert every == [order[first + i] for i in range(total // group) for _ in range(group)]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    positions=st.lists(st.integers(0, 400), min_size=1, max_size=20),
)
def test_prompt_order_is_a_function_of_the_position(rows: int, seed: int, positions: list[int]) -> None:
    straight = PromptOrder(rows, seed, shuffle=True)
    epochs = 401 // rows + 1
    stream = [straight[i] for i in range(epochs * rows)]
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    jumping = PromptOrder(rows, seed, shuffle=True)
    assert [jumping[i] for i in positions] == [stream[i] for i in positions]
    plain = PromptOrder(rows, seed, shuffle=False)
    assert [plain[i] for i in range(2 * rows)] == [*range(rows), *range(rows)]


def test_prompt_order_is_shuffled_anew_each_epoch() -> None:
    order, other = PromptOrder(50, 0, shuffle=True), PromptOrder(50, 1, shuffle=True)
    first, second = ([order[i] for i in range(start, start + 50)] for start in (0, 50))
    assert first != second and first != list(range(50))
    assert first != [other[i] for i in range(50)]
