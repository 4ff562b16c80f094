"""Stored features of a frozen vision tower in a training run: training and held-out images are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mmreason.data.visual import Visuals
from mmreason.models.features import FeatureStore, NoStore, TowerFeatures
from mmreason.trainers.arguments import PolicyConfig
from mmreason.types import ConfigError


def open_features(
    args: PolicyConfig, policy: Any, processor: Any, accelerator: Accelerator, visuals: Sequence[Visuals | None]
) -> TowerFeatures | None:
    """Let these images come as features from now on, so that every pass of a rollout uses one encoding.

    Where `args.feature_store` names a folder they are kept there. Else, with `args.share_prompts` and wherever they can
    be kept at all, they stay in memory as long as `Visuals` holds them, which for a rollout's images it does.

    Scoring, sampling with `generate` and evaluation then read them; vLLM gets the images and encodes them by itself.

    Args: policy: the prepared model. visuals: of the training problems and of each held-out set.
    Raises: ConfigError: feature_store is given, but no problem has images, or the tower's features can't be kept: it is
        trained, spread over processes, or no composed model's (see `mmreason.models.features.TowerFeatures`).
    """
    seen = [one for one in visuals if one is not None]
    autocast = torch.bfloat16 if accelerator.native_amp else None
    if args.feature_store is None:
        features = NoStore().open(policy, processor, autocast=autocast) if seen and args.share_prompts else None
    elif not seen:
        raise ConfigError(f"feature_store={args.feature_store!r}: no problem has an image; leave it out")
    else:
        store = FeatureStore(args.feature_store, args.feature_store_gib)
        features = store.open(policy, processor, autocast=autocast)
    if features is not None:
        for one in seen:
            one.use_features(features, keep_images=args.use_vllm)
    return features
