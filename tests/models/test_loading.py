"""Loading a policy: any text or vision-language checkpoint, and a named error where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.models.loading import load_policy_model, load_tokenizer
from mmreason.models.tiny import tiny_decoder
from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError


def arguments(source: Any, **options: Any) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(source), **options)


@pytest.fixture
def checkpoint(tiny_checkpoint: str, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys; None removes one."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), encoding="utf-8")


def test_text_model(tiny_checkpoint: str) -> None:
    model = load_policy_model(arguments(tiny_checkpoint))
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_decoder().parameters(), strict=True))
    assert load_policy_model(arguments(tiny_checkpoint, dtype="bfloat16")).dtype == torch.bfloat16
    eager = load_policy_model(arguments(tiny_checkpoint, attn_implementation="eager"))
    assert eager.config._attn_implementation == "eager"


def test_vision_language_model_keeps_its_eyes_and_bans_its_placeholder(tmp_path: Path) -> None:
    from tests.rollout.test_scoring import decoder

    decoder("llava").save_pretrained(tmp_path)
    model = load_policy_model(arguments(tmp_path))
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert placeholder_token_ids(model) == [50]
    assert placeholder_token_ids(tiny_decoder()) == []


def test_missing_model(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", "nobody/no-such-model", "not a name"):
        for load in (load_policy_model, load_tokenizer):
            with pytest.raises(ConfigError) as caught:
                load(arguments(source))
            assert str(source) in str(caught.value) and "model_name_or_path" in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", ["no_weights", "pickle_only", "cut_weights", "wrong_shape", "unknown_type", "bad_json"]
)
def test_damaged_checkpoint(checkpoint: Path, damage: str) -> None:
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    if damage == "no_weights":
        weights.unlink()
    elif damage == "pickle_only":
        weights.unlink()
        torch.save(tiny_decoder().state_dict(), checkpoint / "pytorch_model.bin")
    elif damage == "cut_weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "wrong_shape":
        edit_json(config, intermediate_size=96)
    elif damage == "unknown_type":
        edit_json(config, model_type="no_such_type")
    else:
        config.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="model_name_or_path"):
        load_policy_model(arguments(checkpoint))


def test_tokenizer_without_padding_token(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()  # beside it the Qwen2 class would bring a padding token of its own
    edit_json(checkpoint / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(arguments(checkpoint))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_tokenizer_without_any_end(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    edit_json(checkpoint / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(ConfigError, match="set eos_token"):
        load_tokenizer(arguments(checkpoint))


def test_chat_template_from_a_file_and_from_another_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages[0]['content'] }} → é", encoding="utf-8")
    tokenizer = load_tokenizer(arguments(checkpoint, chat_template_path=str(other)))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi → é"

    original = load_tokenizer(arguments(checkpoint)).chat_template
    plain = tmp_path / "plain"
    shutil.copytree(checkpoint, plain)
    (plain / "chat_template.jinja").unlink()
    assert load_tokenizer(arguments(plain)).chat_template is None
    assert load_tokenizer(arguments(plain, chat_template_path=str(checkpoint))).chat_template == original
    with pytest.raises(ConfigError, match="has no chat template"):
        load_tokenizer(arguments(checkpoint, chat_template_path=str(plain)))
    with pytest.raises(ConfigError, match="neither a file nor a tokenizer"):
        load_tokenizer(arguments(checkpoint, chat_template_path=str(tmp_path / "gone.jinja")))


def test_every_end_token_counts(tiny_checkpoint: str) -> None:
    """A chat model ends with its tokenizer's token or with one that only generation_config.json names."""
    model, tokenizer = load_policy_model(arguments(tiny_checkpoint)), load_tokenizer(arguments(tiny_checkpoint))
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = [3, tokenizer.eos_token_id, 5]
    assert end_token_ids(model, tokenizer) == sorted({3, 5, tokenizer.eos_token_id})
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id]
