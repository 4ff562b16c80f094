"""Prompts with pictures: messages and images -> token ids and model inputs, for any Hugging Face processor.

Every processor is used through the same public calls: its chat template renders the messages with one placeholder per
image, and calling it turns text and images into ids, with each placeholder expanded, and pixel tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mmreason.data.formats.pictures import count_image_parts
from mmreason.data.images import image_digest, load_image
from mmreason.data.render import processor_name, refuse_media_tokens, render_text
from mmreason.types import ConfigError, DataError, Message

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

CACHE_BYTES = 1 << 30
"""Host memory that `Visuals` may hold."""


@dataclass(frozen=True, eq=False)
class VisualPrompt:
    """A prompt with pictures as a model reads it.

    Attributes:
        ids: token ids with the image placeholders expanded: what the model reads.
        engine_ids: the same prompt with one placeholder per image: what vLLM takes and expands by itself.
        images: RGB, in the order of their placeholders. They and engine_ids are empty where stored features stand for
            the images and no engine asks for more (`Visuals.use_features`).
        inputs: what else the processor made: pixel_values, image_grid_thw …, without input_ids and attention_mask.
            A tensor of shape (1, len(ids)) is per token (mm_token_type_ids, token_type_ids …).
    """

    ids: list[int]
    engine_ids: list[int]
    images: list[Image.Image]
    inputs: dict[str, Tensor]


class FeatureSource(Protocol):
    """Where the features of a frozen vision tower are kept: `mmreason.models.features.TowerFeatures`."""

    def inputs(self, digests: Sequence[str], processed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor] | None:
        """What the model takes for some images, named by `image_digest`, in place of pixels.

        Args: processed: what the processor made of them. Without it, None says that they are not all there.
        """


def can_see(processor: Any) -> bool:
    """Whether this is a processor that takes images, not a tokenizer (or a processor of sounds)."""
    return getattr(processor, "image_processor", None) is not None and bool(getattr(processor, "image_token", None))


def has_images(row: Mapping[str, Any]) -> bool:
    """Whether a row brings images, or a prompt that asks for some."""
    return bool(row.get("images")) or count_image_parts(row["prompt"]) > 0


def image_counts(dataset: Any) -> Iterator[int]:
    """Number of images of each row of a dataset, without reading them; nothing where it has no such column."""
    import pyarrow.compute as pc

    if "images" in dataset.column_names:
        for table in dataset.select_columns(["images"]).with_format("arrow").iter(batch_size=1000):
            yield from (count or 0 for count in pc.list_value_length(table["images"]).to_pylist())


def render_visual_prompt(
    prompt: Sequence[Message] | str,
    images: Sequence[Any] | None,
    processor: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> VisualPrompt:
    """Render messages with images, ready to be continued by the model. Nothing is ever cut.

    Args:
        prompt: messages, in which a part `{"type": "image"}` stands where each image belongs.
        images: cells of a row's `images` (see mmreason.data.images), in the order of those parts.
        processor: any Hugging Face processor with an image processor, a tokenizer and a chat template.
        chat_template_kwargs: further names for the template.
        tools: JSON schemas of the tools that the template tells the model of.

    Raises:
        ConfigError: the model takes no images, or its chat template can't place them.
        DataError: images, image parts and rendered placeholders differ in number; a text holds the placeholder itself;
            the processor refuses an image or makes no tokens of it. Besides what `render_text` and `load_image` raise.
    """
    text, pictures = _place(prompt, images, processor, chat_template_kwargs, tools)
    return process_text(text, pictures, processor)


def _place(
    prompt: Sequence[Message] | str,
    images: Sequence[Any] | None,
    processor: Any,
    chat_template_kwargs: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[str, list[Image.Image]]:
    """The rendered text, with one placeholder per image, and the images."""
    text = _render_placed(prompt, list(images or ()), processor, chat_template_kwargs, tools)
    return text, [load_image(image, where=f"image {i}") for i, image in enumerate(images or (), start=1)]


def process_text(text: str, pictures: list[Image.Image], processor: Any) -> VisualPrompt:
    """What a processor makes of a rendered text with one placeholder per picture. Raises: DataError."""
    try:
        encoded = processor(
            text=[text],
            images=[pictures],
            return_tensors="pt",
            add_special_tokens=False,  # the chat template brings them
            padding=False,
            truncation=False,
        )
    except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError) as error:
        sizes = ", ".join(f"{picture.width} × {picture.height}" for picture in pictures)
        raise DataError(
            f"{type(processor).__name__} refuses the prompt's {_images(len(pictures))} ({sizes} pixels): {error}",
            reason="bad_image",
        ) from error
    ids = encoded["input_ids"][0].tolist()
    made = ids.count(processor.image_token_id)
    if made < len(pictures):
        raise DataError(
            f"{type(processor).__name__} made {made} image tokens ({processor.image_token}) of "
            f"{_images(len(pictures))}: the model would not see them",
            reason="image_count",
        )
    inputs = {
        name: value
        for name, value in encoded.items()
        if name not in ("input_ids", "attention_mask") and hasattr(value, "shape")
    }
    return VisualPrompt(ids, _engine_ids(text, processor), pictures, inputs)


def expanded_positions(visual: VisualPrompt, placeholder: int) -> list[int | None]:
    """For each token of `engine_ids` its place in `ids`; None for a placeholder, and for tokens that merged with its
    expansion.

    Processors put more than an image's own tokens in a placeholder's place (tiles' numbers, line breaks …), each in its
    way. So what stands between two placeholders is looked for behind the image tokens of the first.

    Args: placeholder: the token id of a placeholder in `engine_ids`; in `ids` it is that of an image's tokens.

    Raises: DataError: the processor changes the text around the images.
    """
    short, long = visual.engine_ids, visual.ids
    places: list[int | None] = [None] * len(short)
    borders = [i for i, token in enumerate(short) if token == placeholder]
    starts, stops = [0, *(i + 1 for i in borders)], [*borders, len(short)]
    free = 0
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if number:
            while free < len(long) and long[free] != placeholder:
                free += 1
        first, last = number == 0, number == len(borders)
        found = _find_segment(short[start:stop], long, free, anchored=first, to_end=last)
        if found is None:
            raise DataError("the processor changes the text around the images", reason="image_count")
        skipped, position, length = found
        places[start + skipped : start + skipped + length] = range(position, position + length)
        free = position + length
    return places


_MERGED = 2
"""Tokens at a segment's ends that may merge with line breaks which a processor puts around an image."""


def _find_segment(
    segment: list[int], long: list[int], free: int, *, anchored: bool, to_end: bool
) -> tuple[int, int, int] | None:
    """(tokens skipped at the segment's beginning, its place in `long`, its length) at or behind `free`."""
    for lost in range(2 * _MERGED + 1):
        for skipped in range(min(lost, _MERGED) + 1):
            length = len(segment) - lost
            if length < 0 or lost - skipped > _MERGED or (anchored and skipped) or (to_end and lost > skipped):
                continue
            part = segment[skipped : skipped + length]
            if to_end:
                places: Sequence[int] = [len(long) - length] if len(long) - length >= free else []
            else:
                places = [free] if anchored else range(free, len(long) - length + 1)
            for position in places:
                if long[position : position + length] == part:
                    return skipped, position, length
    return None


def _engine_ids(text: str, processor: Any) -> list[int]:
    return list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def _render_placed(
    prompt: Sequence[Message] | str,
    images: list[Any],
    processor: Any,
    chat_template_kwargs: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None,
) -> str:
    """The rendered text, with exactly one placeholder per image."""
    count, parts = len(images), count_image_parts(prompt)
    if not can_see(processor):
        raise ConfigError(
            f"{processor_name(processor)} reads text only, but the row has {_images(max(count, parts))}; choose a "
            "model_name_or_path with a processor for images, or a dataset without"
        )
    if isinstance(prompt, str):
        raise ConfigError(
            "a plain-text prompt has no place for images; render prompts with the chat template: chat: true"
        )
    if parts != count:
        raise DataError(
            f'the prompt has {parts} image part(s) ({{"type": "image"}}), but the row has {_images(count)}',
            reason="image_count",
        )
    refuse_media_tokens(prompt, processor)
    text = render_text(prompt, processor, chat_template_kwargs, tools=tools)
    check_placed(text, count, processor)
    return text


def check_placed(text: str, count: int, processor: Any) -> None:
    """Raise where a rendered text hasn't one placeholder for each of `count` images.

    ConfigError: the chat template places none at all. DataError: another number.
    """
    placed = text.count(processor.image_token)
    if placed == 0 and count:
        raise ConfigError(
            f"the chat template of {processor_name(processor)} can't place images: it rendered 0 placeholders "
            f"({processor.image_token}) for {_images(count)}; give one that can: chat_template_path"
        )
    if placed != count:
        raise DataError(
            f"the chat template rendered {placed} placeholder(s) ({processor.image_token}) for {_images(count)}",
            reason="image_count",
        )


def _images(count: int) -> str:
    return f"{count} image" + ("" if count == 1 else "s")


def collate_visual(
    prompts: Sequence[VisualPrompt | None],
    total_length: int,
    *,
    padding_side: Literal["left", "right"] = "right",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """What a model takes beside input_ids for B rows, of which any may be without images.

    Args:
        prompts: one per row of the batch, None for a row of text.
        total_length: T, tokens of the padded rows, completions included.
        padding_side: where the rows of input_ids are padded.
        device, dtype: where to, and what floating-point tensors become; None leaves them.

    Returns:
        Per-token tensors as (B, T), 0 on padding, completions and rows of text. All others joined along their first
        dimension; where the rest of their shapes differ (tiles per image, images per row), they are padded with zeros
        to the largest, as the processors do it. Empty where no row has images.
    """

    names = dict.fromkeys(name for prompt in prompts if prompt is not None for name in prompt.inputs)
    out: dict[str, Tensor] = {}
    for name in names:
        rows = [None if prompt is None else prompt.inputs.get(name) for prompt in prompts]
        if any(_is_per_token(row, prompt) for row, prompt in zip(rows, prompts, strict=True)):
            joined = _pad_per_token(rows, total_length, padding_side)
        else:
            joined = _concatenate([row for row in rows if row is not None])
        floating = dtype is not None and joined.is_floating_point()
        out[name] = joined.to(device=device or joined.device, dtype=dtype if floating else joined.dtype)
    return out


def flat_visual(
    prompts: Sequence[VisualPrompt | None],
    lengths: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """As `collate_visual`, for rows that stand one behind the other in one sequence.

    Args: lengths: tokens of each row, whatever follows its prompt included.
    Returns: per-token tensors as (1, sum of lengths), all others as there.
    """
    import torch

    out = collate_visual(prompts, max(lengths), device=device, dtype=dtype)
    for name, joined in out.items():
        if any(prompt is not None and _is_per_token(prompt.inputs.get(name), prompt) for prompt in prompts):
            out[name] = torch.cat([joined[row, :length] for row, length in enumerate(lengths)])[None]
    return out


def _is_per_token(tensor: Tensor | None, prompt: VisualPrompt | None) -> bool:
    return tensor is not None and prompt is not None and tuple(tensor.shape) == (1, len(prompt.ids))


def _pad_per_token(rows: Sequence[Tensor | None], total_length: int, side: str) -> Tensor:
    given = next(row for row in rows if row is not None)
    out = given.new_zeros((len(rows), total_length))
    for i, row in enumerate(rows):
        if row is not None:
            start = total_length - row.shape[1] if side == "left" else 0
            out[i, start : start + row.shape[1]] = row[0]
    return out


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    import torch

    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    if all(list(tensor.shape[1:]) == shape for tensor in tensors):
        return torch.cat(list(tensors))
    out = tensors[0].new_zeros((sum(len(tensor) for tensor in tensors), *shape))
    start = 0
    for tensor in tensors:
        inside = tuple(slice(size) for size in tensor.shape[1:])
        out[(slice(start, start + len(tensor)), *inside)] = tensor
        start += len(tensor)
    return out


def visuals_of(
    dataset: Any,
    prompt_ids: Sequence[list[int]],
    processor: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Visuals | None:
    """The `Visuals` of a dataset; None where it has no column of images."""
    if "images" not in dataset.column_names:
        return None
    return Visuals(dataset, prompt_ids, processor, chat_template_kwargs)


class Visuals:
    """The visual prompts of a dataset's rows, rendered when they are asked for.

    The last ones stay in memory, `cache_bytes` of them at most (but always one), so that the completions of a group
    share one object and host memory is flat however often an image is used.

    Args:
        dataset: rows with `prompt` and, where there are any, `images`.
        prompt_ids: the ids that were found when all rows were checked (`check_prompts`).
        processor: as for `render_visual_prompt`.
    """

    def __init__(
        self,
        dataset: Any,
        prompt_ids: Sequence[list[int]],
        processor: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.dataset, self.prompt_ids, self.processor = dataset, prompt_ids, processor
        self.chat_template_kwargs, self.cache_bytes = chat_template_kwargs, cache_bytes
        self._kept: OrderedDict[int, VisualPrompt | None] = OrderedDict()
        self._kept_bytes = 0
        self._features: FeatureSource | None = None
        self._keep_images = True
        self._digests: dict[int, list[str]] = {}

    def use_features(self, features: FeatureSource, *, keep_images: bool) -> None:
        """From now on give features in place of pixels: where they are stored, the processor does no work on images.

        Args: keep_images: give the images as well, for an engine that encodes them by itself. Else a row's images are
            not even read again after the first time.
        """
        self._features, self._keep_images = features, keep_images
        self._kept.clear()
        self._kept_bytes = 0

    @property
    def max_images(self) -> int:
        """Images of the row with most of them."""
        return max(image_counts(self.dataset), default=0)

    def __getitem__(self, row: int) -> VisualPrompt | None:
        """The visual prompt of a row; None for a row of text.

        Raises: DataError naming the row, where its images can't be read any more or have become others.
        """
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        visual = self._render(row)
        self._kept[row] = visual
        self._kept_bytes += _nbytes(visual)
        while self._kept_bytes > self.cache_bytes and len(self._kept) > 1:
            self._kept_bytes -= _nbytes(self._kept.popitem(last=False)[1])
        return visual

    def _render(self, row: int) -> VisualPrompt | None:
        if self._features is not None and not self._keep_images and row in self._digests:
            inputs = self._features.inputs(self._digests[row])
            if inputs is not None:
                return VisualPrompt(self.prompt_ids[row], [], [], inputs)
        example = self.dataset[row]
        if not has_images(example):
            return None
        try:
            prompt, images, tools = (example.get(name) for name in ("prompt", "images", "tools"))
            text, pictures = _place(prompt, images, self.processor, self.chat_template_kwargs, tools)
            if self._features is None:
                visual = process_text(text, pictures, self.processor)
            else:
                visual = self._with_features(row, text, pictures, self._features)
        except (DataError, ValueError) as error:  # a RowError is a ValueError
            raise DataError(
                f"row {example['id']}: {error}", row=example["id"], reason=getattr(error, "reason", None)
            ) from error
        if visual.ids != self.prompt_ids[row]:
            raise DataError(
                f"row {example['id']}: its images have another size than when the run began ({len(visual.ids)} prompt "
                f"tokens now, {len(self.prompt_ids[row])} then); don't touch a dataset's files while it is in use",
                row=example["id"],
                reason="image_count",
            )
        return visual

    def _with_features(self, row: int, text: str, pictures: list[Image.Image], features: FeatureSource) -> VisualPrompt:
        digests = self._digests[row] = [image_digest(picture) for picture in pictures]
        ids, inputs = self.prompt_ids[row], features.inputs(digests)
        if inputs is None:
            visual = process_text(text, pictures, self.processor)
            ids, inputs = visual.ids, features.inputs(digests, visual.inputs)
        assert inputs is not None  # given what the processor made
        if not self._keep_images:
            return VisualPrompt(ids, [], [], inputs)
        return VisualPrompt(ids, _engine_ids(text, self.processor), pictures, inputs)


def _nbytes(visual: VisualPrompt | None) -> int:
    """Bytes of pictures and tensors in host memory."""
    if visual is None:
        return 0
    pictures = sum(image.width * image.height * 3 for image in visual.images)
    return pictures + sum(tensor.nbytes for tensor in visual.inputs.values())
