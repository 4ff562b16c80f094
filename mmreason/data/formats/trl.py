"""The dataset types of TRL (huggingface.co/docs/trl/dataset_formats), both in plain text and as messages.

| format | columns | becomes |
|---|---|---|
| `prompt_completion` | `prompt`, `completion` | prompt and completion |
| `unpaired` | `prompt`, `completion`, `label` | the same with `label` |
| `preference` | `prompt` (or none: it is then what both begin with), `chosen`, `rejected` | a pair |
| `stepwise` | `prompt`, `completions` (steps), `labels` (is each right?) | one text; steps in `meta` |
| `prompt_only` | `prompt` | a prompt |

Language modeling is format `text` (plain) or `messages`. Plain text becomes one message of the user and one of the
model, as it stands. ``tools`` and images travel with each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.formats import generic, hh_rlhf
from mmreason.data.formats.common import (
    Format,
    Row,
    RowError,
    extras,
    number_text,
    shorten,
    take_label,
    take_name,
    text_cell,
)
from mmreason.data.formats.conversations import check_messages, check_results, split_turns, tool_schemas
from mmreason.data.formats.messages import checked_pair, common_prompt, with_system
from mmreason.types import Example, Message

_PROMPTS = ("prompt", "question", "query")
_USED = frozenset(
    {
        *_PROMPTS,
        "system",
        "completion",
        "completions",
        "label",
        "kto_tag",
        "labels",
        "chosen",
        "rejected",
        "tools",
        "answer",
    }
)
_COMMON = ("prompt", "tools", "images", "id", "source")
_BESIDES_PROMPT = frozenset({*_COMMON, "image", "chat_template_kwargs"})


# Prompt and completion


def detect_completion(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    if not {"prompt", "completion"} <= columns:
        return False
    # With an answer beside a plain completion, the answer is the gold: a row of questions ("generic").
    golds = {name.split(".")[0] for name in generic.NAMES["answer"]} - {"label"}
    return not golds & columns or any(isinstance(row.get("completion"), list) for row in rows)


def detect_unpaired(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return detect_completion(columns, rows) and "label" in columns


def parse_completion(row: Row, index: int) -> Example:
    """The model's last turn is the completion, also where the row's completion is a conversation."""
    prompt = _messages(row, "prompt", "user", "missing_prompt")
    completion = _messages(row, "completion", "assistant", "missing_completion")
    if any(message["role"] not in ("assistant", "tool") for message in completion):
        prompt, completion = split_turns([*prompt, *completion])
        if not completion:
            raise RowError("missing_completion", "the completion ends with the user's words")
    check_results([*prompt, *completion])
    return _finished(row, {"prompt": prompt, "completion": completion})


def parse_unpaired(row: Row, index: int) -> Example:
    """As `parse_completion`, with a label that is true or false."""
    if not isinstance(row.get("label"), bool):
        missing = row.get("label") is None
        raise RowError("missing_label" if missing else "bad_label", f"'label' is {shorten(row.get('label'))}")
    return parse_completion(row, index)


# Pairs


def detect_preference(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"chosen", "rejected"} <= columns


def parse_preference(row: Row, index: int) -> Example:
    """The pair, and the prompt: the row's own, or what both sides have in common up to an answer of the model."""
    for side in ("chosen", "rejected"):
        if row.get(side) is None or row[side] == "" or row[side] == []:
            raise RowError("missing_pair", f"{side!r} is {shorten(row.get(side))}")
    asked = next((name for name in _PROMPTS if row.get(name) is not None), None)
    if asked is None:
        chosen, rejected = _whole(row, "chosen"), _whole(row, "rejected")
        if chosen is None or rejected is None:
            prompt, chosen, rejected = _of_texts(row)
        else:
            prompt, chosen, rejected = common_prompt(chosen, rejected)
    else:
        prompt = with_system(_messages(row, asked, "user", "missing_prompt"), row)
        chosen, rejected = (_answer(row, side, prompt) for side in ("chosen", "rejected"))
    return _finished(row, {"prompt": prompt} | checked_pair(prompt, chosen, rejected))  # type: ignore[arg-type]


def _whole(row: Row, side: str) -> list[Message] | None:
    """A side as the conversation that it holds, None where it is plain text."""
    cell = row[side]
    if isinstance(cell, str):
        return hh_rlhf.read_transcript(cell) if hh_rlhf.is_transcript(cell) else None
    return check_messages(cell, side, foreign=True)


def _of_texts(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Two plain texts: what both begin with, up to a word's end, is the prompt."""
    texts = [row["chosen"], row["rejected"]]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("bad_pair", "one of the two is a text, the other is none")
    shared = enumerate(zip(*texts, strict=False))
    prompt = texts[0][: next((i for i, (one, other) in shared if one != other), min(map(len, texts)))]
    if prompt in texts:
        raise RowError("bad_pair", f"one of the two is all that both have in common: {shorten(prompt)}")
    prompt = prompt[: max((i for i, character in enumerate(prompt) if character.isspace()), default=0)]
    if not prompt.strip():
        raise RowError("missing_prompt", f"{shorten(texts[0])} and {shorten(texts[1])} begin with no words in common")
    chosen, rejected = (
        check_messages([{"role": "assistant", "content": text[len(prompt) :].lstrip()}], "chosen") for text in texts
    )
    return [{"role": "user", "content": prompt}], chosen, rejected


def _answer(row: Row, side: str, prompt: Sequence[Message]) -> list[Message]:
    """One side of an explicit pair; the prompt that some sets repeat in it is taken off."""
    answer = _messages(row, side, "assistant", "missing_pair")
    answer = answer[len(prompt) :] if answer[: len(prompt)] == list(prompt) else answer
    if not answer or any(message["role"] not in ("assistant", "tool") for message in answer):
        roles = ", ".join(message["role"] for message in answer) or "none"
        raise RowError("bad_pair", f"{side!r} is no answer of the model to the prompt: its roles are {roles}")
    return answer


# Steps, prompts


def detect_stepwise(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"prompt", "completions", "labels"} <= columns


def parse_stepwise(row: Row, index: int) -> Example:
    """Completion: the steps, a line break between them. ``meta.steps``, ``meta.step_labels``: them and their labels."""
    prompt = _messages(row, "prompt", "user", "missing_prompt")
    steps, labels = checked_steps(row)
    example = _finished(row, {"prompt": prompt, "completion": [{"role": "assistant", "content": "\n".join(steps)}]})
    example |= {"completions": steps, "labels": labels}
    example["meta"] |= {"steps": steps, "step_labels": labels}
    return example


def checked_steps(row: Row) -> tuple[list[str], list[bool]]:
    """The cells ``completions`` and ``labels``: steps that say something, and as many labels. Raises: RowError."""
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list) or not steps:
        raise RowError("missing_completion", f"'completions' is {shorten(steps)}")
    if not all(isinstance(step, str) and step.strip() for step in steps):
        raise RowError("empty_turn", f"a step says nothing: {shorten(steps)}")
    if (
        not isinstance(labels, list)
        or len(labels) != len(steps)
        or not all(isinstance(label, bool) for label in labels)
    ):
        raise RowError("bad_label", f"{len(steps)} steps, 'labels' is {shorten(labels)}")
    return steps, labels


def detect_prompt(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return "prompt" in columns and columns <= _BESIDES_PROMPT


def parse_prompt(row: Row, index: int) -> Example:
    """The prompt alone."""
    return _finished(row, {"prompt": _messages(row, "prompt", "user", "missing_prompt")})


def _messages(row: Row, name: str, role: str, reason: str) -> list[Message]:
    """A cell that is a text (then a message of `role`) or messages."""
    cell: Any = row.get(name)
    if isinstance(cell, str):
        text_cell(row, name, reason)
        cell = [{"role": role, "content": cell}]
    elif cell is None or cell == []:
        raise RowError(reason, f"{name!r} is {shorten(cell)}")
    return check_messages([cell] if isinstance(cell, Mapping) else cell, name, foreign=True)


def _finished(row: Row, example: Example) -> Example:
    example["meta"] = {"kind": None, "choices": None} | extras(row, _USED)
    if row.get("answer") is not None:
        example["answer"] = number_text(row["answer"])
    take_label(example, row)
    tools = tool_schemas(row.get("tools"))
    if tools:
        example["tools"] = tools
    take_name(example, row)
    return example


def _form(name: str, parse: Any, detect: Any, *columns: str) -> Format:
    return Format(name, parse, detect, own_template=True, many_sets=True, mapped=(*_COMMON, *columns))


COMPLETION = _form("prompt_completion", parse_completion, detect_completion, "completion")
UNPAIRED = _form("unpaired", parse_unpaired, detect_unpaired, "completion", "label")
PREFERENCE = _form("preference", parse_preference, detect_preference, "chosen", "rejected")
STEPWISE = _form("stepwise", parse_stepwise, detect_stepwise, "completions", "labels")
PROMPT = _form("prompt_only", parse_prompt, detect_prompt)
