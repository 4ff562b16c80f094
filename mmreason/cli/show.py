"""`mmreason show DATASET --model M`: a row as the model sees it, token by token, with what of it carries loss.

Exit status: 0, or 2 for something the user can put right (a row that can't be learned from among it).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmreason.config import parse_config
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from mmreason.report.tokens import Role, ShownRow
    from mmreason.trainers.arguments import ModelArguments

DESCRIPTION = """\
Shows a row of a dataset as the model sees it: the tokens by role, images folded, what carries loss, and counts. In a
terminal in colours; elsewhere what carries loss stands in ⟦…⟧; with --html as a page."""


COLUMNS = (
    "prompt", "completion", "chosen", "rejected", "text", "images", "tools", "answer", "id", "source", "meta",
)  # fmt: skip


def _help(text: str, group: str = "What is shown") -> dict[str, str]:
    return {"help": text, "group": group}


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """What `mmreason show` is told."""

    dataset: str = field(metadata=_help("Hub id (owner/name or owner/name:config), a file or a folder."))
    model: str = field(metadata=_help("Folder or hub id: whose tokenizer or processor, and chat template."))
    split: str = field(default="train", metadata=_help("Split; slices such as train[1000:] work."))
    row: int = field(default=0, metadata=_help("Number of the row in the split, from 0."))
    id: str | None = field(default=None, metadata=_help("The row with this id, instead of a number."))
    html: Path | None = field(default=None, metadata=_help("Write a page instead."))
    tokens: bool = field(default=False, metadata=_help("A line for each token besides: number, id, role, weight."))
    loss_on: str | dict[str, Any] | None = field(
        default=None,
        metadata=_help("last, all, or weights such as {reasoning: 0.5, answer: 1, json: 2, turns: all}.", "Training"),
    )
    max_length: int | None = field(default=None, metadata=_help("Tokens of a row at most.", "Training"))
    truncation: Literal["error", "drop", "cut_oldest_turns"] = field(
        default="error", metadata=_help("What happens to longer rows.", "Training")
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata=_help("For the chat template, e.g. {enable_thinking: false}.", "Model")
    )
    chat_template_path: str | None = field(
        default=None, metadata=_help("A chat template file, or where to take the template from.", "Model")
    )
    model_revision: str = field(default="main", metadata=_help("Branch, tag or commit on the hub.", "Model"))
    trust_remote_code: bool = field(default=False, metadata=_help("Run code that comes with the model.", "Model"))
    dataset_format: str = field(default="auto", metadata=_help("A format's name, or auto: by the columns.", "Rows"))
    column_map: dict[str, str] | None = field(
        default=None, metadata=_help("Our column -> the dataset's, e.g. {prompt: question, images: image}.", "Rows")
    )
    prompt_template: str | None = field(
        default="none", metadata=_help("A named template (none, boxed …) or a text with {question}.", "Rows")
    )
    completion_template: str | None = field(
        default=None, metadata=_help("How reasoning and answer become one text: boxed, gsm8k, think …", "Rows")
    )
    system_prompt: str | None = field(default=None, metadata=_help("System message before each prompt.", "Rows"))
    chat: bool = field(default=True, metadata=_help("False: the plain text of a base model's prompt.", "Rows"))
    image_root: str | None = field(
        default=None, metadata=_help("Folder from which relative image paths start. None: the dataset's.", "Rows")
    )
    image_urls: bool = field(default=False, metadata=_help("Fetch images given as http(s) URLs.", "Rows"))

    def __post_init__(self) -> None:
        if self.row < 0:
            raise ConfigError(f"row={self.row} must be at least 0")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length={self.max_length} must be at least 1")

    def model_arguments(self) -> ModelArguments:
        from mmreason.trainers.arguments import ModelArguments

        return ModelArguments(
            model_name_or_path=self.model,
            model_revision=self.model_revision,
            trust_remote_code=self.trust_remote_code,
            chat_template_path=self.chat_template_path,
        )


def parse_arguments(arguments: Sequence[str]) -> ShowConfig:
    """The command line as settings. Raises: ConfigError; SystemExit after --help."""
    words = list(arguments) or ["--help"]
    if not words[0].startswith("-"):
        words = ["--dataset", *words]
    return parse_config(ShowConfig, words, "mmreason show DATASET", DESCRIPTION)


def run_show(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        The exit status, see the top of this module.

    Raises:
        MMReasonError: what the user can put right.
    """
    config = parse_arguments(arguments)
    from mmreason.data.loss_spans import LossOn
    from mmreason.models.loading import load_processor

    loss_on = LossOn.parse(config.loss_on)
    example = find_example(config)
    rows = shown_rows(example, load_processor(config.model_arguments()), config, loss_on)
    from mmreason.report.tokens import terminal_text, write_tokens

    if config.html is not None:
        print(f"wrote {write_tokens(rows, str(example['id']), config.html)}")
        return 0
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print("\n\n".join(terminal_text(row, colour=colour, table=config.tokens) for row in rows))
    return 0


def find_example(config: ShowConfig) -> Mapping[str, Any]:
    """The row that is asked for. Raises: DataError where there is none, or it can't be read."""
    from mmreason._functions import did_you_mean
    from mmreason.data.sources import parse_split

    split = parse_split(config.split)
    if config.id is None and split.start is None and split.stop is None:
        try:
            return dict(_load(config, f"{split.name}[{config.row}:{config.row + 1}]", "error")[0])
        except DataError as error:
            if error.reason != "empty" or not config.row:
                raise
            said = f"--row {config.row}: {config.dataset} [{split.name}] has fewer rows (they are counted from 0)"
            raise DataError(said, path=config.dataset) from None
    dataset = _load(config, config.split, "drop" if config.id is not None else "error")
    if config.id is None:
        if config.row >= len(dataset):
            raise DataError(f"--row {config.row}: {config.split} has {len(dataset)} rows", path=config.dataset)
        return dict(dataset[config.row])
    ids = list(dataset["id"])
    if config.id not in ids:
        raise DataError(
            f"--id {config.id!r}: no row of {config.dataset} [{config.split}] that can be read has this id."
            + did_you_mean(config.id, ids[:10_000]),
            path=config.dataset,
            row=config.id,
        )
    return dict(dataset[ids.index(config.id)])


def _load(config: ShowConfig, split: str, on_bad_row: Literal["error", "drop"]) -> Any:
    from mmreason.data import load_examples

    return load_examples(
        config.dataset,
        split=split,
        format=config.dataset_format,
        column_map=config.column_map,
        system_prompt=config.system_prompt,
        prompt_template=config.prompt_template,
        completion_template=config.completion_template,
        chat=config.chat,
        on_bad_row=on_bad_row,
        columns=COLUMNS,
        require_answer=False,
        image_root=config.image_root,
        image_urls=config.image_urls,
    ).dataset


def shown_rows(example: Mapping[str, Any], processor: Any, config: ShowConfig, loss_on: Any) -> list[ShownRow]:
    """The rows that an Example becomes: two of a pair; of one without an answer its prompt; a document as it is.

    Raises: DataError.
    """
    if example.get("text"):
        return [_document(example, processor)]
    if example.get("chosen") and example.get("rejected"):
        sides = [(side, {**example, "completion": example[side]}) for side in ("chosen", "rejected")]
        return [
            row for side, each in sides for row in _supervised(each, processor, config, loss_on, f"the {side} answer")
        ]
    if example.get("completion"):
        return _supervised(example, processor, config, loss_on)
    if not example.get("prompt"):
        raise DataError(f"row {example['id']}: it has neither a prompt nor a text", row=str(example["id"]))
    return [_shown(example, processor, *_prompt(example, processor, config), "there is no completion to learn")]


def _document(example: Mapping[str, Any], processor: Any) -> ShownRow:
    """A document's own tokens, without what an objective puts around them."""
    ids = getattr(processor, "tokenizer", processor)(example["text"], verbose=False)["input_ids"]
    if not ids:
        raise DataError(f"row {example['id']}: the tokenizer makes no token of its text", row=str(example["id"]))
    document = {**example, "prompt": example["text"]}
    return _shown(document, processor, ids, [0.0] * len(ids), None, "a document, for pretraining")


def _supervised(
    example: Mapping[str, Any], processor: Any, config: ShowConfig, loss_on: Any, what: str = ""
) -> list[ShownRow]:
    from mmreason.data.supervised import render_supervised

    rendered = render_supervised(
        example,
        processor,
        loss_on=loss_on,
        max_length=config.max_length,
        truncation=config.truncation,
        chat_template_kwargs=config.chat_template_kwargs,
    )
    if not rendered:
        raise DataError(f"row {example['id']}: over max_length {config.max_length}, dropped", row=str(example["id"]))
    notes = [what]
    if len(rendered) > 1:
        count = len(rendered)
        notes = [f"{i} of {count}: the chat template rewrites earlier turns" for i in range(1, count + 1)]
        notes = [f"{what}, {note}" if what else note for note in notes]
    return [
        _shown(example, processor, row.ids, row.weights, row.visual, note)
        for row, note in zip(rendered, notes, strict=True)
    ]


def _prompt(example: Mapping[str, Any], processor: Any, config: ShowConfig) -> tuple[list[int], list[float], Any]:
    from mmreason.data.render import render_prompt
    from mmreason.data.visual import has_images, render_visual_prompt

    kwargs, tools = config.chat_template_kwargs, example.get("tools")
    if has_images(example):
        visual = render_visual_prompt(example["prompt"], example["images"], processor, kwargs, tools=tools)
        return visual.ids, [0.0] * len(visual.ids), visual
    ids = render_prompt(example["prompt"], processor, kwargs, tools=tools)
    return ids, [0.0] * len(ids), None


def _shown(
    example: Mapping[str, Any], processor: Any, ids: list[int], weights: list[float], visual: Any, note: str
) -> ShownRow:
    from mmreason.report.tokens import ShownRow, ShownToken
    from mmreason.trainers.token_texts import TokenTexts

    texts = TokenTexts(getattr(processor, "tokenizer", processor))(ids)
    image = getattr(processor, "image_token_id", None) if visual is not None else None
    roles = token_roles(texts, example)
    tokens = [
        ShownToken(text, "image" if token == image else "assistant" if weight else role, weight, token, place)
        for place, (text, token, weight, role) in enumerate(zip(texts, ids, weights, roles, strict=True))
    ]
    supervised = sum(weight > 0 for weight in weights)
    facts = [
        ("row", note),
        ("source", str(example.get("source") or "")),
        ("tokens", f"{len(ids):,}, {supervised:,} with loss ({supervised / len(ids):.0%})"),
        ("sum of weights", f"{sum(weights):g}" if supervised else ""),
        ("images", _images(visual, ids, image)),
    ]
    return ShownRow(str(example["id"]), [(name, value) for name, value in facts if value], tokens)


def _images(visual: Any, ids: list[int], image: int | None) -> str:
    if visual is None:
        return ""
    sizes = ", ".join(f"{picture.width} × {picture.height}" for picture in visual.images)
    return f"{len(visual.images)} ({sizes} pixels), {ids.count(image):,} tokens" if image is not None else sizes


def token_roles(texts: Sequence[str], example: Mapping[str, Any]) -> list[Role]:
    """Whose word each token is: that of the message in whose text it begins, else the template's."""
    prompt, completion = example["prompt"], example.get("completion") or []
    whole = "".join(texts)
    spans: list[tuple[int, int, Role]] = []
    if isinstance(prompt, str):
        spans.append((0, len(prompt), "user"))
    else:
        place = 0
        for message in [*prompt, *completion]:
            role: Role = {"developer": "system"}.get(message["role"], message["role"])  # type: ignore[assignment]
            for text in _texts_of(message):
                start = whole.find(text, place)
                if start >= 0:
                    place = start + len(text)
                    spans.append((start, place, role))
    roles: list[Role] = []
    start, number = 0, 0
    for text in texts:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        inside = number < len(spans) and spans[number][0] <= start
        roles.append(spans[number][2] if inside else "template")
        start += len(text)
    return roles


def _texts_of(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    return [text.strip() for text in (message.get("reasoning_content") or "", *parts) if text.strip()]
