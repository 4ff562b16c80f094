"""Reference answers written down as one text, for chat templates without a place for reasoning, and for base models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.answers import verify
from mmreason.data import load_examples
from mmreason.data.prompts import COMPLETION_TEMPLATES, build_completion, resolve_completion_template, written_down
from mmreason.data.supervised import prepare_supervised
from mmreason.types import ConfigError, DataError, Message

REASONED: Message = {"role": "assistant", "content": "42", "reasoning_content": "6 times {7}\nis \\boxed{42}"}
BARE: Message = {"role": "assistant", "content": "42"}
COLUMNS = ("prompt", "completion", "answer", "id", "source", "meta")


@pytest.mark.parametrize(
    ("name", "reasoned", "bare"),
    [
        ("plain", "6 times {7}\nis \\boxed{42}\n\n42", "42"),
        ("boxed", "6 times {7}\nis \\boxed{42}\n\nThe answer is \\boxed{42}.", "The answer is \\boxed{42}."),
        ("gsm8k", "6 times {7}\nis \\boxed{42}\n#### 42", "#### 42"),
        ("think", "<think>\n6 times {7}\nis \\boxed{42}\n</think>\n\n42", "42"),
        (
            "r1-zero",
            " <think> 6 times {7}\nis \\boxed{42} </think> <answer> 42 </answer>",
            " <think>  </think> <answer> 42 </answer>",
        ),
        ("So: {answer} ({reasoning})", "So: 42 (6 times {7}\nis \\boxed{42})", "So: 42 ()"),
    ],
)
def test_the_texts(name: str, reasoned: str, bare: str) -> None:
    template = resolve_completion_template(name)
    assert written_down([REASONED], template) == [{"role": "assistant", "content": reasoned}]
    assert written_down([BARE], template) == [{"role": "assistant", "content": bare}]
    if name in COMPLETION_TEMPLATES:
        for text in (reasoned, bare):
            assert verify(text, "42", kind="number").correct


def test_texts_that_look_like_places_stay() -> None:
    message: Message = {"role": "assistant", "content": "{reasoning}\n", "reasoning_content": "I fill in {answer}."}
    (written,) = written_down([message], COMPLETION_TEMPLATES["gsm8k"])
    assert written["content"] == "I fill in {answer}.\n#### {reasoning}\n"


def test_only_the_last_answer_gets_the_template() -> None:
    call: Message = {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I ask.",
        "tool_calls": [{"function": {}}],
    }  # type: ignore[typeddict-unknown-key]
    result: Message = {"role": "tool", "content": "42"}
    asked, kept, last = written_down([call, result, REASONED], COMPLETION_TEMPLATES["gsm8k"])
    assert asked["content"] == "I ask." and "reasoning_content" not in asked and kept == result
    assert last["content"] == "6 times {7}\nis \\boxed{42}\n#### 42"
    assert written_down([BARE, result, BARE], COMPLETION_TEMPLATES["gsm8k"])[0] == BARE


def test_plain_texts_for_base_models() -> None:
    assert build_completion([REASONED], template="{reasoning}\n#### {answer}", chat=False).endswith("\n#### 42")  # type: ignore[union-attr]
    assert build_completion([BARE], template=None, chat=False) == "42"
    with pytest.raises(ValueError, match="one text message, this one has 2"):
        build_completion([BARE, BARE], template=None, chat=False)
    with pytest.raises(ValueError, match="list of parts"):
        build_completion([{"role": "assistant", "content": [{"type": "image"}]}], template="{answer}", chat=True)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'gms8k'.*Did you mean 'gsm8k'"):
        resolve_completion_template("gms8k")
    with pytest.raises(ConfigError, match="nor a text with {answer}"):
        load_examples("nowhere.jsonl", completion_template="{reasoning} only")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [{"question": f"What is {i} + 1?", "answer": f"One more than {i}.\n#### {i + 1}"} for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


NO_PLACE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_chat_template_without_a_place_for_reasoning(rows: str) -> None:
    """As of Qwen2.5, Llama 3 and Phi-3: refused with the cure, and cured by it."""
    from mmreason.models.tiny import tiny_tokenizer

    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = NO_PLACE
    apart = load_examples(rows, columns=COLUMNS).dataset
    with pytest.raises(DataError, match="leaves out the completion's reasoning_content.*completion_template"):
        prepare_supervised(apart, tokenizer)
    together = load_examples(rows, columns=COLUMNS, completion_template="gsm8k").dataset
    prepared, dropped = prepare_supervised(together, tokenizer)
    learned = [i for i, weight in zip(prepared[1].ids, prepared[1].weights, strict=True) if weight]
    assert not dropped and tokenizer.decode(learned) == "One more than 1.\n#### 2<|end|>"


def test_base_models_learn_plain_texts(rows: str) -> None:
    from mmreason.models.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    loaded = load_examples(rows, columns=COLUMNS, chat=False, prompt_template="base-gsm8k", completion_template="gsm8k")
    assert loaded.dataset[2]["completion"] == "One more than 2.\n#### 3"
    prepared, _ = prepare_supervised(loaded.dataset, tokenizer)
    learned = [i for i, weight in zip(prepared[2].ids, prepared[2].weights, strict=True) if weight]
    assert tokenizer.decode(learned) == "One more than 2.\n#### 3<|end|>"
    assert tokenizer.decode(prepared[2].ids).startswith("Question: What is 2 + 1?")
