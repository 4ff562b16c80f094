"""Guards: what they see, when they speak, what a checkpoint keeps of them, and the step that is not taken."""

from __future__ import annotations

import itertools
import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.guard_options import GUARDS, guard_options
from mmreason.trainers.guards import GuardError, Guards
from mmreason.trainers.state import Checkpoints, RunState, find_checkpoint, write_alarms
from mmreason.types import ConfigError

Make = Callable[..., Guards]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    parallel = DataParallel(Accelerator(cpu=True))
    return lambda **block: Guards(block, parallel, str(tmp_path))


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "guards.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def feed(guards: Guards, metric: str, values: list[float], first: int = 1, **more: float) -> list[dict[str, float]]:
    return [guards.observe(step, {metric: value, **more}) for step, value in enumerate(values, first)]


def begins(guards: Guards, folder: Path, name: str) -> list[tuple[int, str]]:
    return [(e["step"], e["event"]) for e in events(folder) if e["guard"] == name]


# ---- options


def test_defaults_only_warn_except_for_what_is_not_finite() -> None:
    options = guard_options(None)
    assert list(options) == list(GUARDS)
    assert {name for name, one in options.items() if one["action"] != "warn"} == {"non_finite"}


def test_shorthands() -> None:
    options = guard_options({"action": "off", "kl": {"above": 0.5}, "entropy": "stop", "reward": False})
    assert options["kl"] == {"action": "off", "above": 0.5, "window": 5}
    assert options["entropy"]["action"] == "stop" and options["reward"]["action"] == "off"
    assert {options[name]["action"] for name in ("non_finite", "length", "signal", "sampling")} == {"off"}
    assert guard_options({"entropy": {"below": None}})["entropy"]["below"] is None


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"entropi": "stop"}, "no guard 'entropi'.*Did you mean 'entropy'"),
        ({"kl": {"abov": 1}}, r"guards\.kl has no option 'abov'; it has action, above, window.*Did you mean 'above'"),
        ({"kl": "halt"}, r"guards\.kl\.action='halt' must be warn, stop or off"),
        ({"action": True}, "guards.action=True must be"),
        ({"kl": {"above": "high"}}, r"guards\.kl\.above='high' must be a number, or null"),
        ({"kl": {"above": float("nan")}}, "must be a number"),
        ({"kl": {"above": -1}}, "must be above 0"),
        ({"kl": {"window": 0}}, "whole number of at least 1"),
        ({"kl": {"window": 2.5}}, "whole number of at least 1"),
        ({"kl": {"window": None}}, "must be a number"),
        ({"reward": {"drop": 0}}, "must be above 0"),
    ],
)
def test_options_that_cannot_be_meant_are_named(block: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(guards=dict(block)).resolve(1)


# ---- each guard, on series made for it


def test_kl_above_its_bound(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guards = make(kl={"above": 0.5, "window": 2})
    out = feed(guards, "kl", [0.1, 0.4, 0.7, 0.9, 0.9, 0.0, 0.0])
    assert [row.get("guards/kl") for row in out] == [None, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert out[1]["guards/kl/high"] == 0.5 and "guards/kl/low" not in out[1]
    assert begins(guards, tmp_path, "kl") == [(3, "alarm"), (6, "over")]
    said = capsys.readouterr().err
    assert "guard kl: KL to the reference, nats per token: 0.55 (mean of the last 2), above 0.5, since step 3" in said
    assert "beta" in said and said.count("WARNING") == 2
    assert guards.alarms() == {}


def test_entropy_falls_and_rises(make: Make, tmp_path: Path) -> None:
    guards = make(entropy={"below": 0.1, "rise": 1.0, "window": 1})
    out = feed(guards, "entropy", [0.8, 0.5, 0.05, 0.3, 1.9])
    assert [row["guards/entropy"] for row in out] == [0, 0, 1, 0, 1]
    assert (out[0]["guards/entropy/low"], out[0]["guards/entropy/high"]) == (0.1, 1.8)
    assert [e["message"].split(",")[2].strip() for e in events(tmp_path) if e["event"] == "alarm"] == [
        "below 0.1", "above 1.8"
    ]  # fmt: skip


def test_reward_falls_from_its_own_best(make: Make) -> None:
    guards = make(reward={"drop": 0.5, "window": 2})
    out = feed(guards, "reward", [0.2, 0.2, 0.6, 0.8, 0.7, 0.5, 0.4], reward_std=0.4)
    # The best mean of two is 0.75 (steps 4 and 5 have 0.7 and 0.75), half a standard deviation below it is 0.55.
    assert [row.get("guards/reward") for row in out] == [None, 0, 0, 0, 0, 0, 1]
    assert out[-1]["guards/reward/low"] == pytest.approx(0.55)


def test_a_reward_without_spread_has_no_bound(make: Make) -> None:
    out = feed(make(reward={"window": 1}), "reward", [1.0, 1.0, 0.2], reward_std=0.0)
    assert "guards/reward/low" not in out[-1] and out[-1]["guards/reward"] == 0.0


def test_lengths(make: Make) -> None:
    guards = make(length={"growth": 2.0, "window": 1}, clipped={"above": 0.5, "window": 1})
    out = feed(guards, "completions/mean_length", [10.0, 19.0, 21.0])
    assert [row["guards/length"] for row in out] == [0, 0, 1] and out[0]["guards/length/high"] == 20.0
    assert [r["guards/clipped"] for r in feed(guards, "completions/clipped_ratio", [0.5, 0.6], 4)] == [0, 1]


def test_groups_without_signal(make: Make) -> None:
    out = feed(make(signal={"window": 3}), "frac_reward_zero_std", [1.0, 1.0, 1.0, 0.5])
    assert [row.get("guards/signal") for row in out] == [None, None, 1, 0]


def test_importance_ratio_to_both_sides(make: Make) -> None:
    guards = make(sampling={"off": 0.1, "window": 1})
    out = feed(guards, "sampling/importance_sampling_ratio/mean", [1.0, 0.87, 1.05, 1.2])
    assert [row["guards/sampling"] for row in out] == [0, 1, 0, 1]


def test_what_is_missing_or_not_finite_is_no_observation(make: Make) -> None:
    guards = make(reward={"window": 1})
    assert "guards/reward" not in guards.observe(1, {"reward": math.nan, "reward_std": 0.0})
    assert "guards/reward" not in guards.observe(2, {"loss": 1.0})
    assert guards.observe(3, {"reward": 1.0, "reward_std": math.nan})["guards/reward"] == 0.0


def test_off_says_and_measures_nothing(make: Make, tmp_path: Path) -> None:
    guards = make(action="off")
    assert feed(guards, "kl", [9.0] * 9) == [{}] * 9 and events(tmp_path) == []


# ---- stopping, and the last good checkpoint


def fill(alarms: dict[str, int]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state").mkdir()
        write_alarms(folder, alarms)

    return write


def test_stop_names_the_last_checkpoint_without_an_alarm(make: Make, tmp_path: Path) -> None:
    guards = make(kl={"action": "stop", "above": 0.5, "window": 1})
    checkpoints = Checkpoints(tmp_path, guards.parallel, 1)
    feed(guards, "kl", [0.1])
    guards.stop_if_asked(checkpoints)
    good = checkpoints.save(RunState(step=1), fill(guards.alarms()))
    feed(guards, "kl", [0.9], 2)
    assert guards.alarms() == {"kl": 2}
    with pytest.raises(GuardError, match=rf"step 2: guard kl: .* 0\.9 .*--resume {good}") as caught:
        guards.stop_if_asked(checkpoints)
    assert (caught.value.guard, caught.value.step) == ("kl", 2)


def test_stop_without_a_good_checkpoint(make: Make, tmp_path: Path) -> None:
    guards = make(kl={"action": "stop", "above": 0.5, "window": 1})
    feed(guards, "kl", [0.9])
    with pytest.raises(GuardError, match="no checkpoint without an alarm.*--overwrite_output_dir"):
        guards.stop_if_asked(Checkpoints(tmp_path, guards.parallel, 1))


def test_checkpoints_in_alarm_do_not_rotate_out_the_last_good_one(make: Make, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, make().parallel, 2)
    for step, alarms in enumerate([{}, {}, {"kl": 3}, {"kl": 3}, {"kl": 3}], 1):
        checkpoints.save(RunState(step=step), fill(alarms))
    assert [path.name for path in checkpoints.all()] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert checkpoints.latest_good() == tmp_path / "checkpoint-2"
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-5"  # the same command goes on as ever
    checkpoints.save(RunState(step=6), fill({}))
    assert [path.name for path in checkpoints.all()] == ["checkpoint-5", "checkpoint-6"]


# ---- resume

SERIES = st.lists(st.floats(0, 3), min_size=2, max_size=40)


@settings(deadline=None, max_examples=30)
@given(values=SERIES, cut=st.integers(0, 40))
def test_a_continued_run_judges_like_an_unbroken_one(values: list[float], cut: int) -> None:
    parallel = DataParallel(Accelerator(cpu=True))

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        block = {"reward": {"window": 3}, "entropy": {"window": 2, "rise": 0.5}}
        unbroken, before = Guards(block, parallel, one), Guards(block, parallel, two)
        rows = [{"reward": v, "reward_std": v / 2, "entropy": 3 - v} for v in values]
        expected = [unbroken.observe(i, row) for i, row in enumerate(rows)]
        found = [before.observe(i, row) for i, row in enumerate(rows[:cut])]
        kept = json.loads(json.dumps(before.state_dict()))  # as a checkpoint keeps it
        before.observe(cut, {"reward": 0.0, "reward_std": 9.0})  # then it goes on, and is killed
        after = Guards(block, parallel, two)
        after.load_state_dict(kept)
        after.rewind(cut - 1)
        found += [after.observe(i, row) for i, row in enumerate(rows) if i >= cut]
        assert found == expected
        assert events(Path(one)) == events(Path(two))
        assert unbroken.state_dict() == after.state_dict()


def test_rewind_drops_a_line_that_a_kill_cut_off(make: Make, tmp_path: Path) -> None:
    guards = make(kl={"above": 0.5, "window": 1})
    feed(guards, "kl", [0.9, 0.1, 0.9])
    with (tmp_path / "guards.jsonl").open("a") as file:
        file.write('{"step": 4, "gu')
    guards.rewind(2)
    assert [e["step"] for e in events(tmp_path)] == [1, 2]


def test_a_guard_that_is_switched_off_on_resume_is_in_no_alarm(make: Make) -> None:
    guards = make(kl={"above": 0.5, "window": 1})
    feed(guards, "kl", [0.9])
    after = make(kl="off")
    after.load_state_dict(guards.state_dict())
    assert after.alarms() == {}


# ---- the step that is not taken


def trainer_with_bad_steps(out: Path, bad: set[int], **options: Any) -> Any:
    """A real trainer on one prompt; in the steps `bad` (counted from 0) the loss is multiplied by NaN."""
    from datasets import Dataset

    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.policy import PolicyTrainer
    from tests.trainers.trl_parity import make_model

    args = PolicyConfig(
        output_dir=str(out), num_generations=4, max_completion_length=4, use_cpu=True, gradient_checkpointing=False,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, max_steps=6, **options,
    )  # fmt: skip

    def spread(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(sum(ids) % 7) for ids in completion_ids]

    trainer = PolicyTrainer(
        make_model(False, seed=1),
        args,
        reward_funcs=[spread],
        train_dataset=Dataset.from_dict({"prompt": ["x"]}),
        prompt_ids=[[1, 2]],
        tokenizer=tiny_tokenizer(),
        accelerator=build_accelerator(args),
    )
    real, calls = trainer.loss, iter(range(100))

    def loss(*inputs: Any) -> torch.Tensor:
        # Only the second micro-batch: the step's gradient is the sum of both.
        call = next(calls)
        value: torch.Tensor = real(*inputs)
        return value * math.nan if call % 2 and trainer.state.step in bad else value

    trainer.loss = loss
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]).clone()


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_gradient_that_is_not_finite_is_not_used(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(tmp_path, {2})
    seen: list[torch.Tensor] = []
    report = trainer.reporter.step
    trainer.reporter.step = lambda *args: (seen.append(weights(trainer)), report(*args))
    trainer.train()
    assert all(torch.isfinite(one).all() for one in seen)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True, False, True, True, True]
    rows = lines(tmp_path)
    assert [row["guards/non_finite"] for row in rows] == [0, 0, 1, 0, 0, 0]
    assert rows[2]["loss"] is None and rows[2]["grad_norm"] is None and rows[5]["guards/skipped_steps"] == 1
    (event,) = [e for e in events(tmp_path) if e["guard"] == "non_finite"]
    assert event["step"] == 3 and "step 3 was not taken" in event["message"]


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(
        tmp_path, {0, 2, 3, 4, 5}, guards={"non_finite": {"in_a_row": 3}}, save_steps=1, save_total_limit=1
    )
    with pytest.raises(GuardError, match=rf"step 5 was not taken.* 3 in a row.*--resume {tmp_path}/checkpoint-2"):
        trainer.train()
    # 3 and 4 were written in the alarm; the one before it stays beside the newest.
    assert [path.name for path in trainer.checkpoints.all()] == ["checkpoint-2", "checkpoint-4"]
    assert json.loads((tmp_path / "checkpoint-4" / "alarms.json").read_text()) == {"non_finite": 3}
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_off_takes_the_step_all_the_same(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(tmp_path, {5}, guards={"non_finite": "off"})
    trainer.train()
    assert not torch.isfinite(weights(trainer)).all()


def test_warn_never_stops(tmp_path: Path) -> None:
    trainer = trainer_with_bad_steps(tmp_path, set(range(6)), guards={"non_finite": {"action": "warn", "in_a_row": 1}})
    before = weights(trainer)
    assert trainer.train().step == 6 and torch.equal(weights(trainer), before)


# ---- the page about them


def test_the_table_of_the_docs_is_that_of_the_code(repo_root: Path) -> None:
    text = (repo_root / "docs" / "guards.md").read_text(encoding="utf-8")
    rows = {
        name: (watched, default)
        for name, watched, default in re.findall(r"^\| (\w+) \| (.*?) \| .* \| (.*?) \|$", text, re.M)
    }
    assert list(rows)[1:] == list(GUARDS)  # after the head
    for name, kind in GUARDS.items():
        watched, default = rows[name]
        assert f"`{kind.metric}`" in watched
        bounds = ", ".join(f"{key}: {value}" for key, value in kind.defaults.items() if key != "action")
        assert default == f"{kind.defaults['action']}, {bounds}"
