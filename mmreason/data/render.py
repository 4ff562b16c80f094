"""Prompt -> token ids, the one way in which training, rollout and evaluation read a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmreason.types import ConfigError, DataError, Message


def render_prompt(
    prompt: Sequence[Message] | str,
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Token ids of a prompt, ready to be continued by the model.

    Args:
        prompt: messages, rendered by the tokenizer's chat template with the generation prompt (a last assistant message
            is left open, to be continued); or plain text, tokenized as it is with the tokenizer's own BOS.
        tokenizer: a tokenizer, or a processor whose `tokenizer` and chat template are used.
        chat_template_kwargs: further names for the template, e.g. {"enable_thinking": False}.
        tools: JSON schemas of the tools that the template tells the model of.

    Special tokens are never doubled: a BOS that the template or the text itself brings is not added again, and an EOS
    that some tokenizers append is taken off.

    Raises: ConfigError (no chat template), DataError (empty prompt, one that the template refuses, or one whose text
        holds a token that stands for an image).
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    refuse_media_tokens(prompt, tokenizer)
    if not isinstance(prompt, str):
        text = render_text(prompt, tokenizer, chat_template_kwargs, tools=tools)
        return _not_empty(list(inner(text, add_special_tokens=False)["input_ids"]))
    bare = list(inner(prompt, add_special_tokens=False)["input_ids"])
    return _not_empty(leading_tokens(prompt, bare, inner) + bare)


def leading_tokens(text: str, bare: list[int], tokenizer: Any) -> list[int]:
    """The special tokens (mostly a BOS) that a tokenizer puts before a text, unless the text itself begins with them.

    What it puts after the text (an EOS) is left out: a prompt is to be continued.

    Args: bare: the text's token ids without special tokens that the tokenizer adds.
    """
    ids = list(tokenizer(text)["input_ids"])
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return [] if bare[:start] == ids[:start] else ids[:start]
    return []


def _not_empty(ids: list[int]) -> list[int]:
    if not ids:
        raise DataError("the prompt has no tokens; a model can't continue nothing", reason="missing_prompt")
    return ids


def render_text(
    messages: Sequence[Message],
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    complete: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
) -> str:
    """Messages as the text that the chat template makes of them; raises as `render_prompt`.

    Args:
        complete: the last message is the model's whole turn, with its end, instead of something to be continued.
        tools: JSON schemas of the tools that the template tells the model of.
        chat_template: takes the place of the tokenizer's own.
    """
    from jinja2 import TemplateError

    inner = getattr(tokenizer, "tokenizer", None)
    owner = tokenizer if getattr(tokenizer, "chat_template", None) or inner is None else inner
    if not getattr(owner, "chat_template", None):
        raise ConfigError(
            f"{processor_name(tokenizer)} has no chat template, so messages can't be turned into a prompt. For a base "
            "model set chat: false (with prompt_template: base-boxed or r1-zero); else give the tokenizer one: "
            "chat_template_path: FILE.jinja"
        )
    if not messages:
        raise DataError("the prompt has no messages", reason="missing_prompt")
    more: dict[str, Any] = dict(chat_template_kwargs or {})
    if tools:
        more["tools"] = list(tools)
    if chat_template is not None:
        more["chat_template"] = chat_template
    # Processors' templates walk through content parts and fail on plain strings.
    turns = [_with_parts(message) for message in messages] if inner is not None else list(messages)
    prefill = messages[-1]["role"] == "assistant" and not complete
    try:
        return owner.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=not (prefill or complete),
            continue_final_message=prefill,
            **more,
        )
    except (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template refuses this prompt (roles {roles}): {error}", reason="bad_messages"
        ) from error


def _with_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str) or (not content and message.get("tool_calls")):
        return message  # a part without text would pass for something said beside a call
    return {**message, "content": [{"type": "text", "text": content}]}


def processor_name(processor: Any) -> str:
    """What to call a processor or tokenizer in a message: where it was loaded from, else its class."""
    inner = getattr(processor, "tokenizer", processor)
    return getattr(inner, "name_or_path", "") or type(processor).__name__


def media_tokens(processor: Any) -> list[str]:
    """The texts of a processor's placeholders for images and videos; none for a tokenizer."""
    inner = getattr(processor, "tokenizer", None)
    if inner is None:
        return []
    found = [getattr(owner, f"{kind}_token", None) for owner in (processor, inner) for kind in ("image", "video")]
    return [token for token in dict.fromkeys(found) if isinstance(token, str) and token]


def refuse_media_tokens(prompt: Sequence[Message] | str, processor: Any) -> None:
    """Raise DataError where a prompt's text spells a placeholder: it would stand for an image that isn't there."""
    for token in media_tokens(processor):
        if any(token in text for text in _texts(prompt)):
            raise DataError(
                f"the text of the prompt holds {token!r}, which stands for an image or a video; write it otherwise, "
                'and place images with parts {"type": "image"}',
                reason="image_count",
            )


def _texts(prompt: Sequence[Message] | str) -> Iterator[str]:
    if isinstance(prompt, str):
        yield prompt
        return
    for message in prompt:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [part.get("text") for part in content]
        yield from (text for text in (*parts, message.get("reasoning_content")) if isinstance(text, str))


def check_prompt_length(n_tokens: int, max_prompt_length: int | None, row_id: str) -> None:
    """Raise DataError where a prompt of n_tokens tokens is over the limit. Prompts are never cut silently."""
    if max_prompt_length is not None and n_tokens > max_prompt_length:
        raise DataError(
            f"row {row_id}: the prompt has {n_tokens} tokens, max_prompt_length is {max_prompt_length}. "
            "Raise the limit, or drop such rows with on_bad_row: drop",
            row=row_id,
            reason="prompt_too_long",
        )
