"""Answers of one or several teachers to a question: asked for, filtered, verified, judged, and some of them chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_builders._teacher.code import run_row, tests_of
from data_builders._teacher.options import TeacherOptions
from data_builders.building.build import Drop, Made, Tools
from data_builders.building.pictures import image_bytes
from data_builders.building.sandbox import try_sandbox
from mmreason.clients.packed_logprobs import pack_logprobs
from mmreason.clients.types import Completer, EndpointError, Reply, Request
from mmreason.types import ConfigError, Example, Message

_SHOWN = 400


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is being looked at.

    Attributes:
        teacher, sample: which teacher gave it, and in which draw.
        text, thoughts: of the reply.
        value: its extracted answer, where the row's kind is known.
        scores: criterion -> rating, where a judge was asked.
    """

    teacher: int
    sample: int
    reply: Reply
    text: str
    thoughts: str | None
    value: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return sum(self.scores.values()) / len(self.scores) if self.scores else 0.0


class Answerer:
    """Asks the teachers and keeps what is good. Args: options: the builder's."""

    def __init__(self, options: TeacherOptions) -> None:
        self.options = options
        self._filter = options.filter

    def check(self, examples: Sequence[Example]) -> None:
        """Before anything is paid.

        Raises: DataError for tests that can't be used; IsolationError where none can be run; ConfigError for criteria.
        """
        tested = [example for example in examples if tests_of(example)] if self.options.run_tests else []
        if tested:
            try_sandbox()
        if self.options.judge is not None:
            self._criteria()

    async def rows(self, example: Example, tools: Tools) -> Made:
        """The rows that the answers to a question make.

        Args: example: its prompt, images and tools are asked; its id is the rows' beginning; answer and meta verify.
        Raises: EndpointError, DataError.
        """
        answers, drops = await self._ask(example, tools)
        asked = len(answers) + len(drops)
        kept = await self._checked(example, answers, drops)
        if self.options.judge is not None:
            kept = await self._judged(example, kept, drops, tools)
        chosen, gold = await self._chosen(example, kept, asked, drops)
        rows = [self._row(example, answer, gold, len(chosen)) for answer in chosen]
        return Made(rows, drops, {"answers": asked, "answers_good": len(kept)})

    # ---- asking

    async def _ask(self, example: Example, tools: Tools) -> tuple[list[Answer], list[Drop]]:
        teachers = list(tools.teachers) or [tools.teacher]
        requests = [
            (teacher, sample, self._request(example, sample))
            for teacher in range(len(teachers))
            for sample in range(self.options.samples)
        ]
        replies = await gather_replies([(teachers[teacher], request) for teacher, _, request in requests])
        answers, drops = [], []
        for (teacher, sample, _), reply in zip(requests, replies, strict=True):
            if isinstance(reply, EndpointError):  # the provider's filter: of this question, not of the line
                drops.append(Drop("refused", f"{asked_text(example)}\n\n{reply}"[:_SHOWN]))
                continue
            thoughts, text = parted(reply)
            answers.append(Answer(teacher, sample, reply, text, thoughts))
        return answers, drops

    def _request(self, example: Example, sample: int) -> Request:
        options = self.options
        prompt = example["prompt"]
        return Request(
            messages=[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
            images=[image_bytes(cell) for cell in example.get("images") or ()],
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.request_seed,
            sample=sample,
            top_logprobs=options.top_logprobs,
            tools=example.get("tools") or (),
            extra=options.extra,
            id=example["id"],
        )

    # ---- checking

    async def _checked(self, example: Example, answers: Sequence[Answer], drops: list[Drop]) -> list[Answer]:
        asked, kept = asked_text(example), []
        for answer in answers:
            if answer.reply.tool_calls:  # what a call is worth, its result tells: see the builder of tool traces
                if all(isinstance(call["function"]["arguments"], dict) for call in _calls(answer.reply.tool_calls)):
                    kept.append(answer)
                else:
                    drops.append(Drop("bad_tool_call", str(answer.reply.tool_calls)[:_SHOWN]))
                continue
            fault = self._filter.fault(asked, answer.text, answer.reply.finish_reason, answer.thoughts)
            value: str | None = None
            if fault is None:
                fault, value = await asyncio.to_thread(self._verified, example, asked, answer)
            if fault is None:
                kept.append(replace(answer, value=value))
            else:
                drops.append(
                    Drop(fault, f"{asked}\n\n{answer.text}"[-_SHOWN:] if fault != "refusal" else answer.text[:_SHOWN])
                )
        return kept

    def _verified(self, example: Example, asked: str, answer: Answer) -> tuple[str | None, str | None]:
        """(why it isn't kept, the extracted answer). Blocks: formulas and programs run in processes."""
        from mmreason.answers import extract, verify

        meta, gold = example.get("meta") or {}, example.get("answer")
        kind, choices = meta.get("kind"), meta.get("choices")
        if self._is_tested(example):
            report = run_row(example, asked, answer.text, timeout_s=self.options.test_timeout_s)
            return (None if report.failure is None else "tests_failed"), None
        if gold is not None:
            judgement = verify(answer.text, gold, kind, choices)
            wrong = self.options.verify and not judgement.correct
            return ("wrong_answer" if wrong else None), judgement.answer
        if self.options.choose == "agreed":
            value = extract(answer.text, kind or ("choice" if choices else "math"), choices).answer
            return ("no_answer" if value is None else None), value
        return None, None

    def _is_tested(self, example: Example) -> bool:
        """Whether its programs are tested: what passes needs no agreement."""
        return self.options.run_tests and bool((example.get("meta") or {}).get("tests"))

    def _criteria(self) -> list[Any]:
        from mmreason._functions import did_you_mean
        from mmreason.clients.judge_prompts import CRITERIA

        known = CRITERIA[self.options.judge_language]
        for name in self.options.judge_criteria:
            if name not in known:
                raise ConfigError(
                    f"judge_criteria: no {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}"
                )
        return [known[name] for name in self.options.judge_criteria]

    async def _judged(
        self, example: Example, answers: Sequence[Answer], drops: list[Drop], tools: Tools
    ) -> list[Answer]:
        """The answers with their ratings; without those that are rated too low, or whose rating can't be read."""
        from mmreason.clients.judge import Judge
        from mmreason.clients.judge_types import JudgeSettings, RubricItem

        assert self.options.judge is not None
        judge = Judge(tools.endpoint(self.options.judge), settings=JudgeSettings(language=self.options.judge_language))
        items = [
            RubricItem(
                id=str(number),
                question=bare(example["prompt"]),
                answer=answer.text,
                reference=example.get("answer"),
                images=[image_bytes(cell) for cell in example.get("images") or ()],
            )
            for number, answer in enumerate(answers)
        ]
        report = await judge.score(items, self._criteria())
        kept, least = [], self.options.min_judge_score
        for answer, result in zip(answers, report.results, strict=True):
            if result.call.status == "error" and result.call.reason == "refused":  # of this answer, not of the others
                drops.append(Drop("refused", f"the judge: {result.call.detail}"[:_SHOWN]))
                continue
            if result.call.status == "error":
                raise EndpointError(result.call.reason, f"the judge: {result.call.detail}")  # type: ignore[arg-type]
            if result.scores is None:
                drops.append(Drop("judge_unreadable", result.call.text[:_SHOWN]))
                continue
            rated = replace(answer, scores={name: float(value) for name, value in result.scores.items()})
            if least is not None and rated.score < least:
                drops.append(Drop("low_score", f"{rated.score:.1f}: {answer.text}"[:_SHOWN]))
            else:
                kept.append(rated)
        return kept

    # ---- choosing

    async def _chosen(
        self, example: Example, answers: Sequence[Answer], asked: int, drops: list[Drop]
    ) -> tuple[list[Answer], str | None]:
        """(the answers that become rows, the gold that the rows get)."""
        gold = example.get("answer")
        if not answers:
            return [], gold
        if self.options.choose == "best" or (self.options.choose == "agreed" and self._is_tested(example)):
            return [max(answers, key=lambda answer: answer.score)], gold  # of equals the first
        if self.options.choose == "agreed":
            found = await asyncio.to_thread(self._largest, example, answers)
            if len(found) <= self.options.min_agreement * asked and len(found) < asked:
                drops.append(Drop("no_agreement", "; ".join(str(answer.value) for answer in answers)[:_SHOWN]))
                return [], gold
            best = max(found, key=lambda answer: answer.score)
            return [best], gold if gold is not None else best.value
        unique: dict[tuple[str | None, str, str], Answer] = {}
        for answer in answers:
            key = (answer.thoughts, answer.text, str(answer.reply.tool_calls))
            if key in unique:
                drops.append(Drop("duplicate", answer.text[:_SHOWN]))
            unique.setdefault(key, answer)
        return list(unique.values()), gold

    def _largest(self, example: Example, answers: Sequence[Answer]) -> list[Answer]:
        from mmreason.answers import clusters

        meta = example.get("meta") or {}
        groups = clusters([answer.value for answer in answers], meta.get("kind"), meta.get("choices"))
        return [answers[i] for i in groups[0]] if groups else []

    def _row(self, example: Example, answer: Answer, gold: str | None, count: int) -> Example:
        message: Message = {"role": "assistant", "content": answer.text}
        if answer.thoughts and answer.thoughts.strip():
            message["reasoning_content"] = answer.thoughts.strip()
        if answer.reply.tool_calls:
            message["tool_calls"] = _calls(answer.reply.tool_calls)
        meta: dict[str, Any] = {
            "parent": example["id"],
            "origin": example.get("source"),
            **(example.get("meta") or {}),
            "teacher": answer.reply.model,
            "sample": answer.sample,
            "finish_reason": answer.reply.finish_reason,
            "completion_tokens": answer.reply.completion_tokens,
        }
        if gold is not None and not meta.get("kind"):
            from mmreason.answers import infer_kind

            meta["kind"] = infer_kind(gold, meta.get("choices"))
        if answer.scores:
            meta["scores"] = dict(answer.scores)
        if answer.reply.logprobs is not None:
            meta["logprobs"] = pack_logprobs(answer.reply.logprobs, self.options.top_logprobs or 0)
        several = self.options.choose == "all"
        row: Example = {
            "prompt": example["prompt"],
            "completion": [message],
            "answer": gold,
            "id": f"{example['id']}/teacher" + (f"-{answer.teacher}-{answer.sample}" if several else ""),
            "source": "teacher",
            "meta": meta,
        }
        for name in ("images", "tools"):
            if example.get(name):
                row[name] = example[name]  # type: ignore[literal-required]
        return row


# --------------------------------------------------------------------------------------------------------------------
# Shared with the other modes


async def gather_replies(asked: Sequence[tuple[Completer, Request]]) -> list[Reply | EndpointError]:
    """All replies, in order; an error stands for a question that the provider refused.

    Raises: the first other error, once all have ended, so that nothing is paid for unseen.
    """
    found = await asyncio.gather(*(completer.complete(request) for completer, request in asked), return_exceptions=True)
    for reply in found:
        if isinstance(reply, BaseException) and not (isinstance(reply, EndpointError) and reply.kind == "refused"):
            raise reply
    return found  # type: ignore[return-value]


def parted(reply: Reply) -> tuple[str | None, str]:
    """(thoughts, answer) of a reply, also where the server leaves `<think>…</think>` in the text."""
    from mmreason.data.formats.conversations import split_thoughts

    if reply.reasoning is not None:
        return reply.reasoning, reply.text.strip()
    thoughts, text = split_thoughts(reply.text)
    return thoughts, text.strip()


def asked_text(example: Mapping[str, Any]) -> str:
    """What the user says last, as text."""
    from mmreason.data.quality import instruction_text

    return instruction_text(example)


def bare(prompt: Any) -> str | list[Message]:
    """A conversation as texts, as a judge's prompt quotes it."""
    from mmreason.data.supervised import message_texts

    if isinstance(prompt, str):
        return prompt
    return [{"role": message["role"], "content": "\n".join(message_texts([message]))} for message in prompt]


def _calls(calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Tool calls with arguments as mappings, as rows hold them; text that is no JSON object stays text."""
    from mmreason.tools.formats.openai import parse_message

    return [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in parse_message({"tool_calls": calls})
    ]
