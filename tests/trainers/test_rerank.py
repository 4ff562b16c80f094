"""Choosing among k answers: those of the majority vote, by a reward that is loaded once and may fail as in training."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from mmreason.models.tiny import tiny_tokenizer
from mmreason.rewards import RewardError
from mmreason.rollout.types import Completion, Request, Sampling
from mmreason.trainers import rerank
from mmreason.trainers.evaluation import measure
from mmreason.trainers.problems import HeldOut
from tests.trainers.threads import on_ranks

TOKENIZER = tiny_tokenizer()
K = 3
PROBLEMS = 70  # with pictures three calls of at most 32
LOADED: list[int] = []


class SeededEngine:
    """Answers depend on the call's seed and place, as a real engine's do; `drawn` keeps the samples of each problem."""

    name = "seeded"

    def __init__(self) -> None:
        self.drawn: dict[int, list[str]] = {}
        self.largest = 0

    def sync(self) -> None:
        """The weights are always the same."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        self.largest = max(self.largest, len(requests))
        out = []
        for place, request in enumerate(requests):
            texts = [
                str(int(hashlib.sha256(f"{seed} {place} {i}".encode()).hexdigest(), 16) % 10) for i in range(request.n)
            ]
            if sampling.temperature > 0:
                self.drawn[request.prompt_ids[0]] = texts
            ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
            out.append([Completion(row, [0.0] * len(row), truncated=False) for row in ids])
        return out

    def close(self) -> None:
        """Nothing to free."""


def size(*, fails_on: str | None = None, hangs_on: str | None = None) -> Any:
    """A reward factory: the answer's number, so that what was chosen can be told."""
    LOADED.append(1)

    def number(completions: list[str], **_: Any) -> list[float | None]:
        if hangs_on is not None and hangs_on in completions:
            time.sleep(0.6)
        return [1 / 0 if text == fails_on else float(text) for text in completions]

    return number


def trainer_of(parallel: Any, out: Path, **args: Any) -> Any:
    settings = {"output_dir": str(out), "on_reward_error": "stop", "reward_timeout": None} | args
    return SimpleNamespace(
        engine=SeededEngine(), parallel=parallel, tokenizer=TOKENIZER, sampling=Sampling(8, temperature=0.9),
        read_answers=None, args=SimpleNamespace(**settings), _seed=lambda number: 11,
        accelerator=SimpleNamespace(print=lambda text: None, is_main_process=parallel.rank == 0),
    )  # fmt: skip


def held_out(pictures: bool, n: int = PROBLEMS) -> HeldOut:
    rows = [{"prompt": f"{i}?", "answer": str(i % 10), "meta": {"kind": "number"}, "id": f"p{i}"} for i in range(n)]
    visuals: Any = [object() for _ in range(n)] if pictures else None
    return HeldOut(Dataset.from_list(rows), [[i] for i in range(n)], visuals)


@pytest.fixture
def reward(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `load_rewards` count, as it would load a reward model each time."""
    LOADED.clear()

    def of(**options: Any) -> dict[str, Any]:
        monkeypatch.setattr(rerank, "load_rewards", lambda names: [size(**options)])
        return {"name": "number"}

    return of


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("pictures", [False, True])
def test_the_samples_are_those_of_the_vote(pictures: bool, processes: int, tmp_path: Path, reward: Any) -> None:
    problems, by = held_out(pictures), reward()

    def work(parallel: Any) -> tuple[Any, Any, Any]:
        trainer = trainer_of(parallel, tmp_path)
        measure(trainer.engine, problems, TOKENIZER, trainer.sampling, parallel, k=K, seed=11)
        voted, trainer.engine.drawn = trainer.engine.drawn, {}
        found = rerank.rerank_held_out(trainer, {"a": problems, "b": problems}, K, by)
        return voted, trainer.engine, found

    results = on_ranks(processes, work)
    votes: dict[int, list[str]] = {}
    for voted, engine, _ in results:
        assert engine.drawn == voted
        assert engine.largest <= (32 if pictures else PROBLEMS)
        votes |= voted
    assert len(LOADED) == processes, "the reward is loaded once for all sets"
    found = json.loads((tmp_path / rerank.FILE).read_text())["b"]
    assert found["pass_at_k"]["n"] == PROBLEMS
    if processes == 1:
        assert found["pass_at_k"]["correct"] == sum(str(i % 10) in texts for i, texts in votes.items())
        assert found["reranked"]["correct"] == sum(max(texts) == str(i % 10) for i, texts in votes.items())


def test_a_reward_that_fails_or_hangs_is_treated_as_in_training(tmp_path: Path, reward: Any, capsys: Any) -> None:
    def run(by: Any, **args: Any) -> Any:
        def work(parallel: Any) -> tuple[Any, dict[int, list[str]]]:
            trainer = trainer_of(parallel, tmp_path, **args)
            found = rerank.rerank_held_out(trainer, {"a": held_out(False, 3)}, K, by)
            return found["a"], trainer.engine.drawn

        return on_ranks(1, work)[0]

    _, drawn = run(reward())
    worst = max(max(texts) for texts in drawn.values())
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        run(reward(fails_on=worst))
    found, drawn = run(reward(fails_on=worst), on_reward_error="mask")
    chosen = [max([t for t in texts if t != worst] or texts) for _, texts in sorted(drawn.items())]
    assert found["reranked"]["correct"] == sum(text == str(i) for i, text in enumerate(chosen))
    assert "answers, which come last" in capsys.readouterr().err
    with pytest.raises(RewardError, match=r"no answer within reward_timeout=0\.2 s"):
        run(reward(hangs_on=worst), reward_timeout=0.2)
