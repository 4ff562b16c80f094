"""Rewards for the form of a completion: tags, the box, a pattern of one's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from mmreason.rewards.text import completion_texts
from mmreason.types import ConfigError

THINK_ANSWER_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# Text between two tags that holds no further tag of ours; each character is tried once, so matching is linear.
_INNER = r"(?:(?!</?(?:think|answer)>).)*"

FORMAT_PATTERNS: dict[str, str] = {
    "think_answer": rf"\s*<think>{_INNER}</think>\s*<answer>{_INNER}</answer>\s*",
    "think": rf"\s*<think>{_INNER}</think>{_INNER}",
    "answer": rf"{_INNER}<answer>{_INNER}</answer>\s*",
}
"""Style -> pattern that the whole completion must match; "boxed" is counted instead, since braces nest."""


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"format reward: {pattern!r} is no regular expression: {error}") from None


def format_reward(
    completions: Sequence[Any],
    *,
    style: str = "think_answer",
    pattern: str | None = None,
    prefilled: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """1 where the completion has the wanted form, else 0.

    Args:
        style: "think_answer" (<think>..</think> <answer>..</answer>, each tag once, nothing around them), "think"
            (starts with a thought, then anything without tags), "answer" (ends with one answer tag), "boxed" (exactly
            one balanced, non-empty \\boxed{...}).
        pattern: a regular expression that the whole text must match (dot matches newlines), in place of style.
        prefilled: text at the end of the prompt that belongs to the completion, e.g. "<think>" where the chat template
            opens the thought.

    Raises: ConfigError for an unknown style or a broken pattern.
    """
    texts = [prefilled + text for text in completion_texts(completions)]
    if pattern is None and style == "boxed":
        return [float(has_one_box(text)) for text in texts]
    if pattern is None and style not in FORMAT_PATTERNS:
        raise ConfigError(f"format reward: unknown style {style!r}; known: {', '.join([*FORMAT_PATTERNS, 'boxed'])}")
    regex = _compiled(FORMAT_PATTERNS[style] if pattern is None else pattern)
    return [float(regex.fullmatch(text) is not None) for text in texts]


def has_one_box(text: str) -> bool:
    """Is there exactly one \\boxed{...}, balanced and not empty? One box inside another counts as two."""
    if len(re.findall(r"\\boxed\b", text)) != 1:
        return False
    opening = re.search(r"\\boxed\s*\{", text)
    if opening is None:
        return False
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[opening.end() :], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)  # an escaped \{ or \} is text
        if depth == 0:
            return bool(text[opening.end() : opening.end() + match.start()].strip())
    return False


def tag_count_reward(
    completions: Sequence[Any],
    *,
    tags: Sequence[str] = THINK_ANSWER_TAGS,
    prefilled: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """The share of tags that stand in the completion exactly once: a slope towards the full format.

    Args:
        tags: the wanted tags.
        prefilled: text at the end of the prompt that belongs to the completion, e.g. "<think>".

    Raises: ConfigError for an empty list of tags.
    """
    if isinstance(tags, str) or not tags or not all(tags):
        raise ConfigError(f"tag count reward: tags must be a list of non-empty texts, not {tags!r}")
    texts = [prefilled + text for text in completion_texts(completions)]
    return [sum(text.count(tag) == 1 for tag in tags) / len(tags) for text in texts]
