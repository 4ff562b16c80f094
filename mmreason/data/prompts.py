"""Templates: what is asked of the model around a question, and how a reference answer is written down."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from mmreason.types import ConfigError, ContentPart, Message

PLACEHOLDER = "{question}"

PROMPT_TEMPLATES: dict[str, str] = {
    "none": "{question}",
    "boxed": "{question}\n\nReason step by step, then give the final answer in \\boxed{}.",
    "gsm8k": (
        "{question}\n\nReason step by step, then write the final answer on the last line after ####, as in #### 42"
    ),
    "base-boxed": "Question: {question}\nReason step by step and end with the final answer in \\boxed{}.\nAnswer:",
    "base-gsm8k": "Question: {question}\nReason step by step, then end with #### and the final number.\nAnswer:",
    "r1-zero": (
        "Below is a talk between a user and an assistant. The user poses a problem. The assistant first thinks it "
        "through between <think> and </think>, checking its own steps, and then states only the result between "
        "<answer> and </answer>, like this: <think> the thoughts </think> <answer> the result </answer>.\n"
        "User: {question}\nAssistant:"
    ),
}
"""Name -> text with {question}. The base-* and r1-zero texts are for base models (chat: false)."""

DEFAULT_CHAT_TEMPLATE = "boxed"
DEFAULT_PLAIN_TEMPLATE = "base-boxed"


REASONING, ANSWER = "{reasoning}", "{answer}"

COMPLETION_TEMPLATES: dict[str, str] = {
    "plain": "{reasoning}\n\n{answer}",
    "boxed": "{reasoning}\n\nThe answer is \\boxed{{answer}}.",
    "gsm8k": "{reasoning}\n#### {answer}",
    "think": "<think>\n{reasoning}\n</think>\n\n{answer}",
    "r1-zero": " <think> {reasoning} </think> <answer> {answer} </answer>",
}
"""Name -> text with {reasoning} and {answer}, a message's `reasoning_content` and `content` as one text."""


def resolve_completion_template(template: str) -> str:
    """A registry name or a text of one's own with {answer} -> the text. Raises ConfigError."""
    return _resolve("completion_template", template, COMPLETION_TEMPLATES, ANSWER)


def written_down(messages: list[Message], template: str) -> list[Message]:
    """Messages whose assistant turns have their thoughts in their content, for chat templates without a place for them.

    The template goes around the last message; thoughts before tool calls and earlier answers stand before the content.
    A last message without thoughts gets the template's lines from the one with {answer} on, but not one of {reasoning}.

    Raises: ValueError where thoughts should be written into a content of parts.
    """
    last = len(messages) - 1
    return [
        _written(message, template if i == last and not message.get("tool_calls") else COMPLETION_TEMPLATES["plain"])
        if message["role"] == "assistant" and (i == last or message.get("reasoning_content"))
        else message
        for i, message in enumerate(messages)
    ]


def _written(message: Message, template: str) -> Message:
    content, thoughts = message["content"], (message.get("reasoning_content") or "").strip()
    if not isinstance(content, str):
        raise ValueError("completion_template needs answers that are texts, this one is a list of parts")
    if not thoughts and "\n" in template:
        lines = template.split("\n")
        first = next(i for i, line in enumerate(lines) if ANSWER in line)
        template = "\n".join(line for line in lines[first:] if REASONING not in line)
    # In one pass: thoughts may themselves hold "{answer}".
    places = {REASONING: thoughts, ANSWER: content}
    text = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], template)
    kept: Message = {**message, "content": text if content else text.rstrip("\n")}  # a tool call often has no content
    kept.pop("reasoning_content", None)
    return kept


def build_completion(messages: list[Message], *, template: str | None, chat: bool) -> list[Message] | str:
    """Apply a completion template to a reference answer.

    Args:
        template: text with {reasoning} and {answer}, or None to leave the messages as they are (plain text: "plain").
        chat: False gives the plain text of the single assistant message instead of messages.

    Raises: ValueError where other than one text message should become plain text.
    """
    if template is not None or not chat:
        messages = written_down(messages, template or COMPLETION_TEMPLATES["plain"])
    if chat:
        return messages
    if len(messages) != 1 or messages[0].get("tool_calls"):
        raise ValueError(f"chat: false needs a completion of one text message, this one has {len(messages)} message(s)")
    return str(messages[0]["content"])


def resolve_template(template: str) -> str:
    """A registry name or a text of one's own with {question} -> the text. Raises ConfigError."""
    return _resolve("prompt_template", template, PROMPT_TEMPLATES, PLACEHOLDER)


def _resolve(option: str, template: str, known: Mapping[str, str], placeholder: str) -> str:
    if template in known:
        return known[template]
    if placeholder in template:
        return template
    close = difflib.get_close_matches(template, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"{option} {template!r} is neither one of {', '.join(known)} nor a text with {placeholder}.{hint}"
    )


def fill(template: str, question: str) -> str:
    """Put the question in. Plain replacement: braces of LaTeX in template or question mean nothing."""
    return template.replace(PLACEHOLDER, question)


def build_prompt(
    messages: list[Message], *, template: str | None, system_prompt: str | None, chat: bool
) -> list[Message] | str:
    """Apply template and system prompt to a question.

    Args:
        messages: the raw prompt; the template goes around the last user message's text (of parts: it begins with the
            first text part and ends after the last part).
        template: text with {question}, or None to leave the messages as they are.
        system_prompt: put first; takes the place of a system message that the row brings.
        chat: False gives the plain text of the single user message instead of messages.

    Raises: ValueError where a prompt with other than one user message should become plain text.
    """
    if template is not None:
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is not None:
            messages = [*messages[:last], _around(messages[last], template), *messages[last + 1 :]]
    if not chat:
        if len(messages) != 1 or not isinstance(messages[0]["content"], str):
            raise ValueError(f"chat: false needs a prompt of one text message, this one has {len(messages)} message(s)")
        return messages[0]["content"]
    if system_prompt:
        rest = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": system_prompt}, *rest]
    return messages


def _around(message: Message, template: str) -> Message:
    """The template around a message: around its text as a whole, images that stand in it or after it included."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": fill(template, content)}
    texts = [i for i, part in enumerate(content) if part.get("type") == "text"]
    if not texts:
        return message
    before, _, after = template.partition(PLACEHOLDER)
    after = fill(after, " ".join(content[i]["text"].strip() for i in texts))  # a template that says the question twice
    parts: list[ContentPart] = [dict(part) for part in content]  # type: ignore[misc]
    parts[texts[0]]["text"] = before + parts[texts[0]]["text"]
    if texts[-1] == len(parts) - 1:
        parts[-1]["text"] += after
    elif after.strip():
        parts.append({"type": "text", "text": after})
    return {**message, "content": parts}
