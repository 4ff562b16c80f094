"""Texts with calls in them: proposed, run, judged by the loss of what follows, and those kept that help."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from data_builders._tool_use.filter import CallLosses, Judged
from data_builders._tool_use.gold import unmarked_solution
from data_builders._tool_use.inline import Inline, InlineForm, at_word, of_notes, one_line, request_for
from data_builders._tool_use.replay import replay
from data_builders._tool_use.rows import Workshop, addresses, pictures_of
from data_builders._tool_use.trace import Trace, Turn, stated
from data_builders.building.build import Drop, Made
from mmreason.answers import verify
from mmreason.clients.types import Completer, Request
from mmreason.tools.types import ToolResult
from mmreason.types import Example

CallsFrom = Literal["text", "notes", "teacher"]


@dataclass(frozen=True, slots=True)
class Tried:
    """A call that was run, and what the filter says. inline: as the text has it, with its result on one line."""

    inline: Inline
    result: ToolResult
    judged: Judged


@dataclass(frozen=True)
class Toolformer:
    """The pipeline of a text.

    Attributes:
        tau: what a call must gain, in nats.
        samples: proposals of the teacher for a text; their calls are pooled.
        inline: rows have the calls in their text; else they are written in the shop's form.
    """

    shop: Workshop
    form: InlineForm
    losses: CallLosses
    tau: float
    calls_from: CallsFrom
    samples: int = 1
    temperature: float | None = None
    max_tokens: int = 1024
    inline: bool = True

    async def make(self, task: str, example: Example, teacher: Completer | None) -> Made:
        """The row of a text, with the calls that help."""
        text = str(example["text"]) if "text" in example else unmarked_solution(example)
        plain, written = of_notes(text) if self.calls_from == "notes" else self.form.read(text)
        if self.inline and (fault := await asyncio.to_thread(_untrue, example, plain)):
            return Made(drops=[fault])
        proposed, changed = await self._proposed(plain, written, teacher)
        counts = Counter(calls_proposed=len(proposed), replies_changing_the_text=changed)
        if not proposed:
            return Made(drops=[Drop("text_changed" if changed else "no_call", text[:500])], counts=counts)
        run = [(one, await asyncio.to_thread(self.shop.toolbox.run, one.call)) for one in proposed]
        counts["calls_failed"] = sum(result.error is not None for _, result in run)
        good = [(replace(one, result=one_line(result)), result) for one, result in run if result.error is None]
        tried = await asyncio.to_thread(self._judge, plain, good)
        kept = _best([one for one in tried if one.judged.gain >= self.tau])
        counts["calls_useless"] = sum(one.judged.gain < self.tau for one in tried)
        counts["calls_kept"] = len(kept)
        if not kept:
            return Made(drops=[Drop("no_useful_call", _shown(tried) or "no call gave a result")], counts=counts)
        if not self.inline:
            made = await self.shop.finish(task, example, _trace(plain, kept, example, self.shop), _told(kept))
            return replace(made, counts=Counter(made.counts) + counts)
        row = self._row(task, example, plain, kept)
        found = await asyncio.to_thread(self._changes, row, kept)
        return Made(drops=[Drop("not_repeatable", found)], counts=counts) if found else Made(rows=[row], counts=counts)

    def _changes(self, row: Example, kept: Sequence[Tried]) -> str:
        """What of a row's results another run wouldn't give, as `Workshop.finish` asks of the other forms."""
        return "\n".join([*replay(row, self.shop.toolbox), *addresses(one.result.content for one in kept)])

    async def _proposed(self, plain: str, calls: list[Inline], teacher: Completer | None) -> tuple[list[Inline], int]:
        """(calls with text behind them, replies that changed the text). calls: those that the text came with."""
        changed = 0
        if teacher is not None:
            asked = [
                Request(
                    messages=request_for(self.form, plain),
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    sample=draw,
                )
                for draw in range(self.samples)
            ]
            calls = []
            for reply in await asyncio.gather(*(teacher.complete(request) for request in asked)):
                same, found = self.form.read(reply.text.strip())
                if same.strip() == plain.strip():
                    shift = len(plain) - len(plain.lstrip())
                    calls += [replace(one, place=one.place + shift) for one in found]
                else:
                    changed += 1
        placed = [replace(one, place=at_word(plain, one.place), result=None) for one in calls]
        behind = [one for one in placed if one.place < len(plain)]
        distinct = {(one.place, json.dumps(one.call.arguments), one.call.name): one for one in behind}
        return list(distinct.values()), changed

    def _judge(self, plain: str, run: Sequence[tuple[Inline, ToolResult]]) -> list[Tried]:
        written = []
        for one, result in run:
            try:
                written.append((one, result, self.form.write(one.call), self.form.write(one.call, one.result)))
            except ValueError:  # an input with the end of a call in it
                continue
        judged = self.losses.judge(plain, [(one.place, bare, full) for one, _, bare, full in written])
        return [Tried(one, result, found) for (one, result, _, _), found in zip(written, judged, strict=True)]

    def _row(self, task: str, example: Example, plain: str, kept: Sequence[Tried]) -> Example:
        text = self.form.insert(plain, [one.inline for one in kept])
        meta = example.get("meta") or {}
        row: dict[str, Any] = {
            "id": task,
            "source": "tool_use",
            "meta": {
                **{name: meta.get(name) for name in ("kind", "choices")},
                "task": "toolformer",
                "form": "inline",
                "parent": example.get("id"),
                "origin": example.get("source"),
                "tools": dict(self.shop.tools),
                **_told(kept),
            },
        }
        if "text" in example:
            return cast(Example, {**row, "text": text})
        more = {"prompt": example["prompt"], "completion": _with_text(example, text), "answer": example.get("answer")}
        return cast(Example, {**row, **more, **pictures_of(example)})


def _with_text(example: Example, text: str) -> list[Any]:
    """The completion with another text as its worked solution."""
    *before, last = cast(list[Any], example["completion"])
    field = "reasoning_content" if last.get("reasoning_content") else "content"
    return [*before, {**last, field: text}]


def _untrue(example: Example, plain: str) -> Drop | None:
    """A row whose completion states another answer than its gold; documents and rows without a gold state none."""
    gold, meta = example.get("answer"), example.get("meta") or {}
    if "text" in example or not gold:
        return None
    said = str(_with_text(example, plain)[-1]["content"])
    is_right = verify(said, gold, meta.get("kind"), meta.get("choices")).correct
    return None if is_right else Drop("wrong_answer", f"{said}\n(gold: {gold})")


def _told(kept: Sequence[Tried]) -> dict[str, Any]:
    # Four places: the last bits of a loss depend on the machine, and rows shall not.
    names = ("with_result", "with_call", "without", "gain")
    return {"losses": [{name: round(getattr(one.judged, name), 4) for name in names} for one in kept]}


def _best(tried: Sequence[Tried]) -> list[Tried]:
    """The best call of each place, in the order of the text (section 2 of the paper: at most one at a place)."""
    best: dict[int, Tried] = {}
    for one in tried:
        held = best.get(one.inline.place)
        if held is None or one.judged.gain > held.judged.gain:
            best[one.inline.place] = one
    return [best[place] for place in sorted(best)]


def _trace(plain: str, kept: Sequence[Tried], example: Example, shop: Workshop) -> Trace:
    turns, position = [], 0
    for one in kept:
        turns.append(Turn(plain[position : one.inline.place].strip(), (one.inline.call,), (one.result,)))
        position = one.inline.place
    answer = example.get("answer") or ""
    final = f"{plain[position:].strip()}\n{stated(answer, shop.writing.language)}".strip()
    return Trace(tuple(turns), final=final, answer=answer)


def _shown(tried: Sequence[Tried]) -> str:
    return "\n".join(
        f"{one.inline.call.name} {one.inline.call.arguments} → {one.inline.result}: gain {one.judged.gain:.3f} nats"
        for one in tried
    )
