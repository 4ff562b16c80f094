"""The worker pool: deadlines, killed and crashing workers, threads, forks, several processes, shutdown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmreason.answers import Verdict, verify, verify_many
from mmreason.answers.pool import Pool, PoolError, default_workers, shared_pool, shutdown

ENDLESS = ("compare", "\\sqrt{2}", "9^{9^{9^{9}}}")
EASY = ("compare", "\\sqrt{8}", "2\\sqrt{2}")
WRONG = ("compare", "\\sqrt{8}", "2\\sqrt{3}")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    pool.run([EASY] * 16, 20.0)  # start-up isn't part of any deadline
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def test_results_keep_their_order(pool: Pool) -> None:
    requests = [EASY, WRONG] * 40
    assert pool.run(requests, 20.0) == [Verdict.CORRECT, Verdict.WRONG] * 40


def test_only_the_endless_item_times_out(pool: Pool) -> None:
    requests = [EASY] * 10 + [ENDLESS] + [WRONG] * 10 + [ENDLESS] + [EASY] * 10
    start = time.monotonic()
    verdicts = pool.run(requests, 0.5)
    assert time.monotonic() - start < 4.0
    assert (
        verdicts
        == [Verdict.CORRECT] * 10
        + [Verdict.TIMEOUT]
        + [Verdict.WRONG] * 10
        + [Verdict.TIMEOUT]
        + [Verdict.CORRECT] * 10
    )


def test_a_worker_past_its_deadline_is_killed_and_replaced(pool: Pool) -> None:
    before = set(pool.pids())
    assert pool.run([ENDLESS], 0.3) == [Verdict.TIMEOUT]
    gone = before - set(pool.pids())
    assert len(gone) == 1
    pid = gone.pop()
    assert wait_until(lambda: not alive(pid))
    start = time.monotonic()
    assert pool.run([EASY], 20.0) == [Verdict.CORRECT]
    assert time.monotonic() - start < 1.0  # forked, not started from nothing


def test_a_worker_killed_in_mid_flight_costs_nothing_but_its_item(pool: Pool) -> None:
    result: list[Verdict] = []
    requests = [ENDLESS, *[EASY] * 30]
    thread = threading.Thread(target=lambda: result.extend(pool.run(requests, 1.5)))
    thread.start()
    time.sleep(0.4)
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    thread.join(30)
    assert result == [Verdict.TIMEOUT] + [Verdict.CORRECT] * 30


def test_an_idle_worker_killed_from_outside_is_not_noticed(pool: Pool) -> None:
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    assert pool.run([EASY, WRONG], 20.0) == [Verdict.CORRECT, Verdict.WRONG]


def test_a_killed_fork_server_is_restarted(pool: Pool) -> None:
    assert pool._server is not None
    os.kill(pool._server.process.pid, signal.SIGKILL)
    assert pool.run([ENDLESS, EASY], 0.5) == [Verdict.TIMEOUT, Verdict.CORRECT]
    assert pool.run([EASY] * 20, 20.0) == [Verdict.CORRECT] * 20


def test_memory_is_bounded(pool: Pool) -> None:
    greedy = ("compare", "x", "\\begin{pmatrix}" + "&".join(["10^{10^{8}}"] * 50) + "\\end{pmatrix}")
    verdicts = pool.run([greedy, EASY], 3.0)
    assert verdicts[0] is not Verdict.CORRECT
    assert verdicts[1] is Verdict.CORRECT


def test_deep_nesting_is_survived(pool: Pool) -> None:
    deep = ("compare", "x", "\\sqrt{" * 300 + "2" + "}" * 300)
    assert pool.run([deep, EASY], 5.0)[1] is Verdict.CORRECT


@pytest.mark.slow
def test_many_threads_share_the_pool(pool: Pool) -> None:
    results: dict[int, list[Verdict]] = {}

    def work(number: int) -> None:
        requests = [EASY, WRONG] * 10 + ([ENDLESS] if number % 4 == 0 else [])
        results[number] = pool.run(requests, 1.0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(12):
        wanted = [Verdict.CORRECT, Verdict.WRONG] * 10 + ([Verdict.TIMEOUT] if number % 4 == 0 else [])
        assert results[number] == wanted
    assert len(pool.pids()) <= 2


def test_verify_from_a_thread_uses_no_signals() -> None:
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: found.append(verify("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", timeout_s=20).correct)
    )
    thread.start()
    thread.join(60)
    assert found == [True]


def test_a_forked_child_has_its_own_pool() -> None:
    assert verify("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", timeout_s=20).correct
    parents = set(shared_pool().pids())
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            right = verify("\\boxed{3\\sqrt{2}}", "\\sqrt{18}", timeout_s=60).correct
            own = not parents & set(shared_pool().pids())
            os.write(writing, b"ok" if right and own else b"no")
            shutdown()
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    assert os.read(reading, 2) == b"ok"
    os.waitpid(pid, 0)
    os.close(reading)
    assert set(shared_pool().pids()) == parents
    assert verify("\\boxed{4\\sqrt{2}}", "\\sqrt{32}", timeout_s=20).correct


SCRIPT = """
import os, sys, time
from mmreason.answers import verify, verify_many
from mmreason.answers.pool import shared_pool
print(verify("\\\\boxed{2\\\\sqrt{2}}", "\\\\sqrt{8}", timeout_s=60).correct, flush=True)
pool = shared_pool()
print(pool._server.process.pid, *pool.pids(), flush=True)
if sys.argv[1] == "die":
    os.kill(os.getpid(), 9)
if sys.argv[1] == "busy":
    verify("\\\\boxed{9^{9^{9^{9}}}}", "\\\\sqrt{8}", timeout_s=600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["exit", "die", "busy"])
def test_no_process_outlives_its_trainer(end: str) -> None:
    """A script without a `__main__` guard: its workers end with it, by exit, by kill -9, also while one computes."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, end], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) >= 2
    if end == "busy":
        time.sleep(0.3)
        process.kill()
    process.wait(20)
    process.stdout.close()
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.slow
def test_several_processes_at_once() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, "exit"], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [output[0] for output in outputs] == ["True"] * 3
    assert len({pid for output in outputs for pid in output[1:]}) == sum(len(output) - 1 for output in outputs)


def test_workers_import_no_torch(pool: Pool) -> None:
    for pid in pool.pids():
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_closed_pool_says_so() -> None:
    pool = Pool(1)
    pool.close()
    with pytest.raises(PoolError, match="closed"):
        pool.run([EASY], 1.0)


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify").mkdir()
    (tmp_path / "math_verify" / "__init__.py").write_text("raise ImportError('no such thing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = Pool(1)
    with pytest.raises(PoolError, match=r"(?s)is math-verify installed.*no such thing"):
        pool.run([EASY], 1.0)
    pool.close()


def test_workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert default_workers() == 1
    with pytest.raises(ValueError, match="at least 1"):
        Pool(0)


def test_equal_pairs_are_compared_once_and_all_get_the_verdict() -> None:
    completions = ["\\boxed{2\\sqrt{2}}"] * 500
    start = time.monotonic()
    assert all(judgement.correct for judgement in verify_many(completions, ["\\sqrt{8}"] * 500, timeout_s=20))
    assert time.monotonic() - start < 10
