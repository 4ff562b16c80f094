"""`mmreason canary` as its users call it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mmreason.cli.main import main
from mmreason.data.schema import RL_COLUMNS, to_dataset
from tests.pictures import ask, cell, picture
from tests.tiny_vlms import tiny_vlm

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--samples", "6", "--max_tokens", "3", "--prompt_template", "none")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_vlm("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    made = [
        {
            "prompt": ask(f"What is {i}?", int(i % 3 > 0)),
            "images": [cell(picture(30, 40, i + 50))] if i % 3 else [],
            "answer": str(i),
            "id": f"p{i}",
            "source": "test",
            "meta": {},
        }
        for i in range(12)
    ]
    to_dataset(made, (*RL_COLUMNS, "images"), decode_images=True).to_parquet(path)  # type: ignore[arg-type]
    return str(path)


def test_help_in_half_a_second() -> None:
    """Of processor time, so that a busy machine plays no part."""
    command = [sys.executable, "-m", "mmreason.cli.main", "canary", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert "--completion" in done.stdout and "--vllm_gpu_memory_utilization" in done.stdout


def test_a_model_is_tried(model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model sees, but the true pictures don't help it: a warning, which --strict makes a failure."""
    out = tmp_path / "folder" / "canary.json"
    words = ["canary", "--model", model, "--dataset", rows, *SMALL, "--out", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "WARN  training: images reach the model, but the true ones help no more than others" in shown
    assert "PASS  rollout, HF: sees the images" in shown
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["status"] == "warn" and written["settings"]["model"] == model and len(written["rows"]) == 6
    assert all(int(name[1:]) % 3 for name in written["rows"]), "a row of text was tried"
    config = tmp_path / "canary.yaml"
    config.write_text(f"model: {model}\ndataset: {rows}\nsamples: 6\nmax_tokens: 3\nprompt_template: none\n")
    assert main(["canary", "--config", str(config), "--strict"]) == 1
    # The same rows, pictures and numbers again.
    assert capsys.readouterr().out == shown


def test_lost_pictures_are_a_failure(model: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmreason.rollout.scoring as scoring

    monkeypatch.setattr(scoring, "collate_visual", lambda *args, **kwargs: {})
    assert main(["canary", "--model", model, "--dataset", rows, *SMALL]) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "TEXT"], "reads text only"),
        (["--dataset", "TEXT_ROWS"], "no row of the dataset has an image"),
        (["--sample", "3"], "unknown option --sample (did you mean --samples?)"),
        (["--samples", "0"], "samples=0 must be at least 1"),
        (["--engine", "vlm"], "--engine: expected"),
        (["--dataset", "nowhere.parquet"], "nowhere.parquet"),
        (["--out", "/proc/none/canary.json"], "--out /proc/none/canary.json can't be written"),
    ],
)
def test_wrong_input(
    model: str,
    rows: str,
    tiny_checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    text_rows = tmp_path / "text.jsonl"
    text_rows.write_text("".join(f'{{"question": "What is {i}?", "answer": "{i}"}}\n' for i in range(3)))
    named = {"TEXT": tiny_checkpoint, "TEXT_ROWS": str(text_rows)}
    given = ["--model", model, "--dataset", rows, *SMALL, *(named.get(word, word) for word in words)]
    assert main(["canary", *given]) == 2
    error = capsys.readouterr().err
    assert "mmreason: error: " in error and says in error and "Traceback" not in error
