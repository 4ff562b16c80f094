"""Where rows come from: splits, slices, folders, missing things and their nearest match, the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.sources import find_split, parse_split, resolve
from mmreason.types import ConfigError, DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"question": "q", "answer": "1"}\n')


@given(rows=st.integers(0, 50), start=st.none() | st.integers(-60, 60), stop=st.none() | st.integers(-60, 60))
def test_slices_are_pythons(rows: int, start: int | None, stop: int | None) -> None:
    text = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    first, last = parse_split(text).bounds(rows)
    assert list(range(rows))[first:last] == list(range(rows))[start:stop]


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("train", (0, 200)), ("train[:10%]", (0, 20)), ("train[50%:]", (100, 200)), ("t[-10%:]", (180, 200))],
)
def test_percent_slices(text: str, bounds: tuple[int, int]) -> None:
    assert parse_split(text).bounds(200) == bounds


@pytest.mark.parametrize("text", ["", "train[", "train[5]", "a+b", "../train", "train/x", "train[:x]", "/etc"])
def test_bad_splits(text: str) -> None:
    with pytest.raises(ConfigError, match="split"):
        parse_split(text)


@pytest.mark.parametrize(
    ("files", "split", "found"),
    [
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], "train", None),
        (["data/train-00000-of-00001.parquet"], "train", ["data/train-00000-of-00001.parquet"]),
        (["train/b.jsonl", "train/a.jsonl"], "train", ["train/a.jsonl", "train/b.jsonl"]),
        (["dev.jsonl.gz", "train.jsonl.gz"], "validation", ["dev.jsonl.gz"]),
        (["questions.jsonl"], "train", ["questions.jsonl"]),
        (["train_0.jsonl", "train_1.jsonl", "train_answers.jsonl"], "train", ["train_0.jsonl", "train_1.jsonl"]),
    ],
)
def test_find_split(tmp_path: Path, files: list[str], split: str, found: list[str] | None) -> None:
    touch(tmp_path, *files)
    assert find_split(tmp_path, split) == [tmp_path / name for name in (found or files)]


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["train.jsonl"], "test", r"no split 'test': looked for test\.\*"),
        (["train.jsonl", "evaluation.jsonl"], "evaluatoin", "Did you mean split 'evaluation'"),
        (["test.jsonl"], "train", "no split 'train'"),
        (["a.jsonl", "b.jsonl"], "train", "It holds a.jsonl, b.jsonl"),
        (["notes.txt"], "train", "no data files"),
        (["train.jsonl", "train.csv"], "train", "more than once: train.csv, train.jsonl"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "train", "lacks shard 00001 of 3"),
    ],
)
def test_find_split_errors(tmp_path: Path, files: list[str], split: str, message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        find_split(tmp_path, split)


def test_missing_paths_name_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "gsm8k/train.jsonl")
    split = parse_split("train")
    with pytest.raises(DataError, match=r"no such file or folder\. Did you mean .*gsm8k\?"):
        resolve(str(tmp_path / "gsm8"), split)
    with pytest.raises(DataError, match=r"Did you mean .*train\.jsonl\?"):
        resolve(str(tmp_path / "gsm8k" / "trian.jsonl"), split)
    with pytest.raises(DataError, match="exists, and holds: gsm8k"):
        resolve(str(tmp_path / "zzz" / "x.jsonl"), split)
    with pytest.raises(DataError, match="no such file"):
        resolve("nowhere.jsonl", split)
    monkeypatch.chdir(tmp_path)  # "gsm8k/x" could be a hub id, but the folder is here
    with pytest.raises(DataError, match=r"gsm8k/trian: no such file or folder\. Did you mean gsm8k/train\.jsonl"):
        resolve("gsm8k/trian", split)
    with pytest.raises(ConfigError, match="empty"):
        resolve(" ", split)


def test_hub_ids() -> None:
    source = resolve("openai/gsm8k:main", parse_split("test"))
    assert source.hub == ("openai/gsm8k", "main") and source.name == "openai/gsm8k" and not source.files
    assert resolve("no-such-name-here", parse_split("train")).hub == ("no-such-name-here", None)


# A hub set without a network: `datasets` falls back to its own cache, which the first process fills.
FILL = """
import sys, datasets
from datasets import Dataset
cache = sys.argv[1]
builder_dir = cache + "/someone___tiny/default/0.0.0/" + "a" * 40
rows = [{"question": f"What is {i}+1?", "answer": f"so\\n#### {i + 1}"} for i in range(4)]
Dataset.from_list(rows).save_to_disk(cache + "/tmp")
import json, os, glob, shutil
os.makedirs(builder_dir)
shutil.copy(glob.glob(cache + "/tmp/*.arrow")[0], builder_dir + "/tiny-train.arrow")
info = json.load(open(cache + "/tmp/dataset_info.json"))
size = os.path.getsize(builder_dir + "/tiny-train.arrow")
info |= {"builder_name": "parquet", "dataset_name": "tiny", "config_name": "default", "version": "0.0.0",
         "splits": {"train": {"name": "train", "num_bytes": size, "num_examples": 4, "dataset_name": "tiny"}}}
info["version"] = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
json.dump(info, open(builder_dir + "/dataset_info.json", "w"))
"""

LOAD = """
from mmreason.data import load_examples
from mmreason.types import DataError
loaded = load_examples("someone/tiny", split="train[1:3]")
print(loaded.summary(), loaded.dataset["id"][:], loaded.dataset["answer"][:])
for source, split in (("someone/tiny", "test"), ("someone/other", "train")):
    try:
        load_examples(source, split=split)
    except DataError as error:
        print(error.reason, "|", error)
"""


@pytest.mark.slow
def test_hub_set_offline(tmp_path: Path) -> None:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", FILL, str(tmp_path / "cache")], env=env, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "2 examples (format gsm8k)" in lines[0] and "['gsm8k/train/1', 'gsm8k/train/2'] ['2', '3']" in lines[0]
    assert lines[1].startswith("missing_split | someone/tiny: no split 'test'")
    assert lines[2].startswith("missing_path | someone/other: neither a local file or folder nor loadable from the hub")
