"""From texts and a problem to messages. A problem's images stay with its question, in the first user turn about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmreason.answers import extract
from mmreason.answers.choices import LETTERS, choice_texts
from mmreason.prompting.templates_en import EN
from mmreason.prompting.templates_zh import ZH
from mmreason.prompting.texts import Texts
from mmreason.prompting.types import Completion, Lang, Problem, Shot
from mmreason.types import ContentPart, DataError, Message

TEXTS: dict[Lang, Texts] = {"en": EN, "zh": ZH}
"""Language -> its texts."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_QUESTION = "{question}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to the model's turn.

    Attributes:
        messages: in order.
        images: one for each `{"type": "image"}` part, in order.
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()

    def then(self, *messages: Message) -> Prompt:
        """The conversation with further turns of text."""
        return replace(self, messages=self.messages + messages)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def fill(template: str, **values: object) -> str:
    """Put values in the place of `{name}`. All at once: braces in a value, and others in the template, mean nothing."""
    return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), template)


def ask(template: str, problem: Problem, texts: Texts, **values: object) -> Prompt:
    """A conversation of one user turn.

    Args:
        template: with `{question}`, which takes the question with its options and images.
        values: for the other placeholders; `{form}` and `{finish}` are filled by themselves.
    """
    values = {"form": form(problem, texts), "finish": finish(problem, texts), **values}
    before, _, after = template.partition(_QUESTION)
    return _around(fill(before, **values), problem, fill(after, **values), texts)


def with_shots(shots: Sequence[Shot], texts: Texts, prompt: Prompt) -> Prompt:
    """The conversation after worked examples, each a user turn and the reply to it."""
    messages: list[Message] = []
    images: list[Any] = []
    for shot in shots:
        question = _around("", shot, "", texts)
        text = fill(texts.shot if shot.reasoning else texts.bare_shot, reasoning=shot.reasoning, answer=shot.answer)
        messages += [*question.messages, assistant(text)]
        images += question.images
    return Prompt((*messages, *prompt.messages), (*images, *prompt.images))


def form(problem: Problem, texts: Texts) -> str:
    """What an answer to the problem looks like, in words."""
    return texts.forms[problem.answer_kind]


def finish(problem: Problem, texts: Texts) -> str:
    """How a solution of the problem shall end."""
    return fill(texts.finish, form=form(problem, texts))


def answer_trigger(problem: Problem, texts: Texts) -> str:
    """The text that the final answer is written after."""
    if problem.answer_kind == "choice" and not problem.choices:  # the options stand in the question
        return texts.answer_triggers[None]
    return fill(texts.answer_triggers[problem.answer_kind], last=LETTERS[len(problem.choices or "A") - 1])


def said(completion: Completion) -> str:
    """What a later turn is shown of a completion: its text; the thoughts where they are all there is."""
    return completion.text.strip() or (completion.reasoning or "").strip()


def answer_in(text: str, problem: Problem) -> str | None:
    """The answer of a text that was asked to state one."""
    return extract(text, problem.answer_kind, problem.choices).answer


def answer_after(lead: str, reply: str, problem: Problem) -> str | None:
    """The answer of a reply to "Therefore, the answer is".

    An answer that the reply marks counts first. Else numbers, letters, yes and no are read from the front of the reply,
    as if the lead stood before it (arXiv:2205.11916, appendix A.6, takes the first one that fits); formulas and words
    as `extract` finds them.
    """
    kind = problem.answer_kind
    found = extract(reply, kind, problem.choices)
    if found.strict is None and kind in ("number", "choice", "yesno"):
        led = extract(f"{lead} {reply.strip()}", kind, problem.choices)
        return led.answer if led.strict is not None else found.answer
    return found.answer


def _around(before: str, item: Problem | Shot, after: str, texts: Texts) -> Prompt:
    """A user turn with the question between two texts; neighbouring texts are joined."""
    question, images = item.question, tuple(item.images)
    name = getattr(item, "id", "") or repr(question)[:80]
    parts: list[ContentPart] = []
    if isinstance(question, str):
        images_first: list[ContentPart] = [{"type": "image"} for _ in images]
        parts = images_first + _text(before + question)
    else:
        places = sum(part.get("type") == "image" for part in question)
        if places != len(images):
            raise DataError(
                f"problem {name}: its question has {places} image parts, but {len(images)} images are given",
                row=getattr(item, "id", None),
                reason="image_count",
            )
        parts = _text(before) + [part for part in question if part.get("type") != "text" or part.get("text")]
    if item.choices:
        if len(item.choices) > len(LETTERS):
            raise DataError(
                f"problem {name}: {len(item.choices)} options, but only {len(LETTERS)} letters to name them by",
                row=getattr(item, "id", None),
                reason="too_many_choices",
            )
        lines = [f"{label}) {text}" for label, text in zip(LETTERS, choice_texts(item.choices), strict=False)]
        after = "\n".join(["", texts.options, *lines]) + after
    joined: list[ContentPart] = []
    for part in parts + _text(after):
        if joined and part.get("type") == joined[-1].get("type") == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    if images:
        return Prompt(({"role": "user", "content": joined},), images)
    return Prompt((user("".join(part["text"] for part in joined)),))


def _text(text: str) -> list[ContentPart]:
    return [{"type": "text", "text": text}] if text else []
