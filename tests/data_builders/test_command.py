"""The words of a builder's command line: `--key value`, `key=value`, and dots into settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_builders.building.build import BuildOptions
from data_builders.building.command import parse_options
from mmreason.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options(BuildOptions):
    """Options of every kind."""

    name: str = "x"
    sets: list[str] = field(default_factory=list)
    judge: dict[str, Any] | None = None


def parse(*words: str) -> Options:
    return parse_options(Options, ["--out", "o", *words], "mmreason build x", "Text.")


def test_both_spellings() -> None:
    assert parse("limit=3", "--name", "a=b", "seed=7", "--no_report", "dry-run=true") == Options(
        out=Path("o"), limit=3, name="a=b", seed=7, report=False, dry_run=True
    )
    assert parse("name=seed=3").name == "seed=3"
    assert parse("--dry_run", "limit=3").limit == 3, "a switch waits for no value"


def test_names_of_sets_are_no_options() -> None:
    assert parse("--decontaminate", "gsm8k=a/b.jsonl", "seeds=c.jsonl").decontaminate == [
        "gsm8k=a/b.jsonl",
        "seeds=c.jsonl",
    ]
    assert parse("--decontaminate", "seed=c.jsonl").decontaminate == ["seed=c.jsonl"]
    assert parse("decontaminate=[]").decontaminate == [] and parse("decontaminate=[a=b]").decontaminate == ["a=b"]


def test_settings_by_their_names(tmp_path: Path) -> None:
    words = ("teacher.base_url=http://x:1/v1", "--teacher.model", "m", "--teacher.price={input: 1, output: 2}")
    expected = {"base_url": "http://x:1/v1", "model": "m", "price": {"input": 1, "output": 2}}
    assert parse(*words).teacher == expected
    assert parse(*words, "teacher.extra_body.reasoning_effort=low", "teacher.retry_s=1e-3").teacher == expected | {
        "extra_body": {"reasoning_effort": "low"}, "retry_s": 1e-3
    }  # fmt: skip
    assert parse("--teacher", "{model: a, concurrency: 3}", "teacher.model=b").teacher == {
        "model": "b",
        "concurrency": 3,
    }
    config = tmp_path / "c.yaml"
    config.write_text("teacher: {base_url: http://y/v1, model: a}\nlimit: 5\njudge: {model: j}\n")
    read = parse("--config", str(config), "teacher.model=b", "limit=6")
    assert (
        read.teacher == {"base_url": "http://y/v1", "model": "b"} and read.limit == 6 and read.judge == {"model": "j"}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher.model"], "--teacher.model: expected a value"),
        (["--teacher", "[{model: a}]", "teacher.model=b"], "teacher is a list of 1"),
        (["teacher.model=a", "teacher.model.x=b"], "model holds 'a'"),
        (["teacher.model={"], "not readable as YAML"),
        (["name=x", "stile=y"], "unknown option 'stile'"),
        (["--nam", "x"], "unknown option --nam.*--name"),
        (["limit=many"], "--limit.*many"),
        (["--config", "gone.yaml", "teacher.model=a"], "no such file: gone.yaml"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*words)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help")
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("usage: mmreason build x") and "--teacher" in said
