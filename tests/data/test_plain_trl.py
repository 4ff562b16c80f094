"""Our sets and rewards in TRL's own trainers, unchanged: what DESIGN.md promises of an Example."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_builders.arithmetic import as_dataset, generate
from mmreason.rewards import load_rewards

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def parts(make_tokenizer: Callable[..., Any]) -> tuple[Any, Any]:
    """A tokenizer and a one-layer model."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = make_tokenizer(template=TEMPLATE)
    tokenizer.pad_token = "<eos>"
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=1,
        eos_token_id=1,
    )
    return tokenizer, AutoModelForCausalLM.from_config(config)


COMMON: dict[str, Any] = {"max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}


@pytest.mark.slow
def test_trl_grpo(parts: tuple[Any, Any], tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    tokenizer, model = parts
    rewards = load_rewards(["accuracy", {"name": "cosine_length", "max_length": 8}, "repetition", "format"])
    arguments = GRPOConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        logging_steps=1,
        **COMMON,
    )
    trainer = GRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=as_dataset(generate(8, 0, 1)).remove_columns("completion"),
        reward_funcs=rewards,
        processing_class=tokenizer,
    )
    trainer.train()
    for reward in rewards:
        assert math.isfinite(trainer.state.log_history[0][f"rewards/{reward.__name__}/mean"])


@pytest.mark.slow
def test_trl_sft(parts: tuple[Any, Any], tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer, model = parts
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(str(tmp_path), per_device_train_batch_size=4, **COMMON),
        train_dataset=as_dataset(generate(8, 0, 1)).select_columns(["prompt", "completion"]),
        processing_class=tokenizer,
    )
    assert math.isfinite(trainer.train().training_loss)
