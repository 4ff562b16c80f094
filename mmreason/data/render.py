"""Prompt -> token ids, the one way in which training, rollout and evaluation read a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.data.formats.common import RowError
from mmreason.data.loader import BadRows
from mmreason.types import ConfigError, DataError, Message, OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset


def render_prompt(
    prompt: Sequence[Message] | str, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of a prompt, ready to be continued by the model.

    Args:
        prompt: messages, rendered by the tokenizer's chat template with the generation prompt (a last assistant message
            is left open, to be continued); or plain text, tokenized as it is with the tokenizer's own BOS.
        tokenizer: a tokenizer, or a processor whose `tokenizer` and chat template are used.
        chat_template_kwargs: further names for the template, e.g. {"enable_thinking": False}.

    Special tokens are never doubled: a BOS that the template or the text itself brings is not added again, and an EOS
    that some tokenizers append is taken off.

    Raises: ConfigError (no chat template), DataError (empty prompt, or one that the template refuses).
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(prompt, str):
        text = render_text(prompt, tokenizer, chat_template_kwargs)
        return _not_empty(list(inner(text, add_special_tokens=False)["input_ids"]))
    bare = list(inner(prompt, add_special_tokens=False)["input_ids"])
    return _not_empty(_prefix_of(list(inner(prompt)["input_ids"]), bare) + bare)


def _prefix_of(ids: list[int], bare: list[int]) -> list[int]:
    """The special tokens (mostly a BOS) that a tokenizer put before `bare`, unless the text itself begins with them.

    What it put after the text (an EOS) is left out: a prompt is to be continued.
    """
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
) -> str:
    """Messages as the text that the chat template makes of them; raises as `render_prompt`.

    Args:
        complete: the last message is the model's whole turn, with its end, instead of something to be continued.
    """
    from jinja2 import TemplateError

    inner = getattr(tokenizer, "tokenizer", None)
    owner = tokenizer if getattr(tokenizer, "chat_template", None) or inner is None else inner
    if not getattr(owner, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ConfigError(
            f"{name} has no chat template, so messages can't be turned into a prompt. For a base model set chat: false "
            "(with prompt_template: base-boxed or r1-zero); else give the tokenizer one: chat_template_path: FILE.jinja"
        )
    if not messages:
        raise DataError("the prompt has no messages", reason="missing_prompt")
    # Processors' templates walk through content parts and fail on plain strings.
    turns = [_with_parts(message) for message in messages] if inner is not None else list(messages)
    prefill = messages[-1]["role"] == "assistant" and not complete
    try:
        return owner.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=not (prefill or complete),
            continue_final_message=prefill,
            **(chat_template_kwargs or {}),
        )
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template refuses this prompt (roles {roles}): {error}", reason="bad_messages"
        ) from error


def _with_parts(message: Message) -> Message:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def check_prompt_length(n_tokens: int, max_prompt_length: int | None, row_id: str) -> None:
    """Raise DataError where a prompt of n_tokens tokens is over the limit. Prompts are never cut silently."""
    if max_prompt_length is not None and n_tokens > max_prompt_length:
        raise DataError(
            f"row {row_id}: the prompt has {n_tokens} tokens, max_prompt_length is {max_prompt_length}. "
            "Raise the limit, or drop such rows with on_bad_row: drop",
            row=row_id,
            reason="prompt_too_long",
        )


def check_prompts(
    dataset: Dataset,
    tokenizer: Any,
    max_prompt_length: int | None,
    *,
    on_bad_row: OnBadRow = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Dataset, list[list[int]], dict[str, int]]:
    """Render every prompt, once, before GPU time is spent.

    Returns: (the dataset without rows over the limit, their prompts' token ids, number of dropped rows by reason).
    Raises: DataError naming the first five rows over the limit and their number; or that no row is left.
    """
    bad, keep = BadRows(), []
    prompt_ids: list[list[int]] = []
    for index, (row_id, prompt) in enumerate(zip(dataset["id"], dataset["prompt"], strict=True)):
        try:
            ids = render_prompt(prompt, tokenizer, chat_template_kwargs)
        except DataError as error:
            raise DataError(f"row {row_id}: {error}", row=row_id, reason=error.reason) from error
        if max_prompt_length is not None and len(ids) > max_prompt_length:
            bad.add(
                f"row {row_id}",
                None,
                RowError("prompt_too_long", f"{len(ids)} tokens, the limit is {max_prompt_length}"),
            )
        else:
            keep.append(index)
            prompt_ids.append(ids)
    if not bad.total:
        return dataset, prompt_ids, {}
    listed = "\n  ".join(bad.shown)
    if on_bad_row == "error":
        more = f"\n  ... and {bad.total - len(bad.shown)} more" if bad.total > len(bad.shown) else ""
        raise DataError(
            f"{bad.total} of {len(dataset)} prompts are over max_prompt_length:\n  {listed}{more}\n"
            "Raise max_prompt_length, or drop such rows with on_bad_row: drop",
            row=bad.shown[0].split(": ", 1)[0].removeprefix("row "),
            reason="prompt_too_long",
        )
    if not keep:
        raise DataError(
            f"every prompt is over max_prompt_length {max_prompt_length}:\n  {listed}", reason="prompt_too_long"
        )
    return dataset.select(keep), prompt_ids, dict(bad.counts)
