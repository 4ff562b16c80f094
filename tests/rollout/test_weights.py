"""full_weights: what an engine is fed with equals the merged checkpoint, and feeding it leaves the policy as it was."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mmreason._adapters import KINDS as MERGING
from mmreason.models.peft import add_adapter
from mmreason.models.tiny import tiny_decoder
from mmreason.rollout.weights import full_weights
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.models.peft_parts import PLACED, arguments

IDS = torch.arange(24).view(2, 12)
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "lora_r": 8},
    "dora": {"use_dora": True},
    "all-linear": {"lora_target_modules": ["all-linear"]},
    "norms_saved": {"lora_modules_to_save": ["norm", "input_layernorm"]},
    "embedding_saved": {"lora_modules_to_save": ["embed_tokens"]},
    "head_saved": {"lora_modules_to_save": ["lm_head"]},
    "embedding_adapted": {"lora_target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def policy(adapter: str, tied: bool) -> Any:
    """A PEFT model whose trainable weights have moved, so that merging has something to do."""
    base = tiny_decoder(tie_word_embeddings=tied)
    model = add_adapter(
        base, ModelArguments(**({"use_peft": True, "lora_r": 4, "lora_dropout": 0.1} | ADAPTERS[adapter]))
    ).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.05 * torch.randn(param.shape, generator=generator))
    return model


@torch.no_grad()
def reloaded_logits(weights: dict[str, torch.Tensor], tied: bool) -> torch.Tensor:
    """Logits of a fresh model of the checkpoint's class that got these weights by name, as an engine does."""
    fresh = tiny_decoder(seed=9, tie_word_embeddings=tied)
    result = fresh.load_state_dict(weights, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) <= ({"lm_head.weight", "model.embed_tokens.weight"} if tied else set())
    return fresh(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapter", ADAPTERS)
@torch.no_grad()
def test_merged_weights_give_the_policys_logits(accelerator: Accelerator, adapter: str, tied: bool) -> None:
    model = policy(adapter, tied)
    expected = model(IDS).logits
    with model.disable_adapter():
        assert (model(IDS).logits - expected).abs().max() > 1e-2, "the adapter does nothing: this proves nothing"
    found = reloaded_logits(dict(full_weights(model, accelerator)), tied)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapter", ["lora", "rslora", "dora", "all-linear", "norms_saved", "embedding_saved"])
def test_equals_pefts_own_merge(accelerator: Accelerator, adapter: str, tied: bool) -> None:
    model = policy(adapter, tied)
    found = dict(full_weights(model, accelerator))
    merged = copy.deepcopy(model).merge_and_unload()
    assert {name for name, _ in merged.named_parameters()} <= found.keys()
    state = merged.state_dict()
    assert found.keys() <= state.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, state[name], atol=1e-7, rtol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("adapter", ["lora", "dora", "embedding_saved", "embedding_adapted"])
def test_fifty_syncs_leave_every_tensor_bit_for_bit(accelerator: Accelerator, adapter: str) -> None:
    model = policy(adapter, tied=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(50):
        for _, weight in full_weights(model, accelerator):
            assert not weight.requires_grad
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_yielded_tensors_survive_the_iteration(accelerator: Accelerator) -> None:
    """vLLM holds them back until a fused layer is complete: a later layer's merge may not write into an earlier one."""
    model = policy("all-linear", tied=True)
    kept, copies = {}, {}
    for name, weight in full_weights(model, accelerator):
        kept[name], copies[name] = weight, weight.clone()
    assert [name for name in kept if not torch.equal(kept[name], copies[name])] == []


def test_plain_model(accelerator: Accelerator) -> None:
    for tied in (True, False):
        model = tiny_decoder(tie_word_embeddings=tied)
        found = dict(full_weights(accelerator.prepare_model(model), accelerator))
        expected = dict(model.named_parameters())
        assert found.keys() == expected.keys() and ("lm_head.weight" in found) is not tied
        assert all(torch.equal(found[name], expected[name]) and not found[name].requires_grad for name in found)


@pytest.mark.parametrize("kind", PLACED)
@torch.no_grad()
def test_every_kind_that_merges(accelerator: Accelerator, kind: str) -> None:
    """An engine gets the policy's own weights, and the policy is as it was; what no weight holds is refused."""
    model = add_adapter(tiny_decoder(), arguments(kind)).eval()
    generator = torch.Generator().manual_seed(3)
    for param in model.parameters():
        if param.requires_grad:
            param.add_(0.3 * torch.randn(param.shape, generator=generator))
    if not MERGING[kind].merges:
        with pytest.raises(ConfigError, match=f"kind='{kind}' doesn't go with vLLM: .*use LoRA"):
            list(full_weights(model, accelerator))
        return
    expected, before = model(IDS).logits, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = dict(full_weights(model, accelerator))
    torch.testing.assert_close(reloaded_logits(weights, tied=True), expected, atol=2e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_virtual_tokens_are_refused(accelerator: Accelerator) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_decoder(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="use LoRA"):
        list(full_weights(model, accelerator))


def test_no_needless_warning_about_tied_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_adapter(tiny_decoder(), ModelArguments(use_peft=True))
        add_adapter(tiny_decoder(), ModelArguments(use_peft=True, lora_modules_to_save=["embed_tokens"]))
        add_adapter(
            tiny_decoder(tie_word_embeddings=False),
            ModelArguments(use_peft=True, lora_modules_to_save=["embed_tokens"]),
        )
