"""What goes into a built set and stands beside it: test questions kept out, licences, card, report, no secrets."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_builders.building import contamination as _contamination
from data_builders.building.build import Made, Task, Tools
from data_builders.building.contamination import BENCHMARKS, load_decontaminator, named_sets
from data_builders.building.manifest import masked
from data_builders.building.runner import execute, run
from data_builders.building.sources import read_raw, read_source
from mmreason.types import ConfigError, DataError, Example
from tests.data_builders.toy import Scripted, Toy, files_of, rows_of, toy, write_questions


def quiet(_: str) -> None:
    """Hears nothing."""


# --------------------------------------------------------------------------------------------------------------------
# Test questions


def test_a_planted_gsm8k_question_is_left_out(tmp_path: Path, shared_data: Path) -> None:
    (gsm8k,) = list((shared_data / "gsm8k").glob("test*"))
    rows, _ = read_raw(gsm8k, split="test")
    planted = rows[123][1]["question"]
    teacher = Scripted({"What is 4 ": f"A harder one: {planted.upper()} Think!", "What is 5 ": planted[:40]})
    builder = toy(tmp_path, decontaminate=[f"gsm8k={gsm8k}"])
    manifest = run(builder, completers=[teacher], say=quiet)
    assert manifest["counts"]["dropped"] == {"contaminated": 1}
    told = manifest["decontamination"]
    assert told["hits"] == {"gsm8k": 1} and told["sets"][0]["rows"] == len(rows)
    assert told["rows"][0].startswith("toy/q4: gsm8k ") and "toy/q4" not in {r["id"] for r in rows_of(tmp_path / "out")}
    teacher = Scripted()
    again = run(toy(tmp_path, decontaminate=[f"gsm8k={gsm8k}"]), completers=[teacher], say=quiet)
    assert not teacher.asked and again["decontamination"] == told
    with pytest.raises(ConfigError, match=r"another config's manifest.*decontamination.gsm8k"):
        run(toy(tmp_path), completers=[teacher], say=quiet)


def test_by_default_the_benchmarks_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(source: str, split: Any) -> Any:
        raise DataError(f"{source}: no network", path=source)

    monkeypatch.setattr("mmreason.data.sources.resolve", gone)
    teacher = Scripted()
    with pytest.raises(
        ConfigError, match=r"(?s)gsm8k .openai/gsm8k:main, split test.*NAME=PATH.*--decontaminate '\[\]'"
    ):
        load_decontaminator(None, None)
    assert not teacher.asked and {"gsm8k", "math_500", "mmlu", "scienceqa"} <= set(BENCHMARKS)


def test_how_test_sets_are_named() -> None:
    assert named_sets(None) == BENCHMARKS and named_sets([]) == {}
    assert named_sets(["a.jsonl", "b=c/d.jsonl", "e=org/set:config#validation", "mmlu"]) == {
        "a.jsonl": ("a.jsonl", "test"),
        "b": ("c/d.jsonl", "test"),
        "e": ("org/set:config", "validation"),
        "mmlu": BENCHMARKS["mmlu"],
    }
    for wrong in (["a=b", "a=c"], ["=b"], ["a="]):
        with pytest.raises(ConfigError, match="--decontaminate"):
            named_sets(wrong)


def test_the_index_is_kept_until_its_sets_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_set = write_questions(tmp_path / "test.jsonl", 12)
    first = load_decontaminator([f"t={test_set}"], tmp_path)
    built: list[str] = []
    rows = _contamination._rows
    monkeypatch.setattr(_contamination, "_rows", lambda *place: built.append(place[0]) or rows(*place))
    assert load_decontaminator([f"t={test_set}"], tmp_path).sets == first.sets and not built
    write_questions(test_set, 13)
    assert load_decontaminator([f"t={test_set}"], tmp_path).sets != first.sets and built == ["t"]


# --------------------------------------------------------------------------------------------------------------------
# Licences


def test_a_missing_licence_is_warned_of_and_recorded(tmp_path: Path) -> None:
    said: list[str] = []
    manifest = run(toy(tmp_path, license=None), completers=[Scripted()], say=said.append)
    assert manifest["sources"][0]["license"] == "unknown"
    assert any("names no licence; recorded as unknown (give it with --license)" in line for line in said)
    header = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert header["license"] == "unknown"


def test_the_licence_of_a_card_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A set\n")
    said: list[str] = []
    manifest = run(toy(tmp_path, license=None), completers=[Scripted()], say=said.append)
    assert manifest["sources"][0]["license"] == "cc-by-4.0" and not any("no licence" in line for line in said)


# --------------------------------------------------------------------------------------------------------------------
# What others read


def _png(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


class Pictured(Toy):
    """Its rows have pictures and reasoning."""

    columns = (*Toy.columns, "images")

    def row(self, task: Task, text: str) -> Example:
        row = super().row(task, text)
        parts = [{"type": "image"}, {"type": "text", "text": task.data["prompt"][0]["content"]}]
        row["prompt"] = [{"role": "user", "content": parts}]  # type: ignore[list-item]
        row["images"] = [{"bytes": _png(12, 8), "path": None}]
        return row


def test_plain_datasets_and_our_loader_read_it(tmp_path: Path) -> None:
    from datasets import load_dataset

    from mmreason.data import load_examples

    run(Pictured(toy(tmp_path).options), completers=[Scripted()], say=quiet)
    plain = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(plain) == ["train"] and len(plain["train"]) == 20
    assert plain["train"][7]["images"][0].size == (12, 8) and plain["train"][7]["id"] == "toy/q7"
    assert plain["train"][7]["completion"][0]["reasoning_content"] == "I think."
    columns = ("prompt", "completion", "answer", "images", "id", "source", "meta")
    ours = load_examples(str(tmp_path / "out"), columns=columns, require=("completion",)).dataset
    assert ours["id"] == plain["train"]["id"] and ours[3]["meta"]["pair"] == [1, 2]
    assert ours[3]["completion"] == plain["train"][3]["completion"]


def test_another_split(tmp_path: Path) -> None:
    from datasets import load_dataset

    run(toy(tmp_path, split="validation"), completers=[Scripted()], say=quiet)
    assert sorted(files_of(tmp_path / "out"))[0] == "validation-00000.parquet"
    assert list(load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))) == ["validation"]


class Page(HTMLParser):
    """Headings, elements and text of a page; complains of tags that don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append(tag)
        if tag not in ("meta", "link", "img", "rect", "br"):
            self._open.append(tag)
        if tag == "img":
            assert dict(attrs)["src"].startswith("data:image/")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect",):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def test_the_report(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    answers = {
        "What is 3 ": "",
        "What is 5 ": hostile,
        "What is 6 ": "same",
        "What is 8 ": "same",
        "What is 9": "\ud83d",
    }
    teacher = Scripted(answers)
    run(Pictured(toy(tmp_path).options), completers=[teacher], say=quiet)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == ["What became of it", "What was left out", "Lengths", "Variety", "Rows", "Sources"]
    assert "script" not in page.elements and "<script>alert(1)</script>" in page.text
    assert page.elements.count("img") == 17 and page.elements.count("svg") == 3
    for held in (
        "17 kept of 19 made",
        "17 (85.0%)",
        "bad_encoding",
        "nothing came for q3",
        "distinct-2 of replies",
        "questions20.jsonl",
    ):
        assert held in page.text, held
    assert "http" not in text.replace("http-equiv", ""), "nothing is fetched"
    again = run(Pictured(toy(tmp_path).options), completers=[Scripted()], say=quiet)
    parts = [part.split("<footer>")[0] for part in (text, (tmp_path / "out" / "report.html").read_text())]
    assert parts[0] == parts[1] and again["complete"], "a finished set gets the same report again"


def test_no_report(tmp_path: Path) -> None:
    run(toy(tmp_path, report=False), completers=[Scripted()], say=quiet)
    assert not (tmp_path / "out" / "report.html").exists()


# --------------------------------------------------------------------------------------------------------------------
# Secrets and money


def test_keys_are_masked() -> None:
    held = {
        "teacher": {
            "api_key_env": "MY_KEY", "max_tokens": 3, "image_tokens": 5,
            "extra_body": {"api_key": "hunter2", "nested": [{"Authorization": "hunter2"}], "user_token": "fine"},
        },
        "text": "Bearer hunter2", "note": "sk-hunter2",
    }  # fmt: skip
    shown = json.dumps(masked(held))
    assert "hunter2" not in shown and shown.count("[masked]") == 2 and shown.count("[key]") == 2
    assert all(word in shown for word in ("MY_KEY", '"max_tokens": 3', '"image_tokens": 5'))
    assert "hunter2" not in json.dumps(masked({"credentials": {"value": "hunter2"}, "api_key": ["hunter2"]}))


def test_no_key_reaches_a_file(tmp_path: Path) -> None:
    teacher = {"base_url": "http://localhost:9/v1", "model": "m", "extra_body": {"api_key": "hunter2"}, "retry_s": 0}
    result = execute(toy(tmp_path, n=2, teacher=teacher), say=quiet)
    assert result.status == 1 and result.manifest["counts"]["failed"] == {"connection": 2}
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path


LOCAL: dict[str, Any] = {"base_url": "http://localhost:9/v1", "model": "m"}
STRANGER: dict[str, Any] = {"base_url": "https://example.org/v1", "model": "m", "api_key_env": "NO_SUCH_KEY_"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "asks a teacher.*--teacher.base_url"),
        ({"teacher": {"base_url": "http://localhost:9/v1"}}, "teacher: give base_url and model"),
        ({"teacher": LOCAL | {"modle": 1}}, "teacher: unknown.*'modle'.*model"),
        ({"teacher": {"base_url": "localhost", "model": "m"}}, "teacher: base_url must be an address"),
        ({"teacher": LOCAL | {"concurrency": "x"}}, "teacher: --concurrency"),
        ({"teacher": ["m"]}, "teacher 1: expected settings"),
        ({"teacher": LOCAL, "max_budget": 1.0}, "a budget needs the price of m"),
        ({"teacher": LOCAL, "quote": True}, "a quote needs the price of m"),
        ({"teacher": STRANGER}, "NO_SUCH_KEY_"),
    ],
)
def test_a_wrong_teacher_is_found_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        execute(toy(tmp_path, **options), say=quiet)
    assert not list((tmp_path / "out").glob("*.*"))


# --------------------------------------------------------------------------------------------------------------------
# Sources


def test_sources_are_read_bare(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", 3)
    examples, note = read_source(path)
    assert examples[1] == {
        "prompt": [{"role": "user", "content": "What is 1 plus 1?"}], "answer": "2", "id": "q1", "source": "q",
        "meta": {"kind": "number", "choices": None},
    }  # fmt: skip
    assert note.rows == 3 and note.revision is None and note.license is None and len(note.sha256) == 64
    rows, raw_note = read_raw(path)
    assert rows[1][0] == f"{path}:2" and rows[1][1]["question"] == "What is 1 plus 1?" and raw_note == note
    folder_note = read_source(tmp_path)[1]
    assert folder_note.rows == 3 and folder_note.name.endswith("[train]")
    path.write_bytes(path.read_bytes() + b'{"question": "caf\xe9", "answer": "1"}\n')
    for reader in (read_source, read_raw):
        with pytest.raises(DataError, match="q.jsonl:4.*(byte|utf|UTF)"):
            reader(path)
    path.write_text("")
    for reader in (read_source, read_raw):
        with pytest.raises(DataError, match="empty"):
            reader(path)


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "What is it?", "answer": "1", "image": "gone.png"}) + "\n")
    with pytest.raises(DataError, match="q.jsonl:1.*gone.png"):
        read_source(path)


def test_a_builder_that_asks_nobody(tmp_path: Path) -> None:
    class Silent(Toy):
        needs_teacher = False

        async def make(self, task: Task, tools: Tools) -> Made:
            with pytest.raises(ConfigError, match="asks a teacher"):
                _ = tools.teacher
            return Made([self.row(task, f"the answer to {task.id}")])

    manifest = execute(Silent(toy(tmp_path).options), say=quiet).manifest
    assert manifest["counts"]["rows"]["kept"] == 20 and not (tmp_path / "out" / "ledger").exists()
    assert "ledger" not in manifest["cost"]
