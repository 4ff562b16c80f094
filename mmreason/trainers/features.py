"""Stored features of a frozen vision tower in a training run: training and held-out images are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mmreason.data.visual import Visuals
from mmreason.models.features import FeatureStore, TowerFeatures
from mmreason.trainers.arguments import PolicyConfig
from mmreason.types import ConfigError


def open_features(
    args: PolicyConfig, policy: Any, processor: Any, accelerator: Accelerator, visuals: Sequence[Visuals | None]
) -> TowerFeatures | None:
    """Where `args.feature_store` names a folder, let these images come as features from now on.

    Scoring, sampling with `generate` and evaluation then read them; vLLM gets the images and encodes them by itself.

    Args: policy: the prepared model. visuals: of the training problems and of each held-out set.
    Raises: ConfigError: no problem has images, or the tower's features can't be kept: it is trained, spread over
        processes, or no composed model's (see `mmreason.models.features.TowerFeatures`).
    """
    if args.feature_store is None:
        return None
    seen = [one for one in visuals if one is not None]
    if not seen:
        raise ConfigError(f"feature_store={args.feature_store!r}: no problem has an image; leave it out")
    store = FeatureStore(args.feature_store, args.feature_store_gib)
    features = store.open(policy, processor, autocast=torch.bfloat16 if accelerator.native_amp else None)
    for one in seen:
        one.use_features(features, keep_images=args.use_vllm)
    return features
