"""Every YAML of distillation: read and checked; the demo's own, on a few rows."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason._adapters import check_adapter
from mmreason.config import parse_config
from mmreason.trainers.model_parts import check_parts
from recipes.distill import OPTIONS, main
from tests.recipes.launch import ROOT
from tests.recipes.test_configs import header

FOLDER = ROOT / "recipes" / "configs" / "distill"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def read(name: str) -> Any:
    return parse_config(OPTIONS, ["--config", str(FOLDER / f"{name}.yaml")])


def test_the_set_of_configs() -> None:
    assert [path.stem for path in CONFIGS] == ["embedded", "on-policy", "soft-stored"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_opens_with_the_command_that_runs_it(path: Path) -> None:
    words, _ = header(path)
    assert words[:2] == ["accelerate", "launch"] and "recipes/distill.py" in words
    if path.stem == "embedded":
        assert words == ["accelerate", "launch", "recipes/distill.py"]
    else:
        assert words[words.index("--config") + 1] == f"recipes/configs/distill/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_its_options_can_work(path: Path) -> None:
    model, _, args = read(path.stem)
    args.check()
    check_parts(model)
    check_adapter(model, args)
    assert args.output_dir.startswith("outputs/")
    known = {field.name for cls in OPTIONS for field in fields(cls)}
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known


def test_a_teacher_writes_and_its_right_texts_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo on a few problems: learned are the texts that the verifier calls right; a second run samples nothing."""
    import pyarrow.parquet as pq

    from mmreason.answers import verify

    flags = [
        "--config", str(FOLDER / "embedded.yaml"), "--word_problems", "{level: 1, n: 80, n_test: 4, n_unseen: 4}",
        "--max_steps", "2", "--per_device_train_batch_size", "4", "--eval_samples", "2", "--save_steps", "1",
        "--extra_test_splits", "null", "--use_cpu", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    main(flags)
    said = capsys.readouterr().out
    rows = [
        row
        for path in sorted((tmp_path / "run" / "texts").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == 320 and [len({r["row"] for r in rows}), max(r["row"] for r in rows)] == [80, 79]
    from data_builders import word_problems

    data = pq.read_table(
        Path(word_problems.cached(level="1", n=80, n_test=4, n_unseen=4)) / "train.parquet"
    ).to_pylist()
    right = {(r["row"], r["text"]) for r in rows
             if not r["truncated"] and verify(r["text"], data[r["row"]]["answer"]).correct}  # fmt: skip
    assert 20 < len(right) < 300 and f"{len(right)} of 320 texts of the teacher are learned from" in said
    assert f"training: {len(right)} rows" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "texts").glob("*.parquet")}
    main([*flags, "--max_steps", "3"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "Continuing from" in capsys.readouterr().out
