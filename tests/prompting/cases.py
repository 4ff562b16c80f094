"""What the recorded transcripts are of: a strategy, a problem in its language, and what the model says.

`python -m tests.prompting.cases` writes transcripts/ anew, after a prompt was changed on purpose; read the difference.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmreason.prompting.registry import load_strategy
from mmreason.prompting.solve import solve
from mmreason.prompting.types import Completion, Outcome, Problem, Shot
from mmreason.tools.calculator import Calculator
from tests.prompting.scripted import Reply, Scripted

FOLDER = Path(__file__).parent / "transcripts"

BUS = Problem(question="A bus holds 40 people. How many buses do 130 people need?", gold="4", kind="number")
BUS_ZH = Problem(question="一辆巴士坐40人。130人需要几辆巴士？", gold="4", kind="number")
PHOTO = Problem(question="Which animal is shown?", images=(b"photo",), choices=("a cat", "a dog", "a hen"), gold="B")
PHOTO_ZH = Problem(question="图中是什么动物？", images=(b"photo",), choices=("猫", "狗", "母鸡"), gold="B")
SHOTS = (
    Shot(question="What is 2 + 3?", reasoning="2 and 3 make 5.", answer="5"),
    Shot(question="What colour is this?", images=(b"red",), choices=("red", "blue"), answer="A"),
)
SHOTS_ZH = (
    Shot(question="2 + 3等于几？", reasoning="2加3得5。", answer="5"),
    Shot(question="这是什么颜色？", images=(b"red",), choices=("红", "蓝"), answer="A"),
)
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "130/40"}'}}
BAD_CALL = {"id": "c0", "type": "function", "function": {"name": "abacus", "arguments": "{}"}}


def with_shots(problem: Problem, shots: tuple[Shot, ...]) -> Problem:
    return Problem(
        question=problem.question, images=problem.images, choices=problem.choices, gold=problem.gold, shots=shots
    )


@dataclass(frozen=True)
class Case:
    """name: of the recording. answer: what the strategy must come to."""

    name: str
    spec: dict[str, Any]
    problem: Problem
    script: list[Reply | list[Reply]]
    answer: str | None
    counts: dict[str, int] = field(default_factory=dict)

    def run(self) -> tuple[Outcome, Scripted]:
        model = Scripted(self.script)
        return asyncio.run(solve(load_strategy(self.spec), self.problem, model)), model


def _english() -> list[Case]:
    done = "130 / 40 is 3.25, so 4 buses.\nThe answer is 4."
    return [
        Case("direct", {"name": "direct"}, BUS, ["4"], "4"),
        Case("direct_image", {"name": "direct"}, PHOTO, ["B"], "B"),
        Case("role", {"name": "role"}, BUS, [done], "4"),
        Case("role_given", {"name": "role", "role": "a bus driver"}, BUS, [done], "4"),
        Case("few_shot", {"name": "few_shot"}, with_shots(PHOTO, SHOTS), ["It barks.\nThe answer is B."], "B"),
        Case("few_shot_one", {"name": "few_shot", "shots": 1}, with_shots(BUS, SHOTS), [done], "4"),
        Case("zero_shot_cot", {"name": "zero_shot_cot"}, BUS, ["130 / 40 is 3.25.", "4."], "4"),
        Case("zero_shot_cot_image", {"name": "zero_shot_cot"}, PHOTO, ["It barks.", "B, the dog."], "B"),
        Case("zero_shot_cot_1", {"name": "zero_shot_cot", "stages": 1}, BUS, [done], "4"),
        Case("plan_and_solve", {"name": "plan_and_solve"}, BUS, ["Plan: divide. 3.25, so 4.", "4 buses"], "4 buses"),
        Case("plan_and_solve_plus", {"name": "plan_and_solve", "plus": True}, BUS, ["3.25, so 4.", "4"], "4"),
        Case("final_answer", {"name": "final_answer"}, BUS, ["130 / 40 is 3.25.", "4"], "4"),
        Case(
            "self_consistency",
            {"name": "self_consistency", "k": 4},
            BUS,
            [["The answer is 3.", done, "I don't know.", "The answer is 4.0."]],
            "4",
            {"no_answer": 1},
        ),
        Case(
            "least_to_most",
            {"name": "least_to_most", "max_parts": 2},
            BUS,
            [
                "Here they are:\n1. How many full buses are there?\n2. How many people are left?\n3. Is it sunny?",
                "3 full buses.",
                "10 people are left.",
                "They need one more.\nThe answer is 4.",
            ],
            "4",
            {"list_cut": 1},
        ),
        Case(
            "least_to_most_no_list", {"name": "least_to_most"}, BUS, ["Just do it.", done], "4", {"unreadable_list": 1}
        ),
        Case(
            "skeleton_of_thought",
            {"name": "skeleton_of_thought"},
            BUS,
            ["1. Full buses\n2) Left people", "Three buses are full.", "One more: the answer is 4."],
            "4",
        ),
        Case(
            "tree_of_thoughts",
            {"name": "tree_of_thoughts", "depth": 2, "beam": 2, "proposals": 2, "evaluations": 2},
            BUS,
            [
                "1. Divide 130 by 40.\n2. Guess.",
                ["It fits.\nsure", "likely"],
                ["impossible", "Hm, maybe."],
                "1. Round 3.25 up. The answer is 4.\n2. Round 3.25 down. The answer is 3.",
                "nothing to propose",
                ["sure", "sure"],
                ["likely", "Verdict: impossible."],
            ],
            "4",
            {"unreadable_value": 1, "unreadable_list": 1},
        ),
        Case(
            "tree_of_thoughts_open",
            {"name": "tree_of_thoughts", "depth": 1, "beam": 1, "evaluations": 1},
            BUS,
            ["- Divide 130 by 40.", ["sure"], "It is 3.25.\nThe answer is 4."],
            "4",
        ),
        Case(
            "reflexion",
            {"name": "reflexion", "memory": 1},
            BUS,
            ["The answer is 3.", "I rounded down. Round up.", "No idea.", "Do finish.", done],
            "4",
        ),
        Case(
            "rationalize",
            {"name": "rationalize", "k": 3},
            BUS,
            [["The answer is 5.", "As the hint says.\nThe answer is 4.", done]],
            "4",
            {"wrong_answer": 1, "hint_leak": 1},
        ),
        Case(
            "json_answer",
            {"name": "json_answer"},
            BUS,
            ["It is 4.", '```json\n{"reasoning": "3.25 rounded up", "answer": "4"}\n```'],
            "4",
            {"unreadable_json": 1},
        ),
        Case(
            "react",
            {"name": "react"},
            BUS,
            [
                'Thought: I divide.\nAction: abacus\nAction Input: {"beads": 130}',
                "I know it by heart: 4.",
                'Thought: I divide.\nAction: calculator\nAction Input: {"expression": "130/40"}\nObservation: 99',
                "Thought: Rounded up.\nFinal Answer: 4",
            ],
            "4",
            {"tool_error": 1, "unreadable_action": 1},
        ),
        Case(
            "react_limit",
            {"name": "react", "max_turns": 1},
            BUS,
            ["Action: calculator\nAction Input: 130/40", done],
            "4",
            {"turn_limit": 1},
        ),
        Case(
            "react_native",
            {"name": "react", "form": "native"},
            BUS,
            [Completion("", tool_calls=(BAD_CALL, CALL)), Completion("", tool_calls=(CALL,)), done],
            "4",
            {"tool_error": 1},
        ),
        Case(
            "react_native_limit",
            {"name": "react", "form": "native", "max_turns": 1},
            BUS,
            [Completion("I divide.", tool_calls=(CALL,)), done],
            "4",
            {"turn_limit": 1},
        ),
    ]


def _chinese() -> list[Case]:
    done = "130除以40得3.25，所以要4辆。\n答案是4。"
    return [
        Case("direct", {"name": "direct"}, BUS_ZH, ["4"], "4"),
        Case("direct_image", {"name": "direct"}, PHOTO_ZH, ["B"], "B"),
        Case("role", {"name": "role"}, BUS_ZH, [done], "4"),
        Case("few_shot", {"name": "few_shot"}, with_shots(PHOTO_ZH, SHOTS_ZH), ["它在叫。\n答案是B。"], "B"),
        Case("zero_shot_cot", {"name": "zero_shot_cot"}, BUS_ZH, ["130除以40得3.25。", "4。"], "4"),
        Case("zero_shot_cot_image", {"name": "zero_shot_cot"}, PHOTO_ZH, ["它在叫。", "B，狗。"], "B"),
        Case("zero_shot_cot_1", {"name": "zero_shot_cot", "stages": 1}, BUS_ZH, [done], "4"),
        Case("plan_and_solve", {"name": "plan_and_solve"}, BUS_ZH, ["计划：用除法。得3.25，取4。", "4辆"], "4辆"),
        Case("plan_and_solve_plus", {"name": "plan_and_solve", "plus": True}, BUS_ZH, ["得3.25，取4。", "4"], "4"),
        Case("final_answer", {"name": "final_answer"}, BUS_ZH, ["130除以40得3.25。", "4"], "4"),
        Case(
            "self_consistency",
            {"name": "self_consistency", "k": 3},
            BUS_ZH,
            [["答案是3。", done, "答案是4。"]],
            "4",
        ),
        Case(
            "least_to_most",
            {"name": "least_to_most"},
            BUS_ZH,
            ["1、能坐满几辆？\n2、还剩几人？", "能坐满3辆。", "还剩10人。", "还要一辆。\n答案是4。"],
            "4",
        ),
        Case(
            "least_to_most_no_list", {"name": "least_to_most"}, BUS_ZH, ["直接算。", done], "4", {"unreadable_list": 1}
        ),
        Case(
            "skeleton_of_thought",
            {"name": "skeleton_of_thought"},
            BUS_ZH,
            ["1.坐满的车\n2.剩下的人", "坐满三辆。", "再加一辆，答案是4。"],
            "4",
        ),
        Case(
            "tree_of_thoughts",
            {"name": "tree_of_thoughts", "depth": 2, "beam": 2, "proposals": 2, "evaluations": 2},
            BUS_ZH,
            [
                "1. 130除以40。\n2. 猜一个。",
                ["没有错误。\n肯定", "可能"],
                ["不可能", "说不准。"],
                "1. 3.25向上取整。答案是4。\n2. 3.25向下取整。答案是3。",
                "没有",
                ["肯定", "肯定"],
                ["可能", "判断：不可能。"],
            ],
            "4",
            {"unreadable_value": 1, "unreadable_list": 1},
        ),
        Case(
            "tree_of_thoughts_open",
            {"name": "tree_of_thoughts", "depth": 1, "beam": 1, "evaluations": 1},
            BUS_ZH,
            ["- 130除以40。", ["肯定"], "得3.25。\n答案是4。"],
            "4",
        ),
        Case(
            "reflexion",
            {"name": "reflexion", "memory": 1},
            BUS_ZH,
            ["答案是3。", "我向下取整了，应当向上。", "不知道。", "要写完。", done],
            "4",
        ),
        Case(
            "rationalize",
            {"name": "rationalize", "k": 3},
            BUS_ZH,
            [["答案是5。", "根据提示。\n答案是4。", done]],
            "4",
            {"wrong_answer": 1, "hint_leak": 1},
        ),
        Case(
            "json_answer",
            {"name": "json_answer"},
            BUS_ZH,
            ["是4。", '{"reasoning": "3.25向上取整", "answer": "4"}'],
            "4",
            {"unreadable_json": 1},
        ),
        Case(
            "react",
            {"name": "react"},
            BUS_ZH,
            [
                'Thought: 用除法。\nAction: abacus\nAction Input: {"beads": 130}',
                "我就知道是4。",
                '思考：用除法。\n行动：calculator\n行动输入：{"expression": "130/40"}\n观察：99',
                "Thought: 向上取整。\nFinal Answer: 4",
            ],
            "4",
            {"tool_error": 1, "unreadable_action": 1},
        ),
        Case(
            "react_limit",
            {"name": "react", "max_turns": 1},
            BUS_ZH,
            ["Action: calculator\nAction Input: 130/40", done],
            "4",
            {"turn_limit": 1},
        ),
        Case(
            "react_native",
            {"name": "react", "form": "native", "max_turns": 1},
            BUS_ZH,
            [Completion("用除法。", tool_calls=(CALL,)), done],
            "4",
            {"turn_limit": 1},
        ),
    ]


CASES = {("en", case.name): case for case in _english()}
for case in _chinese():
    CASES["zh", case.name] = Case(
        case.name, case.spec | {"language": "zh"}, case.problem, case.script, case.answer, case.counts
    )


def written(outcome: Outcome) -> str:
    """A transcript as a text that people can read. What the calculator says of itself is its own affair."""
    lines = []
    for call in outcome.transcript:
        lines.append(f"==== {call.step}")
        for message in call.messages:
            lines += [f"[{message['role']}]", _content(message)]
        for completion in call.completions:
            lines += ["[-> model]", _reply(completion)]
    return "\n".join(lines).replace(Calculator.description, "<description>") + "\n"


def _content(message: Any) -> str:
    content = message["content"]
    if not isinstance(content, str):
        content = "\n".join("<image>" if part["type"] == "image" else part["text"] for part in content or ())
    if "tool_calls" in message:
        content += "\n" + repr(message["tool_calls"])
    return f"{content} <- {message['tool_call_id']}" if "tool_call_id" in message else content


def _reply(completion: Completion) -> str:
    return "\n".join(filter(None, [completion.text, repr(completion.tool_calls) if completion.tool_calls else ""]))


def recording(language: str, name: str) -> Path:
    return FOLDER / language / f"{name}.txt"


if __name__ == "__main__":
    for (language, name), case in CASES.items():
        recording(language, name).parent.mkdir(parents=True, exist_ok=True)
        recording(language, name).write_text(written(case.run()[0]), encoding="utf-8")
