"""Asking a teacher for solutions: from an Example to a strategy's problem, and from its outcomes to candidates."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeGuard

from data_builders._cot.rationale import cleaned
from data_builders.building.pictures import image_bytes
from mmreason.answers import Verdict, equivalent
from mmreason.clients.types import EndpointError
from mmreason.data.formats.common import lettered
from mmreason.prompting.react import ReAct
from mmreason.prompting.solve import solve
from mmreason.prompting.strategy import Strategy
from mmreason.prompting.types import Outcome, Problem, Sample, Shot
from mmreason.types import ContentPart, Example, Message

UNUSABLE = ("refused", "schema", "bad_reply", "bad_request")
"""Kinds of endpoint errors that asking again won't cure: the draw is lost, the others of its problem are not."""
Origin = Literal["gold", "teacher", "rationalized"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution that may become a row.

    Attributes:
        text: the steps, perhaps with a closing statement of the answer.
        answer: as it was read; None where there is none.
        thoughts: of a model whose thoughts are parted from its answer.
        messages: the turns with tools and the answer, of a strategy with native tool calls.
        fault: why it can't be used, whatever its answer ("truncated", "hint_leak"); "" for none.
        origin: "gold" for the set's own, "rationalized" where the teacher had been told the gold, else "teacher".
        tools: schemas of the tools that the messages call.
    """

    text: str
    answer: str | None
    thoughts: str | None = None
    messages: tuple[Message, ...] = ()
    fault: str = ""
    origin: Origin = "teacher"
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Drawn:
    """What was drawn for a problem.

    Attributes:
        candidates: in the order of the draws.
        lost: draws without any, by the kind of their error.
        counts: what went wrong on the way, as the strategies count it.
    """

    candidates: list[Candidate] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)


async def problem_of(example: Example, shots: Sequence[Shot] = ()) -> Problem:
    """The problem of a row, with its images as bytes and its choices listed by the strategy alone.

    Raises: DataError for a prompt of several messages, and for images that can't be read.
    """
    problem = Problem.from_example(example, shots=shots)
    images = [await asyncio.to_thread(image_bytes, cell) for cell in problem.images]
    return replace(problem, question=_unlisted(problem.question, problem.choices), images=tuple(images))


def shot_of(example: Example, problem: Problem, reasoning: str) -> Shot:
    """A row as a worked example."""
    return Shot(
        question=problem.question,
        answer=example.get("answer") or "",
        reasoning=reasoning,
        images=problem.images,
        choices=problem.choices,
    )


def _unlisted(question: str | Sequence[ContentPart], choices: Sequence[str] | None) -> str | Sequence[ContentPart]:
    """The question without its lettered choices: prompts list them, and two lists would differ in their brackets."""
    if not choices:
        return question
    listed = lettered(choices)
    if isinstance(question, str):
        return question.removesuffix(listed).rstrip("\n")
    parts = [dict(part) for part in question]
    for part in parts:
        if part.get("type") == "text":
            part["text"] = str(part["text"]).removesuffix(listed).rstrip("\n")
    return parts  # type: ignore[return-value]


async def draw(strategy: Strategy, problem: Problem, sample: Sample, k: int) -> Drawn:
    """k solutions of a problem by a strategy, side by side.

    Raises: the first error that asking again may cure, or that no asking cures (no key, a wrong setting), once all have
        ended: what was paid for is in the ledger.
    """
    asked = (solve(strategy, replace(problem, draw=i), sample) for i in range(k))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    drawn, spoiled = Drawn(), None
    for outcome in outcomes:
        if isinstance(outcome, Outcome):
            drawn.candidates += candidates_of(outcome, strategy, problem)
            drawn.counts.update(outcome.counts)
        elif isinstance(outcome, EndpointError) and outcome.kind in UNUSABLE:
            drawn.lost[outcome.kind] += 1
            spoiled = outcome
        else:
            raise outcome
    if spoiled is not None and drawn.lost.total() == k:
        raise spoiled
    return drawn


def candidates_of(outcome: Outcome, strategy: Strategy, problem: Problem) -> list[Candidate]:
    """The solution, and the strategy's other attempts that come to an answer."""
    cut = {
        completion.text.strip()
        for call in outcome.transcript
        for completion in call.completions
        if completion.finish_reason == "length" and completion.text.strip()
    }
    text = outcome.text
    if isinstance(outcome.parsed, Mapping) and isinstance(outcome.parsed.get("reasoning"), str):
        text = outcome.parsed["reasoning"]  # of a JSON reply
    found = []
    if outcome.text.strip() or outcome.answer is not None:
        messages = _native(outcome, strategy)
        schemas = strategy.toolbox.schemas if messages and calls_tools(strategy) else ()
        found.append(Candidate(text, outcome.answer, outcome.reasoning, messages, tools=tuple(schemas)))
    for attempt in outcome.attempts:
        if attempt.answer is None or attempt.text.strip() == outcome.text.strip():
            continue
        leaks = attempt.reason.startswith("hint_leak")
        found.append(Candidate(attempt.text, attempt.answer, fault="hint_leak" if leaks else ""))
    return [
        replace(candidate, fault="truncated") if any(candidate.text.strip().endswith(end) for end in cut) else candidate
        for candidate in found
    ]


def calls_tools(strategy: Strategy) -> TypeGuard[ReAct]:
    """Does it use the server's own tool calls, which rows keep as messages?"""
    return isinstance(strategy, ReAct) and strategy.form == "native"


def _native(outcome: Outcome, strategy: Strategy) -> tuple[Message, ...]:
    """The turns behind the question, where the model called tools in the server's form."""
    if not calls_tools(strategy) or not outcome.transcript:
        return ()
    first, last = outcome.transcript[0], outcome.transcript[-1]
    turns = [message for message in last.messages[len(first.messages) :] if message["role"] != "user"]
    if not any(message.get("tool_calls") for message in turns) or not last.completions:
        return ()
    return (*turns, {"role": "assistant", "content": last.completions[0].text.strip()})


def judged(candidate: Candidate, problem: Problem) -> str:
    """ "" for a candidate with the gold as its answer, or why not. Compared symbolically where need be: may take
    seconds."""
    if candidate.fault:
        return candidate.fault
    if candidate.answer is None:
        return "no_answer"
    if problem.gold is None:
        return "missing_answer"
    verdict = equivalent(candidate.answer, problem.gold, problem.answer_kind, problem.choices)
    return "" if verdict is Verdict.CORRECT else "wrong_answer"


def rationale_of(candidate: Candidate, problem: Problem, wanted: Literal["text", "thoughts"] = "text") -> str:
    """A candidate's steps, cleaned up: of its text or of its thoughts; of the other where the wanted one has none."""
    problem = replace(problem, kind=problem.answer_kind, gold=candidate.answer or problem.gold)
    text = candidate.thoughts if candidate.thoughts and wanted == "thoughts" else candidate.text
    tidy = cleaned(text, problem)
    return tidy or (cleaned(candidate.thoughts, problem) if candidate.thoughts else "")
