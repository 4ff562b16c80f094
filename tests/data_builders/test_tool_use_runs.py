"""The command line of tool_use with a scripted server: multi-hop search on HotpotQA, killed, resumed, learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_builders.tool_use import main
from tests.clients.server import Running, running_server
from tests.data_builders.teaching import kill_when, manifest_of, rows_in, words, write_rows

HOPS: dict[str, tuple[str, str, str, str, str]] = {
    "What is the name for the adventure in": (
        "Tunnels and Trolls", "Tunnels and Trolls is a game by Ken St. Andre with adventures for one player.",
        "Khazan", "Arena of Khazan is one of these adventures.",
        "Arena of Khazan",
    ),
    "Ralph Hefferline was a psychology professor": (
        "Ralph Hefferline", "The psychology professor Ralph Hefferline taught at Columbia University.",
        "Columbia University city", "Columbia University is a private university in New York City, a city in New York.",
        "New York City",
    ),
    "D1NZ is a series based on": (
        "D1NZ", "D1NZ is a production car series in New Zealand for a kind of oversteering.",
        "technique driver oversteers", "Drifting is a technique: the driver oversteers on purpose.", "Drifting",
    ),
    "What WB supernatrual drama series": (
        "Rose Mcgowan Jawbreaker", "Rose Mcgowan starred in Jawbreaker, and later as Paige for the network WB.",
        "Paige WB supernatural drama", "Charmed is a supernatural drama whose cast has the witch Paige.", "Charmed",
    ),
    "Vince Phillips held a junior welterweight title": (
        "Vince Phillips", "Vince Phillips held the junior welterweight title of the IBF.",
        "IBF boxing hall", "The IBF is recognized by the International Boxing Hall of Fame.",
        "International Boxing Hall of Fame",
    ),
    "Who was born earlier, Emma Bull or": (
        "Emma Bull born", "Emma Bull, born 1954, writes fantasy.",
        "Virginia Woolf 1882", "Adeline Virginia Woolf, 1882 to 1941, was a writer.", "Adeline Virginia Woolf",
    ),
}  # fmt: skip
"""A question's beginning -> query, passage, query, passage, answer."""


def acts(query: str) -> str:
    return f"Thought: I look for {query}.\nAction: search\nAction Input: {json.dumps({'query': query})}"


def replies() -> dict[str, str]:
    """The server's script: by what stands in the last message, a question or an observation."""
    found = {}
    for question, (first, one, second, two, answer) in HOPS.items():
        found |= {question: acts(first), one: acts(second), two: f"Thought: Both are found.\nFinal Answer: {answer}"}
    return found


@pytest.fixture
def inputs(shared_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The options of a run: HotpotQA's own questions and golds, and a corpus that answers them."""
    lines = (shared_data / "tool_use" / "hotpotqa_dev_1k.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = [row for row in rows if any(row["question"].startswith(start) for start in HOPS)]
    assert len(chosen) == len(HOPS)
    passages = [text for _, one, _, two, _ in HOPS.values() for text in (one, two)]
    corpus = write_rows(tmp_path / "wiki.jsonl", [{"id": f"p{k}", "text": text} for k, text in enumerate(passages)])
    return {
        "source": write_rows(tmp_path / "hotpot.jsonl", chosen),
        "kind": "solve", "tools": [{"name": "search", "corpus": str(corpus), "k": 1}], "form": "react", "min_calls": 2,
        "grounded": "true", "errors": 0.5, "concurrency": 1, "tasks_per_shard": 2, "license": "CC BY-SA 4.0",
    }  # fmt: skip


def command(server: Running, out: Path, inputs: dict[str, Any]) -> list[str]:
    return words(server, out=out, **inputs)


@pytest.mark.slow
def test_multi_hop_search_is_killed_goes_on_and_is_learned_from(inputs: dict[str, Any], tmp_path: Path) -> None:
    from tests.data_builders.training import train_one_step

    with running_server(replies=replies()) as server:
        assert main(command(server, tmp_path / "whole", inputs)) == 0
        assert len(server.log) == 3 * len(HOPS)
    whole, manifest = rows_in(tmp_path / "whole"), manifest_of(tmp_path / "whole")
    assert manifest["counts"]["tasks"]["accepted"] == len(HOPS) and not manifest["counts"]["dropped"]
    assert {source["license"] for source in manifest["sources"]} == {"CC BY-SA 4.0"} and len(manifest["sources"]) == 2
    assert len(whole) == 3 * len(HOPS), "a row for each turn that didn't fail"
    assert {row["meta"]["teacher"] for row in whole} == {"test"} and any(row["meta"]["errors"] for row in whole)
    assert all(row["meta"]["calls"] == 2 + len(row["meta"]["errors"]) for row in whole)
    with running_server(replies=replies(), latency_s=0.05) as server:
        arguments = command(server, tmp_path / "out", inputs)
        assert kill_when(["data_builders.tool_use", *arguments], lambda: len(server.log) >= 8)
        assert main(arguments) == 0
        assert len(server.log) <= 3 * len(HOPS) + 1, "at most the request that was under way is asked twice"
    assert rows_in(tmp_path / "out") == whole
    assert main(["replay", str(tmp_path / "out")]) == 0
    train_one_step(tmp_path / "out", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("moment", range(1, 18))
def test_killed_at_every_moment(inputs: dict[str, Any], moment: int, tmp_path: Path) -> None:
    with running_server(replies=replies()) as server:
        assert main(command(server, tmp_path / "whole", inputs)) == 0
    with running_server(replies=replies(), latency_s=0.05) as server:
        arguments = command(server, tmp_path / "out", inputs)
        assert kill_when(["data_builders.tool_use", *arguments], lambda: len(server.log) >= moment)
        assert main(arguments) == 0
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")


@pytest.mark.slow
def test_a_server_that_ends_a_trace_with_native_calls(tmp_path: Path) -> None:
    """The test server calls the first tool whenever it has some: a trace without an end is no row."""
    source = write_rows(tmp_path / "q.jsonl", [{"question": "What is 7 * 8?", "answer": "56"}])
    given = {"source": source, "teacher_form": "native", "max_turns": 2}
    with running_server(replies={"7 * 8": "The answer is 56."}) as server:
        assert main(words(server, out=tmp_path / "out", **given)) == 0
        assert len(server.log) == 3 and server.log[1].body["messages"][-1]["content"] == "56"
    assert manifest_of(tmp_path / "out")["counts"]["dropped"] == {"turn_limit": 1}


def test_rows_with_calls_render_with_loss_on_the_way_back_only(tmp_path: Path) -> None:
    """Through the renderer that every recipe uses, with a chat template that has a place for calls."""
    from data_builders.building.runner import run
    from data_builders.tool_use import ToolUse, ToolUseOptions
    from mmreason.data.supervised_rendering import render_supervised
    from mmreason.models.tiny import tiny_tokenizer

    rows = [{"question": "3*4?", "answer": "3*4 = <<3*4=12>>12\n#### 12"}]
    options = ToolUseOptions(
        source=str(write_rows(tmp_path / "q.jsonl", rows)), out=tmp_path / "out", kind="notes", errors=1.0,
        mistakes=["syntax"], decontaminate=[], report=False,
    )  # fmt: skip
    run(ToolUse(options), say=lambda text: None)
    (row,) = rows_in(tmp_path / "out")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['reasoning_content'] or '' }}{{ m['content'] or '' }}"
        "{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}{{ '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    (rendered,) = render_supervised(row, tokenizer)
    learned = tokenizer.decode([i for i, weight in zip(rendered.ids, rendered.weights, strict=True) if weight])
    assert '"3*4"' in learned and "The answer is 12." in learned
    assert "Error" not in learned and "<|tool|>" not in learned
    wrong = json.dumps(row["prompt"][-2]["tool_calls"][0]["function"]["arguments"]["expression"])
    assert wrong != '"3*4"' and wrong not in learned and wrong in tokenizer.decode(rendered.ids)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "empty"),
        (b'{"question": "\xff", "answer": "1"}\n', "UTF-8"),
        (b'{"question": "1+1?"}\n', "answer"),
    ],
)
def test_bad_sources_end_with_a_message_before_anybody_is_asked(
    file: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_bytes(file)
    teacher = ["--teacher", '{base_url: "http://127.0.0.1:9/v1", model: m, api_key_env: null}']
    arguments = [
        "--source",
        str(tmp_path / "q.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--decontaminate",
        "[]",
        *teacher,
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error, error


def test_another_configs_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"question": "3*4?", "answer": "3*4 = <<3*4=12>>12\n#### 12"}])
    same = ["--source", str(source), "--out", str(tmp_path / "out"), "--kind", "notes", "--decontaminate", "[]"]
    assert main([*same, "--no_report"]) == 0
    assert main([*same, "--no_report", "--form", "react"]) == 2
    assert "out" in capsys.readouterr().err
    assert main([*same, "--no_report"]) == 0, "the same options go on"
