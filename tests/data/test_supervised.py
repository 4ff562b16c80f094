"""Rows for supervised training: what carries loss, what is refused and why, truncation, the checked set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.data import to_dataset
from mmreason.data.loss_spans import LossOn
from mmreason.data.render import render_prompt
from mmreason.data.supervised import (
    SupervisedRow,
    message_texts,
    prepare_supervised,
    render_completion,
    render_supervised,
)
from mmreason.types import ConfigError, DataError
from tests.data.mask_cases import RESULT, WEATHER, says, tokenizer_for, user

MakeTokenizer = Callable[..., Any]

COLUMNS = ("prompt", "completion", "tools", "answer", "id", "source", "meta")
QUESTION: Any = [{"role": "user", "content": "2+2?"}]
BARE: Any = [{"role": "assistant", "content": "4"}]
REASONED: Any = [{"role": "assistant", "reasoning_content": "2+2=4", "content": "4"}]


def rows(*completions: Any, prompt: Any = QUESTION) -> Any:
    examples: list[Any] = [
        {"prompt": prompt, "completion": c, "answer": "4", "id": f"row-{i}", "source": "sums"}
        for i, c in enumerate(completions)
    ]
    return to_dataset(examples, COLUMNS)


def row(prompt: Any, completion: Any, **more: Any) -> Any:
    return {"id": "row-0", "source": "sums", "prompt": prompt, "completion": completion, **more}


def marked(tokenizer: Any, found: SupervisedRow) -> str:
    """The row's text with ⟦…⟧ around each run of tokens with loss; "0.5|" leads runs of another weight than 1."""
    text, last = "", 0.0
    for token, weight in zip(found.ids, found.weights, strict=True):
        if weight != last:
            text += ("⟧" if last else "") + ("⟦" if weight else "") + (f"{weight:g}|" if weight not in (0, 1) else "")
        text, last = text + tokenizer.decode([token]), weight
    return text + ("⟧" if last else "")


def shown(example: Any, tokenizer: Any, **options: Any) -> list[str]:
    return [marked(tokenizer, found) for found in render_supervised(example, tokenizer, **options)]


def refused(example: Any, tokenizer: Any, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        render_supervised(example, tokenizer, **options)
    assert caught.value.row == "row-0" and str(caught.value).startswith("row row-0: ")
    return caught.value


# --------------------------------------------------------------------------------------------------------------------
# What carries loss


def test_the_prompt_is_what_generation_sees_and_the_rest_is_learned(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    (found,) = render_supervised(row(QUESTION, BARE), tokenizer)
    prompt = render_prompt(QUESTION, tokenizer)
    assert found.ids == prompt + tokenizer.convert_tokens_to_ids(["4", "<eos>"])
    assert found.weights == [0.0] * len(prompt) + [1.0, 1.0]
    assert (found.row_id, found.source, found.visual) == ("row-0", "sums", None)


@pytest.mark.parametrize("post", [None, "<bos> $A", "<bos> $A <eos>"])
def test_plain_text_gets_its_bos_and_end_once(post: str | None, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(post=post)
    bos = "" if post is None else "<bos>"
    assert shown(row("2+2=", "4"), tokenizer) == [f"{bos}2+2=⟦4<eos>⟧"]
    assert shown(row("2+2=", "4<eos>"), tokenizer) == [f"{bos}2+2=⟦4<eos>⟧"]
    assert shown(row("<bos>2+2=", "4"), tokenizer) == ["<bos>2+2=⟦4<eos>⟧"]
    assert refused(row("2+2=", BARE), tokenizer).reason == "bad_messages"


def test_a_template_without_an_end_of_turn_gets_one(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(
        template="{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    prompt = [user("a?"), says("b"), user("c?")]
    assert shown(row(prompt, [says("d")]), tokenizer) == ["user: a? assistant: b user: c? assistant: ⟦d<eos>⟧"]
    # No end of an earlier turn to be learned within a conversation: each turn gets a row, and its end.
    assert shown(row(prompt, [says("d")]), tokenizer, loss_on=LossOn(turns="all")) == [
        "user: a? assistant: ⟦b<eos>⟧",
        "user: a? assistant: b user: c? assistant: ⟦d<eos>⟧",
    ]


def test_chosen_spans_with_weights() -> None:
    tokenizer = tokenizer_for("qwen3")
    answer = 'So:\n```json\n{"a": 1}\n```\ndone'
    example = row([user("q")], [says(answer, "hm")])
    weights = LossOn.parse({"reasoning": 0.5, "answer": 1, "json": 2})
    assert shown(example, tokenizer, loss_on=weights) == [
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦0.5|<think>\nhm\n</think>⟧⟦\n\nSo:\n```json\n⟧"
        '⟦2|{"a": 1}⟧⟦\n```\ndone<|im_end|>⟧'
    ]
    (text,) = shown(example, tokenizer, loss_on=LossOn.parse({"answer": 1}))
    assert text.count("⟦") == 1 and "</think>⟦\n\nSo:" in text and text.endswith("done<|im_end|>⟧")
    (text,) = shown(row([user("q")], [says('{"a": [1, 2]}')]), tokenizer, loss_on=weights)
    assert text.endswith('⟦<think>\n\n</think>\n\n⟧⟦2|{"a": [1, 2]}⟧⟦<|im_end|>⟧')
    for not_json in ('Result: {"a": 1}', '{"a": 1} it is', "[not json]", "3"):
        (text,) = shown(row([user("q")], [says(not_json)]), tokenizer, loss_on=weights)
        assert "2|" not in text
    calls = row([user("q")], [says("I ask.", town="Rome"), RESULT, says("rain")], tools=[WEATHER])
    (text,) = shown(calls, tokenizer, loss_on=LossOn.parse({"tool_call": 1}))
    assert "I ask.⟦\n<tool_call>" in text and "</tool_call><|im_end|>⟧" in text and text.count("⟦") == 1
    none = refused(row([user("q")], [says("4")]), tokenizer, loss_on=LossOn.parse({"reasoning": 1}))
    assert none.reason == "no_loss"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("lst", "neither last nor all.*Did you mean 'last'"),
        ({"reasonin": 1}, "Did you mean 'reasoning'"),
        ({"answer": -1}, "at least 0"),
        ({"answer": "1"}, "at least 0"),
        ({"answer": float("nan")}, "at least 0"),
        ({"turns": "first", "answer": 1}, "turns is last or all"),
        ({"answer": 0}, "nothing would be learned"),
    ],
)
def test_loss_on_that_means_nothing(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LossOn.parse(value)


def test_loss_on_defaults() -> None:
    assert LossOn.parse(None) == LossOn.parse("last") == LossOn()
    assert LossOn.parse("all") == LossOn(turns="all")
    assert LossOn.parse({"answer": 1, "turns": "all"}) == LossOn("all", 0.0, 1.0, None, 0.0)


def test_a_thought_within_the_content_is_read_as_one() -> None:
    inline = row([user("q")], [says("<think>hm</think>4")])
    assert shown(inline, tokenizer_for("qwen3")) == shown(row([user("q")], [says("4", "hm")]), tokenizer_for("qwen3"))
    assert shown(inline, tokenizer_for("qwen2_5"))[0].endswith("⟦<think>hm</think>4<|im_end|>⟧")  # knows no thoughts


def test_arguments_as_json_text() -> None:
    call: Any = says("", town="Rome")
    as_text: Any = says("", town="Rome")
    as_text["tool_calls"][0]["function"]["arguments"] = '{"town": "Rome"}'
    tokenizer = tokenizer_for("qwen3")
    found = [shown(row([user("q")], [m, RESULT, says("r")], tools=[WEATHER]), tokenizer) for m in (call, as_text)]
    assert found[0] == found[1]


def test_an_earlier_row_decides_nothing_for_a_later_one() -> None:
    """What is found out about a template depends on a conversation's structure, not on the rows seen."""
    from mmreason.data.supervised_rendering import SupervisedRenderer

    tokenizer = tokenizer_for("deepseek_r1_distill")
    examples = [
        row([user("q")], [says("4")]),
        row([user("q")], [says("4", "hm")]),
        row([user("q")], [says("<think>hm</think>4")]),
        row([user("q")], [says("", town="Rome"), RESULT, says("r")], tools=[WEATHER]),
    ]
    alone = [shown(example, tokenizer) for example in examples]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        renderer = SupervisedRenderer(tokenizer)
        found = {i: [marked(tokenizer, r) for _, r in renderer.render(examples[i]).rows] for i in order}
        assert [found[i] for i in range(4)] == alone


# --------------------------------------------------------------------------------------------------------------------
# What is refused


def test_lost_reasoning_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()  # this template knows no reasoning_content
    error = refused(row(QUESTION, REASONED), tokenizer)
    assert error.reason == "template" and "leaves out the completion's reasoning_content" in str(error)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        # The prompt says how many messages there are: another number once an answer follows.
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<eos>{% endfor %}", "prompt differently"),
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper }}<eos>{% endfor %}", "leaves out"),
        (
            "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<eos>{% endfor %}",
            "leaves out what message 1",
        ),
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content[:3] }}<eos>{% endfor %}", "leaves out"),
        ("{{ raise_exception('no') }}", "refuses this prompt"),
    ],
)
def test_unfaithful_templates(template: str, said: str, make_tokenizer: MakeTokenizer) -> None:
    assert said in str(refused(row(QUESTION, [says("four")]), make_tokenizer(template=template)))


def test_a_thought_for_which_the_prompt_leaves_no_room() -> None:
    tokenizer = tokenizer_for("qwen3_5_nothink")
    example = row([user("q")], [says("4", "hm")])
    assert "enable_thinking: true" in str(refused(example, tokenizer))
    (text,) = shown(example, tokenizer, chat_template_kwargs={"enable_thinking": True})
    assert text.endswith("assistant\n<think>\n⟦hm\n</think>\n\n4<|im_end|>⟧")


def test_the_token_that_ends_turns_within_a_turn() -> None:
    assert "the token that ends turns" in str(
        refused(row([user("q")], [says("stop<|im_end|>go")]), tokenizer_for("qwen2_5"))
    )


def test_a_token_over_the_border_of_prompt_and_answer() -> None:
    """The prompt alone would be other tokens; a mere space that sticks to it is left without loss."""
    tokenizer = tokenizer_for("qwen2_5")
    error = refused(row("ques", "tion"), tokenizer)
    assert error.reason == "template" and "one token, 'estion'" in str(error)
    assert shown(row("question", " answer"), tokenizer) == ["question⟦ answer<|im_end|>⟧"]


BAD: list[tuple[Any, str, str]] = [
    (row(QUESTION, None), "missing_completion", "nothing to learn"),
    (row(QUESTION, []), "missing_completion", "nothing to learn"),
    (row([], BARE), "missing_prompt", "no messages"),
    (row([{"role": "asistant", "content": "x"}], BARE), "unknown_role", "Did you mean 'assistant'"),
    (row([{"role": "User", "content": "x"}], BARE), "unknown_role", "Did you mean 'user'"),
    (row(QUESTION, [says("  \n")]), "empty_turn", "message 2"),
    (row([*QUESTION, says(""), *QUESTION], BARE), "empty_turn", "message 2"),
    (row(QUESTION, "4"), "bad_messages", "both be"),
    (row({"role": "user"}, BARE), "bad_messages", "not a list"),
    (row(["2+2?"], BARE), "bad_messages", "message 1 is no message"),
    (row([{"role": "user", "content": 4}], BARE), "bad_messages", "neither a text nor a list of parts"),
    (row([{"role": "user", "content": [{"type": "text"}]}], BARE), "bad_messages", "neither a text"),
    (row(QUESTION, QUESTION), "bad_messages", "no assistant's turn"),
    (row(QUESTION, [*BARE, RESULT]), "bad_messages", "no assistant's turn"),
    (row(QUESTION, [says("", town="x"), RESULT, *BARE], tools="weather"), "bad_tools", "JSON schemas"),
    (row(QUESTION, [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]), "bad_tool_call", "function"),
    (row([*QUESTION, says("It is", "hm")], BARE), "bad_messages", "can't continue"),
    (row([user("a\x00b")], BARE), "null_bytes", "character 2 of a text of 3"),
    (row(QUESTION, [says("\ud800")]), "bad_unicode", "lone surrogate"),
    (row("2+2=", "4\x00"), "null_bytes", "character 2"),
    (row("2+2=", "  "), "empty_turn", "says nothing"),
    (row(QUESTION, BARE, images="cat.png"), "image_not_list", "not a list"),
]


@pytest.mark.parametrize(("example", "reason", "said"), BAD)
def test_bad_rows(example: Any, reason: str, said: str, make_tokenizer: MakeTokenizer) -> None:
    error = refused(example, make_tokenizer())
    assert error.reason == reason and said in str(error)


def test_bad_settings(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        render_supervised(row(QUESTION, BARE), make_tokenizer(template=None))
    with pytest.raises(ConfigError, match="Did you mean 'cut_oldest_turns'"):
        render_supervised(row(QUESTION, BARE), make_tokenizer(), truncation="cut_oldest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reads text only, but the row has 1 image"):
        render_supervised(row([user("q", 1)], BARE, images=[{"path": "x.png"}]), make_tokenizer())


# --------------------------------------------------------------------------------------------------------------------
# Truncation

TALK: Any = [{"role": "system", "content": "S"}, user("1?"), says("one"), user("2?"), says("two"), user("3?")]


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(100, ["1?", "one", "2?", "two"]), (30, ["2?", "two"]), (20, []), (None, ["1?", "one", "2?", "two"])],
)
def test_the_oldest_turns_are_cut_whole(limit: int | None, kept: list[str], make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    example = row(TALK, [says("three")])
    for loss_on in (LossOn(), LossOn(turns="all")):
        (text,) = shown(example, tokenizer, max_length=limit, truncation="cut_oldest_turns", loss_on=loss_on)
        turns = "".join(f"<|{'user' if i % 2 == 0 else 'assistant'}|>{turn}<eos>" for i, turn in enumerate(kept))
        assert text.replace("⟦", "").replace("⟧", "") == (
            f"<bos><|system|>S<eos>{turns}<|user|>3?<eos><|assistant|>three<eos>"
        )
        assert text.endswith("⟦three<eos>⟧")
    assert text.count("⟦") == len(kept) // 2 + 1


def test_the_last_exchange_is_never_cut(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    error = refused(row(TALK, [says("three")]), tokenizer, max_length=12, truncation="cut_oldest_turns")
    assert error.reason == "too_long" and "max_length is 12" in str(error)
    assert refused(row(TALK, [says("three")]), tokenizer, max_length=20).reason == "too_long"
    assert shown(row(TALK, [says("three")]), tokenizer, max_length=20, truncation="drop") == []


def test_calls_and_results_stay_with_their_answer() -> None:
    tokenizer = tokenizer_for("qwen2_5")
    prompt = [user("first"), says("", town="Oslo"), RESULT, says("rain"), user("second")]
    completion = [says("", town="Rome"), {**RESULT, "content": "sun"}, says("sun")]
    whole = render_supervised(row(prompt, completion, tools=[WEATHER]), tokenizer)[-1]
    (text,) = shown(
        row(prompt, completion, tools=[WEATHER]),
        tokenizer,
        max_length=len(whole.ids) - 1,
        truncation="cut_oldest_turns",
    )
    assert "get_weather" in text.partition("<|im_end|>")[0]  # the tools stay in the system message
    assert "first" not in text and "Oslo" not in text and "result one" not in text and '{"town": "Rome"}' in text


# --------------------------------------------------------------------------------------------------------------------
# The set


def test_the_set_keeps_what_was_rendered(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    weights = LossOn(answer=0.5)
    found, dropped = prepare_supervised(rows(BARE, [says("four")]), tokenizer, loss_on=weights)
    assert dropped == {} and len(found) == 2
    alone = [render_supervised(row(QUESTION, c), tokenizer, loss_on=weights)[0] for c in (BARE, [says("four")])]
    for i, expected in enumerate(alone):
        assert found[i].ids == expected.ids and found[i].weights == expected.weights
    assert found[-1].ids == alone[1].ids
    with pytest.raises(IndexError):
        found[2]
    assert found.lengths.tolist() == [len(r.ids) for r in alone] and found.supervised.tolist() == [2, 5]
    assert np.allclose(found.weight_sums, [1.0, 2.5])
    assert found.sources == ["sums", "sums"] and found.row_ids == ["row-0", "row-1"]


def test_bad_rows_of_a_set_are_named_or_counted(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    data = rows(BARE, REASONED, None, [says("4" * 40)])
    with pytest.raises(DataError) as caught:
        prepare_supervised(data, tokenizer, max_length=20)
    said = str(caught.value)
    assert "3 of 4 rows can't be learned from (1 missing_completion, 1 template, 1 too_long)" in said
    assert "row row-1: template" in said and "row row-3: too_long" in said and "cut_oldest_turns" in said
    assert caught.value.row == "row-1" and caught.value.reason == "template"
    found, dropped = prepare_supervised(data, tokenizer, max_length=20, on_bad_row="drop")
    assert found.row_ids == ["row-0"] and dropped == {"template": 1, "missing_completion": 1, "too_long": 1}
    with pytest.raises(DataError, match="2 of 2 rows"):
        prepare_supervised(rows(REASONED, REASONED), tokenizer, on_bad_row="drop")


def test_long_rows_can_be_dropped_though_bad_ones_are_errors(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    data = rows(BARE, [says("4" * 40)])
    found, dropped = prepare_supervised(data, tokenizer, max_length=20, truncation="drop")
    assert found.row_ids == ["row-0"] and dropped == {"too_long": 1}
    with pytest.raises(DataError, match="all 2 rows are over max_length 5") as caught:
        prepare_supervised(data, tokenizer, max_length=5, truncation="drop")
    assert caught.value.reason == "too_long"


def test_what_was_cut_is_counted(make_tokenizer: MakeTokenizer) -> None:
    found, dropped = prepare_supervised(
        rows([says("three")], prompt=TALK),
        make_tokenizer(),
        max_length=20,
        truncation="cut_oldest_turns",
        loss_on=LossOn(turns="all"),
    )
    assert dropped == {} and (found.cut.messages, found.cut.supervised, found.cut.images) == (4, 2, 0)


def test_rows_of_gsm8k(shared_data: Path) -> None:
    """Real rows: all of them are taken, and what carries loss is the solution, the answer and the turn's end."""
    from mmreason.data import load_examples
    from mmreason.models.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    source = str(shared_data / "gsm8k" / "test.jsonl")
    dataset = load_examples(source, columns=COLUMNS, prompt_template="none", max_rows=100).dataset
    found, dropped = prepare_supervised(dataset, tokenizer)
    assert len(found) == 100 and dropped == {}
    for i, example in enumerate(dataset):
        learned = [token for token, weight in zip(found[i].ids, found[i].weights, strict=True) if weight]
        (said,) = example["completion"]
        assert tokenizer.decode(learned) == f"{said['reasoning_content']}\n{said['content']}<|end|>"


def test_render_completion(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.convert_ids_to_tokens(render_completion(QUESTION, BARE, tokenizer)) == ["4", "<eos>"]
    assert tokenizer.convert_ids_to_tokens(render_completion("2+2=", "4", tokenizer)) == ["4", "<eos>"]
    with pytest.raises(DataError, match="both be messages or both be text"):
        render_completion("2+2=", BARE, tokenizer)


def test_message_texts() -> None:
    parts: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert list(message_texts("plain")) == ["plain"]
    assert list(message_texts(REASONED)) == ["2+2=4", "4"]
    assert list(message_texts(parts)) == ["what?"]
