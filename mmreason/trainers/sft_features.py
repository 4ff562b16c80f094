"""Stored features of a frozen vision tower in a supervised run: each training and held-out image is encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from mmreason.data.images import image_digest
from mmreason.data.supervised import SupervisedRow
from mmreason.data.visual import VisualPrompt
from mmreason.models.features import FeatureStore, TowerFeatures
from mmreason.trainers.sft_arguments import SFTOptions
from mmreason.types import ConfigError


class CheckedRows(Protocol):
    """What `StoredRows` needs of `SupervisedRows`: besides a sequence of rows, their tokens without their images."""

    @property
    def lengths(self) -> Any: ...

    @property
    def sources(self) -> Sequence[str]: ...

    @property
    def image_counts(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> SupervisedRow: ...

    def without_images(self, index: int) -> SupervisedRow: ...


class StoredRows:
    """`SupervisedRows` whose images come as features; the images themselves are read the first time only.

    Args: features: of the tower that the model has, opened before training.
    """

    def __init__(self, rows: CheckedRows, features: TowerFeatures) -> None:
        self.rows, self.features = rows, features
        self.lengths, self.sources, self.image_counts = rows.lengths, rows.sources, rows.image_counts
        self._digests: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def without_images(self, index: int) -> SupervisedRow:
        return self.rows.without_images(index)

    def __getitem__(self, index: int) -> SupervisedRow:
        """Raises: as `SupervisedRows`; ConfigError where the tower's features can't be kept any more."""
        if (digests := self._digests.get(index)) is not None:
            inputs = self.features.inputs(digests)
            if inputs is not None:
                row = self.rows.without_images(index)
                return replace(row, visual=VisualPrompt(row.ids, [], [], inputs))
        row = self.rows[index]
        if row.visual is None:
            return row
        digests = self._digests[index] = [image_digest(picture) for picture in row.visual.images]
        inputs = self.features.inputs(digests, row.visual.inputs)
        assert inputs is not None  # given what the processor made
        return replace(row, visual=VisualPrompt(row.ids, [], [], inputs))


def open_features(
    args: SFTOptions, model: Any, processor: Any, image_counts: Sequence[int], *, autocast: bool
) -> TowerFeatures | None:
    """The features of the model's tower, where `args.feature_store` names a folder.

    Args: model: on its device. image_counts: of the training rows.
    Raises: ConfigError: no row has an image, or the features can't be kept: the tower is trained, spread over
        processes, or no composed model's (see `mmreason.models.features.TowerFeatures`).
    """
    if args.feature_store is None:
        return None
    if not any(image_counts):
        raise ConfigError(f"feature_store={args.feature_store!r}: no training row has an image; leave it out")
    store = FeatureStore(args.feature_store, args.feature_store_gib)
    return store.open(model, processor, autocast=torch.bfloat16 if autocast else None)
