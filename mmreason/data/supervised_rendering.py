"""Example -> token ids and loss weights, through any chat template, with or without images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mmreason._functions import did_you_mean
from mmreason.data.conversation import Conversation, check_text, read_conversation
from mmreason.data.formats.common import RowError
from mmreason.data.images import load_image
from mmreason.data.loss_spans import LAST_TURN, LossOn, Span, token_weights, weighted
from mmreason.data.render import leading_tokens, processor_name, refuse_media_tokens
from mmreason.data.truncation import NOTHING_CUT, Cut, cut_oldest
from mmreason.data.turns import ChatTexts, TurnText
from mmreason.data.visual import VisualPrompt, can_see, check_placed, expanded_positions, process_text
from mmreason.types import ConfigError, DataError, Example

if TYPE_CHECKING:
    from PIL import Image

Truncation = Literal["error", "drop", "cut_oldest_turns"]
TRUNCATIONS: tuple[Truncation, ...] = ("error", "drop", "cut_oldest_turns")


@dataclass(frozen=True, slots=True)
class SupervisedRow:
    """A row as a model learns it.

    Attributes:
        ids: token ids, image placeholders expanded: what the model reads.
        weights: (len(ids)) loss weight of each token, 0.0 without loss; that of token t belongs to predicting token t.
        row_id: the Example's id. source: where it came from.
        visual: what the processor made of the images, in order; None for text.
    """

    ids: list[int]
    weights: list[float]
    row_id: str
    source: str
    visual: VisualPrompt | None = None


@dataclass(frozen=True, slots=True)
class RowText:
    """A row before it becomes token ids.

    Attributes:
        text: with one placeholder per image, and the end of the last turn.
        spans: the model's parts. images: numbers of the Example's images that stand in the text, in order.
        plain: a base model's text, which gets the tokenizer's BOS.
        cut: what was cut off in front.
    """

    text: str
    spans: list[Span]
    images: tuple[int, ...] = ()
    plain: bool = False
    cut: Cut = NOTHING_CUT


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rows of an Example, each with its text, and the number of those that were too long and left out."""

    rows: list[tuple[RowText, SupervisedRow]]
    too_long: int = 0


class SupervisedRenderer:
    """Renders the Examples of a set; what it finds out about the chat template serves all rows.

    Args: see `render_supervised`.

    Raises: ConfigError: a tokenizer that can't tell which characters a token stands for.
    """

    def __init__(
        self,
        processor: Any,
        *,
        loss_on: LossOn = LAST_TURN,
        max_length: int | None = None,
        truncation: Truncation = "error",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if truncation not in TRUNCATIONS:
            hint = did_you_mean(truncation, TRUNCATIONS)
            raise ConfigError(f"truncation {truncation!r}: known are {', '.join(TRUNCATIONS)}.{hint}")
        self.processor, self.loss_on, self.max_length, self.truncation = processor, loss_on, max_length, truncation
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not getattr(self.tokenizer, "is_fast", False):
            raise ConfigError(
                f"{type(self.tokenizer).__name__} is no fast tokenizer: it can't tell which characters a token stands "
                "for, so what carries loss would be a guess"
            )
        self.chats = ChatTexts(processor, chat_template_kwargs)

    def render(self, example: Mapping[str, Any]) -> Rendered:
        """The rows of an Example. Raises: DataError with the row's id; ConfigError (see `render_supervised`)."""
        row_id = str(example.get("id", ""))
        try:
            return self._render(example)
        except (DataError, RowError) as error:
            raise DataError(f"row {row_id}: {error}", row=row_id, reason=error.reason) from error

    def _render(self, example: Mapping[str, Any]) -> Rendered:
        if isinstance(example.get("prompt"), str) or isinstance(example.get("completion"), str):
            planned: list[tuple[RowText, Conversation | None]] = [(self._plain(example), None)]
            images: list[Any] = []
        else:
            conversation, images = self._conversation(example)
            planned = list(self._plan(conversation))
        if not planned:
            raise DataError("no token carries loss", reason="no_loss")
        pictures = [load_image(image, where=f"image {i}") for i, image in enumerate(images, 1)]
        rows: list[tuple[RowText, SupervisedRow]] = []
        too_long = 0
        for text, part in planned:
            fitting = self._fit(text, part, example, pictures)
            too_long += not fitting
            rows += fitting
        return Rendered(rows, too_long)

    def _plain(self, example: Mapping[str, Any]) -> RowText:
        prompt, completion = example.get("prompt"), example.get("completion")
        if not completion:
            raise DataError("there is nothing to learn: the completion is empty", reason="missing_completion")
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            raise DataError("prompt and completion must both be messages or both be text", reason="bad_messages")
        if example.get("images"):
            raise ConfigError(
                "a plain-text prompt has no place for images; render prompts with the chat template: chat: true"
            )
        check_text([prompt, completion], "prompt or completion")
        if not completion.strip():
            raise DataError("the completion says nothing", reason="empty_turn")
        text = self._ended(prompt + completion)
        return RowText(
            text, [Span("answer", len(prompt), len(text), (len(prompt), len(prompt + completion)))], plain=True
        )

    def _ended(self, text: str) -> str:
        end = self.tokenizer.eos_token
        if not end:
            raise ConfigError("the tokenizer has no EOS token, and the chat template ends turns with no other")
        return text if text.endswith(end) else text + str(end)

    def _conversation(self, example: Mapping[str, Any]) -> tuple[Conversation, list[Any]]:
        """(the checked messages, the cells of their images)."""
        images = example.get("images") or []
        if not isinstance(images, (list, tuple)):
            raise DataError(f"images is {type(images).__name__}, not a list of images", reason="image_not_list")
        conversation = read_conversation(example, self.loss_on.turns)
        parts, count = len(conversation.images), max(len(conversation.images), len(images))
        if count and not can_see(self.processor):
            raise ConfigError(
                f"{processor_name(self.processor)} reads text only, but the row has {count} image(s): "
                "choose a model_name_or_path with a processor for images, or a dataset without"
            )
        if parts != len(images):
            raise DataError(
                f'the messages have {parts} image part(s) ({{"type": "image"}}), the row has {len(images)} image(s)',
                reason="image_count",
            )
        refuse_media_tokens(conversation.messages, self.processor)
        return conversation, list(images)

    def _plan(self, conversation: Conversation) -> Iterator[tuple[RowText, Conversation]]:
        """The rows that a conversation becomes: one, unless the template rewrites earlier turns."""
        heads: list[tuple[TurnText, int, list[int], list[Span]]] = []
        for place in reversed(conversation.supervised):
            turn = self.chats.turn(conversation, place)
            # Nearest first: a turn joins the row in which it stands as generation would have given it.
            for head, _, places, spans in reversed(heads):
                if turn.ended and head.text.startswith(turn.text):
                    places.insert(0, place)
                    spans[:0] = turn.spans
                    break
            else:
                heads.append((turn, place, [place], list(turn.spans)))
        for turn, place, places, spans in reversed(heads):
            part = conversation.until(place + 1, places)
            text = self._row_text(turn, spans, part)
            # Of chosen spans a turn may have none (a call where only answers are learned): its row would be empty.
            if weighted(text.text, text.spans, self.loss_on):
                yield text, part

    def _row_text(self, turn: TurnText, spans: list[Span], part: Conversation) -> RowText:
        text = turn.text if turn.ended else self._ended(turn.text)
        if text != turn.text:
            spans = [*spans[:-1], replace(spans[-1], stop=len(text))]
        if part.images:
            check_placed(text, len(part.images), self.processor)
        return RowText(text, spans, part.images)

    def _fit(
        self, text: RowText, part: Conversation | None, example: Mapping[str, Any], pictures: Sequence[Image.Image]
    ) -> list[tuple[RowText, SupervisedRow]]:
        """The row, or what is left of it when it is cut to `max_length`; nothing where it is to be dropped."""
        row = self.tokenize(text, pictures, str(example.get("id", "")), str(example.get("source") or ""))
        limit = self.max_length
        if limit is None or len(row.ids) <= limit:
            return [(text, row)]
        if self.truncation == "drop":
            return []
        if self.truncation == "cut_oldest_turns" and part is not None:
            for shorter, cut in cut_oldest(part):
                texts = [replace(t, cut=cut) for t, _ in self._plan(shorter)]
                rows = [(t, self.tokenize(t, pictures, row.row_id, row.source)) for t in texts]
                if rows and all(len(r.ids) <= limit for _, r in rows):
                    return rows
        raise DataError(f"{len(row.ids)} tokens, max_length is {limit}", reason="too_long")

    def tokenize(self, text: RowText, pictures: Sequence[Image.Image], row_id: str, source: str) -> SupervisedRow:
        """Token ids and weights of a row. `pictures`: all images of the Example. Raises: DataError."""
        encoded = self.tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        weights = token_weights(offsets, weighted(text.text, text.spans, self.loss_on), text.text)
        if not any(weights):
            raise DataError("no token carries loss", reason="no_loss")
        if text.plain:
            first = leading_tokens(text.text, ids, self.tokenizer)
            ids, weights = first + ids, [0.0] * len(first) + weights
        if not text.images:
            return SupervisedRow(ids, weights, row_id, source)
        visual = process_text(text.text, [pictures[i] for i in text.images], self.processor)
        return SupervisedRow(visual.ids, self._expanded(visual, weights), row_id, source, visual)

    def completion_ids(self, example: Mapping[str, Any]) -> list[int]:
        """Token ids of an Example's completion after its prompt, without looking at images. Raises: DataError."""
        if isinstance(example["prompt"], str) or isinstance(example["completion"], str):
            text = self._plain(example)
        else:
            *_, (text, _) = self._plan(read_conversation(example, "last"))
        encoded = self.tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        start = text.spans[0].start
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [token for token, (a, b) in pairs if a >= start and a < b]

    def _expanded(self, visual: VisualPrompt, weights: list[float]) -> list[float]:
        """The weights where each placeholder has become the tokens of its image."""
        expanded = [0.0] * len(visual.ids)
        placeholder = int(self.tokenizer.convert_tokens_to_ids(self.processor.image_token))
        for place, weight in zip(expanded_positions(visual, placeholder), weights, strict=True):
            if weight and place is None:
                raise DataError("the processor changes the text of the assistant's turn", reason="image_count")
            if weight and place is not None:
                expanded[place] = weight
        return expanded


def render_supervised(
    example: Example | Mapping[str, Any],
    processor: Any,
    *,
    loss_on: LossOn = LAST_TURN,
    max_length: int | None = None,
    truncation: Truncation = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[SupervisedRow]:
    """What is learned from an Example: token ids, and the loss weight of each.

    Messages go through the chat template of TRL that is made for training where there is one and it writes the
    conversation as generation sees it; else through the model's own. The model's part of a turn is what follows the
    text that generation would be given, with the token that ends the turn, once; line breaks behind it are left out.
    Plain text gets the tokenizer's BOS and, as its end, EOS.

    Args:
        example: `prompt` and `completion`, with `images` and `tools` where there are any.
        processor: a fast tokenizer, or a processor with one, which rows with images need.
        loss_on: what carries loss.
        max_length: tokens of a row at most, those of images included.
        truncation: of longer rows. "error": they are errors; "drop": they are left out; "cut_oldest_turns": the oldest
            exchanges are, until the row fits (see mmreason.data.truncation), and where not even the last one does, it
            is an error.
        chat_template_kwargs: further names for the template.

    Returns: one row; several only where the template writes earlier turns anew once others follow (thinking models drop
        their thoughts): then one for each turn that carries loss, as generation would have seen it.

    Raises:
        DataError: with the row's id and a reason: "template" (the template leaves out or changes what is learned, or
            the text before it), "unknown_role", "empty_turn", "no_loss", "too_long", "image_count" …
        ConfigError: no fast tokenizer, no chat template, images for a model that takes none.
    """
    renderer = SupervisedRenderer(
        processor,
        loss_on=loss_on,
        max_length=max_length,
        truncation=truncation,
        chat_template_kwargs=chat_template_kwargs,
    )
    return [row for _, row in renderer.render(example).rows]
