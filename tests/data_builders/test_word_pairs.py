"""Pairs of generated word problems: right over wrong, made alike each time, read as preference data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_builders._preferences import word_pairs
from data_builders.word_problems import SetOptions
from mmreason.answers import Verdict, equivalent
from mmreason.data import load_examples


def test_chosen_is_right_and_rejected_wrong() -> None:
    options = SetOptions.of({"seed": 3, "bare_share": 0.4})
    rows = word_pairs.pairs(120, "train", options)
    assert len(rows) >= 100 and rows == word_pairs.pairs(120, "train", options)
    bare = 0
    for row in rows:
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        numbers = [re.findall(r"-?\d+", str(side["content"]))[-1] for side in (chosen, rejected)]  # type: ignore[index]
        assert equivalent(numbers[0], str(row["answer"]), "number") is Verdict.CORRECT
        assert equivalent(numbers[1], str(row["answer"]), "number") is Verdict.WRONG
        assert "reasoning_content" in chosen
        bare += "reasoning_content" not in rejected
    assert 0.25 <= bare / len(rows) <= 0.55


def test_a_kept_set_is_read_as_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    folder = word_pairs.cached(say=said.append, n=30, n_test=8, n_unseen=0, language="zh")
    assert word_pairs.cached(say=said.append, n=30, n_test=8, n_unseen=0, language="zh") == folder and len(said) == 1
    loaded = load_examples(
        str(folder), split="test", columns=("prompt", "chosen", "rejected", "answer", "id"), require=("chosen",)
    )
    assert not loaded.dropped and 1 <= len(loaded.dataset) <= 8
