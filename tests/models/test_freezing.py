"""Freezing by name and pattern, on composed and ordinary models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmreason.models.compose import from_parts
from mmreason.models.freezing import freeze_modules
from mmreason.models.tiny import tiny_decoder
from mmreason.types import ConfigError

TOWER = {
    "source": "timm",
    "name": "vit_tiny_patch16_224",
    "weights": "random",
    "image_size": 32,
    "config": {"embed_dim": 32, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.5},
}


@pytest.fixture
def model(tiny_checkpoint: str) -> Any:
    return from_parts(TOWER, {"kind": "mlp"}, tiny_checkpoint)[0]


def trained(model: Any) -> set[str]:
    return {name for name, param in model.named_parameters() if param.requires_grad}


def test_a_module_by_its_name(model: Any) -> None:
    before = trained(model)
    left = freeze_modules(model, ["vision_tower"])
    assert trained(model) == {name for name in before if not name.startswith("vision_tower.")} != before
    assert left == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_all_but_the_projector(model: Any) -> None:
    freeze_modules(model, ["vision_tower", "language_model"])
    assert trained(model) == {name for name, _ in model.named_parameters() if name.startswith("projector.")}


def test_patterns_and_depth() -> None:
    decoder = tiny_decoder("s")
    freeze_modules(decoder, ["layers.0", "embed_tokens"])
    left = trained(decoder)
    assert not any(".layers.0." in name or "embed_tokens" in name for name in left)
    assert any(".layers.1." in name for name in left)
    freeze_modules(decoder, ["layers.?"])
    assert trained(decoder) == {"model.norm.weight"}


def test_a_frozen_tower_stays_in_evaluation_mode(model: Any) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    model.train()
    assert not torch.equal(model.encode(pixels), model.encode(pixels)), "the tower has dropout, or this proves nothing"
    freeze_modules(model, ["vision_tower"])
    model.train()
    assert torch.equal(model.encode(pixels), model.encode(pixels))
    assert model.training and model.projector.training and not model.vision_tower.training


def test_unknown_modules_and_nothing_left(model: Any) -> None:
    with pytest.raises(ConfigError, match="'vision_towr' fits no module.*Did you mean 'vision_tower'"):
        freeze_modules(model, ["vision_towr"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze_modules(model, ["vision_tower", "projector", "language_model"])


def test_batch_norms_keep_their_statistics(tiny_checkpoint: str) -> None:
    """What a tower computes while it is trained is what it computes while it samples."""
    tower = {"source": "timm", "name": "resnet18", "weights": "random", "image_size": 64}
    model = from_parts(tower, {"kind": "mlp"}, tiny_checkpoint)[0].train()
    before = {name: buffer.clone() for name, buffer in model.vision_tower.named_buffers()}
    pixels = torch.randn(2, 3, 64, 64)
    trained_mode = model.encode(pixels)
    assert before and all(torch.equal(before[name], buffer) for name, buffer in model.vision_tower.named_buffers())
    assert torch.equal(trained_mode, model.eval().encode(pixels))


def test_a_frozen_tower_keeps_no_activations(model: Any) -> None:
    """PEFT with gradient checkpointing makes the output of every first layer ask for gradients, a tower's too."""
    freeze_modules(model, ["vision_tower"])
    model.vision_tower.towers[0].encoder.patch_embed.register_forward_hook(lambda _, __, out: out.requires_grad_())
    assert not model.encode(torch.randn(1, 3, 32, 32)).requires_grad
    model.vision_tower.requires_grad_(True)
    assert model.encode(torch.randn(1, 3, 32, 32)).requires_grad
