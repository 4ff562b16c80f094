"""Conversations in every shape, through every chat template that TRL ships, with a small tokenizer for each."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.pictures import cell, picture

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}


def user(text: str, images: int = 0) -> Any:
    parts: Any = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return {"role": "user", "content": parts if images else text}


def says(text: str, reasoning: str | None = None, town: str | None = None) -> Any:
    """An assistant's message; `town`: it calls the tool for it."""
    message: Any = {"role": "assistant", "content": text}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if town is not None:
        message["tool_calls"] = [{"type": "function", "function": {"name": "get_weather", "arguments": {"town": town}}}]
    return message


RESULT: Any = {"role": "tool", "name": "get_weather", "content": "result one: rain"}

# Every text is found once in its conversation, so that a mask can be judged without the renderer.
SHAPES: dict[str, Any] = {
    "single": {"prompt": [user("question one")], "completion": [says("answer one")]},
    "system": {
        "prompt": [{"role": "system", "content": "system one"}, user("question one")],
        "completion": [says("answer one")],
    },
    "empty_system": {
        "prompt": [{"role": "system", "content": ""}, user("question one")],
        "completion": [says("answer one")],
    },
    "multi_turn": {
        "prompt": [user("question one"), says("answer one"), user("question two")],
        "completion": [says("answer two")],
    },
    "reasoning": {"prompt": [user("question one")], "completion": [says("answer one", "thought one")]},
    "multi_turn_reasoning": {
        "prompt": [user("question one"), says("answer one", "thought one"), user("question two")],
        "completion": [says("answer two", "thought two")],
    },
    "tools": {
        "prompt": [user("question one")],
        "completion": [says("", town="town one"), RESULT, says("answer one")],
        "tools": [WEATHER],
    },
    "reasoned_tools": {
        "prompt": [user("question one")],
        "completion": [says("", "thought one", town="town one"), RESULT, says("answer one", "thought two")],
        "tools": [WEATHER],
    },
    "prefilled": {
        "prompt": [user("question one"), {"role": "assistant", "content": "begun one"}],
        "completion": [says(" answer one")],
    },
}
IMAGE_SHAPES: dict[str, Any] = {
    "image": {"prompt": [user("question one", 1)], "completion": [says("answer one")], "images": 1},
    "multi_turn_images": {
        "prompt": [user("question one", 2), says("answer one"), user("question two", 1)],
        "completion": [says("answer two")],
        "images": 3,
    },
}

# What the templates' models end texts with.
_ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "gemma": "<eos>",
    "diffusion": "<eos>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
    "llama3": "<|eot_id|>",
    "llava": "</s>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "muse": "<|eot|>",
    "phi3": "<|endoftext|>",
}
_TOKENS = re.compile(
    r"<[|｜][^|｜<>\s']*[|｜]>|<[a-z_]*of_(?:turn|utterance|image|text)>|</?(?:think|tool_call|tool_response|s|bos|eos|image)>"
    r"|<\|?(?:turn|channel|tool_call|tool_response)\|?>|\[gMASK\]|<sop>|<\|\"\|>"
)
VISION = {
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_5_think": "qwen3_vl",
    "smolvlm": "smolvlm",
    "idefics3": "smolvlm",
    "llava_next": "llava",
    "lfm2_2_5_vl": "llava",
}
"""Templates of models that see → a key of TINY_VLMS whose processor knows their placeholder."""


@cache
def templates() -> dict[str, str]:
    """All chat templates of models that TRL ships, by name, without its training variants."""
    import trl

    files = (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
    return {f.stem: f.read_text(encoding="utf-8") for f in sorted(files) if not f.stem.endswith("_training")}


_WORDS = ["question", "answer", "thought", "system", "begun", "result", "town", "rain", "one", "two"]


def end_token(name: str) -> str:
    return next((end for prefix, end in _ENDS.items() if name.startswith(prefix)), "<|im_end|>")


def added_tokens(name: str) -> list[str]:
    """The special tokens that a template writes, and those that its model ends and begins texts with."""
    begin = {"llama3": "<|begin_of_text|>", "deepse": "<｜begin▁of▁sentence｜>"}.get(name[:6], "<bos>")
    found = {*_TOKENS.findall(templates()[name]), end_token(name), begin}
    return [begin, end_token(name), *sorted(found - {begin, end_token(name)})]


@cache
def tokenizer_for(name: str) -> Any:
    """A byte-level tokenizer with a template and all special tokens that it writes."""
    from mmreason.models.tiny import tiny_tokenizer

    template = templates()[name]
    begin, end, *others = added_tokens(name)
    words = [*re.findall(r"[A-Za-z]{3,}", template), *_WORDS]
    tokenizer = tiny_tokenizer([f" {w} {w}" for w in words], vocab_size=2000)
    tokenizer.add_tokens(others, special_tokens=False)
    tokenizer.add_special_tokens({"eos_token": end, "bos_token": begin})
    tokenizer.chat_template = template
    return tokenizer


@cache
def processor_for(name: str) -> Any:
    """A processor with a template for those of `VISION`, else a tokenizer."""
    if name not in VISION:
        return tokenizer_for(name)
    from tests.tiny_vlms import TINY_VLMS

    _, processor = TINY_VLMS[VISION[name]]()
    begin, end, *others = added_tokens(name)
    known = processor.tokenizer.get_vocab()
    processor.tokenizer.add_tokens([token for token in others if token not in known], special_tokens=False)
    processor.tokenizer.add_special_tokens({"eos_token": end, "bos_token": begin})
    processor.chat_template = processor.tokenizer.chat_template = templates()[name]
    return processor


def frozen(name: str) -> dict[str, Any]:
    """Names for the template: a fixed date for those that write one."""
    return {"strftime_now": lambda form: "2026-01-01"} if "strftime_now" in templates()[name] else {}


def shapes_for(name: str) -> list[str]:
    """The shapes that are shown to a template."""
    return [*SHAPES, *(IMAGE_SHAPES if name in VISION else ())]


def example(shape: str) -> Any:
    """An Example of a shape."""
    found: Any = {"id": f"row-{shape}", "source": "shapes", **(SHAPES | IMAGE_SHAPES)[shape]}
    if "images" in found:
        found["images"] = [cell(picture(40 + 20 * i, 50, i)) for i in range(found["images"])]
    return found
