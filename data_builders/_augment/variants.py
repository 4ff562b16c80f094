"""Variants of a row: made by rule or by the teacher, and each proved before it becomes a row."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_builders._augment.distract import distract
from data_builders._augment.options import AugmentOptions
from data_builders._augment.splits import family_of
from data_builders._augment.swap import NoSwapError, NumberSwap
from data_builders._augment.texts import (
    DISTRACT,
    EASIER,
    FROM_PIVOT,
    HARDER,
    PARAPHRASE,
    TO_PIVOT,
    addition_fault,
    language_name,
    numbers_in,
    read_answer,
    read_problem,
    wording_fault,
)
from data_builders._teacher.answers import asked_text, image_bytes, parted
from data_builders._teacher.language import language_of
from data_builders._teacher.prompts import SAME_TASK, says
from data_builders._teacher.self_instruct import in_template
from data_builders.building.build import Drop, Made, Tools
from mmreason.clients.types import Reply, Request
from mmreason.types import Example, Message

_SHOWN = 500


class RefusedError(Exception):
    """Why a variant is not made; `drop` is what is counted."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.drop = Drop(reason, text[:_SHOWN])


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant on its way to a row.

    Attributes:
        question: its words.
        answer: its gold; None where the parent has none.
        completion: a worked answer; None where there is none.
        proof: what proved the answer: "calculator", "construction", "solved", "compared".
        told: more for the row's meta.
    """

    question: str
    answer: str | None
    completion: list[Message] | None
    proof: str
    told: Mapping[str, Any]


class VariantMaker:
    """Makes and proves variants. Args: options: the builder's."""

    def __init__(self, options: AugmentOptions) -> None:
        self.options = options

    async def make(self, parent: Example, kind: str, number: int, notes: str | None, tools: Tools) -> Made:
        """A row, or why there is none. Args: notes: the parent's solution with calculator notes, if there is one."""
        try:
            variant = await self._variant(parent, kind, number, notes, tools)
            row = self._row(parent, kind, number, variant)
        except RefusedError as refused:
            return Made(drops=[refused.drop])
        return Made([row])

    async def _variant(self, parent: Example, kind: str, number: int, notes: str | None, tools: Tools) -> Variant:
        rng = random.Random(f"{self.options.seed}/{parent['id']}/{kind}/{number}")
        if kind == "number_swap":
            variant = await asyncio.to_thread(self._swapped, parent, notes, rng)
            return await self._solved(parent, variant, tools) if self.options.solve_swaps else variant
        if kind in ("harder", "easier"):
            return await self._solved(parent, await self._relative(parent, kind, number, tools), tools)
        question = asked_text(parent)
        if kind == "distractor" and self.options.distractors == "templates":
            text = distract(question, rng) if language_of(question) in ("en", "latin") else None
            if text is None:
                raise RefusedError("no_place", question)
            variant = self._same_answer(parent, text, "construction")
            return await self._solved(parent, variant, tools) if self.options.teacher is not None else variant
        if kind == "distractor":
            text = await self._written(DISTRACT.format(question=question), number, parent, tools)
            fault = addition_fault(question, text)
        elif kind == "paraphrase":
            text = await self._written(PARAPHRASE.format(question=question), number, parent, tools)
            fault = wording_fault(question, text, self.options.max_similarity)
        else:
            text = await self._translated(question, number, parent, tools)
            fault = wording_fault(question, text, self.options.max_similarity)
        if fault is not None:
            raise RefusedError(fault, f"{question}\n→ {text}")
        return await self._solved(parent, self._same_answer(parent, text, "compared"), tools)

    # ---- making

    def _swapped(self, parent: Example, notes: str | None, rng: random.Random) -> Variant:
        from mmreason.data.formats.common import worked_completion
        from mmreason.data.formats.gsm8k import CALCULATOR_NOTE

        question, gold = asked_text(parent), parent.get("answer")
        if notes is None or gold is None:
            raise RefusedError("no_notes", question)
        try:
            swap = NumberSwap(question, notes, gold).draw(rng)
        except NoSwapError as error:
            raise RefusedError(error.reason, f"{question}\n{error}") from None
        rationale = swap.rationale if self.options.keep_notes else CALCULATOR_NOTE.sub("", swap.rationale)
        told = {"numbers": dict(swap.changed)}
        return Variant(swap.question, swap.answer, worked_completion(rationale, swap.answer), "calculator", told)

    async def _relative(self, parent: Example, kind: str, number: int, tools: Tools) -> Variant:
        question, gold = asked_text(parent), parent.get("answer")
        if gold is None:
            raise RefusedError("no_gold", question)
        form = HARDER if kind == "harder" else EASIER
        reply = await self._ask(form.format(question=question, answer=gold), number, parent, tools)
        text = parted(reply)[1]
        problem, answer = read_problem(text), read_answer(text)
        if answer is None or not problem or reply.finish_reason == "length":
            raise RefusedError("unreadable", text)
        if set(numbers_in(problem)) == set(numbers_in(question)) and answer == gold:
            raise RefusedError("nothing_changed", problem)
        return Variant(problem, answer, None, "solved", {"level": kind})

    def _same_answer(self, parent: Example, text: str, proof: str) -> Variant:
        completion = parent.get("completion")
        kept = completion if isinstance(completion, list) else None
        return Variant(text, parent.get("answer"), kept, proof, {})

    async def _written(self, prompt: str, number: int, parent: Example, tools: Tools) -> str:
        reply = await self._ask(prompt, number, parent, tools)
        if reply.finish_reason == "length":
            raise RefusedError("truncated", reply.text)
        return read_problem(parted(reply)[1])

    async def _translated(self, question: str, number: int, parent: Example, tools: Tools) -> str:
        pivot = self.options.pivot
        there = await self._written(TO_PIVOT.format(question=question, language=pivot), number, parent, tools)
        name = language_name(language_of(question))
        return await self._written(FROM_PIVOT.format(question=there, pivot=pivot, language=name), number, parent, tools)

    # ---- proving

    async def _solved(self, parent: Example, variant: Variant, tools: Tools) -> Variant:
        """The variant, once the teacher's agreed answer is its gold; without a gold, once both ask for the same.

        Raises: RefusedError.
        """
        k = self.options.solve_k
        if not k:
            return variant
        if variant.answer is None:
            asked = SAME_TASK.format(first=asked_text(parent), second=variant.question)
            if not says(parted(await self._ask(asked, 0, parent, tools))[1], "same", "相同", "一样"):
                raise RefusedError("another_question", f"{asked_text(parent)}\n→ {variant.question}")
            return variant
        prompt = in_template(self.options.prompt_template or "boxed", variant.question)
        replies = await asyncio.gather(
            *(self._ask(prompt, sample, parent, tools, pictures=True) for sample in range(k)), return_exceptions=True
        )
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        good: list[Reply] = [reply for reply in replies if not isinstance(reply, BaseException)]
        agreed = await asyncio.to_thread(self._agreed, parent, variant, good)
        proof = "solved" if variant.proof == "compared" else variant.proof
        if variant.completion is not None:
            return replace(variant, proof=proof)
        thoughts, text = parted(agreed)
        message: Message = {"role": "assistant", "content": text}
        if thoughts and thoughts.strip():
            message["reasoning_content"] = thoughts.strip()
        return replace(variant, completion=[message], proof=proof, told={**variant.told, "teacher": agreed.model})

    def _agreed(self, parent: Example, variant: Variant, replies: list[Reply]) -> Reply:
        """The first reply of the largest group of equal answers, which must be the gold. Raises: RefusedError."""
        from mmreason.answers import Verdict, check_gold, clusters, equivalent, extract

        meta, gold = parent.get("meta") or {}, variant.answer or ""
        kind, choices = meta.get("kind"), meta.get("choices")
        if check_gold(gold, kind, choices) is not None:
            raise RefusedError("bad_gold", f"{variant.question}\n{gold}")
        answers = [extract(parted(reply)[1], kind or "math", choices).answer for reply in replies]
        groups = clusters(answers, kind, choices)
        shown = f"{variant.question}\n{gold}; solved: {', '.join(map(str, answers))}"
        if not groups or len(groups[0]) < self.options.min_agreement * len(replies):
            raise RefusedError("no_agreement", shown)
        if equivalent(answers[groups[0][0]] or "", gold, kind, choices) is not Verdict.CORRECT:
            raise RefusedError("other_answer", shown)
        return replies[groups[0][0]]

    async def _ask(self, prompt: str, sample: int, parent: Example, tools: Tools, *, pictures: bool = False) -> Reply:
        cells = (parent.get("images") or ()) if pictures else ()
        parts: Any = [*({"type": "image"} for _ in cells), {"type": "text", "text": prompt}] if cells else prompt
        return await tools.teacher.complete(
            Request(
                messages=[{"role": "user", "content": parts}],
                images=[image_bytes(cell) for cell in cells],
                max_tokens=self.options.max_tokens,
                temperature=self.options.temperature,
                sample=sample,
                extra=self.options.extra,
                id=parent["id"],
            )
        )

    def _row(self, parent: Example, kind: str, number: int, variant: Variant) -> Example:
        held = {key: value for key, value in (parent.get("meta") or {}).items() if key not in ("level", "numbers")}
        meta: dict[str, Any] = {
            **held,
            "parent": parent["id"],
            "root": family_of(parent),
            "variant": kind,
            "question": variant.question,
            "proof": variant.proof,
            **variant.told,
        }
        row: Example = {
            "prompt": with_question(parent, variant.question, self.options.prompt_template),
            "answer": variant.answer,
            "id": f"{parent['id']}/{kind}-{number}",
            "source": "augment",
            "meta": meta,
        }
        if variant.completion is not None:
            row["completion"] = variant.completion
        if parent.get("images"):
            row["images"] = parent["images"]
        return row


def with_question(parent: Example, question: str, template: str | None) -> list[Message]:
    """The parent's conversation with another last question in the template; its images stay before it."""
    text = in_template(template, question)
    prompt = parent["prompt"]
    if isinstance(prompt, str):
        return [{"role": "user", "content": text}]
    last = prompt[-1]
    if isinstance(last["content"], str):
        return [*prompt[:-1], {**last, "content": text}]
    places = [part for part in last["content"] if part.get("type") == "image"]
    return [*prompt[:-1], {**last, "content": [*places, {"type": "text", "text": text}]}]
