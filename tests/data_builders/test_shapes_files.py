"""Built sets of rendered scenes on the disk: read by the loader and by plain `datasets`, the command, the cache."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.building.writing import COLUMNS
from data_builders.shapes import SPLITS, VERSION, as_dataset, build, cached, generate, main
from mmreason.data import load_examples
from mmreason.types import ConfigError
from tests.data_builders.commands import output_and_cpu_seconds

SIZES = {"n": 30, "n_test": 8, "n_unseen": 9}
OPTIONS = {"level": 2, "image_size": 48, "two_images": 0.25}
COMMAND = [sys.executable, "-m", "data_builders.shapes"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_manifest_and_reload(tmp_path: Path) -> None:
    chosen = {**OPTIONS, "language": "both", "style": "mixed", "bare_share": 0.4, "caption_share": 0.3}
    manifest = build(tmp_path / "a", **SIZES, **chosen, seed=7, tasks=["bars", "count"])
    assert manifest == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["builder"] == "data_builders.shapes" and manifest["builder_version"] == VERSION
    assert manifest["arguments"] == {**SIZES, **chosen, "seed": 7, "tasks": ["count", "bars"]}
    files: dict[str, Any] = manifest["files"]  # type: ignore[assignment]
    assert list(files) == [f"{split}.parquet" for split in SPLITS]
    for name, entry in files.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == entry["sha256"]
    build(tmp_path / "b", **SIZES, **chosen, seed=7, tasks=["count", "bars"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for split, rows in zip(SPLITS, SIZES.values(), strict=True):
        loaded = load_examples(str(tmp_path / "a"), split=split, columns=(*COLUMNS, "images"))
        assert loaded.format == "canonical" and not loaded.dropped
        expected = generate(rows, 7, split=split, tasks=["count", "bars"], **chosen)  # type: ignore[arg-type]
        assert loaded.dataset.to_list() == expected
        asked = Counter(str(row["answer"]) for row in expected)
        told = manifest["majority"][split]["all"]  # type: ignore[index]
        assert asked[told["answer"]] == max(asked.values()) and told["share"] == round(max(asked.values()) / rows, 4)


def test_plain_datasets_reads_pictures(tmp_path: Path) -> None:
    import datasets

    build(tmp_path / "set", **SIZES, **OPTIONS)
    files = {split: str(tmp_path / "set" / f"{split}.parquet") for split in SPLITS}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))
    assert {split: len(rows) for split, rows in loaded.items()} == dict(zip(SPLITS, SIZES.values(), strict=True))
    expected = generate(30, 0, **OPTIONS)  # type: ignore[arg-type]
    assert any(len(row["images"]) == 2 for row in expected)
    for row, example in zip(loaded["train"], expected, strict=True):
        assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in row["images"])
        assert all(image.size == (48, 48) for image in row["images"])
        for image, cell in zip(row["images"], example["images"], strict=True):
            assert np.array_equal(np.array(image), np.array(Image.open(io.BytesIO(cell["bytes"]))))
        assert row["prompt"] == example["prompt"] and row["completion"] == example["completion"]
        assert row["meta"] == example["meta"]
        parts = row["prompt"][0]["content"]
        assert sum(part["type"] == "image" for part in parts) == len(row["images"])


def test_sets_without_pictures_keep_their_columns() -> None:
    from data_builders import word_problems

    assert as_dataset(word_problems.generate(2, 0)).column_names == list(COLUMNS)
    assert as_dataset(generate(2, 0)).column_names == [*COLUMNS, "images"]


def test_splits_that_are_not_wanted_leave_no_file(tmp_path: Path) -> None:
    build(tmp_path, **SIZES)
    build(tmp_path, n=20, n_test=0, n_unseen=0, tasks=["sides"], image_size=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"levle": 2},
            "unknown option 'levle' .did you mean 'level'..; known: n, n_test, n_unseen, seed",
        ),
        ({"n": "40"}, "n must be a whole number, not '40'"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"n_test": -1}, "n_test must be at least 0, not -1"),
        ({"image_size": 500}, "image_size must be from 32 to 448 pixels, not 500"),
        ({"tasks": ["angles", "sides"]}, "the tasks angles, sides have no combinations .* set n_unseen to 0"),
    ],
)
def test_named_errors_come_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=message):
        build(tmp_path / "set", **options)
    with pytest.raises(ConfigError, match=message):
        cached(**options)
    assert not any(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--n", "20", "--n_test", "5", "--n_unseen", "0"]
    flags = ["--level", "3", "--tasks", "angles,bars", "--image_size", "40", "--language", "zh", "--style", "bare"]
    assert main(["--out", str(tmp_path / "set"), *sizes, *flags, "--seed", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {name: entry["rows"] for name, entry in printed.items()} == {"train.parquet": 20, "test.parquet": 5}
    loaded = load_examples(str(tmp_path / "set"), columns=(*COLUMNS, "images")).dataset.to_list()
    assert loaded == generate(20, 3, level=3, tasks=["angles", "bars"], image_size=40, language="zh", style="bare")


def test_named_errors_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["--out", str(tmp_path / "file"), "--n", "5"]) == 2
    assert main(["--out", str(tmp_path / "new"), "--tasks", "counting"]) == 2
    err = capsys.readouterr().err
    assert "File exists" in err and "did you mean 'count'" in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_command_and_quick_help(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "o"), "--n", "20"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["train.parquet"]["rows"] == 20 and done.stderr == ""
    named = ["mmreason.cli.main", "build", "shapes", "--out", str(tmp_path / "p"), "--n", "20"]
    subprocess.run([sys.executable, "-m", *named], capture_output=True, text=True, check=True)
    assert contents(tmp_path / "o") == contents(tmp_path / "p")
    text, seconds = output_and_cpu_seconds([*COMMAND, "--help"])
    assert "--image_size" in text and seconds < 0.5
    code = "import sys, data_builders.shapes; print(*(name in sys.modules for name in ('datasets', 'torch', 'numpy')))"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.split() == ["False", "False", "False"]


def test_built_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    folder = cached(**SIZES, tasks="bars, count", say=said.append)
    assert folder.parent == tmp_path / "mmreason" / "data" and folder.name.startswith("shapes-")
    assert len(said) == 1 and "building the data, it is not in the cache yet" in said[0]
    assert cached(**SIZES, tasks=["count", "bars"], two_images=0, say=said.append) == folder and len(said) == 1
    assert cached(**SIZES, tasks=["count"], say=said.append) != folder and len(said) == 2
    build(tmp_path / "again", **SIZES, tasks=["count", "bars"])
    assert contents(folder) == contents(tmp_path / "again")
