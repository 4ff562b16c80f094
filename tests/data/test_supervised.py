"""Labels against TRL's own preparation; chat templates that would lose something are refused; nothing is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmreason.data import to_dataset
from mmreason.data.render import render_prompt
from mmreason.data.supervised import message_texts, render_completion, tokenize_supervised
from mmreason.types import IGNORE_INDEX, ConfigError, DataError

MakeTokenizer = Callable[..., Any]

COLUMNS = ("prompt", "completion", "answer", "id", "source", "meta")
QUESTION: Any = [{"role": "user", "content": "2+2?"}]
BARE: Any = [{"role": "assistant", "content": "4"}]
REASONED: Any = [{"role": "assistant", "reasoning_content": "2+2=4", "content": "4"}]


def rows(*completions: Any, prompt: Any = QUESTION) -> Any:
    examples: list[Any] = [
        {"prompt": prompt, "completion": c, "answer": "4", "id": f"row-{i}"} for i, c in enumerate(completions)
    ]
    return to_dataset(examples, COLUMNS)


def trl_template(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def trl_rows(tokenizer: Any, dataset: Any, tmp_path: Path) -> list[dict[str, list[int]]]:
    """What TRL's SFTTrainer makes of prompts and completions."""
    from trl import SFTConfig, SFTTrainer

    from mmreason.models.tiny import tiny_decoder

    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    model = tiny_decoder(vocab_size=len(tokenizer) + 5)
    trainer = SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]


@pytest.mark.parametrize("template", [None, "qwen2_5", "qwen3_training", "llama3"])
def test_ids_and_labels_equal_trls(template: str | None, make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    from mmreason.models.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    completions = [BARE, [{"role": "assistant", "content": "It is\n\n 4 🙂"}], REASONED]
    if template is not None:
        tokenizer.chat_template = trl_template(template)
        end = "<|eot_id|>" if template == "llama3" else "<|im_end|>"
        tokenizer.add_special_tokens({"eos_token": end, "bos_token": "<|begin_of_text|>"})
        completions = completions[:2]
    dataset = rows(*completions)
    ours, dropped = tokenize_supervised(dataset, tokenizer, None)
    theirs = trl_rows(tokenizer, dataset.select_columns(["prompt", "completion"]), tmp_path)
    assert dropped == {}
    for mine, other in zip(ours, theirs, strict=True):
        # Some templates write a line break after the end of the turn, which generation never reaches: left out here.
        length = len(mine["input_ids"])
        assert mine["input_ids"] == other["input_ids"][:length]
        assert mine["labels"] == other["labels"][:length]
        assert "".join(tokenizer.convert_ids_to_tokens(other["input_ids"][length:])) in ("", "Ċ")
        assert mine["length"] == length and mine["labels"][-1] == tokenizer.eos_token_id


def test_the_prompt_is_what_generation_sees_and_the_rest_is_learned(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    (row,), _ = tokenize_supervised(rows(BARE), tokenizer, None)
    prompt = render_prompt(QUESTION, tokenizer)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"] == [IGNORE_INDEX] * len(prompt) + tokenizer.convert_tokens_to_ids(["4", "<eos>"])


def test_plain_text_gets_its_end(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    ids = render_completion("2+2=", "4", tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["4", "<eos>"]
    with pytest.raises(DataError, match="both be messages or both be text"):
        render_completion("2+2=", BARE, tokenizer)


def test_a_template_without_an_end_of_turn_gets_one(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}")
    ids = render_completion(QUESTION, BARE, tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "<eos>" and ids.count(tokenizer.eos_token_id) == 1


def test_lost_reasoning_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()  # this template knows no reasoning_content
    with pytest.raises(
        DataError, match=r"(?s)1 of 2 rows .*row-1.*leaves out the completion's reasoning_content"
    ) as caught:
        tokenize_supervised(rows(BARE, REASONED), tokenizer, None)
    assert caught.value.reason == "template"
    kept, dropped = tokenize_supervised(rows(BARE, REASONED), tokenizer, None, on_bad_row="drop")
    assert len(kept) == 1 and dropped == {"template": 1}


def test_a_rewritten_prompt_is_refused(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    with pytest.raises(DataError, match="writes the prompt differently"):
        render_completion(QUESTION, BARE, make_tokenizer(template=template))


def test_too_long_rows_are_named_or_counted_never_cut(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    long: Any = [{"role": "assistant", "content": "4" * 40}]
    with pytest.raises(
        DataError, match=r"(?s)row-1: too_long.*49 tokens, max_length is 20.*on_bad_row: drop"
    ) as caught:
        tokenize_supervised(rows(BARE, long), tokenizer, 20)
    assert caught.value.reason == "too_long"
    kept, dropped = tokenize_supervised(rows(BARE, long), tokenizer, 20, on_bad_row="drop")
    assert list(kept["length"]) == [10] and dropped == {"too_long": 1}
    with pytest.raises(DataError, match="2 of 2 rows"):
        tokenize_supervised(rows(long, long), tokenizer, 20, on_bad_row="drop")


def test_a_row_without_completion(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match="row-0: missing_completion"):
        tokenize_supervised(rows(None), make_tokenizer(), None)


def test_no_chat_template(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize_supervised(rows(BARE), make_tokenizer(template=None), None)


def test_message_texts() -> None:
    parts: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert list(message_texts("plain")) == ["plain"]
    assert list(message_texts(REASONED)) == ["2+2=4", "4"]
    assert list(message_texts(parts)) == ["what?"]
