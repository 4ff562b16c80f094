"""metrics.jsonl, the rollouts' parquet files, a rollout in a checkpoint, and sums over micro-batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples, StepMetrics, unpad
from mmreason.trainers.records import RunRecords, tracker_config, write_rows
from mmreason.trainers.state import CheckpointError
from mmreason.types import MMReasonError


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, enabled=True)
    records.metrics(1, {"loss": 0.5, "kl": math.nan, "grad_norm": math.inf})
    records.metrics(2, {"loss": 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5, "kl": None, "grad_norm": None}, {"step": 2, "loss": 0.25}]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    records = RunRecords(tmp_path / "run", enabled=False)
    records.metrics(1, {"loss": 0.5})
    records.rollout(1, [{"a": 1}])
    records.rewind(0, 0)
    assert not (tmp_path / "run").exists()


def test_lone_surrogates_within_messages(tmp_path: Path) -> None:
    """The arguments of a tool call that a model wrote with \\ud800 in them: nested texts, which UTF-8 can't hold."""
    call = {"function": {"name": "calculator", "arguments": {"expression": "\ud800"}}}
    rows = [{"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}, {"messages": None}]
    write_rows(tmp_path / "rows.parquet", rows)
    read = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert json.loads(read[0]["messages"]) == rows[0]["messages"] and read[1]["messages"] is None


@pytest.mark.parametrize("rest", ["", '{"step": 4, "los', "\x00\x00\x00"])
def test_rewind_forgets_what_comes_after_and_a_line_cut_off(tmp_path: Path, rest: str) -> None:
    records = RunRecords(tmp_path, enabled=True)
    for step in (1, 2, 3):
        records.metrics(step, {"loss": float(step)})
        records.rollout(step, [{"completion": f"{step}"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    records.rewind(2, 2)
    records.metrics(3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == [f"rollout-00000{i}.parquet" for i in (1, 2)]
    RunRecords(tmp_path / "empty", enabled=True).rewind(0, 0)


def test_rollouts_hold_whatever_models_and_rewards_give(tmp_path: Path) -> None:
    rows = [
        {"completion": "lone \ud800 surrogate", "ids": [1, 2], "verdict": None, "mixed": 1, "nested": {"a": [1, "b"]}},
        {"completion": "\x00\uffff\U0001f600", "ids": [], "verdict": "wrong", "mixed": "x", "big": 2**70},
    ]
    RunRecords(tmp_path, enabled=True).rollout(7, rows)
    table = pq.read_table(tmp_path / "rollouts" / "rollout-000007.parquet").to_pylist()
    assert [row["completion"] for row in table] == ["lone ? surrogate", "\x00\uffff\U0001f600"]
    assert [row["ids"] for row in table] == [[1, 2], []]
    assert [row["verdict"] for row in table] == [None, "wrong"]
    assert [row["mixed"] for row in table] == ["1", '"x"']
    assert json.loads(table[1]["big"]) == 2**70 and table[0]["big"] is None
    assert list((tmp_path / "rollouts").iterdir()) == [tmp_path / "rollouts" / "rollout-000007.parquet"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, enabled=True)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MMReasonError, match=r"metrics\.jsonl can't be written .* checkpoints are untouched"):
        records.metrics(1, {})
    (tmp_path / "rollouts").write_text("")
    with pytest.raises(MMReasonError, match="rollout-000001"):
        records.rollout(1, [{"a": 1}])


def test_tracker_config_is_flat() -> None:
    flat = tracker_config(PolicyConfig(report_to=["tensorboard"], generation_kwargs={"a": 1}))
    assert all(isinstance(value, (int, float, str, bool)) for value in flat.values())
    assert flat["report_to"] == '["tensorboard"]' and flat["generation_kwargs"] == '{"a": 1}' and "min_p" not in flat


# ---- a rollout in a checkpoint

FLOATS = st.floats(width=32, allow_nan=False)
COMPLETIONS = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), FLOATS), max_size=5), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(completions=COMPLETIONS, advantage=FLOATS, old=st.booleans())
def test_samples_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, completions: list[list[tuple[int, float]]], advantage: float, old: bool
) -> None:
    logps = [[logp for _, logp in row] for row in completions]
    samples = Samples(
        rows=list(range(len(completions))),
        prompt_ids=[[1, 2]] * len(completions),
        completion_ids=[[token for token, _ in row] for row in completions],
        sampling_logps=logps,
        truncated=[i % 2 == 0 for i in range(len(completions))],
        in_loss=[i % 3 != 0 for i in range(len(completions))],
        advantages=[advantage] * len(completions),
        old_logps=logps if old else [],
    )
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    samples.save(path)
    assert Samples.load(path) == samples
    assert samples.loss_tokens() == sum(len(row) for i, row in enumerate(completions) if i % 3 != 0)
    part = samples.slice(0, 1)
    assert len(part) == 1 and part.completion_ids == samples.completion_ids[:1] and part.ref_logps == []


def test_samples_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "samples-00000.parquet"
    for content in (None, b"", b"PAR1 but not really"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match="samples-00000.parquet"):
            Samples.load(path)


def test_unpad() -> None:
    assert unpad(torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), [[5, 6], [7]]) == [[1.0, 2.0], [3.0]]


# ---- sums over micro-batches and processes


def test_step_metrics_weigh_by_count() -> None:
    metrics = StepMetrics()
    for total, count, value in ((3.0, 2.0, -5.0), (9.0, 1.0, -7.0)):
        metrics.mean("kl", torch.tensor(total), torch.tensor(count))
        metrics.maximum("gap", torch.tensor(value))
    metrics.mean("empty", torch.tensor(0.0), torch.tensor(0.0))
    # Two processes, of which the other has the same sums and a larger maximum.
    found = metrics.reduce(lambda rows: torch.cat([rows, rows + (rows < 0)]))
    assert found["kl"] == pytest.approx(4.0) and found["gap"] == -4.0 and math.isnan(found["empty"])
