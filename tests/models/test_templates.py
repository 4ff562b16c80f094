"""Chat templates that place pictures, extended ones, and those that can't."""

from __future__ import annotations

from typing import Any

import pytest

from mmreason.models.templates import template_with_images
from mmreason.models.tiny import tiny_tokenizer
from mmreason.types import ConfigError

TOKEN = "<|image|>"
# As the decoders that the tests compose have them, in their published wording's structure: contents are texts.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRIPS = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content | trim + '\n' }}{% endfor %}"
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{{ 'S:' + messages[0]['content'] }}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}{{ '<|image|>' }}{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
TEXT_PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "strips": STRIPS, "system first": SYSTEM_FIRST, "texts of parts": TEXT_PARTS}

TEXT_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1? "},
    {"role": "assistant", "content": "2", "reasoning_content": "one and one"},
    {"role": "user", "content": "Sure?"},
]


def tokenizer_with(template: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    tokenizer.chat_template = template
    return tokenizer


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return tokenizer_with(template).apply_chat_template(messages, tokenize=False, **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_extended_templates(name: str) -> None:
    template = TEMPLATES[name]
    extended = template_with_images(tokenizer_with(template), TOKEN)
    assert extended != template
    for options in ({}, {"add_generation_prompt": True}):
        assert render(extended, TEXT_MESSAGES, **options) == render(template, TEXT_MESSAGES, **options)
    parts = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    for role in ("user", "assistant", "system"):
        placed = render(extended, [{"role": role, "content": parts}, {"role": "user", "content": "x"}])
        as_text = [{"role": role, "content": f"See {TOKEN} and {TOKEN}"}, {"role": "user", "content": "x"}]
        assert placed == render(template, as_text)


def test_extension_keeps_the_other_keys_of_messages() -> None:
    """Reasoning, tool calls without content, tools, variables of one's own."""
    template = (
        "{% if tools %}{{ tools | length }}{% endif %}{{ style | default('') }}{% for m in messages %}"
        "{{ m.reasoning_content | default('-') }}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.name }}"
        "{% endfor %}{% endfor %}"
    )
    extended = template_with_images(tokenizer_with(template), TOKEN)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]},
        {"role": "assistant", "tool_calls": [{"name": "again"}]},
        {"role": "assistant", "content": "a", "reasoning_content": "r"},
    ]
    assert render(extended, messages, style="s") == f"s-{TOKEN}q-look-againra"


def test_tiny_template_is_extended_and_a_second_time_stays() -> None:
    tokenizer = tokenizer_with(tiny_tokenizer().chat_template)
    tokenizer.chat_template = template_with_images(tokenizer, TOKEN)
    assert template_with_images(tokenizer, TOKEN) == tokenizer.chat_template


def test_a_template_that_places_pictures_stays() -> None:
    assert template_with_images(tokenizer_with(PARTS), TOKEN) == PARTS


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}{% endfor %}",  # no contents at all
        "{% for m in messages %}{{ m.content[:5] }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('<|image|>', '') }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",  # twice
        "{{ raise_exception('no users') }}",
        "{% for m in messages %}{{ m.content",  # no template
    ],
)
def test_a_template_that_cannot_place_pictures(template: str) -> None:
    with pytest.raises(ConfigError, match="can't place images.*chat_template"):
        template_with_images(tokenizer_with(template), TOKEN)


def test_several_templates() -> None:
    with pytest.raises(ConfigError, match=r"several chat templates \(default, tools\); choose one"):
        template_with_images(tokenizer_with({"default": CHATML, "tools": CHATML}), TOKEN)
