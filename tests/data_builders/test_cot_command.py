"""The chain-of-thought builder by its command line: real rows, a real server, kill -9, a step of training."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from data_builders.cot import main
from mmreason.answers import verify
from mmreason.data import load_examples
from tests.clients.server import running_server
from tests.clients.test_endpoint_vllm import base_url  # noqa: F401 - a fixture
from tests.data_builders.teaching import kill_when, manifest_of, rows_in, words, write_rows
from tests.data_builders.training import train_one_step

SETS = {
    "gsm8k": "gsm8k/train.jsonl",
    "math": "math/math500.jsonl",
    "aqua": "mwp/aqua_dev.jsonl",
    "svamp": "mwp/svamp.jsonl",
    "scienceqa": "images/scienceqa_test_400.parquet",
}
ROWS = 4


def question_of(example: dict[str, Any]) -> str:
    content = example["prompt"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def replies_for(examples: list[dict[str, Any]]) -> dict[str, str]:
    """A right solution of each question, known by how it begins; every fourth is wrong."""
    found = {}
    for i, example in enumerate(examples):
        said = "none of these" if i % 4 == 3 else example["answer"]
        steps = f"Step one of row {i}: it begins with 2 * {i} = {2 * i}.\nStep two follows."
        found[question_of(example).split("\n")[0][:90]] = f"{steps}\nThe answer is {said}."
    return found


def test_five_real_sets_through_the_command_line(shared_data: Path, tmp_path: Path) -> None:
    columns = ("prompt", "answer", "images", "id", "source", "meta")
    loads = [
        load_examples(str(shared_data / path), split=f"train[:{ROWS}]", prompt_template="none", columns=columns)
        for path in SETS.values()
    ]
    examples = [dict(row) for load in loads for row in load.dataset]
    assert len(examples) == ROWS * len(SETS) and [load.format for load in loads] == list(SETS)
    data = [str(shared_data / path) for path in SETS.values()]
    with running_server(replies=replies_for(examples)) as server:
        status = main(
            words(server, source=data, source_split=f"train[:{ROWS}]", out=tmp_path / "out", k=2, license="see sources")
        )
        log = server.log
    assert status == 0
    rows, manifest = rows_in(tmp_path / "out"), manifest_of(tmp_path / "out")
    assert len(log) == 2 * len(examples)
    assert manifest["counts"]["dropped"]["wrong_answer"] + manifest["counts"]["dropped"].get("no_answer", 0) == 2 * 5
    assert len(rows) == manifest["counts"]["dropped"]["same_path"] == len(examples) * 3 // 4
    assert {row["source"] for row in rows} == {f"{name}-cot" for name in SETS}
    for row in rows:
        (message,) = row["completion"]
        assert verify(message["content"], row["answer"], row["meta"]["kind"], row["meta"]["choices"]).correct
        assert message["reasoning_content"].endswith("Step two follows.")
    seen = [row for row in rows if row["images"]]
    assert {row["source"] for row in seen} == {"scienceqa-cot"} and all(row["images"][0].size[0] > 8 for row in seen)
    with_images = [entry for entry in log if "image_url" in json.dumps(entry.body)]
    assert len(with_images) == 2 * sum(bool(example["images"]) for example in examples)


@pytest.mark.parametrize("requests", [25])
def test_killed_and_resumed(shared_data: Path, tmp_path: Path, requests: int) -> None:
    """The rows of an unbroken run, and no reply in the ledger is asked for again."""
    data = shared_data / "gsm8k" / "train.jsonl"
    load = load_examples(str(data), split="train[:40]", prompt_template="none")
    replies = replies_for([dict(row) for row in load.dataset])
    settings = {"source": [str(data)], "source_split": "train[:40]", "k": 2, "tasks_per_shard": 10, "concurrency": 6}
    with running_server(replies=replies) as server:
        assert main(words(server, out=tmp_path / "one", **settings)) == 0
    with running_server(replies=replies, latency_s=0.03, jitter=0.9) as server:
        command = words(server, out=tmp_path / "out", **settings)
        assert kill_when(["data_builders.cot", *command], lambda: len(server.log) >= requests)
        before = len(server.log)
        assert main(command) == 0
        # What was under way when the process died may be asked again; all else is in the ledger.
        assert len(server.log) <= 80 + 2 * 6 and before < len(server.log)
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "one")
    for key in ("counts", "files", "told"):
        assert manifest_of(tmp_path / "out")[key] == manifest_of(tmp_path / "one")[key]


def test_wrong_use_ends_before_anything_is_asked(shared_data: Path, tmp_path: Path, capsys: Any) -> None:
    mistyped = str(shared_data / "gsm8k" / "trian.jsonl")
    assert main(["--source", mistyped, "--out", str(tmp_path / "a"), "--mode", "gold"]) == 2
    assert "train.jsonl" in capsys.readouterr().err
    data = str(shared_data / "gsm8k" / "train.jsonl")
    assert main(["--source", data, "--out", str(tmp_path / "a"), "--decontaminate", "[]"]) == 2
    assert "--teacher.base_url" in capsys.readouterr().err
    science = str(shared_data / "scienceqa" / "problems_150_full_fields.jsonl")
    assert main(["--source", science, "--out", str(tmp_path / "a"), "--mode", "gold", "--decontaminate", "[]"]) == 2
    assert "missing_image" in capsys.readouterr().err


@pytest.mark.slow
def test_the_rows_train_a_step(shared_data: Path, tmp_path: Path) -> None:
    data = str(shared_data / "gsm8k" / "train.jsonl")
    common = [
        "--source",
        data,
        "--source_split",
        "train[:20]",
        "--mode",
        "gold",
        "--decontaminate",
        "[]",
        "--no_report",
    ]
    assert main([*common, "--out", str(tmp_path / "calls"), "--notes", "tool_calls"]) == 0
    template = Path(find_spec("trl").origin).parent / "chat_templates" / "qwen3.jinja"  # type: ignore[union-attr, arg-type]
    assert train_one_step(tmp_path / "calls", tmp_path, chat_template_path=template, max_length=4096)["loss"] > 0
    assert main([*common, "--out", str(tmp_path / "turns"), "--form", "two_turn"]) == 0
    assert train_one_step(tmp_path / "turns", tmp_path / "t", recipe="trl_sft")["loss"] > 0


@pytest.mark.slow
def test_rollouts_on_a_real_server(base_url: str, tmp_path: Path) -> None:  # noqa: F811
    """A tiny random model hardly ever comes to the answer; the gold's own statement of it is worth 1."""
    made = [{"question": f"What is {n} + 3?", "answer": f"{n} + 3 = {n + 3}\n#### {n + 3}"} for n in range(70, 73)]
    data = write_rows(tmp_path / "train.jsonl", made)  # short: the server takes 256 tokens, each a byte
    command = [
        "--source", str(data), "--mode", "gold", "--form", "process", "--rollouts", "2", "--max_tokens", "8",
        "--out", str(tmp_path / "out"), "--decontaminate", "[]",
        "--teacher", json.dumps({"base_url": base_url, "model": "tiny", "api_key_env": None}),
    ]  # fmt: skip
    assert main(command) == 0
    rows = rows_in(tmp_path / "out")
    assert len(rows) == 3 and {row["meta"]["teacher"] for row in rows} == {"tiny"}
    assert all(row["labels"][-1] and row["meta"]["step_values"] == [0.0, 1.0] for row in rows)
    assert manifest_of(tmp_path / "out")["counts"]["extra"]["rollouts"] == 2 * 3
