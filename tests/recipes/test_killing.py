"""The driver of the kill tests: it kills where it says, notices what differs, and its places are still in the code."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.recipes.killing import Moment, assert_killed_run_ends_alike, assert_same_run, kill_at
from tests.recipes.test_resume import SETTINGS
from tests.soak.test_resume_soak import PLACES

# Counts to six in a file, a line a step, and goes on where the file ends. "sloppy" forgets a line when it goes on.
COUNTER = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
out.mkdir(parents=True, exist_ok=True)
lines = out / "metrics.jsonl"
done = lines.read_text().splitlines() if lines.exists() else []
if done:
    print("Continuing from", len(done))
    if "sloppy" in sys.argv:
        lines.write_text("".join(json.dumps(json.loads(line) | {"loss": 0.5}) + chr(10) for line in done))
for step in range(len(done) + 1, 7):
    with lines.open("a") as file:
        file.write(json.dumps({"step": step, "loss": step / 3, "time/step": id(file)}) + chr(10))
    if step == 3:
        (out / "three").mkdir(exist_ok=True)
"""


def words(script: Path, *flags: str) -> Any:
    return lambda folder: [sys.executable, str(script), "--output_dir", str(folder), *flags]


def same_lines(expected: Path, found: Path) -> None:
    left, right = ([json.loads(line) for line in (p / "metrics.jsonl").open()] for p in (expected, found))
    assert [(row["step"], row["loss"]) for row in left] == [(row["step"], row["loss"]) for row in right]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    return path


def steps(folder: Path) -> int:
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_a_call_is_where_the_run_dies(script: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_at(words(script)(out), out, Moment("json:dumps", 4))
    assert steps(out) == 3
    kill_at(words(script)(out), out, Moment("json:dumps", 1, after=True))  # counted anew
    assert steps(out) == 3
    kill_at(words(script)(out), out, Moment("json:dumps", 2))
    assert steps(out) == 4


def test_a_run_that_goes_on_well_passes_and_one_that_doesnt_fails(script: Path, tmp_path: Path) -> None:
    moments = (Moment("json:dumps", 2), Moment("json:dumps", 3))
    assert_killed_run_ends_alike(words(script), tmp_path / "good", *moments, compare=same_lines)
    with pytest.raises(AssertionError):
        assert_killed_run_ends_alike(words(script, "sloppy"), tmp_path / "bad", *moments, compare=same_lines)


def test_a_moment_that_never_comes_is_said(script: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"the run ended \(code 0\) before Moment\(target='json:dumps', call=99"):
        kill_at(words(script)(tmp_path / "run"), tmp_path / "run", Moment("json:dumps", 99))
    with pytest.raises(AssertionError, match="three is there before the run has begun"):
        kill_at(words(script)(tmp_path / "run"), tmp_path / "run", "three")


def test_what_differs_is_found(tmp_path: Path) -> None:
    def write(folder: Path, weight: float, loss: float) -> Path:
        (folder / "checkpoint-10").mkdir(parents=True)
        save_file({"w": torch.tensor([weight])}, folder / "checkpoint-10" / "model.safetensors")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "time/step": weight}) + "\n")
        return folder

    one, same = write(tmp_path / "a", 1.0, 0.5), write(tmp_path / "b", 1.0, 0.5)
    assert_same_run(one, same)
    with pytest.raises(AssertionError, match="1 of 1 tensors differ"):
        assert_same_run(one, write(tmp_path / "c", 1.0 + 2**-23, 0.5))
    with pytest.raises(AssertionError, match="step 1"):
        assert_same_run(one, write(tmp_path / "d", 1.0, 0.5 + 2**-53))
    (same / "guards.jsonl").write_text("{}\n")
    with pytest.raises(AssertionError, match=r"guards\.jsonl differs"):
        assert_same_run(one, same)


def test_the_places_are_in_the_code() -> None:
    targets = {moment.target for _, _, moments in SETTINGS.values() for moment in moments}
    for target in sorted(targets | {target for target, _ in PLACES}):
        module, _, qualified = target.partition(":")
        found: Any = importlib.import_module(module)
        for name in qualified.split("."):
            found = inspect.getattr_static(found, name)
        assert callable(found), target
