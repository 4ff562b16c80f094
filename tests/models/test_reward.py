"""Reward models over every kind of backbone: loaded again they say the same, pictures reach them, adapters learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from mmreason.data.visual import collate_visual, render_visual_prompt
from mmreason.models.loading import load_processor
from mmreason.models.reward import (
    RewardModel,
    is_reward_model,
    load_reward_model,
    model_to_train,
    with_reward_head,
)
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.pictures import SEEING, ask, cell, picture, save_seeing


def pictured(processor: Any, seed: int) -> dict[str, torch.Tensor]:
    visual = render_visual_prompt(ask("what is it?", 1), [cell(picture(40, 50, seed))], processor)
    ids = torch.tensor([visual.ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **collate_visual([visual], len(visual.ids))}


@pytest.mark.parametrize("kind", SEEING)
def test_every_model_that_sees(kind: str, tmp_path: Path) -> None:
    """Pictures move the reward, the tower learns from it, and what is loaded again says the same to the bit."""
    args = ModelArguments(model_name_or_path=save_seeing(kind, tmp_path / "model"))
    processor, model = load_processor(args), model_to_train(args, "preference").eval()
    one, other = (model(**pictured(processor, seed)).logits for seed in (1, 2))
    assert one.shape == (1, 1) and abs((one - other).item()) > 1e-4
    other.sum().backward()
    towers = [p for name, p in model.named_parameters() if "vision" in name or "visual" in name]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in towers)
    model.save_pretrained(tmp_path / "saved")
    again = load_reward_model(tmp_path / "saved").eval()
    assert torch.equal(again(**pictured(processor, 1)).logits, one)
    assert is_reward_model(tmp_path / "saved") and not is_reward_model(args.model_name_or_path)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved"), RewardModel)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "mmreason"])
def test_adapter_and_head_are_saved_together(kind: str, tmp_path: Path) -> None:
    args = ModelArguments(
        model_name_or_path=save_seeing(kind, tmp_path / "model"), use_peft=True, lora_target_modules=["all-linear"]
    )
    processor, model = load_processor(args), model_to_train(args, "process").eval()
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("score.modules_to_save" in name for name in learned) and not any("score.lora" in n for n in learned)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    said = model(**pictured(processor, 1)).logits
    model.save_pretrained(tmp_path / "adapter")
    model.get_base_model().config.save_pretrained(tmp_path / "adapter")
    again = load_reward_model(tmp_path / "adapter").eval()
    assert torch.equal(again(**pictured(processor, 1)).logits, said)
    assert again.config.head == "process"


def test_padding_on_either_side_changes_nothing() -> None:
    model = with_reward_head(tiny_decoder(seed=3), "preference").eval()
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    alone = model(ids).logits
    pad, seen = torch.zeros(1, 4, dtype=torch.long), torch.ones_like(ids)
    right = model(torch.cat([ids, pad], 1), torch.cat([seen, pad], 1)).logits
    left_positions = torch.cat([pad, torch.arange(9)[None]], 1)
    left = model(torch.cat([pad, ids], 1), torch.cat([pad, seen], 1), position_ids=left_positions).logits
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)


def test_places_are_read_causally() -> None:
    """The value at a place is that of the text up to it: what follows plays no part."""
    model = with_reward_head(tiny_decoder(seed=3), "process").eval()
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[3, 7, 11], [0, 5, 6]])
    found = model(ids, places=places).logits
    for row in range(2):
        for number, place in enumerate(places[row].tolist()):
            cut = model(ids[row : row + 1, : place + 1]).logits
            assert found[row, number].item() == pytest.approx(cut.item(), abs=1e-5)


def test_it_is_transformers_classifier_with_the_same_weights(tmp_path: Path) -> None:
    """transformers' own class gives the same numbers, and is loaded as one of ours."""
    from transformers import Qwen2ForSequenceClassification

    model = with_reward_head(tiny_decoder(seed=3), "preference").eval()
    config = model.backbone.config.__class__(**(model.backbone.config.to_dict() | {"num_labels": 1}))
    theirs = Qwen2ForSequenceClassification(config).eval()
    theirs.model.load_state_dict(model.backbone.state_dict())
    theirs.score.load_state_dict(model.score.state_dict())
    ids = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-6, rtol=0)
    theirs.save_pretrained(tmp_path)
    again = load_reward_model(tmp_path)
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-6, rtol=0)


def test_gradient_checkpointing_keeps_the_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = with_reward_head(tiny_decoder(seed=3), "preference").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(torch.arange(5, 30)[None]).logits.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_what_is_no_reward_model_is_refused(tiny_checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no reward model but a Qwen2ForCausalLM"):
        load_reward_model(tiny_checkpoint)
    with pytest.raises(ConfigError, match="nowhere"):
        load_reward_model(tmp_path / "nowhere")
    model = with_reward_head(tiny_decoder(), "process")
    model.save_pretrained(tmp_path / "process")
    with pytest.raises(ConfigError, match="a head for process rewards, this run trains one for preference"):
        model_to_train(ModelArguments(model_name_or_path=str(tmp_path / "process")), "preference")
    with pytest.raises(ConfigError, match="puts tokens before the text"):
        model_to_train(ModelArguments(model_name_or_path=tiny_checkpoint, adapter={"kind": "prefix"}), "preference")


def test_an_adapter_goes_on_without_another_one(tiny_checkpoint: str, tmp_path: Path) -> None:
    """A new adapter on it is refused, since its base is stored nowhere; each of the two ways the error names works."""
    lora = {"use_peft": True, "lora_target_modules": ["q_proj"]}
    model = model_to_train(ModelArguments(model_name_or_path=tiny_checkpoint, **lora), "preference").eval()
    _move(model)
    _save(model, tmp_path / "first")
    ids = torch.arange(5, 20)[None]
    first = load_reward_model(tmp_path / "first").eval()
    said = first(ids).logits
    with pytest.raises(ConfigError, match="is an adapter itself.*train without an adapter.*or merge it first"):
        model_to_train(ModelArguments(model_name_or_path=str(tmp_path / "first"), **lora), "preference")

    whole = model_to_train(ModelArguments(model_name_or_path=str(tmp_path / "first")), "preference").eval()
    torch.testing.assert_close(whole(ids).logits, said, atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in whole.parameters()), "PEFT's freezing outlived the adapter"
    _move(whole)
    whole.save_pretrained(tmp_path / "whole")
    assert torch.equal(load_reward_model(tmp_path / "whole").eval()(ids).logits, whole(ids).logits)

    first.merge_and_unload().save_pretrained(tmp_path / "merged")
    second = model_to_train(ModelArguments(model_name_or_path=str(tmp_path / "merged"), **lora), "preference").eval()
    torch.testing.assert_close(second(ids).logits, said, atol=1e-5, rtol=0)
    _move(second)
    _save(second, tmp_path / "second")
    assert torch.equal(load_reward_model(tmp_path / "second").eval()(ids).logits, second(ids).logits)


@torch.no_grad()
def _move(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


def _save(model: Any, folder: Path) -> None:
    """As a run saves an adapter."""
    model.save_pretrained(folder)
    model.get_base_model().config.save_pretrained(folder)
