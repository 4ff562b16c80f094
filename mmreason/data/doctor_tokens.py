"""What a set becomes for a model: lengths, what a limit would cut, what padding costs, what the chat template drops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmreason.data.conversation import read_conversation
from mmreason.data.doctor_faults import Fault
from mmreason.data.doctor_rows import ReadRows
from mmreason.data.loss_spans import LossOn
from mmreason.data.mixture import ShuffledOrder
from mmreason.data.packing import best_fit
from mmreason.data.render import render_prompt, render_text
from mmreason.data.supervised_rendering import SupervisedRenderer
from mmreason.data.training_templates import training_template
from mmreason.data.truncation import cut_oldest
from mmreason.data.visual import has_images, render_visual_prompt
from mmreason.types import DataError, MMReasonError

PROMPTS_ONLY = ("rl", "prompts")
"""Stages whose rows are rendered up to the model's turn."""


@dataclass(slots=True)
class TokenFacts:
    """Rows as a model reads them. A list has a number for each row that could be rendered.

    Attributes:
        row_ids: of the examples; one that becomes several rows stands there several times.
        lengths: tokens, those of images included. supervised: tokens with loss (all of them in documents).
        several: examples that became more than one row, since the template rewrites earlier turns.
        template: what the chat template does with each part of a conversation.
    """

    row_ids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    several: int = 0
    template: dict[str, str] = field(default_factory=dict)


def render_rows(
    read: ReadRows,
    processor: Any,
    *,
    loss_on: LossOn,
    max_length: int | None,
    max_prompt_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[TokenFacts, list[Fault]]:
    """Every example rendered once, whole.

    Args:
        max_length, max_prompt_length: limits beyond which a row is a fault; rows are counted all the same.

    Returns: (the facts, the faults of rows that can't be rendered or are too long).
    Raises: ConfigError where the model's processor can't read such rows at all.
    """
    facts, faults = TokenFacts(template=template_facts(processor, chat_template_kwargs)), []
    rows = _Rows(read.stage, processor, loss_on, chat_template_kwargs)
    limit, code = (
        (max_prompt_length, "prompt_too_long") if read.stage in ("rl", "prompts") else (max_length, "too_long")
    )
    for example, where in zip(read.examples, read.wheres, strict=True):
        row_id = example["id"]
        try:
            rendered = list(rows.render(example))
        except DataError as error:
            detail = str(error).removeprefix(f"row {row_id}: ").removeprefix(f"{error.reason}: ")
            faults.append(Fault(error.reason or "template", row_id, where, detail))
            continue
        facts.several += read.stage == "sft" and len(rendered) > 1
        for ids, supervised in rendered:
            facts.row_ids.append(row_id)
            facts.lengths.append(len(ids))
            facts.supervised.append(supervised)
            if rows.unknown is not None and rows.unknown in ids:
                detail = f"{ids.count(rows.unknown)} of {len(ids)} tokens are {rows.tokenizer.unk_token}"
                faults.append(Fault("unknown_tokens", row_id, where, detail))
        longest = max((len(ids) for ids, _ in rendered), default=0)
        if limit is not None and longest > limit:
            faults.append(Fault(code, row_id, where, f"{longest} tokens, the limit is {limit}"))
    return facts, faults


class _Rows:
    """How an example of a stage becomes token ids and a number of supervised ones."""

    def __init__(self, stage: str, processor: Any, loss_on: LossOn, kwargs: Mapping[str, Any] | None) -> None:
        self.stage, self.processor, self.kwargs = stage, processor, kwargs
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.unknown: int | None = self.tokenizer.unk_token_id
        if self.unknown == self.tokenizer.eos_token_id:  # GPT-2's, which is no sign of anything
            self.unknown = None
        self.renderer = SupervisedRenderer(processor, loss_on=loss_on, chat_template_kwargs=kwargs)

    def render(self, example: Mapping[str, Any]) -> Iterator[tuple[list[int], int]]:
        if self.stage == "pretrain":
            ids = self.tokenizer(example["text"], verbose=False)["input_ids"]
            yield list(ids), len(ids)
        elif self.stage in PROMPTS_ONLY:
            yield self._prompt(example), 0
        else:
            sides = ("chosen", "rejected") if self.stage == "preference" else ("completion",)
            for side in sides:
                for _, row in self.renderer.render({**example, "completion": example.get(side)}).rows:
                    yield row.ids, sum(weight > 0 for weight in row.weights)

    def _prompt(self, example: Mapping[str, Any]) -> list[int]:
        prompt, images, tools = (example.get(name) for name in ("prompt", "images", "tools"))
        if has_images(example):
            return render_visual_prompt(prompt, images, self.processor, self.kwargs, tools=tools).ids  # type: ignore[arg-type]
        return render_prompt(prompt, self.processor, self.kwargs, tools=tools)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# What a limit would do


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """What `max_length` does under each policy of truncation.

    rows: longer than the limit. tokens: behind it. answers: of those rows, how many would lose supervised tokens if
    they were cut at the limit. mended: how many "cut_oldest_turns" makes fit; turns: messages that this cuts.
    """

    limit: int
    rows: int
    tokens: int
    answers: int
    mended: int
    turns: int


def limit_facts(
    read: ReadRows, processor: Any, max_length: int, chat_template_kwargs: Mapping[str, Any] | None = None
) -> LimitFacts:
    """What a limit would cut off the completions' rows. Raises: nothing for rows that can't be rendered."""
    renderer = SupervisedRenderer(processor, chat_template_kwargs=chat_template_kwargs)
    cutting = SupervisedRenderer(
        processor, max_length=max_length, truncation="cut_oldest_turns", chat_template_kwargs=chat_template_kwargs
    )
    rows = tokens = answers = mended = turns = 0
    for example in read.examples:
        try:
            (_, whole), *_ = reversed(renderer.render(example).rows)
        except MMReasonError:
            continue
        if len(whole.ids) <= max_length:
            continue
        rows += 1
        tokens += len(whole.ids) - max_length
        answers += any(weight > 0 for weight in whole.weights[max_length:])
        if next(cut_oldest(read_conversation(example, "last")), None) is None:
            continue
        try:
            cut = cutting.render(example).rows
        except MMReasonError:
            continue
        mended += 1
        turns += max(text.cut.messages for text, _ in cut)
    return LimitFacts(max_length, rows, tokens, answers, mended, turns)


# --------------------------------------------------------------------------------------------------------------------
# What padding costs


@dataclass(frozen=True, slots=True)
class PaddingFacts:
    """An epoch of micro-batches of `rows` rows, or of packed sequences of `capacity` tokens.

    tokens: that go through the model, padding included, and `share` of them that is padding, for rows in a random
    order, for rows sorted by length within steps of `steps` micro-batches, and for packed ones.
    """

    rows: int
    steps: int
    capacity: int
    real: int
    tokens: dict[str, int]

    @property
    def share(self) -> dict[str, float]:
        return {name: 1 - self.real / tokens if tokens else 0.0 for name, tokens in self.tokens.items()}


def padding_facts(
    lengths: Sequence[int], rows: int, steps: int, capacity: int | None = None, seed: int = 0
) -> PaddingFacts:
    """What an epoch costs. Args: capacity: of a packed sequence; None: the longest row. Longer rows are left out."""
    capacity = capacity or max(lengths)
    kept = [length for length in lengths if length <= capacity]
    order = ShuffledOrder(len(kept), seed).take(0, len(kept)) if kept else []
    shuffled = [kept[i] for i in order]
    sorted_steps = [
        length for i in range(0, len(shuffled), rows * steps) for length in sorted(shuffled[i : i + rows * steps])
    ]
    tokens = {"padded": _padded(shuffled, rows)}
    if steps > 1:
        tokens["padded, sorted within steps"] = _padded(sorted_steps, rows)
    tokens["packed"] = len(best_fit(kept, capacity)) * capacity
    return PaddingFacts(rows, steps, capacity, sum(kept), tokens)


def _padded(lengths: Sequence[int], rows: int) -> int:
    groups = [lengths[i : i + rows] for i in range(0, len(lengths), rows)]
    return sum(len(group) * max(group) for group in groups)


# --------------------------------------------------------------------------------------------------------------------
# What the chat template does


def template_facts(processor: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Part of a conversation -> "kept", "left out", or why the template refuses it. Found with sentinel texts."""
    facts = {"template for training": "TRL's" if training_template(processor) is not None else "the model's own"}
    for name, (messages, sentinel, tools) in _probes().items():
        complete = messages[-1]["role"] == "assistant"
        try:
            text = render_text(messages, processor, chat_template_kwargs, complete=complete, tools=tools)
        except MMReasonError as error:
            facts[name] = f"refused: {str(error).splitlines()[0][:200]}"
        else:
            facts[name] = "kept" if sentinel in text else "left out"
    return facts


def _probes() -> dict[str, tuple[list[Any], str, list[Any] | None]]:
    """Part -> (messages, the text of that part in them, tools)."""
    system = {"role": "system", "content": "Sentinel system."}
    question = {"role": "user", "content": "Sentinel question."}
    earlier = {"role": "assistant", "content": "Sentinel first.", "reasoning_content": "Sentinel earlier thoughts."}
    answer = {"role": "assistant", "content": "Sentinel answer.", "reasoning_content": "Sentinel thoughts."}
    arguments = {"name": "sentinel_call", "arguments": {"x": "Sentinel argument."}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": arguments}]}
    result = {"role": "tool", "name": "sentinel_call", "content": "Sentinel result."}
    schema = {"name": "sentinel_tool", "description": "-", "parameters": {"type": "object", "properties": {}}}
    return {
        "question": ([question], "Sentinel question.", None),
        "system message": ([system, question], "Sentinel system.", None),
        "answer": ([question, answer], "Sentinel answer.", None),
        "thoughts of the last answer": ([question, answer], "Sentinel thoughts.", None),
        "thoughts of earlier answers": ([question, earlier, question, answer], "Sentinel earlier thoughts.", None),
        "tools": ([question], "sentinel_tool", [{"type": "function", "function": schema}]),
        "tool calls": ([question, call], "Sentinel argument.", None),
        "tool results": ([question, call, result, answer], "Sentinel result.", None),
    }
