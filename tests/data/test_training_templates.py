"""Which template a model's turns are learned through, also where a text-only template was extended to place images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmreason.data.supervised import render_supervised
from mmreason.data.training_templates import TEXT_EXTENSION_END, own_template, training_template
from tests.data.mask_cases import example, says, templates, tokenizer_for, user


def trl(name: str) -> str:
    from pathlib import Path

    import trl as package

    return (Path(package.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gptoss", "llama3"])
def test_trls_variant_of_a_template_it_knows(name: str) -> None:
    assert training_template(tokenizer_for(name)) == trl(f"{name}_training")


@pytest.mark.parametrize("name", ["llama3_1", "lfm2_2_5"])  # not known; no other needed
def test_none(name: str) -> None:
    assert training_template(tokenizer_for(name)) is None


def test_named_templates_and_none_at_all() -> None:
    named = SimpleNamespace(chat_template={"default": "a", "tool_use": "b"})
    assert own_template(named) == "a"
    assert own_template(SimpleNamespace(chat_template=None)) is None
    assert training_template(SimpleNamespace(chat_template=None)) is None


def test_a_template_that_was_extended_to_place_images() -> None:
    """The decoder of a composed model keeps its thoughts: TRL's variant is found behind the extension."""
    from copy import deepcopy

    from mmreason.models.templates import template_with_images

    tokenizer: Any = deepcopy(tokenizer_for("deepseek_r1_distill"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.chat_template = extended = template_with_images(tokenizer, "<|image|>")
    assert TEXT_EXTENSION_END in extended and extended.endswith(templates()["deepseek_r1_distill"])
    found = training_template(tokenizer)
    assert found is not None and found.endswith(trl("deepseek_r1_distill_training"))
    assert found.startswith(extended.partition(TEXT_EXTENSION_END)[0])
    (row,) = render_supervised(example("reasoning"), tokenizer)
    assert tokenizer.decode(row.ids).endswith("<think>\nthought one\n</think>\n\nanswer one<｜end▁of▁sentence｜>")
    pictured = {"id": "r", "prompt": [user("q")], "completion": [says("4", "hm")]}
    assert sum(render_supervised(pictured, tokenizer)[0].weights) > 0
