"""The teacher builder, mode answer: on real questions and programs, filters, several teachers, a judge, bad input."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from data_builders._teacher.code import function_head, whole_program
from data_builders.building.runner import run
from data_builders.teacher import TeacherBuilder, main, unpack_logprobs
from mmreason.clients.types import EndpointError, Reply, Request, TokenLogprob
from mmreason.tools.code_tests import FunctionTest, run_tests
from mmreason.tools.sandbox import IsolationError, Limits
from mmreason.types import ConfigError, DataError
from tests.clients.server import running_server
from tests.data_builders.teaching import MOMENTS, Ruled, kill_when, manifest_of, options, rows_in, words, write_rows
from tests.pictures import picture


def quiet(_: str) -> None:
    """Hears nothing."""


def gsm8k_rows(shared_data: Path, n: int) -> list[dict[str, str]]:
    with (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(n)]


FRENCH = "Il y a une pomme dans le panier et il en reste une pour vous, mais pas plus que cela. La réponse est 1."
BAD = {
    3: ("wrong_answer", "I think the answer is 987654."),
    5: ("refusal", "I'm sorry, but I can't help with that."),
    7: ("repetition", "Now we add the numbers of the day again. " * 30),
    9: ("other_language", FRENCH),
    11: ("truncated", "Let me think about it for a very long time. " * 60),
}
"""Question -> what is wrong with its planted answer."""


def test_gsm8k_through_the_command_line(shared_data: Path, tmp_path: Path) -> None:
    rows = gsm8k_rows(shared_data, 16)
    replies = {}
    for i, row in enumerate(rows):
        rationale, _, gold = row["answer"].rpartition("####")
        replies[row["question"]] = BAD[i][1] if i in BAD else f"{rationale}The answer is {gold.strip()}."
    out = tmp_path / "out"
    source = shared_data / "gsm8k" / "train.jsonl"
    with running_server(replies=replies, reasoning="Let me see.") as server:
        command = words(server, out=out, source=source, max_rows=16, max_tokens=600, top_logprobs=4, tasks_per_shard=5)
        assert main(command) == 0
        assert len(server.log) == 16
        assert main(command) == 0, "nothing is left to do"
        assert len(server.log) == 16
    kept = rows_in(out)
    assert [row["id"] for row in kept] == [f"gsm8k/train/{i}/teacher-0-0" for i in range(16) if i not in BAD]
    manifest = manifest_of(out)
    assert manifest["counts"]["dropped"] == {reason: 1 for reason, _ in BAD.values()}
    assert manifest["sources"][0]["sha256"] and manifest["cost"]["replies"] == 16
    for row in kept:
        number = int(row["id"].split("/")[2])
        (message,) = row["completion"]
        assert message["content"] == replies[rows[number]["question"]].strip()
        assert message["reasoning_content"] == "Let me see."
        assert row["prompt"] == [{"role": "user", "content": rows[number]["question"]}]
        assert row["answer"] == rows[number]["answer"].rpartition("####")[2].strip().replace(",", "")
        meta = row["meta"]
        assert meta["parent"] == f"gsm8k/train/{number}" and meta["teacher"] == "test"
        tokens = unpack_logprobs(meta["logprobs"])
        assert "".join(token.token for token in tokens) == replies[rows[number]["question"]]
        assert all(len(token.top) == 4 and token.logprob == math.log(0.5) for token in tokens)
    from mmreason.data import load_examples

    loaded = load_examples(str(out), columns=("prompt", "completion", "answer", "id", "source", "meta"))
    assert loaded.format == "canonical" and len(loaded.dataset) == len(kept) and not loaded.dropped


def test_programs_are_kept_only_if_their_tests_pass(shared_data: Path, tmp_path: Path) -> None:
    """HumanEval: its own solutions, whole or as the rest of the function, and the same without what they return."""
    lines = (shared_data / "code" / "humaneval.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:160:13]]
    replies, right = {}, set()
    for i, row in enumerate(rows):
        body = row["canonical_solution"]
        if i % 3 == 2:
            body = "    return None\n"
        else:
            right.add(row["task_id"])
        head = row["prompt"][row["prompt"].rindex(f"def {row['entry_point']}") :]
        code = head + body if i % 2 else body
        replies[f"def {row['entry_point']}("] = f"Here it is:\n```python\n{code}```\nThat is all."
    source = write_rows(tmp_path / "code.jsonl", rows)
    out = tmp_path / "out"
    with running_server(replies=replies) as server:
        command = words(
            server, out=out, source=source, prompt_template="Write the function.\n\n{question}", test_timeout_s=60
        )
        assert main(command) == 0
    kept = rows_in(out)
    assert {row["meta"]["parent"] for row in kept} == right
    assert manifest_of(out)["counts"]["dropped"] == {"tests_failed": len(rows) - len(right)}


@pytest.mark.soak
@pytest.mark.parametrize("form", ["rest", "whole", "wrong"])
def test_all_of_humaneval(form: str, shared_data: Path) -> None:
    lines = (shared_data / "code" / "humaneval.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tests = [FunctionTest(row["test"], row["entry_point"]) for row in rows]
    programs = []
    for row, test in zip(rows, tests, strict=True):
        head = row["prompt"][row["prompt"].rindex(f"def {row['entry_point']}") :] if form == "whole" else ""
        body = (
            re.sub(r"return .*", "return None", row["canonical_solution"])
            if form == "wrong"
            else row["canonical_solution"]
        )
        programs.append(whole_program(row["prompt"], f"```python\n{head}{body}```", test))
    reports = run_tests(programs, tests, limits=Limits(wall_s=60, cpu_s=60))
    assert sum(report.failure is None for report in reports) == (0 if form == "wrong" else 164)


def test_a_program_is_put_together() -> None:
    head = (
        'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef f(x: List[int]) -> int:\n    """Doc."""\n'
    )
    tests = FunctionTest("def check(candidate):\n    assert candidate([1, 2]) == 2\n", "f")
    assert function_head(f"Write it.\n\n{head}") == head and function_head("What is 1 + 1?") is None
    whole = whole_program(head, "```python\ndef f(x):\n    return helper(len(x))\n```", tests)
    assert whole.startswith(head[: head.index("def f")]) and whole.count("def f(") == 1
    rest = whole_program(f"Complete it:\n{head}", "```python\n    return helper(len(x))\n```", tests)
    assert rest == f"{head}    return helper(len(x))"
    assert [report.failure for report in run_tests([whole, rest], [tests, tests])] == [None, None]


def questions(tmp_path: Path, n: int = 4) -> Path:
    rows = [{"id": f"q{i}", "question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(n)]
    return write_rows(tmp_path / "q.jsonl", rows)


def test_each_teachers_answers_or_one_that_most_agree_on(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "open.jsonl", [{"id": f"q{i}", "question": f"Case {i}?", "answer": None} for i in (0, 1)]
    )

    def says(values: dict[str, list[str]]) -> Ruled:
        return Ruled(lambda text, request: f"The answer is {values[text[5]][request.sample]}.")

    teachers = [says({"0": ["7", "8"], "1": ["1", "2"]}), says({"0": ["7.0", "7.00"], "1": ["3", "4"]})]
    all_ = run(TeacherBuilder(options(tmp_path, source, samples=2)), completers=teachers, say=quiet)
    rows = rows_in(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"q{i}/teacher-{t}-{s}" for i in (0, 1) for t in (0, 1) for s in (0, 1)]
    assert all_["counts"]["extra"] == {"answers": 8, "answers_good": 8}
    agreed = options(tmp_path, source, samples=2, choose="agreed", out=tmp_path / "agreed")
    manifest = run(TeacherBuilder(agreed), completers=teachers, say=quiet)
    (row,) = rows_in(tmp_path / "agreed")
    assert (row["id"], row["answer"], row["meta"]["kind"]) == ("q0/teacher", "7", "number")
    assert manifest["counts"]["dropped"] == {"no_agreement": 1}


def test_the_judge_chooses_and_sets_a_floor(tmp_path: Path) -> None:
    """The judge's ratings are the lengths of the answers, up to 9; an answer with '?' gets none that can be read."""

    def rule(text: str, request: Request) -> str | Reply:
        if request.json_schema is None:
            return [f"It is {2 * int(text.split()[2])}.", f"The sum is {2 * int(text.split()[2])}.", "Is it 0? 0?"][
                request.sample
            ]
        answer = text.split("<answer-")[1].split(">\n", 1)[1].split("\n</answer-")[0]
        score = None if "?" in answer else 5 if answer.startswith("It") else 9
        parsed = {"explanation": "", "helpfulness": score, "correctness": score}
        return Reply(text=json.dumps(parsed), parsed=parsed)

    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "judge", "api_key_env": None}
    best = options(tmp_path, questions(tmp_path), samples=3, choose="best", judge=judge)
    run(TeacherBuilder(best), completers=[Ruled(rule)], say=quiet)
    rows = rows_in(tmp_path / "out")
    assert [row["completion"][0]["content"] for row in rows] == [f"The sum is {2 * i}." for i in range(4)]
    assert rows[0]["meta"]["scores"] == {"helpfulness": 9.0, "correctness": 9.0}
    floor = options(tmp_path, questions(tmp_path), samples=3, judge=judge, min_judge_score=6.0, out=tmp_path / "floor")
    manifest = run(TeacherBuilder(floor), completers=[Ruled(rule)], say=quiet)
    assert len(rows_in(tmp_path / "floor")) == 4
    assert manifest["counts"]["dropped"] == {"judge_unreadable": 1, "low_score": 4, "wrong_answer": 3}


def test_what_a_provider_refuses_costs_one_answer_and_no_more(tmp_path: Path) -> None:
    bad = EndpointError("refused", "filtered")
    teachers = [
        Ruled(lambda text, _: bad if " 1 " in text else f"{2 * int(text.split()[2])}"),
        Ruled(lambda text, _: "2"),
    ]
    manifest = run(TeacherBuilder(options(tmp_path, questions(tmp_path))), completers=teachers, say=quiet)
    assert manifest["counts"]["dropped"] == {"refused": 1, "wrong_answer": 3} and manifest["complete"]
    assert [row["id"] for row in rows_in(tmp_path / "out")] == [
        "q0/teacher-0-0", "q1/teacher-1-0", "q2/teacher-0-0", "q3/teacher-0-0"
    ]  # fmt: skip


def test_what_the_judge_refuses_costs_one_answer(tmp_path: Path) -> None:
    def rule(text: str, request: Request) -> str | Reply | EndpointError:
        if request.json_schema is None:
            return f"{('It is', 'The sum is')[request.sample]} {2 * int(text.split()[2])}."
        if "The sum" in text:
            return EndpointError("refused", "filtered")
        return Reply(text="{}", parsed={"explanation": "", "helpfulness": 8, "correctness": 8})

    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "judge", "api_key_env": None}
    built = TeacherBuilder(options(tmp_path, questions(tmp_path, 2), samples=2, judge=judge))
    manifest = run(built, completers=[Ruled(rule)], say=quiet)
    assert manifest["counts"]["dropped"] == {"refused": 2} and manifest["complete"]
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["q0/teacher-0-0", "q1/teacher-0-0"]


def program_rows(tmp_path: Path) -> Path:
    tests = {"kind": "function", "test": "def check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "f"}
    prompt = [{"role": "user", "content": "Write f, which doubles."}]
    return write_rows(tmp_path / "p.jsonl", [{"id": "p", "prompt": prompt, "answer": None, "meta": {"tests": tests}}])


def test_a_program_that_passes_needs_no_agreement(tmp_path: Path) -> None:
    replies = ["def f(x):\n    return 5", "def f(x):\n    return 2 * x", "def f(x):\n    return x + x"]
    teacher = Ruled(lambda text, request: f"```python\n{replies[request.sample]}\n```")
    given = options(tmp_path, program_rows(tmp_path), samples=3, choose="agreed", any_language=True, test_timeout_s=60)
    manifest = run(TeacherBuilder(given), completers=[teacher], say=quiet)
    (row,) = rows_in(tmp_path / "out")
    assert "return 2 * x" in row["completion"][0]["content"]
    assert manifest["counts"]["dropped"] == {"tests_failed": 1}


def test_a_machine_without_a_sandbox_is_found_before_anyone_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise IsolationError("no namespaces")

    monkeypatch.setattr("data_builders._teacher.answers.try_sandbox", none)
    teacher = Ruled(lambda text, _: "0")
    with pytest.raises(IsolationError):
        run(TeacherBuilder(options(tmp_path, program_rows(tmp_path))), completers=[teacher], say=quiet)
    assert not teacher.requests
    run(TeacherBuilder(options(tmp_path, questions(tmp_path, 1))), completers=[teacher], say=quiet)


def test_thoughts_and_tool_calls_take_their_places(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {}}
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": parameters}}
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    asked = [[{"role": "user", "content": f"Ask {i}"}] for i in range(3)]
    rows = [{"id": f"q{i}", "prompt": asked[i], "answer": None, "meta": {}, "tools": [tool]} for i in range(3)]
    source = write_rows(tmp_path / "t.jsonl", rows)
    broken = {**call, "function": {"name": "add", "arguments": "{"}}
    replies: list[str | Reply] = [
        "<think>\nHm.\n</think>\n\nThree.",
        Reply(text="", tool_calls=(call,), finish_reason="tool_calls"),
        Reply(text="", tool_calls=(broken,), finish_reason="tool_calls"),
    ]
    teacher = Ruled(lambda text, _: replies[int(text[-1])])
    manifest = run(TeacherBuilder(options(tmp_path, source)), completers=[teacher], say=quiet)
    first, second = rows_in(tmp_path / "out")
    assert first["completion"] == [{"role": "assistant", "content": "Three.", "reasoning_content": "Hm."}]
    assert second["completion"][0]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    ]
    assert second["tools"] == [tool] and manifest["counts"]["dropped"] == {"bad_tool_call": 1}
    assert all(request.tools == [tool] for request in teacher.requests)


def test_questions_with_pictures(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.webp")):
        picture(20, 10, seed=i).save(tmp_path / name, lossless=True)
    rows = [{"question": f"What is in {name}?", "answer": "noise", "image": name} for name in ("a.png", "b.webp")]
    source = write_rows(tmp_path / "train.jsonl", rows)
    out = tmp_path / "out"
    with running_server(replies={"What is in": "The answer is noise."}) as server:
        assert main(words(server, out=out, source=source)) == 0
        for entry in server.log:
            kinds = [part["type"] for part in entry.body["messages"][0]["content"]]
            assert kinds == ["image_url", "text"]
            assert entry.body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    first, second = rows_in(out)
    assert first["prompt"][0]["content"][0] == {"type": "image"}
    for i, row in enumerate((first, second)):
        (image,) = row["images"]
        assert image.convert("RGB").tobytes() == picture(20, 10, seed=i).tobytes()
    (tmp_path / "a.png").unlink()
    with running_server() as server:
        assert main(words(server, out=tmp_path / "new", source=source)) == 2
        assert not server.log


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"", {}, "empty"),
        (b'{"question": "\xff\xfe?", "answer": "1"}\n', {}, "UTF-8"),
        (b'{"title": "x"}\n', {}, "no known format has the columns title"),
        (b'{"question": "1?", "answer": "1"}\n', {"column_map": {"prompt": "ask"}}, "no column 'ask'"),
        (b'{"question": "1?", "answer": "1"}\n', {"choose": "best"}, "choose: best needs a judge"),
        (b'{"question": "1?", "answer": "1"}\n', {"samples": 0}, "samples must be at least 1"),
        (
            b'{"question": "1?", "answer": "1"}\n',
            {"judge": {"base_url": "http://x/v1", "model": "j"}, "judge_criteria": ["helpfullness"]},
            "Did you mean 'helpfulness'?",
        ),
        (
            b'{"prompt": "f", "answer": null, "meta": {"tests": {"kind": "stdout"}}, "id": "r7"}\n',
            {},
            "code tests of row r7",
        ),
    ],
)
def test_bad_input_before_the_first_paid_call(
    content: bytes, more: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with running_server() as server:
        assert main(words(server, out=tmp_path / "out", source=source, **more)) == 2
        assert not server.log
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_no_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), "--source", str(questions(tmp_path)), "--decontaminate", "[]"]) == 2
    assert "--teacher.base_url" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [{"top_logprobs": 3}, {"judge": {"model": "j"}}, {"samples": 2}, {"choose": "agreed"}, {"min_agreement": 1.0}],
)
def test_what_is_of_answers_needs_a_mode_that_has_some(given: dict[str, Any], tmp_path: Path) -> None:
    (name,) = given
    with pytest.raises(ConfigError, match=f"{name} goes with mode answer or deepen"):
        options(tmp_path, tmp_path, mode="self_instruct", **given)


def test_a_cell_that_holds_no_logprobs() -> None:
    from data_builders.teacher import pack_logprobs

    cell = pack_logprobs([TokenLogprob("a", -0.5, (("a", -0.5),))], 1)
    for broken in (cell | {"form": "x"}, cell | {"data": cell["data"][:-8]}, cell | {"tokens": 2}, {"form": "topk-1"}):
        with pytest.raises(DataError, match="log-probabilities"):
            unpack_logprobs(broken)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(moment: float, shared_data: Path, tmp_path: Path) -> None:
    """The rows of an unbroken run, and no committed request again: at most those in flight are asked twice."""
    source = write_rows(tmp_path / "q.jsonl", gsm8k_rows(shared_data, 40))
    more = {"source": source, "verify": False, "concurrency": 4, "tasks_per_shard": 8}
    with running_server() as server:
        assert main(words(server, out=tmp_path / "whole", **more)) == 0
    with running_server(latency_s=0.15) as server:
        command = ["data_builders.teacher", *words(server, out=tmp_path / "out", **more)]
        assert kill_when(command, lambda: len(server.log) >= 40 * moment)
        asked = len(server.log)
        assert main(command[1:]) == 0
        assert asked <= 40 and len(server.log) <= 40 + 4
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")


@pytest.mark.slow
def test_the_rows_train_one_sft_step(shared_data: Path, tmp_path: Path) -> None:
    from tests.data_builders.training import train_one_step

    source = write_rows(tmp_path / "q.jsonl", gsm8k_rows(shared_data, 6))
    run(
        TeacherBuilder(options(tmp_path, source, verify=False)),
        completers=[Ruled(lambda text, _: f"Let me see what that comes to: {text[:40]} It is 3.")],
        say=quiet,
    )
    train_one_step(tmp_path / "out", tmp_path)
