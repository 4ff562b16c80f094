"""Environments of the tests, where their processes can import them, and an engine that says what it is told."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmreason.rollout.environment import Environment, Observation, Step
from mmreason.rollout.types import Completion, Request, Sampling


class Countdown(Environment):
    """Says how many turns are left; a point for each turn."""

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns

    def reset(self, row: Mapping[str, Any], *, seed: int) -> None:
        self.left = self.turns

    def step(self, action: str) -> Step:
        self.left -= 1
        return Step(f"{self.left} left", reward=1.0, done=self.left == 0, info={"left": self.left})


class InThread(Countdown):
    isolated = False


class Endless(Environment):
    """Never ends."""

    isolated = False

    def step(self, action: str) -> Step:
        return Step("again")


class Dice(Environment):
    """Random, but by its seed."""

    isolated = False

    def reset(self, row: Mapping[str, Any], *, seed: int) -> None:
        self.rng = random.Random(seed)

    def step(self, action: str) -> Step:
        number = self.rng.randint(1, 6)
        return Step(f"a {number}", reward=float(number), done=number == 6)


class Fails(Environment):
    """Does what its row says in the turn that its row says: hang, raise, exit, nothing."""

    def reset(self, row: Mapping[str, Any], *, seed: int) -> None:
        self.what, self.turn, self.seen = row["what"], row["turn"], 0
        self._maybe()

    def step(self, action: str) -> Step:
        self.seen += 1
        self._maybe()
        return Step(f"turn {self.seen}", reward=1.0, done=self.seen == 3)

    def _maybe(self) -> None:
        if self.seen != self.turn:
            return
        if self.what == "hang":
            time.sleep(60)
        if self.what == "raise":
            raise RuntimeError("broken pipe in the kitchen")
        if self.what == "exit":
            import os

            os._exit(3)


class FailsInThread(Fails):
    isolated = False


class Opens(Environment):
    """Opens with a riddle."""

    opens = True
    isolated = False

    def reset(self, row: Mapping[str, Any], *, seed: int) -> Observation:
        return f"riddle {row['id']}"

    def step(self, action: str) -> Step:
        return Step(done=True, reward=0.5)


def sleepy(seconds: float) -> str:
    """Sleeps.

    Args:
        seconds: how long.
    """
    time.sleep(seconds)
    return "slept"


class Scripted:
    """An engine whose turns a function writes: (prompt ids, sample number) → text. Each ends with the end token."""

    name = "scripted"

    def __init__(self, tokenizer: Any, say: Callable[[list[int], int], str]) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.calls: list[tuple[list[Request], Sampling, int]] = []

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        self.calls.append((list(requests), sampling, seed))
        return [[self._turn(r, i, sampling.max_tokens) for i in range(r.n)] for r in requests]

    def _turn(self, request: Request, number: int, limit: int) -> Completion:
        text = self.say(request.prompt_ids, number)
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        ids = ids[:limit]
        return Completion(ids, [-0.5] * len(ids), truncated=ids[-1] != self.tokenizer.eos_token_id)
