"""Traces that a teacher drives: it thinks and calls, our tools answer, until it states an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from data_builders._tool_use.rows import Workshop, problem_of
from data_builders._tool_use.trace import OBSERVATION, Trace, Turn, run_turn, stated
from data_builders.building.build import Drop, Made
from data_builders.building.recorder import Recorder
from mmreason.answers import extract
from mmreason.clients.types import Completer
from mmreason.prompting.from_completer import CompleterSample
from mmreason.prompting.react import ReAct
from mmreason.prompting.solve import solve
from mmreason.prompting.types import Call, Outcome, Problem
from mmreason.tools.formats import openai, programs, react
from mmreason.tools.types import ToolCall, ToolError
from mmreason.types import Example, Message

_GO_ON = {"en": "Go on.", "zh": "请继续。"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a trace must have.

    Attributes:
        min_calls: different calls that succeeded; 2 and more make a multi-hop trace.
        grounded: the gold (other than yes and no) stands in a result that came before the answer.
    """

    min_calls: int = 1
    grounded: bool = False

    def unmet(self, trace: Trace, gold: str | None) -> Drop | None:
        good = [
            (call.name, str(call.arguments), result.content)
            for turn in trace.turns
            for call, result in zip(turn.calls, turn.results, strict=True)
            if result.error is None
        ]
        if len({call[:2] for call in good}) < self.min_calls:
            return Drop("too_few_calls", f"{len(good)} calls succeeded: {[call[:2] for call in good]}")
        needed = gold if self.grounded and gold and gold.lower() not in ("yes", "no") else ""
        if needed and not any(_words(needed) in _words(content) for _, _, content in good):
            return Drop("ungrounded", f"{needed!r} stands in none of the {len(good)} results")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How the teacher is asked. draw: which of several traces of a problem this is."""

    temperature: float | None = None
    max_tokens: int = 1024
    max_turns: int = 8
    draw: int = 0


async def by_tools(
    shop: Workshop, task: str, example: Example, teacher: Completer, asking: Asking, demands: Demands
) -> Made:
    """A trace by the ReAct strategy (arXiv:2210.03629): `shop.react` says in which form the teacher writes calls."""
    recorder = Recorder(teacher)
    sample = CompleterSample(completer=recorder, max_tokens=asking.max_tokens, temperature=asking.temperature)
    problem = replace(problem_of(example), draw=asking.draw)
    outcome = await solve(shop.react, problem, sample)
    found = await _read(shop, outcome, problem)
    if isinstance(found, Drop):
        return Made(drops=[found], counts=dict(outcome.counts))
    unmet = demands.unmet(found, example.get("answer"))
    if unmet is not None:
        return Made(drops=[unmet], counts=dict(outcome.counts))
    return await shop.finish(task, example, found, {"teacher": recorder.names, "draw": asking.draw})


async def _read(shop: Workshop, outcome: Outcome, problem: Problem) -> Trace | Drop:
    """The transcript as a trace. Every call is run once more: what comes out must be what the teacher was shown."""
    if outcome.counts.get("turn_limit"):
        return Drop("turn_limit", outcome.text[-500:])
    if outcome.counts.get("truncated"):
        return Drop("truncated", outcome.text[-500:])
    turns: list[Turn] = []
    transcript = outcome.transcript
    for asked, following in pairwise(transcript):
        turn = _acted(asked, shop.react, shop.schemas)
        if isinstance(turn, ToolError):
            return Drop("unreadable_action", asked.completions[0].text[:500])
        done = await run_turn(shop.toolbox, turn)
        shown = _shown(following.messages[len(asked.messages) + 1 :])
        if [content.strip() for content in shown] != [result.content.strip() for result in done.results]:
            return Drop("not_repeatable", f"{turn.calls}\nshown: {shown}\nnow: {[r.content for r in done.results]}")
        turns.append(done)
    if not turns:
        return Drop("no_call", outcome.text[-500:])
    return _concluded(turns, transcript[-1], outcome, problem, shop)


def _acted(asked: Call, strategy: ReAct, schemas: Sequence[dict[str, Any]]) -> Turn | ToolError:
    said = asked.completions[0]
    if strategy.form == "native":
        calls = openai.parse_message({"tool_calls": list(said.tool_calls)})
        thought = "\n".join(filter(None, ((said.reasoning or "").strip(), said.text.strip())))
        return Turn(thought, tuple(replace(call, id="") for call in calls))
    step = react.parse(_own(said.text), schemas)
    if step.call is None:
        return step.error or ToolError("bad_arguments", "no call")
    return Turn(step.thought, (step.call,))


def _shown(messages: Sequence[Message]) -> list[str]:
    """What the tools said, as the teacher saw it."""
    return [str(message["content"]).removeprefix(OBSERVATION) for message in messages]


def _concluded(turns: Sequence[Turn], last: Call, outcome: Outcome, problem: Problem, shop: Workshop) -> Trace | Drop:
    said = last.completions[0]
    language = shop.writing.language
    if outcome.answer is None:
        return Drop("no_answer", said.text[-500:])
    if shop.react.form == "native":
        return Trace(tuple(turns), (said.reasoning or "").strip(), said.text.strip(), outcome.answer)
    step = react.parse(_own(said.text), shop.schemas)
    # The bare answer behind "Final Answer:" becomes a sentence; one that says more stays as it was written.
    final = (step.final or "").strip()
    is_sentence = extract(final, problem.answer_kind, problem.choices).strict is not None
    return Trace(tuple(turns), step.thought, final if is_sentence else stated(outcome.answer, language), outcome.answer)


def _own(text: str) -> str:
    """What the teacher wrote before it made an observation up (where its server knows no stop texts)."""
    return text[: min((at for stop in react.STOP if (at := text.find(stop)) >= 0), default=len(text))].strip()


async def by_programs(
    shop: Workshop, task: str, example: Example, teacher: Completer, asking: Asking, demands: Demands
) -> Made:
    """A trace as ToRA has it (arXiv:2309.17452, section 2.1): reasoning, program, its output, and so on to the answer.

    The teacher is asked in turns; an output comes back as the next message, so that every server can do it.
    """
    recorder = Recorder(teacher)
    sample = CompleterSample(completer=recorder, max_tokens=asking.max_tokens, temperature=asking.temperature)
    problem = problem_of(example)
    messages = await replace(shop, writing=replace(shop.writing, form="fenced"), instructions=True).prompt(problem)
    turns: list[Turn] = []
    for _ in range(asking.max_turns):
        (said,) = await sample(messages, images=problem.images, draw=asking.draw, stop=programs.STOP)
        text = _before_output(said.text)
        if said.finish_reason == "length":
            return Made(drops=[Drop("truncated", text[-500:])])
        call = programs.pending_call(text)
        if isinstance(call, ToolError):
            return Made(drops=[Drop("unreadable_action", text)])
        if call is None:
            return await _computed(shop, task, example, (turns, text, problem), demands, recorder, asking)
        turns.append(await run_turn(shop.toolbox, Turn(_thought(text), (ToolCall(call.name, call.arguments),))))
        output = programs.output(turns[-1].results[0]).source
        go_on = _GO_ON[shop.writing.language]
        messages = [
            *messages,
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"{output}\n{go_on}"},
        ]
    return Made(drops=[Drop("turn_limit", str(messages[-1]["content"]))])


async def _computed(
    shop: Workshop,
    task: str,
    example: Example,
    found: tuple[list[Turn], str, Problem],
    demands: Demands,
    recorder: Recorder,
    asking: Asking,
) -> Made:
    turns, text, problem = found
    if not turns:
        return Made(drops=[Drop("no_call", text)])
    answer = extract(text, problem.answer_kind, problem.choices).answer
    if answer is None:
        return Made(drops=[Drop("no_answer", text)])
    trace = Trace(tuple(turns), final=text.strip(), answer=answer)
    unmet = demands.unmet(trace, example.get("answer"))
    if unmet is not None:
        return Made(drops=[unmet])
    return await shop.finish(task, example, trace, {"teacher": recorder.names, "draw": asking.draw})


def _before_output(text: str) -> str:
    """Up to an output block that the teacher made up."""
    return text[: min((at for stop in programs.STOP if (at := text.find(stop)) >= 0), default=len(text))].strip()


def _thought(text: str) -> str:
    """What stands around the last program: blocks of earlier programs that were never run are left out."""
    return "".join(block.source for block in programs.parse(text) if block.kind == "text").strip()


def _words(text: str) -> str:
    """The words of a text, each with a space on both sides."""
    return " ".join(["", *re.findall(r"\w+", text.casefold()), ""])
