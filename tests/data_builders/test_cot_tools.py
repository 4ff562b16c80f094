"""Rationales by a teacher with tools of its own: its rows show the tools that were called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_builders.building.runner import run
from data_builders.cot import Cot, CotOptions
from data_builders.self_play import SelfPlay, SelfPlayOptions
from mmreason.clients.types import Reply, Request
from tests.data_builders.teaching import Ruled, rows_in, write_rows

REACT = {"name": "react", "form": "native", "tools": ["python"]}
NEW = "Olga swims 20 lanes on Monday and 40 on Friday. How many lanes does Olga swim in all?"


def computes(text: str, request: Request) -> str | Reply:
    """Calls python once, then states what it gave; every fourth draw is wrong."""
    if "Write one new problem" in text:
        return NEW
    if request.messages[-1]["role"] == "tool":
        return "The answer is 61." if request.sample == 3 else "The answer is 60."
    function = {"name": "python", "arguments": '{"code": "print(20 + 40)"}'}
    call = {"id": "c1", "type": "function", "function": function}
    return Reply(text="", tool_calls=(call,), model="ruled", completion_tokens=1)


def check(rows: list[Any]) -> None:
    assert rows
    for row in rows:
        (called,) = row["completion"][0]["tool_calls"]
        assert called["function"]["name"] == "python"
        assert [tool["function"]["name"] for tool in row["tools"]] == ["python"]


def test_rows_of_native_react_have_its_tools(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", [{"question": NEW, "answer": "20+40 = 60\n#### 60"}])
    given: dict[str, Any] = {"out": tmp_path / "cot", "decontaminate": [], "report": False, "strategy": REACT}
    run(Cot(CotOptions(source=[str(source)], k=1, **given)), completers=[Ruled(computes)], say=lambda _: None)
    check(rows_in(tmp_path / "cot"))
    given |= {"out": tmp_path / "played", "n": 1, "k": 4, "test": "none"}
    other = write_rows(tmp_path / "other.jsonl", [{"question": "What is 1+1, please?", "answer": "1+1 = 2\n#### 2"}])
    play = SelfPlay(SelfPlayOptions(source=str(other), **given))
    run(play, completers=[Ruled(computes)], say=lambda _: None)
    check(rows_in(tmp_path / "played"))
