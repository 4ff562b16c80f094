"""Candidates that are made for a prompt: samples of the teachers, corrupted gold rationales, a refusal of our own."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence

from data_builders._preferences.candidates import Candidate, Group, answered
from data_builders._preferences.corrupt import Corruption, corruptions, other_choices, restated
from data_builders._preferences.options import PreferenceOptions
from data_builders.building.build import Drop
from data_builders.building.teachers import one_of_each
from mmreason.clients.types import Completer, EndpointError, Reply, Request
from mmreason.types import Message

REFUSALS = {
    "en": (
        "I'm sorry, but I can't help with that. If there is something else you need, I'm glad to help.",
        "I can't help with this request. I'm happy to talk about something else.",
        "That isn't something I can assist with. Please ask me about something else.",
    ),
    "zh": (
        "抱歉，我无法提供这方面的帮助。如果您有其他需要，我很乐意协助。",
        "对不起，我不能协助这个请求。欢迎您问我其他问题。",
    ),
}
"""What joins a group with `add_refusals`: our only words in any row."""


async def sampled(
    options: PreferenceOptions,
    group: Group,
    images: Sequence[bytes],
    teachers: Sequence[Completer],
    counts: Counter[str],
) -> list[Candidate]:
    """So many samples of each teacher. Raises: EndpointError, but for what a provider refuses to write."""
    asked = [
        (
            f"sample {name}/{number}",
            teacher.complete(
                Request(
                    messages=group.prompt,
                    images=images,
                    tools=group.example.get("tools") or (),
                    max_tokens=options.max_tokens,
                    temperature=options.temperature,
                    top_p=options.top_p,
                    sample=number,
                    id=group.id,
                )
            ),
        )
        for name, teacher in zip(teacher_names(options, len(teachers)), teachers, strict=True)
        for number in range(options.samples)
    ]
    # All of them end before one's error counts, so that none is paid for unseen.
    replies = await asyncio.gather(*(reply for _, reply in asked), return_exceptions=True)
    found: list[Candidate] = []
    for (origin, _), reply in zip(asked, replies, strict=True):
        if isinstance(reply, BaseException):
            if not (isinstance(reply, EndpointError) and reply.kind == "refused"):
                raise reply
            counts["samples:refused_by_provider"] += 1
        elif (why := _unusable(reply, keep_truncated=options.keep_truncated)) is not None:
            counts[f"samples:{why}"] += 1
        else:
            found.append(Candidate(answered(reply.text, reply.reasoning), origin, meta={"model": reply.model}))
            counts["samples:used"] += 1
    return found


def _unusable(reply: Reply, *, keep_truncated: bool) -> str | None:
    if reply.finish_reason == "length" and not keep_truncated:
        return "truncated"
    if reply.tool_calls:
        return "calls_a_tool"
    return None if reply.text.strip() else "empty"


def teacher_names(options: PreferenceOptions, n: int) -> list[str]:
    """The names of the n teachers, as the user gave them."""
    given = options.teacher
    settings = [] if given is None else one_of_each([given] if isinstance(given, dict) else given)
    names = [str(one.get("name") or one.get("model") or number) for number, one in enumerate(settings)]
    return names if len(names) == n == len(set(names)) else [f"teacher{number}" for number in range(n)]


def corrupted(options: PreferenceOptions, group: Group, drops: list[Drop]) -> list[Candidate]:
    """Corrupted versions of the group's gold completion; why there are none goes to `drops`."""
    reference = next((candidate for candidate in group.candidates if candidate.origin == "reference"), None)
    if group.answer is None or reference is None or len(reference.completion) > 1:
        drops.append(Drop("no_gold_completion", group.id))
        return []
    message, seed = reference.completion[0], f"{options.seed} {group.id}"
    content, thoughts = str(message["content"]), message.get("reasoning_content")
    found: list[Corruption] | str = "not_corruptible"
    if group.choices and thoughts is None and "choice" in options.corruption_kinds:
        found = other_choices(group.answer, group.choices, seed=seed)
    elif not group.choices:
        asked = "\n".join(_text(message) for message in group.prompt)
        found = corruptions(asked, thoughts or content, group.answer, seed=seed, kinds=options.corruption_kinds)
    if isinstance(found, str):
        drops.append(Drop(found, reference.text))
        return []
    made: list[Candidate] = []
    for one in found[: options.corruptions]:
        # Told in the gold's own words, so that nothing but the mistake tells the two apart.
        text = one.reasoning if one.reasoning and not thoughts else restated(content, group.answer, one.answer)
        if text is None:
            drops.append(Drop("answer_not_restated", reference.text))
            break
        meta = {"step": one.step, "before": one.before, "after": one.after}
        reasoning = one.reasoning if thoughts else None
        made.append(Candidate(answered(text, reasoning), f"corrupted {one.kind}", meta=meta))
    return made


def refusals(options: PreferenceOptions, group: Group) -> list[Candidate]:
    """A plain refusal in the prompt's language, drawn by the seed."""
    asked = "".join(_text(message) for message in group.prompt)
    texts = REFUSALS["zh" if any("\u4e00" <= letter <= "\u9fff" for letter in asked) else "en"]
    drawn = hashlib.sha256(f"{options.seed} {group.id}".encode("utf-8", "surrogatepass")).digest()[0]
    return [Candidate(answered(texts[drawn % len(texts)]), "our refusal")]


def _text(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
