"""Pictures and texts → what a composed model takes: views as pixels, and one image token per projected patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs

from mmreason.models.tiling import count_views, make_views


class MMReasonImageProcessor(BaseImageProcessor):
    """Pictures → views, normalised with each tower's own mean and standard deviation.

    Args:
        image_size: side of a view in pixels.
        image_mean, image_std: three numbers for each tower, one tower after the other, of channels from 0 to 1.
        resample: PIL's number of the filter. resize: stretch, pad or crop. max_tiles: see `MMReasonVisionConfig`.
    """

    model_input_names = ("pixel_values", "num_tiles")

    def __init__(
        self,
        image_size: int = 224,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: int = 3,
        resize: str = "stretch",
        max_tiles: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size, self.resample, self.resize, self.max_tiles = image_size, resample, resize, max_tiles
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """Pictures → pixel_values (views, 3 · towers, size, size) and num_tiles (images,), the views of each.

        Args:
            images: one, a list, or a list for each text; PIL images, or arrays that can be made into them.
            return_tensors: always torch tensors, whatever is asked for.
        """
        fill = [round(255 * m) for m in self.image_mean[:3]]
        pixels, counts = [], []
        for image in make_flat_list_of_images(images):
            views = make_views(_as_rgb(image), self.image_size, self.max_tiles, self.resize, self.resample, fill)
            pixels += [self._normalised(view) for view in views]
            counts.append(len(views))
        return BatchFeature({"pixel_values": torch.stack(pixels), "num_tiles": torch.tensor(counts)})

    def _normalised(self, view: Any) -> Tensor:
        rgb = torch.from_numpy(np.array(view, dtype=np.float32)).permute(2, 0, 1) / 255
        towers = len(self.image_mean) // 3
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        return (rgb.repeat(towers, 1, 1) - mean[:, None, None]) / std[:, None, None]

    def count_views(self, height: int, width: int) -> int:
        """Views of a picture of that size."""
        return count_views(width, height, self.image_size, self.max_tiles)


def _as_rgb(image: Any) -> Any:
    """A PIL image in RGB; arrays and tensors are taken as channels first or last, from 0 to 1 or to 255."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        from transformers.image_transforms import to_pil_image

        image = to_pil_image(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:  # on white, as mmreason.data.images does
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


class _Defaults(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    _defaults = {"text_kwargs": {"padding": False, "return_mm_token_type_ids": False}}  # noqa: RUF012


class MMReasonProcessor(ProcessorMixin):
    """Tokenizer and image processor of a composed model.

    Args:
        tokens_per_view: image tokens that a view takes. image_token: the token, a special one of the tokenizer.
    """

    valid_processor_kwargs = _Defaults

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_view: int = 1,
        image_token: str = "<|image|>",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.tokens_per_view, self.image_token = tokens_per_view, image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """transformers' hook. Lists of pictures without any are no pictures."""
        prepared = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        images = prepared[0]
        if isinstance(images, list | tuple) and all(isinstance(row, list | tuple) and not row for row in images):
            images = None
        return images, *prepared[1:]

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """transformers' hook. Texts without any pictures pass: engines tokenize them by themselves.

        Raises:
            ValueError: other pictures than there are places for.
        """
        super().validate_inputs(images=images, text=text, **kwargs)
        if images is None or text is None:
            return
        places = [row.count(self.image_token) for row in text]
        given = [len(make_flat_list_of_images(images))]
        fits = sum(places) == given[0]
        if isinstance(images, list | tuple) and all(isinstance(row, list | tuple) for row in images):
            given = [len(row) for row in images]
            fits = list(filter(None, places)) == list(filter(None, given))  # rows without pictures may be left out
        if not fits:
            raise ValueError(f"the texts have places for {places} pictures, given are {given}")

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text for one picture: transformers' hook."""
        return self.image_token * (int(image_inputs["num_tiles"][image_idx]) * self.tokens_per_view)

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[tuple[int, int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Image tokens and views of pictures of (height, width): vLLM's hook."""
        views = [self.image_processor.count_views(height, width) for height, width in image_sizes or ()]
        return MultiModalData(num_image_tokens=[n * self.tokens_per_view for n in views], num_image_patches=views)


def build_processor(config: Any, tokenizer: Any, image_token: str) -> MMReasonProcessor:
    """The processor of a configuration (MMReasonConfig) with a tokenizer that has the image token."""
    images = build_image_processor(config.vision_config)
    return MMReasonProcessor(images, tokenizer, config.tokens_per_view, image_token, tokenizer.chat_template)


def build_image_processor(vision: Any) -> MMReasonImageProcessor:
    """What makes views for the towers of a configuration (MMReasonVisionConfig)."""
    return MMReasonImageProcessor(
        image_size=vision.image_size,
        image_mean=[m for tower in vision.towers for m in tower["mean"]],
        image_std=[s for tower in vision.towers for s in tower["std"]],
        resample=vision.resample,
        resize=cast(Literal["stretch", "pad", "crop"], vision.resize),
        max_tiles=vision.max_tiles,
    )
