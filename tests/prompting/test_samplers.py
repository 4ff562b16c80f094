"""Strategies on real models: an endpoint over HTTP, and a tiny decoder through the HF engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmreason.clients.endpoint import Endpoint
from mmreason.clients.ledger import Ledger
from mmreason.clients.settings import EndpointConfig
from mmreason.clients.types import EndpointError, Reply, Request
from mmreason.prompting.batching import BatchSample
from mmreason.prompting.from_completer import CompleterSample
from mmreason.prompting.registry import load_strategy
from mmreason.prompting.solve import solve_all
from mmreason.prompting.types import Completion, Outcome, Problem
from mmreason.types import ConfigError, DataError
from tests.clients.server import Running, running_server

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20
REPLIES = {
    "Therefore, the answer": "36, I think",
    "Let's think step by step": "3 times 12 are 36.",
    "Solve this step by step": "The answer is 36.",
    "No more tools": "The answer is 36.",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server(replies=REPLIES, reasoning="hm") as running:
        yield running


def config_of(server: Running, **options: Any) -> EndpointConfig:
    return EndpointConfig(base_url=server.base_url, model="test", api_key_env=None, **options)


def run(server: Running, spec: Any, problems: list[Problem], folder: Path | None = None) -> list[Outcome]:
    async def go() -> list[Outcome]:
        ledger = Ledger(folder / "ledger.sqlite") if folder is not None else None
        async with Endpoint(config_of(server), ledger=ledger) as endpoint:
            found = await solve_all(load_strategy(spec), problems, CompleterSample(completer=endpoint, max_tokens=64))
        if ledger is not None:
            ledger.close()
        return found

    return asyncio.run(go())


def questions(count: int, topic: str) -> list[Problem]:
    return [Problem(question=f"{topic} {i}: what is 3 times 12?", kind="number", gold="36") for i in range(count)]


def test_over_http_and_never_paid_twice(server: Running, tmp_path: Path) -> None:
    problems = questions(20, "ledger")
    before = len(server.log)
    first = run(server, "zero_shot_cot", problems, tmp_path)
    asked = server.log[before:]
    assert [(outcome.answer, outcome.error) for outcome in first] == [("36", None)] * 20
    assert [outcome.text for outcome in first] == [
        "3 times 12 are 36.\nTherefore, the answer (arabic numerals) is 36, I think"
    ] * 20
    assert (len(asked), {outcome.calls for outcome in first}) == (40, {2})
    # The outcomes' tokens are those on the server's bill.
    assert sum(outcome.prompt_tokens for outcome in first) == sum(entry.charged[0] for entry in asked)
    assert sum(outcome.completion_tokens for outcome in first) == sum(entry.charged[1] for entry in asked)
    assert {outcome.reasoning for outcome in first} == {"hm"}
    assert run(server, "zero_shot_cot", problems, tmp_path) == first
    assert len(server.log) == before + 40
    run(server, "zero_shot_cot", [replace(problem, draw=1) for problem in problems], tmp_path)
    assert len(server.log) == before + 80  # another draw is another answer


def test_samples_are_requests_of_their_own(server: Running, tmp_path: Path) -> None:
    before = len(server.log)
    (outcome,) = run(server, {"name": "self_consistency", "k": 5, "max_tokens": 17}, questions(1, "votes"), tmp_path)
    asked = server.log[before:]
    assert (outcome.votes, outcome.calls, outcome.completions) == ({"36": 5}, 1, 5)
    assert [(entry.body["temperature"], entry.body["max_tokens"]) for entry in asked] == [(0.7, 17)] * 5


def test_images_arrive(server: Running) -> None:
    problem = Problem(question="Which?", images=(PNG,), choices=("a", "b"))
    before = len(server.log)
    (outcome,) = run(server, "direct", [problem])
    assert outcome.error is None
    (entry,) = server.log[before:]
    assert "image_url" in repr(entry.body)
    (outcome,) = run(server, "direct", [replace(problem, images=("path.png",))])
    assert isinstance(outcome.error, DataError) and "image 0 is a str" in str(outcome.error)


def test_json_schema_constrains(server: Running) -> None:
    (outcome,) = run(server, "json_answer", questions(1, "json"))
    assert (outcome.accepted, outcome.error) == (True, None) and set(outcome.parsed) == {"reasoning", "answer"}


def test_native_tool_calls(server: Running) -> None:
    """The server answers with a call of the first tool wherever there are tools."""
    before = len(server.log)
    (outcome,) = run(server, {"name": "react", "form": "native", "max_turns": 2}, questions(1, "tools"))
    assert outcome.error is None and outcome.answer == "36"
    assert outcome.counts["turn_limit"] == 1 and outcome.calls == 3
    roles = [message["role"] for message in outcome.transcript[-1].messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "user"]
    assert ["tools" in entry.body for entry in server.log[before:]] == [True, True, False]


def test_a_request_that_fails_is_the_error_of_its_problem(server: Running) -> None:
    problems = questions(3, "faults")
    problems[1] = Problem(question="{{400}} what is 3 times 12?", kind="number")
    outcomes = run(server, {"name": "zero_shot_cot", "stages": 1}, problems)
    assert [isinstance(outcome.error, EndpointError) for outcome in outcomes] == [False, True, False]


def test_all_draws_end_before_an_error_is_raised() -> None:
    """None of them is paid for behind the caller's back."""
    ended: list[int] = []

    class Completer:
        async def complete(self, request: Request) -> Reply:
            await asyncio.sleep(0.01 * request.sample)
            ended.append(request.sample)
            if request.sample == 0:
                raise EndpointError("server", "no")
            return Reply(text="yes")

    with pytest.raises(EndpointError, match="no"):
        asyncio.run(CompleterSample(completer=Completer())([{"role": "user", "content": "x"}], n=3))
    assert ended == [0, 1, 2]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """A tiny decoder and its tokenizer."""
    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer

    return tiny_decoder(), tiny_tokenizer()


class TestEngine:
    def generate(self, parts: tuple[Any, Any], seed: int = 0) -> Any:
        from accelerate import Accelerator

        from mmreason.prompting.engines import EngineGenerate
        from mmreason.rollout.hf import HFEngine
        from mmreason.rollout.types import Sampling

        model, tokenizer = parts
        engine = HFEngine(
            model, Accelerator(cpu=True), pad_token_id=tokenizer.pad_token_id, eos_token_ids=[tokenizer.eos_token_id]
        )
        return EngineGenerate(engine, tokenizer, Sampling(8), seed=seed)

    def solved(self, parts: tuple[Any, Any], spec: Any, seed: int = 0, **problem: Any) -> list[Outcome]:
        problems = [Problem(question=f"What is 3 * {i}?", kind="number", **problem) for i in range(4)]
        return asyncio.run(solve_all(load_strategy(spec), problems, BatchSample(self.generate(parts, seed))))

    def test_a_strategy_runs_on_a_decoder(self, parts: tuple[Any, Any]) -> None:
        _, tokenizer = parts
        outcomes = self.solved(parts, {"name": "zero_shot_cot", "temperature": 1.0})
        for outcome in outcomes:
            assert (outcome.error, outcome.calls, outcome.completions) == (None, 2, 2)
            rendered = [
                tokenizer.apply_chat_template(list(call.messages), add_generation_prompt=True, tokenize=False)
                for call in outcome.transcript
            ]
            assert outcome.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in rendered)
            assert 2 <= outcome.completion_tokens <= 16
        assert self.solved(parts, {"name": "zero_shot_cot", "temperature": 1.0}) == outcomes
        assert self.solved(parts, {"name": "zero_shot_cot", "temperature": 1.0}, seed=5) != outcomes

    def test_several_completions_and_greedy(self, parts: tuple[Any, Any]) -> None:
        (call,) = self.solved(parts, {"name": "self_consistency", "k": 3, "max_tokens": 5})[0].transcript
        assert len({completion.text for completion in call.completions}) > 1
        assert all(completion.completion_tokens <= 5 for completion in call.completions)
        (call,) = self.solved(parts, {"name": "self_consistency", "k": 3, "temperature": 0.0})[0].transcript
        assert len({completion.text for completion in call.completions}) == 1

    def test_asking_again_draws_again(self, parts: tuple[Any, Any]) -> None:
        async def twice() -> list[str]:
            sample = BatchSample(self.generate(parts))
            return [(await sample([{"role": "user", "content": "Well?"}]))[0].text for _ in range(2)]

        first, second = asyncio.run(twice())
        assert first != second and asyncio.run(twice()) == [first, second]

    def test_text_is_cut_at_stops_and_thoughts_are_parted(self, parts: tuple[Any, Any]) -> None:
        from mmreason.rollout.types import Completion as Tokens

        generate, tokenizer = self.generate(parts), parts[1]

        def read(text: str, stop: tuple[str, ...] = ()) -> Completion:
            ids = tokenizer(text)["input_ids"]
            return generate._completion(Tokens(ids, [0.0] * len(ids), truncated=True), 7, stop)  # type: ignore[no-any-return]

        plain = read("one STOP two END", ("END", "STOP"))
        assert (plain.text, plain.finish_reason, plain.prompt_tokens) == ("one", "stop", 7)
        assert plain.completion_tokens == len(tokenizer("one STOP two END")["input_ids"])
        thought = read("<think>\nhm\n</think>\n\nThe answer is 4.")
        assert (thought.text, thought.reasoning, thought.finish_reason) == ("The answer is 4.", "hm", "length")

    def test_what_it_cannot_do_is_refused(self, parts: tuple[Any, Any]) -> None:
        for outcome in self.solved(parts, {"name": "react", "form": "native"}):
            assert isinstance(outcome.error, ConfigError) and "form: text" in str(outcome.error)
        for outcome in self.solved(parts, "direct", images=(PNG,)):
            assert isinstance(outcome.error, ConfigError) and "takes no images" in str(outcome.error)
