"""ReAct: thoughts and tool calls in turn, in plain text or with a server's own tool calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from mmreason.prompting.prompts import Prompt, answer_after, answer_in, ask, assistant, fill, finish, form, user
from mmreason.prompting.session import Session
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.types import Completion, Problem, Solution
from mmreason.tools.formats import openai, react
from mmreason.tools.schemas import ArgumentSchema
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall, ToolResult
from mmreason.types import Message


@dataclass(frozen=True, kw_only=True)
class ReAct(Strategy):
    """The model thinks, calls a tool, sees the result, and so on until it answers (arXiv:2210.03629).

    1 call for each turn. What the model gets wrong is shown to it in words and counted: "unreadable_action",
    "tool_error". After `max_turns` turns without an answer ("turn_limit") it is asked for one, without tools.

    Attributes:
        tools: as `mmreason.tools.registry.load_tools` takes them: names, mappings with parameters, tools.
        form: "text" writes actions as text, which any model can; "native" uses the sampler's tool calls.
        max_turns: turns that may use tools.
        timeout_s, max_chars: of one tool call, see `Toolbox`.
    """

    tools: tuple[Any, ...] = ("calculator",)
    form: Literal["text", "native"] = "text"
    max_turns: int = at_least(1, 8)
    timeout_s: float = 5.0
    max_chars: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.toolbox  # noqa: B018  an unknown tool shows now, not at the first problem

    @cached_property
    def toolbox(self) -> Toolbox:
        """The tools, shared by all problems. They are called in threads, so that no problem waits for another's."""
        from mmreason.tools.registry import load_tools

        return Toolbox(load_tools(self.tools), timeout_s=self.timeout_s, max_chars=self.max_chars)

    async def run(self, problem: Problem, session: Session) -> Solution:
        system: Message = {"role": "system", "content": self._instructions(problem)}
        prompt = ask("{question}", problem, self.texts)
        prompt = Prompt((system, *prompt.messages), prompt.images)
        last = fill(self.texts.act_last, finish=finish(problem, self.texts))
        if self.form == "native":
            return await self._native(prompt, last, problem, session)
        return await self._text(prompt, last, problem, session)

    def _instructions(self, problem: Problem) -> str:
        if self.form == "native":
            return fill(self.texts.act_native, finish=finish(problem, self.texts))
        lines = []
        for schema in self.toolbox.schemas:
            function = schema["function"]
            arguments = ArgumentSchema(function["name"], function["parameters"]).signature()
            described = fill(self.texts.act_arguments, arguments=arguments)
            lines.append(f"- {function['name']}: {function['description']} {described}")
        return fill(self.texts.act, tools="\n".join(lines), form=form(problem, self.texts))

    async def _text(self, prompt: Prompt, last: str, problem: Problem, session: Session) -> Solution:
        written: list[str] = []
        for turn in range(1, self.max_turns + 1):
            completion = await session.ask_one(prompt, "act", stop=react.STOP)
            text = _before_observation(completion.text)
            step = react.parse(text, self.toolbox.schemas)
            written.append(text)
            if step.final is not None:
                return self._solved(step.final, written, completion, problem)
            if step.call is None:
                session.counts["unreadable_action"] += 1
                observed = react.render_result(step.error) if step.error is not None else ""
            else:
                (result,) = await self._call([step.call], session)
                observed = react.render_result(result)
            written.append(observed.strip())
            told = observed.strip() if turn < self.max_turns else f"{observed.strip()}\n\n{last}"
            prompt = prompt.then(assistant(text), user(told))
        session.counts["turn_limit"] += 1
        completion = await session.ask_one(prompt, "answer", stop=react.STOP)
        text = _before_observation(completion.text)
        return self._solved(react.parse(text).final or text, [*written, text], completion, problem)

    def _solved(self, final: str, written: list[str], completion: Completion, problem: Problem) -> Solution:
        answer = answer_after(self.texts.lead, final, problem)
        return Solution(answer=answer, text="\n".join(written), reasoning=completion.reasoning)

    async def _native(self, prompt: Prompt, last: str, problem: Problem, session: Session) -> Solution:
        written: list[str] = []
        for _ in range(self.max_turns):
            completion = await session.ask_one(prompt, "act", tools=self.toolbox.schemas)
            written.append(completion.text.strip())
            calls = openai.parse_message({"tool_calls": list(completion.tool_calls)})
            if not calls:
                break
            said: dict[str, Any] = {"role": "assistant", "content": completion.text}
            said["tool_calls"] = list(completion.tool_calls)
            answered = [openai.render_result(result) for result in await self._call(calls, session)]
            prompt = prompt.then(cast(Message, said), *cast(list[Message], answered))
        else:
            session.counts["turn_limit"] += 1
            completion = await session.ask_one(prompt.then(user(last)), "answer")
            written.append(completion.text.strip())
        return Solution(
            answer=answer_in(completion.text, problem),
            text="\n".join(filter(None, written)),
            reasoning=completion.reasoning,
        )

    async def _call(self, calls: list[ToolCall], session: Session) -> list[ToolResult]:
        results = [await asyncio.to_thread(self.toolbox.run, call) for call in calls]
        session.counts["tool_error"] += sum(result.error is not None for result in results)
        return results


def _before_observation(text: str) -> str:
    """What the model wrote itself: a sampler that doesn't know stop texts lets it make up the observation as well."""
    return text[: min((at for stop in react.STOP if (at := text.find(stop)) >= 0), default=len(text))].strip()
