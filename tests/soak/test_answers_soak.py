"""Hours of abuse for the answer checker: many hostile strings, many kills, all MATH pairs."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from mmreason.answers import Verdict, verify
from mmreason.answers.pool import Pool
from tests.answers.hostile import hostile

pytestmark = pytest.mark.soak
DEADLINE_S = 0.5


def test_10000_hostile_strings() -> None:
    assert verify("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", timeout_s=60).correct
    for number, (completion, gold) in enumerate(hostile(10_000, seed=99)):
        start = time.monotonic()
        judgement = verify(completion, gold, timeout_s=DEADLINE_S)
        assert time.monotonic() - start < DEADLINE_S + 1.0, (number, completion[:80])
        assert not judgement.correct or gold in completion, (number, completion[:80], judgement)


def test_workers_are_killed_for_ten_minutes() -> None:
    pool = Pool(2)
    stop = threading.Event()
    kills = 0

    def killer() -> None:
        nonlocal kills
        r = random.Random(1)
        while not stop.wait(r.uniform(0.05, 0.5)):
            for pid in r.sample(pool.pids(), k=min(1, len(pool.pids()))):
                try:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    continue  # it was replaced meanwhile

    thread = threading.Thread(target=killer)
    requests = [("compare", f"\\sqrt{{{i * i * 2}}}", f"{i}\\sqrt{{2}}") for i in range(2, 200)]
    pool.run(requests[:2], 60.0)
    thread.start()
    end = time.monotonic() + 600
    done = lost = 0
    try:
        while time.monotonic() < end:
            verdicts = pool.run(requests, 5.0)
            assert set(verdicts) <= {Verdict.CORRECT, Verdict.TIMEOUT}
            done += len(verdicts)
            lost += sum(verdict is Verdict.TIMEOUT for verdict in verdicts)
    finally:
        stop.set()
        thread.join()
        pool.close()
    assert kills > 500
    assert lost <= kills  # a kill costs at most the item it hit
    assert done > 10_000
