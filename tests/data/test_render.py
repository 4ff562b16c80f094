"""render_prompt against the tokenizer's own rendering; special tokens once; errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mmreason.data import check_prompt_length, check_prompts, render_prompt, to_dataset
from mmreason.types import ConfigError, DataError

MakeTokenizer = Callable[..., Any]

USER: Any = [{"role": "user", "content": "2+2?"}]


def tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("post", [None, "<bos> $A", "<bos> $A <eos>"])
def test_chat_prompt_equals_transformers_own(post: str | None, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(post=post)
    ids = render_prompt(USER, tokenizer)
    own = tokenizer.apply_chat_template(USER, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == own
    assert tokens(tokenizer, ids) == ["<bos>", "<|user|>", "2", "+", "2", "?", "<eos>", "<|assistant|>"]


def test_template_kwargs_reach_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert tokens(tokenizer, render_prompt(USER, tokenizer, {"think": True}))[-1] == "<think>"


def test_tools_reach_the_template_of_prompts_and_of_training_alike() -> None:
    """The prompt of a row with tools is what comes before the completion in training: the schemas are part of both."""
    from mmreason.data.supervised import render_supervised
    from tests.data.mask_cases import tokenizer_for

    tokenizer = tokenizer_for("qwen3")
    schema = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": schema}]
    row: Any = {"prompt": USER, "completion": [{"role": "assistant", "content": "4"}], "tools": tools, "id": "a"}
    trained = render_supervised(row, tokenizer)[0]
    first = next(place for place, weight in enumerate(trained.weights) if weight)
    dataset = to_dataset([row], ("prompt", "tools", "id"))
    _, (ids,), _ = check_prompts(dataset, tokenizer, None)
    assert ids == render_prompt(USER, tokenizer, tools=tools) == trained.ids[: len(ids)] and len(ids) <= first
    assert len(ids) > len(render_prompt(USER, tokenizer))
    own = tokenizer.apply_chat_template(USER, tools=tools, add_generation_prompt=True, return_dict=False)
    assert ids == own


def test_prefilled_answer_stays_open(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    ids = render_prompt([*USER, {"role": "assistant", "content": "It"}], tokenizer)
    assert tokens(tokenizer, ids)[-3:] == ["<|assistant|>", "I", "t"]


@pytest.mark.parametrize(
    ("post", "text", "expected"),
    [
        (None, "ab", ["a", "b"]),
        ("<bos> $A", "ab", ["<bos>", "a", "b"]),
        ("<bos> $A", "<bos>ab", ["<bos>", "a", "b"]),
        ("<bos> $A <eos>", "ab", ["<bos>", "a", "b"]),
        ("<bos> $A <eos>", "ab<eos>", ["<bos>", "a", "b", "<eos>"]),
        ("<bos> $A", "<bos><bos>a", ["<bos>", "<bos>", "a"]),
    ],
)
def test_plain_text_has_its_special_tokens_once(
    post: str | None, text: str, expected: list[str], make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(post=post)
    assert tokens(tokenizer, render_prompt(text, tokenizer)) == expected


def test_no_chat_template_says_what_to_do(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ConfigError, match="chat: false.*chat_template_path"):
        render_prompt(USER, make_tokenizer(template=None))
    assert render_prompt("ab", make_tokenizer(template=None))


def test_template_that_refuses(make_tokenizer: MakeTokenizer) -> None:
    refusing = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match=r"refuses this prompt \(roles user\): System role not supported"):
        render_prompt(USER, make_tokenizer(template=refusing))


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompts(prompt: Any, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match="no tokens|no messages"):
        render_prompt(prompt, make_tokenizer(post=None))


def test_processor_gets_content_parts(make_tokenizer: MakeTokenizer) -> None:
    parts_only = "{% for m in messages %}{% for p in m.content %}[{{ p.type }}]{{ p.text }}{% endfor %}{% endfor %}"
    inner = make_tokenizer(template=parts_only)
    # A processor has a chat template of its own and holds the tokenizer.
    processor = SimpleNamespace(
        tokenizer=inner, chat_template=parts_only, apply_chat_template=inner.apply_chat_template
    )
    assert tokens(inner, render_prompt(USER, processor)) == list("[text]2+2?")


def test_length_check_names_the_row() -> None:
    check_prompt_length(5, 5, "a")
    check_prompt_length(5, None, "a")
    with pytest.raises(DataError, match="row gsm8k/train/7: the prompt has 6 tokens, max_prompt_length is 5") as caught:
        check_prompt_length(6, 5, "gsm8k/train/7")
    assert caught.value.row == "gsm8k/train/7" and caught.value.reason == "prompt_too_long"


def test_check_prompts(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    texts = ["a" * n for n in (1, 20, 2, 30, 40, 50, 60, 70)]
    dataset = to_dataset(
        [{"prompt": [{"role": "user", "content": text}], "id": f"r{i}"} for i, text in enumerate(texts)],
        ("prompt", "id"),
    )
    ids = [render_prompt(prompt, tokenizer) for prompt in dataset["prompt"]]
    assert check_prompts(dataset, tokenizer, None) == (dataset, ids, {})
    with pytest.raises(DataError, match=r"6 of 8 prompts are over max_prompt_length") as caught:
        check_prompts(dataset, tokenizer, 10)
    assert "row r1: " in str(caught.value) and "24 tokens, the limit is 10" in str(caught.value)
    assert "and 1 more" in str(caught.value) and caught.value.row == "r1"
    kept, kept_ids, dropped = check_prompts(dataset, tokenizer, 10, on_bad_row="drop")
    assert kept["id"][:] == ["r0", "r2"] and dropped == {"prompt_too_long": 6}
    assert kept_ids == [ids[0], ids[2]]
    with pytest.raises(DataError, match="every prompt is over"):
        check_prompts(dataset, tokenizer, 2, on_bad_row="drop")
