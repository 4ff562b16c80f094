"""Rollouts drawn ahead: which weights drew what, what a resumed run sees, what is refused."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.rollout.engines import end_token_ids
from mmreason.rollout.hf import HFEngine
from mmreason.rollout.types import Completion, Request, Sampling
from mmreason.trainers.ahead import Asked, RolloutsAhead
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.state import CheckpointError
from mmreason.types import ConfigError


class VersionEngine:
    """Completions tell the number of syncs before them, and the seed."""

    name = "versions"

    def __init__(self, seconds: float = 0.0) -> None:
        self.version, self.seconds, self.threads = -1, seconds, set[str]()

    def sync(self) -> None:
        self.version += 1

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        self.threads.add(threading.current_thread().name)
        assert sampling.own_generators
        time.sleep(self.seconds)
        return [[Completion([self.version, seed], [0.0, float("nan")], False)] for _ in requests]

    def close(self) -> None:
        pass


def ahead(engine: Any, staleness: int, last: int) -> RolloutsAhead:
    asked = iter(range(1000))

    def ask() -> Asked:
        number = next(asked)
        return Asked([number], [number], [Request([1], 1)])

    return RolloutsAhead(engine, ask, Sampling(4), lambda number: 100 + number, staleness, last)


@pytest.mark.parametrize(
    ("staleness", "versions", "ages"),
    [(1, [0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 1, 1]), (3, [0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 1, 2, 3])],
)
@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_weights_are_a_bounded_number_of_rollouts_old(
    staleness: int, versions: list[int], ages: list[int], seconds: float
) -> None:
    engine = VersionEngine(seconds)
    drawing = ahead(engine, staleness, last=6)
    taken = [drawing.take(number) for number in range(7)]
    assert [groups[0][0].token_ids for _, groups, _ in taken] == [[v, 100 + n] for n, v in enumerate(versions)]
    assert [age for *_, age in taken] == ages
    assert [asked.rows for asked, *_ in taken] == [[n] for n in range(7)]
    assert not len(drawing), "nothing is drawn behind the last rollout"
    assert all(name.startswith("rollouts") for name in engine.threads)
    drawing.close()


def test_drawing_goes_on_beside_the_update() -> None:
    drawing = ahead(VersionEngine(0.3), 1, last=3)
    drawing.take(0)
    time.sleep(0.35)  # an update
    start = time.perf_counter()
    drawing.take(1)
    assert time.perf_counter() - start < 0.2
    drawing.close()


def test_what_is_drawn_ahead_outlives_the_process(tmp_path: Path) -> None:
    first = ahead(VersionEngine(0.05), 3, last=9)
    first.take(0)
    first.save(tmp_path / "ahead.json")
    second = ahead(VersionEngine(), 3, last=9)
    second.load(tmp_path / "ahead.json")
    assert len(second) == 3
    for number in (1, 2):
        assert repr(second.take(number)) == repr(first.take(number))
    (tmp_path / "cut.json").write_text((tmp_path / "ahead.json").read_text()[:50])
    with pytest.raises(CheckpointError, match=r"cut\.json"):
        second.load(tmp_path / "cut.json")
    with pytest.raises(ValueError, match="rollout 7 was asked for"):
        second.take(7)
    first.close()
    second.close()


def test_an_error_in_the_engine_reaches_the_run() -> None:
    class Failing(VersionEngine):
        def generate(self, requests: Any, sampling: Any, seed: int) -> list[list[Completion]]:
            if seed == 101:
                raise ConfigError("a prompt is too long")
            return super().generate(requests, sampling, seed)

    drawing = ahead(Failing(), 1, last=3)
    drawing.take(0)
    with pytest.raises(ConfigError, match="too long"):
        drawing.take(1)
    drawing.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_vllm": False}, "needs use_vllm"),
        ({"vllm_importance_sampling_correction": False}, "vllm_importance_sampling_correction"),
        ({"vllm_enable_sleep_mode": True}, "vllm_enable_sleep_mode: false"),
        ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size: 1"),
        ({"dynamic_sampling": True}, "dynamic_sampling: false"),
        ({"max_staleness": -1}, "at least 0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PolicyConfig(**({"use_vllm": True, "max_staleness": 1} | options)).resolve(1)


def test_a_server_draws_ahead_for_one_process() -> None:
    args = PolicyConfig(use_vllm=True, max_staleness=1, vllm_mode="server")
    args.resolve(1)
    with pytest.raises(ConfigError, match="one training process"):
        PolicyConfig(use_vllm=True, max_staleness=1, vllm_mode="server").resolve(2)


# ---- in the loop, with an engine that samples from a copy of the weights


class CopyEngine(HFEngine):
    """Generates with transformers from weights of its own.

    One at a time: the thread of a run that has died may still draw, and transformers draws from one generator.
    """

    drawing = threading.Lock()

    def __init__(self, model: Any, accelerator: Any) -> None:
        tokenizer = tiny_tokenizer()
        eos = end_token_ids(model, tokenizer)
        super().__init__(copy.deepcopy(model), accelerator, pad_token_id=tokenizer.pad_token_id, eos_token_ids=eos)
        self.source = model

    def generate(self, requests: Any, sampling: Any, seed: int) -> list[list[Completion]]:
        with self.drawing:
            return super().generate(requests, sampling, seed)

    def sync(self) -> None:
        self.model.load_state_dict(self.source.state_dict())


def run(
    out: Path, monkeypatch: pytest.MonkeyPatch, staleness: int, steps: int, resume: bool = False, **options: Any
) -> Any:
    import mmreason.trainers.policy as policy
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.state import find_checkpoint

    monkeypatch.setattr(
        policy, "build_engine", lambda args, model, accelerator, *_, **__: CopyEngine(model, accelerator)
    )
    settings = {
        "output_dir": str(out), "use_vllm": True, "max_staleness": staleness, "max_steps": steps, "num_generations": 4,
        "per_device_train_batch_size": 8, "max_completion_length": 6, "learning_rate": 5e-3, "use_cpu": True,
        "gradient_checkpointing": False, "save_steps": 3, "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = PolicyConfig(**(settings | options))
    rows = 12
    trainer = policy.PolicyTrainer(
        tiny_decoder(seed=1),
        args,
        reward_funcs=[lambda completion_ids, **_: [float(sum(ids) % 5) for ids in completion_ids]],
        train_dataset=Dataset.from_dict({"prompt": [f"row {i}" for i in range(rows)]}),
        prompt_ids=[[i + 3, i + 4] for i in range(rows)],
        tokenizer=tiny_tokenizer(),
        accelerator=build_accelerator(args),
    )
    if resume:
        found = find_checkpoint(out, "auto")
        assert found is not None
        trainer.resume(found)
    trainer.train()
    trainer.close()
    return trainer


def rollouts(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    paths = sorted((out / "rollouts").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return dict(trainer.accelerator.unwrap_model(trainer.policy).state_dict())


def test_rollouts_are_drawn_with_the_weights_of_the_rollout_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a literal replay: each rollout sampled again from the checkpoint that its weights were taken at."""
    trainer = run(tmp_path / "ahead", monkeypatch, 1, 5, save_steps=1, save_total_limit=None)
    lines = [json.loads(line) for line in (tmp_path / "ahead" / "metrics.jsonl").read_text().splitlines()]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1, 1]
    # The policy moves so far in a step that its ratio to what sampled is away from 1 where rollouts are stale.
    gaps = [line["sampling/sampling_logp_difference/max"] for line in lines]
    assert gaps[0] < 1e-4 < 1e-2 < min(gaps[1:])
    found, state = rollouts(tmp_path / "ahead"), trainer.state
    assert state.step == 5
    for number in range(1, 5):
        model = tiny_decoder(seed=1)
        if number > 1:
            model = type(model).from_pretrained(tmp_path / "ahead" / f"checkpoint-{number - 1}")
        engine = CopyEngine(model, trainer.accelerator)
        mine = [row for row in found if row["rollout"] == number + 1]
        ids = [trainer.prompts.order[2 * number + i] for i in range(2)]
        again = engine.generate(
            [Request([row + 3, row + 4], 4) for row in ids], trainer.sampling, trainer._seed(number)
        )
        assert [row["completion_ids"] for row in mine] == [c.token_ids for group in again for c in group]


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_resumed_run_ends_where_the_unbroken_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    straight = weights(run(tmp_path / "straight", monkeypatch, staleness, 7))
    broken = tmp_path / "broken"
    die_in_step_5(broken, monkeypatch, staleness)
    resumed = weights(run(broken, monkeypatch, staleness, 7, resume=True))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert rollouts(broken) == rollouts(tmp_path / "straight")


def die_in_step_5(out: Path, monkeypatch: pytest.MonkeyPatch, staleness: int) -> None:
    """A run of 7 steps that dies in step 5, two steps behind its checkpoint."""
    import mmreason.trainers.policy as policy

    with monkeypatch.context() as patch:
        update = policy.PolicyTrainer._update

        def dies(self: Any, samples: Any) -> dict[str, float]:
            if self.state.step == 4:
                raise KeyboardInterrupt
            return update(self, samples)

        patch.setattr(policy.PolicyTrainer, "_update", dies)
        with pytest.raises(KeyboardInterrupt):
            run(out, patch, staleness, 7)
