"""The sample of groups that a page shows, and rollout files of any schema, whole and damaged."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmreason.report.data import Limits
from mmreason.report.rollouts import GroupSize, RolloutReader, choose_groups
from tests.report.synthetic_run import edit_rollout, make_run


def files_of(count: int, groups: int, completions: int = 4, tokens: int = 40) -> list[list[GroupSize]]:
    return [[GroupSize(g, completions, tokens) for g in range(groups)] for _ in range(count)]


# ---- choosing


def test_everything_is_shown_where_it_fits() -> None:
    assert choose_groups(files_of(5, 3), Limits()) == [[0, 1, 2]] * 5
    assert choose_groups([], Limits()) == []


def test_a_sample_holds_first_and_last_step_whole_and_spreads_over_the_rest() -> None:
    limits = Limits(completions=400, tokens=10**9)
    chosen = choose_groups(files_of(100, 8), limits)
    assert sum(map(len, chosen)) * 4 == 400
    assert chosen[0] == chosen[-1] == list(range(8))
    between = [i for i, groups in enumerate(chosen) if groups and 0 < i < 99]
    assert max(b - a for a, b in zip([0, *between], [*between, 99], strict=True)) <= 2
    assert max(len(groups) for groups in chosen[1:-1]) == 1
    # No place within the batch is preferred.
    assert max(Counter(g for groups in chosen[1:-1] for g in groups).values()) <= 2 * 84 / 8


def test_tokens_are_limited_as_well_as_completions() -> None:
    chosen = choose_groups(files_of(50, 4, tokens=1000), Limits(completions=10**9, tokens=20_000))
    assert sum(map(len, chosen)) == 20


def test_first_and_last_step_leave_half_of_the_page_to_the_others() -> None:
    chosen = choose_groups(files_of(9, 1000), Limits(completions=400, tokens=10**9))
    assert len(chosen[0]) >= 25 and len(chosen[-1]) >= 25
    assert min(map(len, chosen)) >= 7


def test_one_group_is_shown_however_large_it_is() -> None:
    assert choose_groups(files_of(3, 2, tokens=10**6), Limits(tokens=10)) == [[0], [], []]


# ---- reading


def read(run: Path, limits: Limits | None = None) -> tuple:
    return RolloutReader().read(run / "rollouts", limits or Limits())


def test_statistics_and_texts_of_a_run(run: Path) -> None:
    found, problems = read(run)
    assert problems == []
    assert (len(found.steps), found.total_completions, found.total_groups, found.shown) == (12, 144, 36, 144)
    table = pq.read_table(run / "rollouts" / "rollout-000005.parquet").to_pylist()
    step = found.steps[4]
    # The column holds the updates before the rollout; the page counts the update that learns from it.
    assert (step.step, step.rollout, table[0]["step"]) == (5, 5, 4)
    assert step.mean_reward == pytest.approx(sum(row["reward"] for row in table) / 12)
    assert step.mean_length == pytest.approx(sum(row["completion_length"] for row in table) / 12)
    assert step.verdicts == Counter(row["verdict"] for row in table)
    group = next(g for g in found.groups if (g.step, g.group) == (5, 1))
    rows = [row for row in table if row["group"] == 1]
    assert (group.id, group.prompt, group.answer) == (rows[0]["id"], rows[0]["prompt"], rows[0]["answer"])
    for completion, row in zip(group.completions, rows, strict=True):
        assert (completion.text, completion.tokens) == (row["completion"], row["completion_tokens"])
        assert completion.logps == row["sampling_logps"]
        assert (completion.reward, completion.advantage) == (row["reward"], row["advantage"])
        assert completion.extra["rewards/accuracy_reward"] == pytest.approx(row["reward"])


def test_statistics_use_what_the_sample_leaves_out(run: Path) -> None:
    found, _ = read(run, Limits(completions=16))
    assert (found.shown, found.total_completions) == (16, 144)
    assert sum(step.verdicts.total() for step in found.steps) == 144


def test_a_half_written_file_is_skipped_and_named(run: Path) -> None:
    path = run / "rollouts" / "rollout-000004.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (run / "rollouts" / "rollout-000006.parquet").write_bytes(b"")
    found, problems = read(run)
    assert [step.rollout for step in found.steps] == [1, 2, 3, 5, 7, 8, 9, 10, 11, 12]
    assert len(problems) == 2
    assert problems[0].startswith("rollouts/rollout-000004.parquet can't be read (Parquet magic bytes not found")
    assert problems[1].startswith("rollouts/rollout-000006.parquet can't be read (") and problems[1].endswith("skipped")


def test_a_file_with_damaged_texts_keeps_its_statistics(run: Path) -> None:
    path = run / "rollouts" / "rollout-000004.parquet"
    content = bytearray(path.read_bytes())
    column = next(
        group
        for i in range(100)
        if (group := pq.ParquetFile(path).metadata.row_group(0).column(i)).path_in_schema == "prompt"
    )
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(content))
    reader = RolloutReader()
    for _ in range(2):  # said each time, once
        found, problems = reader.read(run / "rollouts", Limits())
        assert len(problems) == 1 and "rollout-000004.parquet can't be read whole" in problems[0]
        assert (len(found.steps), found.total_completions, found.shown) == (12, 144, 132)


def test_a_temporary_file_is_not_read(run: Path) -> None:
    (run / "rollouts" / "rollout-000013.tmp").write_bytes(b"PAR1")
    assert read(run)[1] == []


def test_no_rollouts(tmp_path: Path) -> None:
    assert read(tmp_path) == (None, [])


def test_only_unreadable_rollouts(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "rollout-000001.parquet").write_bytes(b"no parquet")
    found, problems = read(tmp_path)
    assert (found.steps, found.groups, found.shown) == ([], [], 0)
    assert len(problems) == 1


@pytest.mark.parametrize(
    "missing",
    [
        "rollout",
        "step",
        "group",
        "id",
        "prompt",
        "answer",
        "completion_length",
        "truncated",
        "reward",
        "advantage",
        "completion_ids",
        "completion_tokens",
        "sampling_logps",
        "verdict",
        "extracted",
    ],
)
def test_any_column_may_be_missing(run: Path, missing: str) -> None:
    for path in (run / "rollouts").glob("*.parquet"):
        edit_rollout(path, **{missing: None})
    found, problems = read(run)
    assert problems == []
    assert (found.shown, found.total_groups, [s.step for s in found.steps]) == (144, 36, list(range(1, 13)))
    assert found.has_tokens == (missing not in ("completion_tokens", "sampling_logps"))


def test_other_types_and_missing_values(tmp_path: Path) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    rows = {
        "step": [4.0, 4.0, 4.0],
        "prompt": ["a", "a", "b"],
        "completion": [None, "x", "y"],
        "reward": ["0.5", None, "{}"],
        "advantage": [[0.5, math.nan], [1.0, 2.0], None],
        "completion_tokens": [["x", None], None, []],
        "sampling_logps": [[-0.5, -math.inf], None, []],
        "logged": [math.inf, 2.5, None],
        "nested": [{"a": 1}, {"a": 2}, {"a": 3}],
    }
    pq.write_table(pa.table({name: pa.array(values) for name, values in rows.items()}), folder / "any name.parquet")
    found, problems = read(tmp_path)
    assert problems == []
    first, second, third = (c for group in found.groups for c in group.completions)
    assert [len(group.completions) for group in found.groups] == [2, 1]
    assert [c.reward for c in (first, second, third)] == [0.5, None, None]
    assert (first.text, first.tokens, first.logps, first.length) == ("", ["x", ""], [-0.5, None], 2)
    assert first.advantage == [0.5, None] and third.advantage is None
    assert (first.extra, second.extra, third.extra) == ({}, {"logged": 2.5}, {})
    assert found.steps[0].step == 5 and found.steps[0].mean_reward == 0.5


def test_long_completions_are_cut(run: Path) -> None:
    found, _ = read(run, Limits(tokens_per_completion=3, text_characters=5))
    completion = max((c for group in found.groups for c in group.completions), key=lambda c: c.length)
    assert completion.length > 3
    assert len(completion.tokens) == len(completion.logps) == 3
    assert completion.text[5:].startswith(" … [") and completion.text.endswith("more characters]")


def test_a_reader_takes_up_new_changed_and_vanished_files(run: Path) -> None:
    reader = RolloutReader()
    limits = Limits(completions=60)
    reader.read(run / "rollouts", limits)
    make_run(run, steps=14, seed=3)
    (run / "rollouts" / "rollout-000002.parquet").unlink()
    again, problems = reader.read(run / "rollouts", limits)
    fresh, _ = read(run, limits)
    assert problems == []
    assert again == fresh and len(again.steps) == 13


def test_a_reader_does_not_read_unchanged_files_again(run: Path) -> None:
    reader = RolloutReader()
    before, _ = reader.read(run / "rollouts", Limits())
    for path in (run / "rollouts").glob("*.parquet"):  # other bytes behind the same time and size
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after, problems = reader.read(run / "rollouts", Limits())
    assert problems == [] and after == before
