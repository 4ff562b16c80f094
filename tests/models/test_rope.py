"""Contexts are extended: positions beyond the old length work, are saved, and have the papers' frequencies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmreason.models.rope import extend_context
from mmreason.models.tiny import tiny_decoder
from mmreason.types import ConfigError
from tests.models.parts import DECODERS, save_decoder

OLD, FACTOR = 64, 4.0


def decoder() -> Any:
    return tiny_decoder("xs", max_position_embeddings=OLD)


def frequencies(model: Any) -> torch.Tensor:
    return model.model.rotary_emb.inv_freq.clone()


def plain_frequencies(base: float = 10000.0, width: int = 32) -> torch.Tensor:
    return torch.tensor([base ** (-2 * i / width) for i in range(width // 2)])


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_positions_beyond_the_old_length_work_and_are_saved(kind: str, tmp_path: Path) -> None:
    model = decoder()
    plain = decoder()
    assert extend_context(model, {"rope_type": kind, "factor": FACTOR}) == (OLD, 256)
    ids = torch.arange(200)[None] % 200
    with torch.no_grad():
        logits = model(ids).logits
        # A fresh process sees the same: nothing lives in the modules alone.
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert torch.equal(again(ids).logits, logits)
        assert (logits - plain(ids).logits).abs().max() > 1e-4, "the scaling changed nothing"
        if kind == "dynamic":  # short sequences stay as they were
            assert torch.equal(model(ids[:, : OLD - 1]).logits, plain(ids[:, : OLD - 1]).logits)
    assert torch.isfinite(logits).all()
    saved = again.config
    assert saved.rope_parameters["rope_type"] == kind and saved.rope_parameters["factor"] == FACTOR
    assert saved.max_position_embeddings == (OLD if kind == "dynamic" else 256)
    assert saved.rope_parameters["rope_theta"] == plain.config.rope_parameters["rope_theta"]


def test_linear_frequencies_are_divided() -> None:
    model = decoder()
    extend_context(model, {"rope_type": "linear", "factor": FACTOR})
    assert torch.allclose(frequencies(model), plain_frequencies() / FACTOR, rtol=1e-6)


def test_yarn_frequencies_are_the_papers() -> None:
    """Equations 21 to 23 and 18 of arXiv 2309.00071: a ramp over the rotations within the old length, α = 1, β = 32."""
    model, width = decoder(), 32
    extend_context(model, {"rope_type": "yarn", "factor": FACTOR, "truncate": False})
    theta = plain_frequencies()

    def dimension(rotations: float) -> float:
        return width * math.log(OLD / (rotations * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(dimension(32), 0), min(dimension(1), width - 1)
    ramp = torch.tensor([min(max((i - low) / (high - low), 0), 1) for i in range(width // 2)])
    want = theta / FACTOR * ramp + theta * (1 - ramp)
    assert torch.allclose(frequencies(model), want, rtol=1e-5)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(FACTOR) + 1)


@pytest.mark.parametrize("kind", [k for k in DECODERS if not k.endswith("-tied")])
def test_every_architecture(kind: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path, kind))
    before = [b.clone() for n, b in model.named_buffers() if "inv_freq" in n and "original" not in n]
    assert extend_context(model, {"rope_type": "linear", "factor": 2}) == (2048, 4096)
    after = [b for n, b in model.named_buffers() if "inv_freq" in n and "original" not in n]
    assert after and all(torch.allclose(a, b / 2) for a, b in zip(after, before, strict=True))


def test_sliding_windows_stay(tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=16, max_position_embeddings=OLD,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    extend_context(model, {"rope_type": "yarn", "factor": FACTOR})
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).config.rope_parameters
    assert saved["sliding_attention"]["rope_type"] == "default" and saved["full_attention"]["rope_type"] == "yarn"
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(60)[None]).logits).all()


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "yarm", "factor": 2}, "Did you mean 'yarn'"),
        ({"rope_type": "yarn", "facter": 2}, "Did you mean 'factor'"),
        ({"rope_type": "yarn", "factor": 1}, "factor=1 must be a number above 1"),
        ({"rope_type": "linear", "factor": 2, "beta_fast": 16}, "beta_fast belong to rope_type yarn"),
        ({"factor": 2}, "rope_type=None"),
    ],
)
def test_wrong_settings_are_named(scaling: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        extend_context(decoder(), scaling)


def test_what_cannot_be_scaled_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=1))
    with pytest.raises(ConfigError, match="has no rotary positions"):
        extend_context(small, {"rope_type": "linear", "factor": 2})
    model = decoder()
    extend_context(model, {"rope_type": "linear", "factor": 2})
    with pytest.raises(ConfigError, match="is scaled already"):
        extend_context(model, {"rope_type": "linear", "factor": 2})
