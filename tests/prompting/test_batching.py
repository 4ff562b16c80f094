"""BatchSample: every call gets its own answer, in whatever order calls come, and whatever the engine does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.prompting.batching import BatchParams, BatchSample, Conversation
from mmreason.prompting.registry import load_strategy
from mmreason.prompting.solve import solve_all
from mmreason.prompting.types import Completion, Problem
from mmreason.types import ConfigError
from tests.prompting.scripted import pick


@dataclass
class Echo:
    """Answers each conversation with its own words, its draw and the settings. bad: words that it can't answer.

    batches: what came in, call by call.
    """

    bad: str = "poison"
    seconds: float = 0.0
    per_row: bool = False
    batches: list[tuple[list[str], BatchParams]] = field(default_factory=list)
    inside: int = 0
    threads: set[int] = field(default_factory=set)

    def __call__(
        self, conversations: list[Conversation], params: BatchParams
    ) -> Sequence[Sequence[Completion] | Exception]:
        self.inside += 1
        assert self.inside == 1, "two calls of the engine at a time"
        self.threads.add(threading.get_ident())
        words = [str(conversation.messages[-1]["content"]) for conversation in conversations]
        self.batches.append((words, params))
        time.sleep(self.seconds)
        self.inside -= 1
        rows: list[Sequence[Completion] | Exception] = []
        for conversation, word in zip(conversations, words, strict=True):
            if self.bad in word:
                if not self.per_row:
                    raise RuntimeError(f"can't do {word}")
                rows.append(RuntimeError(f"can't do {word}"))
                continue
            draws = range(conversation.draw, conversation.draw + conversation.n)
            rows.append([Completion(f"{word} {draw} {params.temperature}") for draw in draws])
        return rows


def ask(sample: BatchSample, word: str, **options: Any) -> Any:
    return sample([{"role": "user", "content": word}], **options)


async def gather(*calls: Any) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)


def test_concurrent_calls_are_one_call_in_their_order() -> None:
    engine = Echo()
    sample = BatchSample(engine)

    async def run() -> list[Any]:
        return await gather(*(ask(sample, f"w{i}", n=1 + i % 3, draw=i) for i in range(50)))

    replies = asyncio.run(run())
    assert [words for words, _ in engine.batches] == [[f"w{i}" for i in range(50)]]
    assert [[c.text for c in reply] for reply in replies] == [
        [f"w{i} {draw} None" for draw in range(i, i + 1 + i % 3)] for i in range(50)
    ]


@st.composite
def talks(draw: Any) -> list[list[tuple[int, int, float | None, bool]]]:
    """Tasks, each a list of calls: (event loop passes before it, n, temperature, whether it can't be answered)."""
    call = st.tuples(st.integers(0, 6), st.integers(1, 3), st.sampled_from([None, 0.0, 1.0]), st.booleans())
    return draw(st.lists(st.lists(call, max_size=5), min_size=1, max_size=12))


@given(talks(), st.sampled_from([1, 2, 5, 256]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_any_interleaving(tasks: Any, max_batch: int, per_row: bool) -> None:
    """No deadlock, no mix-up: each call gets its own words or its own error; the batches are the same each time."""

    def once() -> tuple[list[Any], Echo]:
        engine = Echo(per_row=per_row)
        sample = BatchSample(engine, max_batch=max_batch)

        async def talk(name: int, calls: list[Any]) -> list[Any]:
            heard = []
            for i, (passes, n, temperature, bad) in enumerate(calls):
                for _ in range(passes):
                    await asyncio.sleep(0)
                word = f"{name}-{i}" + ("-poison" if bad else "")
                try:
                    heard.append([c.text for c in await ask(sample, word, n=n, temperature=temperature)])
                except RuntimeError as error:
                    heard.append(str(error))
            return heard

        return asyncio.run(gather(*(talk(name, calls) for name, calls in enumerate(tasks)))), engine

    heard, engine = once()
    assert heard == [
        [
            f"can't do {name}-{i}-poison" if bad else [f"{name}-{i} {draw} {temperature}" for draw in range(n)]
            for i, (_, n, temperature, bad) in enumerate(calls)
        ]
        for name, calls in enumerate(tasks)
    ]
    sizes = {f"{name}-{i}": n for name, calls in enumerate(tasks) for i, (_, n, _, _) in enumerate(calls)}
    for words, _ in engine.batches:
        assert len(words) == 1 or sum(sizes[word.removesuffix("-poison")] for word in words) <= max_batch
    assert len(engine.threads) <= 1


def test_what_is_asked_while_the_engine_works_is_the_next_batch() -> None:
    engine = Echo(seconds=0.1)
    sample = BatchSample(engine)

    async def run() -> None:
        first = asyncio.create_task(ask(sample, "first"))
        await asyncio.sleep(0.04)
        await gather(*(ask(sample, f"later {i}") for i in range(5)))
        await first

    asyncio.run(run())
    assert [words for words, _ in engine.batches] == [["first"], [f"later {i}" for i in range(5)]]


def test_linger_waits_for_stragglers() -> None:
    async def run(linger_s: float) -> list[list[str]]:
        engine = Echo()
        sample = BatchSample(engine, linger_s=linger_s)

        async def late() -> None:
            await asyncio.sleep(0.02)
            await ask(sample, "late")

        await gather(ask(sample, "early"), late())
        return [words for words, _ in engine.batches]

    assert asyncio.run(run(0.0)) == [["early"], ["late"]]
    assert asyncio.run(run(0.2)) == [["early", "late"]]


def test_no_settings_starve() -> None:
    """Others keep the engine busy with settings of their own; the odd one still has its turn at once."""
    engine = Echo()
    sample = BatchSample(engine, max_batch=2)
    order: list[str] = []

    async def chatter(name: int) -> None:
        for i in range(10):
            await ask(sample, f"{name}-{i}")
            order.append("chatter")

    async def odd() -> None:
        await ask(sample, "odd", temperature=0.5)
        order.append("odd")

    async def run() -> None:
        await gather(chatter(0), chatter(1), odd(), chatter(2))

    asyncio.run(run())
    assert order.index("odd") <= 4


def test_a_large_call_is_not_overtaken() -> None:
    engine = Echo()
    sample = BatchSample(engine, max_batch=4)

    async def run() -> None:
        await gather(ask(sample, "a", n=3), ask(sample, "b", n=3), ask(sample, "c", n=1), ask(sample, "d", n=9))

    asyncio.run(run())
    assert [words for words, _ in engine.batches] == [["a"], ["b", "c"], ["d"]]


def test_schemas_and_tools_part_batches() -> None:
    engine = Echo()
    sample = BatchSample(engine)
    schemas = [{"type": "object"}, {"type": "array"}, {"type": "object"}, None]

    async def run() -> None:
        await gather(*(ask(sample, str(i), json_schema=schema, stop=["x"]) for i, schema in enumerate(schemas)))

    asyncio.run(run())
    assert [words for words, _ in engine.batches] == [["0", "2"], ["1"], ["3"]]
    assert engine.batches[0][1] == BatchParams(stop=("x",), json_schema={"type": "object"})


def test_an_exception_finds_its_call_by_halving() -> None:
    engine = Echo()
    sample = BatchSample(engine)
    words = [f"w{i}" for i in range(8)]
    words[5] = "poison"

    async def run() -> list[Any]:
        return await gather(*(ask(sample, word) for word in words))

    replies = asyncio.run(run())
    assert [isinstance(reply, RuntimeError) for reply in replies] == [word == "poison" for word in words]
    assert len(engine.batches) == 7  # 8, then 4 + 4, then 2 + 2, then 1 + 1


def test_a_dead_engine_fails_every_call() -> None:
    def dead(conversations: list[Conversation], params: BatchParams) -> Any:
        raise OSError("gone")

    async def run() -> list[Any]:
        sample = BatchSample(dead)
        return await gather(*(ask(sample, str(i)) for i in range(20)))

    replies = asyncio.run(run())
    assert all(isinstance(reply, OSError) for reply in replies)
    assert len({id(reply) for reply in replies}) == 20  # an exception each: tracebacks don't pile up on one


def test_wrong_number_of_rows_is_an_error() -> None:
    async def run() -> list[Any]:
        sample = BatchSample(lambda conversations, params: [[Completion("one")]] * 2)
        return await gather(ask(sample, "a"), ask(sample, "b"), ask(sample, "c"))

    assert all("2 rows for 3 conversations" in str(reply) for reply in asyncio.run(run()))


@pytest.mark.parametrize("answer", [None, 7, [None], ["text"], [7], [StopIteration()], [{}]], ids=repr)
def test_an_engine_that_keeps_no_contract_deadlocks_nobody(answer: Any) -> None:
    async def run() -> list[Any]:
        sample = BatchSample(lambda conversations, params: answer)
        return await gather(ask(sample, "a"))

    assert isinstance(asyncio.run(run())[0], (ValueError, TypeError, RuntimeError))


def test_an_engine_that_raises_stop_iteration_deadlocks_nobody() -> None:
    def exhausted(conversations: list[Conversation], params: BatchParams) -> Any:
        return next(iter([]))

    async def run() -> list[Any]:
        sample = BatchSample(exhausted)
        return await gather(ask(sample, "a"), ask(sample, "b"))

    assert all("StopIteration" in str(reply) for reply in asyncio.run(run()))


def test_a_call_given_up_does_not_reach_the_engine_and_disturbs_nobody() -> None:
    engine = Echo(seconds=0.05)
    sample = BatchSample(engine)

    async def run() -> list[Any]:
        first = asyncio.create_task(ask(sample, "first"))
        await asyncio.sleep(0.02)
        given_up = asyncio.create_task(ask(sample, "given up"))
        kept = asyncio.create_task(ask(sample, "kept"))
        await asyncio.sleep(0)
        given_up.cancel()
        first.cancel()  # while the engine is at it
        return await gather(kept)

    assert asyncio.run(run())[0][0].text == "kept 0 None"
    assert [words for words, _ in engine.batches] == [["first"], ["kept"]]


def test_it_serves_one_event_loop_after_another() -> None:
    """Also after one that was left with calls under way."""
    engine = Echo(seconds=0.02)
    sample = BatchSample(engine)

    async def abandon() -> None:
        task = asyncio.create_task(ask(sample, "abandoned"))
        await asyncio.sleep(0.01)
        assert not task.done()

    async def run(word: str) -> str:
        return str((await ask(sample, word))[0].text)

    assert asyncio.run(run("a")) == "a 0 None"
    asyncio.run(abandon())
    assert asyncio.run(run("b")) == "b 0 None"
    loop = asyncio.new_event_loop()
    task = loop.create_task(ask(sample, "left behind"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # without cancelling anything
    assert asyncio.run(asyncio.wait_for(run("c"), 10)) == "c 0 None"
    assert not task.done() and engine.batches[-1][0] == ["c"]


def test_settings_are_checked() -> None:
    for wrong in ({"max_batch": 0}, {"linger_s": -1.0}):
        with pytest.raises(ConfigError, match="max_batch must be at least 1"):
            BatchSample(Echo(), **wrong)  # type: ignore[arg-type]


def test_running_strategies_share_batches() -> None:
    """32 trees at once: as many engine calls as one tree makes, up to its branching, not 32 times as many."""
    calls: list[int] = []

    def generate(conversations: list[Conversation], params: BatchParams) -> list[list[Completion]]:
        calls.append(len(conversations))
        return [
            [
                Completion(
                    pick(["1. a\n2. b", "1. c"], conversation.messages)
                    if "Propose" in str(conversation.messages)
                    else f"The answer is {pick(range(9), conversation.messages)}.\nsure"
                )
                for _ in range(conversation.n)
            ]
            for conversation in conversations
        ]

    problems = [Problem(question=f"Question {i}?", kind="number") for i in range(32)]
    strategy = load_strategy({"name": "tree_of_thoughts", "depth": 3})

    def run(concurrency: int) -> Any:
        calls.clear()
        sample = BatchSample(generate, max_batch=10_000)
        outcomes = asyncio.run(solve_all(strategy, problems, sample, concurrency=concurrency))
        return outcomes, len(calls)

    together, few = run(32)
    apart, many = run(1)
    assert together == apart
    assert few == 7  # 3 levels of propose and value, and the end
    assert many >= 32 * 7
