"""Rows with pictures, shown with their own ones and with others in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mmreason.data.images import image_digest, load_image
from mmreason.data.supervised import render_completion
from mmreason.data.visual import VisualPrompt, image_counts, render_visual_prompt
from mmreason.types import DataError

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["true", "blank", "shuffled", "noise"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_GREY = (127, 127, 127)


class CanaryRows:
    """At most `samples` rows of a dataset that have pictures, drawn by the seed and kept in order.

    - true: the row's own pictures.
    - blank, noise: grey, and evenly drawn pixels, of the true pictures' sizes: the prompt stays as it is, token for
      token, and only what the model sees differs.
    - shuffled: the pictures of another drawn row with as many, laid out anew, as their sizes may be others.

    Args:
        dataset: columns `id`, `prompt`, `images`, `answer` and `meta`, perhaps `completion`.
        processor: the model's.

    Raises: DataError: no row has a picture.
    """

    def __init__(
        self,
        dataset: Any,
        processor: Any,
        *,
        samples: int,
        seed: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        with_images = [i for i, count in enumerate(image_counts(dataset)) if count]
        if not with_images:
            raise DataError("no row of the dataset has an image, so there is nothing that a model could see")
        drawn = np.random.default_rng(seed).permutation(with_images)[:samples]
        self.examples: list[dict[str, Any]] = [dataset[int(i)] for i in sorted(drawn)]
        self.processor, self.seed, self.chat_template_kwargs = processor, seed, chat_template_kwargs
        digests = [[image_digest(picture) for picture in self._own(i)] for i in range(len(self.examples))]
        self.partners = _partners(digests, seed)
        """For each row the one whose pictures it gets where they are shuffled; None: there is none."""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def max_images(self) -> int:
        """Images of the row with most of them."""
        return max(len(example["images"]) for example in self.examples)

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, with its own pictures or with shuffled ones. Renders them all."""
        shown: tuple[Kind, ...] = ("true", "shuffled")
        return max(len(self.prompt(row, kind).ids) for row in range(len(self)) for kind in shown)

    def prompt(self, row: int, kind: Kind) -> VisualPrompt:
        """A row's prompt; "shuffled" gives the true one where the row has no partner."""
        return render_visual_prompt(
            self.examples[row]["prompt"], self._pictures(row, kind), self.processor, self.chat_template_kwargs
        )

    def gold(self, row: int) -> list[int]:
        """Token ids of the row's `completion`, or else of its answer alone, with the turn's end.

        Raises: DataError where the chat template can't render it.
        """
        example = self.examples[row]
        completion = example.get("completion")
        if not completion:
            tokenizer = self.processor.tokenizer
            return [*tokenizer(example["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        try:
            return render_completion(example["prompt"], completion, self.processor, self.chat_template_kwargs)
        except DataError as error:
            raise DataError(
                f"row {example['id']}: {error}; sampled completions need no template: --completion sampled",
                row=example["id"],
                reason=error.reason,
            ) from error

    def _own(self, row: int) -> list[Image.Image]:
        example = self.examples[row]
        return [
            load_image(cell, where=f"row {example['id']}, image {j}") for j, cell in enumerate(example["images"], 1)
        ]

    def _pictures(self, row: int, kind: Kind) -> list[Image.Image]:
        from PIL import Image

        partner = self.partners[row]
        if kind == "shuffled" and partner is not None:
            return self._own(partner)
        own = self._own(row)
        if kind == "blank":
            return [Image.new("RGB", picture.size, _GREY) for picture in own]
        if kind == "noise":
            random = np.random.default_rng([self.seed, row, 1])
            sizes = [(picture.height, picture.width, 3) for picture in own]
            return [Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)) for size in sizes]
        return own


def _partners(digests: Sequence[Sequence[str]], seed: int) -> list[int | None]:
    """For each row another one with as many pictures, of which none is among its own; None where there is none.

    Partners are the next such row on a random circle, so that where all pictures differ each is used once.
    """
    circle = np.random.default_rng([seed, 1]).permutation(len(digests)).tolist()
    found: list[int | None] = [None] * len(digests)
    for position, row in enumerate(circle):
        for other in circle[position + 1 :] + circle[:position]:
            if len(digests[other]) == len(digests[row]) and not set(digests[other]) & set(digests[row]):
                found[row] = other
                break
    return found
