"""A trained reward model as a reward function: its own tokenizer and template, pictures, steps, parameters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.models.reward import RewardModel, load_reward_model, model_to_train, with_reward_head
from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
from mmreason.rewards import compute_rewards, load_rewards, reward_model_reward
from mmreason.rewards.model import loaded
from mmreason.types import ConfigError
from tests.rewards.test_rewards import HOSTILE

PROMPTS: list[Any] = [[{"role": "user", "content": "what is 2+3?"}]] * 3
COMPLETIONS: list[Any] = [[{"role": "assistant", "content": text}] for text in ("5", "it is six, I think", "five")]


def save(folder: Path, head: Any = "preference") -> str:
    """A random reward model with a tokenizer and a chat template of its own."""
    tokenizer = tiny_tokenizer(["what is it? it is six, I think"] * 30, vocab_size=300)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|end|>'", "' !<|end|>'")
    model = with_reward_head(tiny_decoder("xs", vocab_size=len(tokenizer), seed=2), head)
    with torch.no_grad():
        model.score.weight.mul_(30)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded.cache_clear()
    return str(folder)


def by_hand(path: str, prompt: Any, completion: Any) -> torch.Tensor:
    """The values at all tokens of a conversation, rendered by transformers."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), load_reward_model(path).eval()
    text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return model(ids, places=torch.arange(ids.shape[1])[None]).logits[0]


def test_it_renders_with_its_own_template(tmp_path: Path) -> None:
    path = save(tmp_path)
    found = reward_model_reward(COMPLETIONS, PROMPTS, path=path, batch_size=2)
    expected = [by_hand(path, p, c)[-1].item() for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5) and len(set(found)) == 3
    odds = reward_model_reward(COMPLETIONS, PROMPTS, path=path, sigmoid=True, scale=2.0)
    assert odds == pytest.approx([2 / (1 + torch.tensor(-x).exp().item()) for x in expected], abs=1e-5)


def test_steps_become_one_reward(tmp_path: Path) -> None:
    path = save(tmp_path, "process")
    said = [[{"role": "assistant", "content": "it is\n\nsix\nI think"}]]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    text = tokenizer.apply_chat_template(PROMPTS[0] + said[0], tokenize=False)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [text.index(line) + len(line) for line in ("it is", "six", "I think")]
    places = [max(i for i, (a, _) in enumerate(offsets) if a < end) for end in ends]
    values = torch.sigmoid(by_hand(path, PROMPTS[0], said[0])[places]).tolist()
    expected = {
        "min": min(values),
        "mean": sum(values) / 3,
        "last": values[2],
        "product": values[0] * values[1] * values[2],
    }
    for steps, value in expected.items():
        assert reward_model_reward(said, PROMPTS[:1], path=path, steps=steps) == [pytest.approx(value, abs=1e-5)]


def test_pictures_are_seen(tmp_path: Path) -> None:
    from mmreason.models.loading import load_processor
    from mmreason.trainers.arguments import ModelArguments
    from tests.pictures import ask, cell, picture, save_seeing

    args = ModelArguments(model_name_or_path=save_seeing("qwen2_5_vl", tmp_path / "model"))
    model_to_train(args, "preference").save_pretrained(tmp_path / "rm")
    load_processor(args).save_pretrained(tmp_path / "rm")
    prompts, images = [ask("what?", 1)] * 2, [[cell(picture(40, 50, seed))] for seed in (1, 2)]
    one, other = reward_model_reward([COMPLETIONS[0]] * 2, prompts, images, path=str(tmp_path / "rm"))
    assert one is not None and other is not None and abs(one - other) > 1e-4


def test_hostile_completions_are_scored_or_left_out(tmp_path: Path) -> None:
    path = save(tmp_path)
    prompts = [[{"role": "user", "content": "What is 6 × 7?"}]] * len(HOSTILE)
    values = reward_model_reward(HOSTILE, prompts, path=path)
    assert len(values) == len(HOSTILE) and any(value is not None for value in values)
    assert all(value is None or math.isfinite(value) for value in values)


def test_what_cannot_be_read_is_left_out_or_gets_its_reward(tmp_path: Path) -> None:
    path = save(tmp_path)
    empty = [{"role": "assistant", "content": " "}]
    found = reward_model_reward([empty, COMPLETIONS[0]], PROMPTS[:2], path=path)
    assert found[0] is None and found[1] is not None
    assert reward_model_reward([empty], PROMPTS[:1], path=path, unreadable=-3.0) == [-3.0]
    assert reward_model_reward(COMPLETIONS[1:2], PROMPTS[:1], path=path, max_length=4) == [None]


def test_by_name_among_other_rewards(tmp_path: Path) -> None:
    path = save(tmp_path)
    funcs = load_rewards([{"name": "reward_model", "path": path, "scale": 0.5}, "format"])
    batch = compute_rewards(funcs, None, prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 3)
    assert batch.names == ("reward_model_reward", "format_reward")
    direct = reward_model_reward(COMPLETIONS, PROMPTS, path=path)
    assert batch.per_func[:, 0] == pytest.approx([0.5 * float(x or 0) for x in direct], abs=1e-6)
    assert batch.metrics["reward_model/unreadable"] == [0.0]


def test_wrong_parameters_are_named_before_training(tmp_path: Path, tiny_checkpoint: str) -> None:
    path = save(tmp_path)
    for entry, message in (
        ("reward_model", "needs path"),
        ({"name": "reward_model", "path": str(tmp_path / "none")}, "no folder with a reward model"),
        ({"name": "reward_model", "path": tiny_checkpoint}, "is no reward model"),
        ({"name": "reward_model", "path": path, "steps": "max"}, "one of min, mean, product, last"),
        ({"name": "reward_model", "path": path, "batchsize": 3}, "batchsize.*batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_rewards([entry])


def test_it_stays_loaded_between_calls(tmp_path: Path) -> None:
    path = save(tmp_path)
    reward_model_reward(COMPLETIONS, PROMPTS, path=path)
    assert loaded.cache_info().currsize == 1
    reward_model_reward(COMPLETIONS, PROMPTS, path=path)
    assert loaded.cache_info().hits >= 1 and isinstance(loaded(path, "float32", None).model, RewardModel)
