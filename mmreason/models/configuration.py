"""Configuration of a composed model: towers, projector, decoder. config.json alone rebuilds a checkpoint offline."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING

from mmreason.models.projectors import Grid, token_count


class MMReasonVisionConfig(PreTrainedConfig):
    """One or two vision towers that look at the same views.

    Args:
        towers: one mapping each, as `mmreason.models.vision.resolve_tower` makes it: source, name, settings (what the
            source's library builds it from), image_size, feature_layer, select, width, grid, prefix, mean, std.
        resample: PIL's number of the filter that resizes pictures (3: bicubic).
        resize: how a picture becomes square: "stretch", "pad" (with the towers' mean colour) or "crop" (the middle).
        max_tiles: a large picture is also cut into up to that many views beside its thumbnail; 1: no tiles.
    """

    model_type = "mmreason_vision"
    base_config_key = "vision_config"

    towers: list[dict[str, Any]] | None = None
    resample: int = 3
    resize: str = "stretch"
    max_tiles: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        self.towers = self.towers or []
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Side of a view in pixels."""
        return int(self._first["image_size"])

    @property
    def hidden_size(self) -> int:
        """Channels of a patch, the towers' one after the other."""
        return sum(int(tower["width"]) for tower in self.towers or [])

    @property
    def grid(self) -> Grid:
        """(rows, columns) of patches of a view."""
        return cast(Grid, tuple(self._first["grid"]))

    @property
    def prefix(self) -> int:
        """Tokens without a place in the grid (class token, registers) that stand before the patches."""
        return int(self._first["prefix"])

    @property
    def num_channels(self) -> int:
        """Channels of a view: three for each tower, each with its own normalisation."""
        return 3 * len(self.towers or [])

    @property
    def _first(self) -> dict[str, Any]:
        return (self.towers or [{"image_size": 0, "grid": (0, 0), "prefix": 0}])[0]


class MMReasonConfig(PreTrainedConfig):
    """A vision-language model: views → towers → projector → places of the image token → decoder.

    Args:
        vision_config: MMReasonVisionConfig or its dict. text_config: any decoder's configuration or its dict.
        projector: settings of a kind of `mmreason.models.projectors.PROJECTORS`.
        image_token_id: the token whose embeddings the projected patches take the place of.
    """

    model_type = "mmreason"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": MMReasonVisionConfig}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projector: dict[str, Any] | None = None
    image_token_id: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = MMReasonVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            given = dict(self.text_config or {})
            self.text_config = CONFIG_MAPPING[given.pop("model_type", "qwen2")](**given)
        self.projector = self.projector or {"kind": "mlp"}
        # The decoder ties its own embeddings; trainers ask the outer configuration.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)

    @property
    def tokens_per_view(self) -> int:
        """Places that one view takes in the decoder's sequence. Raises ConfigError for a projector that can't be."""
        vision = cast(MMReasonVisionConfig, self.vision_config)
        return token_count(self.projector or {}, vision.grid, vision.prefix)
