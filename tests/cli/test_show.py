"""`mmreason show` as its users call it."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmreason.cli.main import main
from mmreason.data.schema import to_dataset
from mmreason.models.tiny import save_tiny
from tests.data.mask_cases import says, user
from tests.pictures import cell, picture, save_seeing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "talks.jsonl"
    talks = [
        [user("2+2?"), says("4", "2+2=4")],
        [{"role": "system", "content": "Be brief."}, user("1?"), says("one"), user("2?"), says("two")],
        [user("ends \x1b[31m <b>here</b>"), says("<i>x</i> \u202e")],
        [user("and?"), {"role": "assistant", "content": ""}],
    ]
    lines = [json.dumps({"id": f"talk-{i}", "messages": talk}) for i, talk in enumerate(talks)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def test_help_in_half_a_second() -> None:
    """Of processor time, so that a busy machine plays no part."""
    command = [sys.executable, "-m", "mmreason.cli.main", "show", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert "--loss_on" in done.stdout and "mmreason show DATASET" in done.stdout


def test_a_row_in_plain_text(model: str, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, rows, "--model", model)
    assert "<|user|>2+2?<|end|><|assistant|>⟦2+2=4\n4<|end|>⟧" in out and "\x1b" not in out
    assert out.startswith("talk-0\n") and re.search(r"tokens: 15, 8 with loss \(53%\)", out)
    out = shown(capsys, rows, "--model", model, "--row", "1")
    assert "<|assistant|>one<|end|><|user|>2?<|end|><|assistant|>⟦two<|end|>⟧" in out
    out = shown(capsys, rows, "--model", model, "--id", "talk-1", "--loss_on", "all")
    assert "⟦one<|end|>⟧" in out and "⟦two<|end|>⟧" in out
    out = shown(capsys, rows, "--model", model, "--loss_on", "{reasoning: 0.5, answer: 1}", "--tokens")
    assert "⟦0.5|2+2=4\n⟧⟦4<|end|>⟧" in out
    table = [line.split() for line in out.split("text\n", 1)[1].splitlines()]
    assert len(table) == 15 and table[0] == ["0", "259", "template", "0", "'<|user|>'"]
    assert table[-1][2:] == ["assistant", "1", "'<|end|>'"] and table[1][2] == "user"


def test_colours_in_a_terminal(
    model: str, rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = shown(capsys, rows, "--model", model, "--row", "2")
    assert "\x1b[1;30;42mx\x1b[0m" in out and "\x1b[34me\x1b[0m" in out
    # What the row holds steers nothing: the only escapes are the colours.
    assert r"\x1b" in out and "\u202e" not in out and "\x1b[31m" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(capsys, rows, "--model", model, "--row", "2")


def test_a_page(model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folder" / "row.html"
    assert f"wrote {out}" in shown(capsys, rows, "--model", model, "--row", "2", "--html", str(out))
    page = out.read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;" in page and "<script" not in page and "http" not in page.split("</head>")[1]
    assert 'class="assistant w4"' in page and 'class="user w0"' in page


def test_images_are_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_seeing("llava", tmp_path / "llava")
    example: Any = {
        "id": "seen", "prompt": [user("How many?", 2)], "completion": [says("Two.")], "source": "s",
        "images": [cell(picture(40, 30)), cell(picture(20, 50))], "answer": "2", "meta": {},
    }  # fmt: skip
    columns = ("id", "prompt", "completion", "images", "source", "answer", "meta")
    to_dataset([example], columns, decode_images=True).to_parquet(tmp_path / "seen.parquet")
    out = shown(capsys, str(tmp_path / "seen.parquet"), "--model", folder)
    assert "images: 2 (40 × 30, 20 × 50 pixels), 32 tokens" in out
    assert "<|user|><image ×32>How many?<|end|><|assistant|>⟦Two.<|end|>⟧" in out


def test_a_row_without_a_completion(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"id": "p", "prompt": [user("2+2?")], "answer": "4"}) + "\n")
    out = shown(capsys, str(path), "--model", model)
    assert "there is no completion to learn" in out and "<|user|>2+2?<|end|><|assistant|>" in out and "⟦" not in out


def test_a_document_and_a_pair(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, pair = tmp_path / "document.jsonl", tmp_path / "pair.jsonl"
    document.write_text(json.dumps({"text": "Once upon a time."}) + "\n")
    out = shown(capsys, str(document), "--model", model)
    assert "a document, for pretraining" in out and out.rstrip().endswith("\n\nOnce upon a time.") and "⟦" not in out
    pair.write_text(json.dumps({"prompt": "2+2?", "chosen": "four", "rejected": "five"}) + "\n")
    chosen, rejected = shown(capsys, str(pair), "--model", model).split("pair/0\n")[1:]
    assert "the chosen answer" in chosen and "⟦four<|end|>⟧" in chosen
    assert "the rejected answer" in rejected and "<|user|>2+2?<|end|><|assistant|>⟦five<|end|>⟧" in rejected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "9"], "has fewer rows"),
        (["--max_length", "0"], "max_length=0 must be at least 1"),
        (["--model", "recipes/warm_strat"], "Did you mean recipes/warm_start"),
        (["--id", "talk-11"], "Did you mean 'talk-1'"),
        (["--row", "3"], "talk-3|row 4|:4"),
        (["--row", "-1"], "at least 0"),
        (["--loss_on", "lst"], "neither last nor all"),
        (["--max_length", "5"], "15 tokens, max_length is 5"),
        (["--max_length", "5", "--truncation", "drop"], "dropped"),
        (["--split", "train[:2]", "--row", "5"], "has 2 rows"),
    ],
)
def test_errors(words: list[str], said: str, model: str, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", rows, "--model", model, *words]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] and "mmreason: error: " in error and re.search(said, error)
    assert "Traceback" not in error
