"""Example -> token ids and labels: what supervised fine-tuning learns from, and nothing of it lost silently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.data.formats.common import RowError
from mmreason.data.loader import BadRows
from mmreason.data.render import render_prompt, render_text
from mmreason.types import IGNORE_INDEX, DataError, Message, OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset


def render_completion(
    prompt: Sequence[Message] | str,
    completion: Sequence[Message] | str,
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of what the model should say after `render_prompt(prompt)`, with the end of its turn as last token.

    Args:
        prompt, completion: messages, rendered together by the chat template; or plain text, which gets the tokenizer's
            EOS token.

    Raises: DataError where the template rewrites the prompt once an answer follows, or leaves out the completion's
        reasoning or content: what would be learned is then not what the row says.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if isinstance(prompt, str) or isinstance(completion, str):
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            raise DataError("prompt and completion must both be messages or both be text", reason="bad_messages")
        return [*inner(completion, add_special_tokens=False)["input_ids"], inner.eos_token_id]
    before = render_text(prompt, tokenizer, chat_template_kwargs)
    whole = render_text([*prompt, *completion], tokenizer, chat_template_kwargs, complete=True)
    if not whole.startswith(before):
        raise DataError("the chat template writes the prompt differently once an answer follows", reason="template")
    text = whole[len(before) :]
    for message in completion:
        for field in ("reasoning_content", "content"):
            said = message.get(field)
            if isinstance(said, str) and said.strip() not in text:
                raise DataError(f"the chat template leaves out the completion's {field}", reason="template")
    ids = list(inner(text, add_special_tokens=False)["input_ids"])
    # Some templates write a line break after the end of the turn; generation stops before it, so learning does too.
    ends = [i for i, token in enumerate(ids) if token == inner.eos_token_id]
    return ids[: ends[-1] + 1] if ends else [*ids, inner.eos_token_id]


def message_texts(messages: Sequence[Message] | str) -> Iterator[str]:
    """The texts of some messages: reasoning, contents, text parts."""
    if isinstance(messages, str):
        yield messages
        return
    for message in messages:
        if message.get("reasoning_content"):
            yield str(message["reasoning_content"])
        content = message["content"]
        yield from [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]


def tokenize_supervised(
    dataset: Dataset,
    tokenizer: Any,
    max_length: int | None,
    *,
    on_bad_row: OnBadRow = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Rows with `prompt` and `completion` as (`input_ids`, `labels`, `length`), labels IGNORE_INDEX on the prompt.

    Returns: (the tokenized rows, number of dropped rows by reason).
    Raises: DataError naming the first rows that are longer than `max_length` tokens, have no completion, or that the
        chat template can't render faithfully.
    """
    from datasets import Dataset as Rows
    from tqdm.auto import tqdm

    bad = BadRows()
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
    rows = zip(dataset["id"], dataset["prompt"], dataset["completion"], strict=True)
    for row_id, prompt, completion in tqdm(rows, total=len(dataset), desc="Tokenizing", unit="row", mininterval=1.0):
        try:
            if not completion:
                raise DataError("empty", reason="missing_completion")
            prompt_ids = render_prompt(prompt, tokenizer, chat_template_kwargs)
            answer_ids = render_completion(prompt, completion, tokenizer, chat_template_kwargs)
            length = len(prompt_ids) + len(answer_ids)
            if max_length is not None and length > max_length:
                raise DataError(f"{length} tokens, max_length is {max_length}", reason="too_long")
        except DataError as error:
            bad.add(f"row {row_id}", None, RowError(error.reason or "bad_messages", str(error)))
            continue
        columns["input_ids"].append(prompt_ids + answer_ids)
        columns["labels"].append([IGNORE_INDEX] * len(prompt_ids) + answer_ids)
        columns["length"].append(length)
    listed = "\n  ".join(bad.shown)
    if bad.total and (on_bad_row == "error" or not columns["length"]):
        raise DataError(
            f"{bad.total} of {len(dataset)} rows can't be learned from:\n  {listed}\n"
            "Put them right, raise max_length, or drop such rows with on_bad_row: drop",
            reason=next(iter(bad.counts)),
        )
    return Rows.from_dict(columns), dict(bad.counts)
