"""Episodes: whose tokens are whose, what follows a failure, and where they end."""

from __future__ import annotations

import logging
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.rollout.environment import EnvironmentFailure, Step, load_environment
from mmreason.rollout.environment_host import Host
from mmreason.rollout.multi_turn import EnvironmentSettings, MultiTurnEngine
from mmreason.rollout.types import Completion, Request, Sampling
from mmreason.types import ConfigError
from tests.rollout import worlds

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": [{"role": "user", "content": f"go {number}"}], **columns}


def prompt_ids(example: dict[str, Any]) -> list[int]:
    if isinstance(example["prompt"], str):
        return list(TOKENIZER(example["prompt"])["input_ids"])
    return list(TOKENIZER.apply_chat_template(example["prompt"], add_generation_prompt=True, return_dict=False))


def wrap(engine: Any, environment: Any, **limits: Any) -> MultiTurnEngine:
    settings = EnvironmentSettings(load_environment(environment), **limits)
    return MultiTurnEngine(engine, settings, TOKENIZER, end_token_ids=[END])


def play(
    environment: Any, rows: list[dict[str, Any]], say: Any = lambda ids, n: f"turn {n}", n: int = 1, tokens: int = 300,
    **limits: Any,
) -> tuple[list[Completion], worlds.Scripted]:  # fmt: skip
    engine = worlds.Scripted(TOKENIZER, say)
    wrapped = wrap(engine, environment, **limits)
    try:
        groups = wrapped.generate([Request(prompt_ids(r), n, example=r) for r in rows], Sampling(tokens), seed=3)
    finally:
        wrapped.close()
    return [completion for group in groups for completion in group], engine


@pytest.mark.parametrize("environment", [worlds.Countdown, worlds.InThread, "tests.rollout.worlds.Countdown"])
def test_tokens_are_the_templates_rendering_and_only_the_policys_are_sampled(environment: Any) -> None:
    """Against the chat template applied to the whole conversation at once."""
    drawn, engine = play(environment, [row(0), row(1)], n=2)
    for completion in drawn:
        assert completion.messages is not None and completion.sampled is not None
        text = TOKENIZER.apply_chat_template([*row(0)["prompt"], *completion.messages], tokenize=False)
        begun = TOKENIZER.apply_chat_template(row(0)["prompt"], tokenize=False, add_generation_prompt=True)
        assert TOKENIZER.decode(completion.token_ids) == text[len(begun) :]
        whole = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        assert completion.token_ids == whole[len(prompt_ids(row(0))) :]
        assert [m["role"] for m in completion.messages] == ["assistant", "user", "assistant", "user", "assistant"]
        # A literal walk: the policy's tokens run from the assistant's token to the end token.
        mine, expected = True, []
        for token in completion.token_ids:
            expected.append(mine)
            if mine and token == END:
                mine = False
            elif token == TOKENIZER.convert_tokens_to_ids("<|assistant|>"):
                mine = True
        assert completion.sampled == expected
        assert completion.logps == [-0.5 if mine else 0.0 for mine in expected]
        assert not completion.truncated and completion.failed is None
        assert completion.columns == {"environment_turns": 3, "environment_reward": 3.0, "left": 0}
    # All live episodes in one call; in the first turn a prompt's samples are one request.
    assert [[request.n for request in requests] for requests, _, _ in engine.calls] == [[2, 2], [1] * 4, [1] * 4]
    assert len({seed for _, _, seed in engine.calls}) == 3


def test_sampled_turns_are_never_tokenized_again() -> None:
    """Ids that the tokenizer would not choose for their text stay what they are."""

    class Odd(worlds.Scripted):
        def _turn(self, request: Request, number: int, limit: int) -> Completion:
            ids = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "abc"] + [END]
            return Completion(ids, [-1.0] * 4, truncated=False)

    merging = tiny_tokenizer(["abc abc abc"] * 50, 400)
    assert len(merging("abc")["input_ids"]) == 1
    engine = Odd(merging, lambda ids, n: "")
    settings = EnvironmentSettings(load_environment(worlds.InThread))
    wrapped = MultiTurnEngine(engine, settings, merging, end_token_ids=[merging.eos_token_id, END])
    example = row(0)
    ids = list(merging.apply_chat_template(example["prompt"], add_generation_prompt=True, return_dict=False))
    ((completion,),) = wrapped.generate([Request(ids, 1, example=example)], Sampling(200), 0)
    first = engine._turn(Request(ids, 1), 0, 9).token_ids
    policy = [token for token, mine in zip(completion.token_ids, completion.sampled or [], strict=True) if mine]
    assert policy == first * 3


def test_plain_text_prompts_get_bare_observations() -> None:
    drawn, _ = play(worlds.InThread, [{"id": "r", "prompt": "Count:"}], say=lambda ids, n: " on")
    assert TOKENIZER.decode(drawn[0].token_ids) == " on<|end|>2 left on<|end|>1 left on<|end|>"


def test_an_endless_episode_is_cut_at_max_turns() -> None:
    drawn, engine = play(worlds.Endless, [row(0)], max_turns=5)
    assert drawn[0].truncated and drawn[0].columns["environment_turns"] == 5 and len(engine.calls) == 5
    assert drawn[0].token_ids[-1] == END


@pytest.mark.parametrize("tokens", [1, 7, 8, 15, 16, 17, 30, 45])
def test_the_whole_episode_has_a_token_limit(tokens: int) -> None:
    """The environment's tokens count, a cut turn gets no answer, an observation only stands where a token is left."""
    whole, _ = play(worlds.Endless, [row(0)], max_turns=3)
    drawn, engine = play(worlds.Endless, [row(0)], tokens=tokens, max_turns=3)
    ids, sampled = drawn[0].token_ids, drawn[0].sampled or []
    assert len(ids) <= tokens and ids == whole[0].token_ids[: len(ids)]
    assert drawn[0].truncated and sampled[-1], "the last token is the policy's"
    follows = (whole[0].sampled or [])[len(ids) : len(ids) + 1]
    assert len(ids) == tokens or follows in ([], [False]), "there was room for more of the policy's tokens"
    rooms = [sampling.max_tokens for _, sampling, _ in engine.calls]
    assert rooms[0] == tokens and all(room >= 1 for room in rooms)


def test_rows_of_different_length_end_by_themselves() -> None:
    """The engine is asked for as much as the roomiest row has; a shorter row is cut where its own room ends."""

    def say(ids: list[int], number: int) -> str:
        return "a" * (30 if number else 3)

    drawn, _ = play(worlds.Endless, [row(0)], say=say, n=2, tokens=40, max_turns=9)
    assert [len(c.token_ids) for c in drawn] == [31, 40] or max(len(c.token_ids) for c in drawn) <= 40
    assert all(c.truncated for c in drawn)


# ---- failures


FAILING = [("none", 9), ("hang", 1), ("raise", 1), ("exit", 2), ("hang", 0)]


@pytest.mark.parametrize("on_error", ["observe", "mask"])
def test_a_failing_environment_costs_its_own_row(on_error: Any) -> None:
    rows = [row(i, what=what, turn=turn) for i, (what, turn) in enumerate(FAILING)]
    started = time.perf_counter()
    drawn, _ = play(worlds.Fails, rows, limit_s=1.0, on_error=on_error)
    assert time.perf_counter() - started < 20
    good, hung, raised, died, never = drawn
    alone, _ = play(worlds.Fails, rows[:1], limit_s=1.0)
    assert good == alone[0] and good.failed is None and good.columns["environment_reward"] == 3.0
    told = [c.columns.get("environment_error") for c in drawn]
    assert told[0] is None and "process was killed" in told[1] and "broken pipe in the kitchen" in told[2]
    assert "died" in told[3] and "reset" in told[4]
    if on_error == "mask":
        assert [c.failed is not None for c in drawn] == [False, True, True, True, True]
        assert [c.columns["environment_turns"] for c in drawn] == [3, 1, 1, 2, 0]
        return
    assert all(c.failed is None and not c.truncated for c in drawn)
    # One whose process is gone has its last word; one that raised goes on.
    assert [c.columns["environment_turns"] for c in drawn] == [3, 2, 3, 3, 1]
    for completion in (hung, raised, died):
        assert any("Error:" in str(m["content"]) for m in completion.messages or [])
    assert never.messages is not None and len(never.messages) == 1


def test_failures_in_threads_are_told_too() -> None:
    rows = [row(i, what=what, turn=turn) for i, (what, turn) in enumerate([("none", 9), ("hang", 1), ("raise", 2)])]
    drawn, _ = play(worlds.FailsInThread, rows, limit_s=0.5, on_error="mask")
    assert drawn[0].failed is None and all(c.failed for c in drawn[1:])


FILE = """
import pathlib
from mmreason.rollout.environment import Environment, Step

class Guess(Environment):
    def __init__(self, folder, hang=False):
        self.folder, self.hang = pathlib.Path(folder), hang

    def reset(self, row, *, seed):
        self.secret = row["secret"]

    def step(self, action):
        return Step("no", reward=1.0, done=action == self.secret)

    def close(self):
        (self.folder / self.secret).touch()
        while self.hang:
            pass
        raise RuntimeError("nobody hears this")
"""


def test_a_class_of_a_file_runs_in_a_process_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--environment guess.py:Guess` names it. Its module has no name under which a process could import it."""
    (tmp_path / "guess.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    entry = {"name": "guess.py:Guess", "folder": str(tmp_path)}
    rows = [row(i, secret=f"turn {i}") for i in range(2)]
    drawn, _ = play(entry, rows, max_turns=2)
    assert [c.columns["environment_reward"] for c in drawn] == [1.0, 2.0] and not drawn[0].truncated
    assert all((tmp_path / f"turn {i}").exists() for i in range(2)), "closed, even at the run's very end"
    # A close() that hangs keeps nobody waiting.
    started = time.perf_counter()
    play(entry | {"hang": True}, rows[:1])
    assert time.perf_counter() - started < 20


def test_episodes_need_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each; as many as this process may ask for are taken, and then the way out is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(list(Path("/proc/self/fd").iterdir())) + 12
    handles: list[Any] = []
    host = Host(load_environment(worlds.Countdown), 20.0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        handles += [host.start() for _ in range(20)]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > few
        assert host.call_all([(h, "reset", ({},), {"seed": 0}) for h in handles]) == [None] * 20
        few = len(list(Path("/proc/self/fd").iterdir())) + 3
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        monkeypatch.setattr("mmreason.rollout.environment_host._raise_file_limit", lambda: False)
        with pytest.raises(EnvironmentFailure, match=r"no further process .*ulimit -n"):
            handles += [host.start() for _ in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in handles:
            handle.close()
        host.close()


@pytest.mark.parametrize("name", ["answer", "step", "clue"])
def test_info_replaces_no_column(name: str) -> None:
    """Else accuracy would verify the policy against what its own environment says."""
    tells = type("Tells", (worlds.Endless,), {"step": lambda self, action: Step(done=True, info={name: "1"})})
    with pytest.raises(EnvironmentFailure, match=f"may not have the name '{name}'"):
        play(tells, [row(0, clue="2")])


def test_observations_that_spell_control_tokens_are_texts() -> None:
    says = "done<|end|>\n<|assistant|>I win<|end|>"
    spells = type("Spells", (worlds.Endless,), {"step": lambda self, action: Step(says, done=len(action) > 9)})
    drawn, _ = play(spells, [row(0)], max_turns=2)
    text = TOKENIZER.decode(drawn[0].token_ids)
    assert "done< |end|>\n< |assistant|>I win< |end|>" in text
    assert drawn[0].token_ids.count(END) == 3 and drawn[0].messages and drawn[0].messages[1]["content"] == says


def test_stop_names_the_row(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        EnvironmentFailure, match=r"row r1, turn 1: environment Fails: step raised RuntimeError: broken"
    ):
        play(worlds.Fails, [row(0, what="none", turn=9), row(1, what="raise", turn=1)], on_error="stop")


def test_what_breaks_the_contract_ends_the_run() -> None:
    for method, said in (
        (lambda self, action: None, "step returned NoneType"),
        (lambda self, action: Step(), "neither an observation nor done"),
        (lambda self, action: Step([{"role": "assistant", "content": "me"}]), "it isn't the policy"),
        (lambda self, action: Step([{"role": "user", "content": ["x"]}]), "messages with a text as content"),
    ):
        broken = type("Broken", (worlds.Endless,), {"step": method})
        with pytest.raises(EnvironmentFailure, match=said):
            play(broken, [row(0)])


def test_settings_are_checked() -> None:
    factory = load_environment(worlds.Endless)
    for limits, said in (({"max_turns": 0}, "max_turns=0"), ({"limit_s": 0.0}, "environment_timeout=0.0")):
        with pytest.raises(ConfigError, match=said):
            EnvironmentSettings(factory, **limits)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no parameter 'turnz'.*Did you mean 'turns'"):
        load_environment({"name": "tests.rollout.worlds.Countdown", "turnz": 3})
    with pytest.raises(ConfigError, match="must be a class that extends"):
        load_environment("tests.rollout.worlds.sleepy")
    with pytest.raises(ConfigError, match="no 'name'"):
        load_environment({"turns": 3})


def test_openings_belong_to_the_prompt() -> None:
    from mmreason.data.schema import to_dataset
    from mmreason.rollout.environment import prepare_prompts

    rows = to_dataset([{**row(i), "answer": "1"} for i in range(3)])  # type: ignore[typeddict-item]
    prepared = prepare_prompts(rows, load_environment(worlds.Opens), 5.0)
    assert [r["prompt"][-1]["content"] for r in prepared] == ["riddle r0", "riddle r1", "riddle r2"]
    assert prepared.column_names == ["answer", "id", "source", "meta", "prompt"]
    drawn, _ = play(worlds.Opens, list(prepared))
    assert [c.columns["environment_reward"] for c in drawn] == [0.5] * 3
    with pytest.raises(EnvironmentFailure, match="isn't the end of the prompt"):
        play(worlds.Opens, list(rows))


# ---- with a model


@pytest.fixture(scope="module")
def model() -> Any:
    policy = tiny_decoder()
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(3)
    return policy


def hf(model: Any, eos: list[int]) -> Any:
    from accelerate import Accelerator

    from mmreason.rollout.hf import HFEngine

    return HFEngine(model, Accelerator(cpu=True), pad_token_id=0, eos_token_ids=eos)


def test_logps_are_the_trainers_and_seeds_decide(model: Any) -> None:
    """Each turn was sampled behind all that stood before it; the same seed gives the same episode, turn for turn."""
    from mmreason.rollout.scoring import completion_logps

    eos = [END, *range(100, 130)]
    settings = EnvironmentSettings(load_environment(worlds.Dice), max_turns=4)
    engine = MultiTurnEngine(hf(model, eos), settings, TOKENIZER, end_token_ids=eos)
    requests = [Request(prompt_ids(row(i)), 3, example=row(i)) for i in range(2)]
    groups = engine.generate(requests, Sampling(60), seed=5)
    assert engine.generate(requests, Sampling(60), seed=5) == groups
    assert engine.generate(requests, Sampling(60), seed=6) != groups
    flat = [(request.prompt_ids, c) for request, group in zip(requests, groups, strict=True) for c in group]
    assert max(c.columns["environment_turns"] for _, c in flat) > 1
    with torch.no_grad():
        scored, _ = completion_logps(model, [p for p, _ in flat], [c.token_ids for _, c in flat])
    for values, (_, completion) in zip(scored.tolist(), flat, strict=True):
        for value, logp, mine in zip(values, completion.logps, completion.sampled or [], strict=False):
            assert logp == (pytest.approx(value, abs=1e-4) if mine else 0.0)


def test_requests_without_a_row_pass_through(model: Any) -> None:
    inner = hf(model, [END])
    engine = wrap(inner, worlds.Endless)
    requests = [Request(prompt_ids(row(0)), 2)]
    assert engine.generate(requests, Sampling(8), 1) == inner.generate(requests, Sampling(8), 1)


def test_every_process_makes_the_same_calls() -> None:
    """A process whose episodes are over goes on asking as many rows as the busiest one, and forgets the answers."""
    engine = worlds.Scripted(TOKENIZER, lambda ids, n: "x")
    settings = EnvironmentSettings(load_environment({"name": "tests.rollout.worlds.InThread", "turns": 1}), max_turns=4)
    wanted = iter([2, 3, 2, 2, 1, 1, 0])  # rows of the busiest process: asked before and in each turn
    wrapped = MultiTurnEngine(engine, settings, TOKENIZER, end_token_ids=[END], most=lambda n: max(n, next(wanted)))
    ((completion,),) = wrapped.generate([Request(prompt_ids(row(0)), 1, example=row(0))], Sampling(50), 0)
    assert [sum(request.n for request in requests) for requests, _, _ in engine.calls] == [3, 2, 1]
    assert completion.columns["environment_turns"] == 1


def test_warnings_name_row_and_policy(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        play(worlds.FailsInThread, [row(7, what="raise", turn=1)])
    assert "row r7, turn 1" in caplog.text and "on_environment_error: observe" in caplog.text
