"""What carries loss, through every chat template that TRL ships: against recorded masks, against the texts that each
message has to itself, against generation's own prompts, and against TRL's masks.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest

from mmreason.data.loss_spans import LossOn
from mmreason.data.render import render_text
from mmreason.data.supervised import SupervisedRow, render_supervised
from mmreason.types import DataError
from tests.data.mask_cases import SHAPES, VISION, example, frozen, processor_for, shapes_for, templates
from tests.golden.record_masks import FOLDER, observe

ALL = LossOn(turns="all")
THINKING = ["qwen3", "deepseek_r1_distill", "glm4moe", "gptoss", "phi3", "phi3_5"]
# Templates whose finished turns don't begin with all of what generation is given (a thought that is opened and not
# there, a turn that is opened anew behind a tool's result).
INEXACT = ("deepseek", "nemotron", "diffusion_gemma")


def rendered(name: str, shape: str, loss_on: LossOn = ALL) -> list[SupervisedRow]:
    """The rows; none of a shape that the template can't show (the golden files hold which)."""
    try:
        return render_supervised(
            example(shape), processor_for(name), loss_on=loss_on, chat_template_kwargs=frozen(name)
        )
    except DataError as error:
        assert error.row == f"row-{shape}" and error.reason in ("template", "bad_messages")
        return []


def decode(name: str, ids: list[int]) -> str:
    processor = processor_for(name)
    return str(getattr(processor, "tokenizer", processor).decode(ids))


def supervised_runs(row: SupervisedRow) -> list[tuple[int, list[int]]]:
    """(place, token ids) of each run of tokens with loss."""
    found, place = [], 0
    for weight, pairs in groupby(zip(row.weights, row.ids, strict=True), key=lambda pair: pair[0] > 0):
        ids = [token for _, token in pairs]
        if weight:
            found.append((place, ids))
        place += len(ids)
    return found


def messages_of(shape: str) -> list[Any]:
    row = example(shape)
    return [*row["prompt"], *row["completion"]]


def words_of(message: Any) -> list[str]:
    """The texts that only this message has."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
    texts.append(message.get("reasoning_content", ""))
    texts += [town for call in message.get("tool_calls", ()) for town in call["function"]["arguments"].values()]
    return [text.strip() for text in texts if text.strip()]


@pytest.mark.parametrize("name", templates())
def test_golden_masks(name: str) -> None:
    recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    found = observe(name)
    if recorded["template"] != found["template"]:
        pytest.skip("this TRL ships another revision of the template; record it: python -m tests.golden.record_masks")
    assert found == recorded


def test_the_thinking_templates_are_there_and_show_what_they_can() -> None:
    recorded = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in THINKING}
    assert all(len(shapes) >= 9 for shapes in recorded.values())
    shown = {name: [s for s, rows in shapes.items() if isinstance(rows, list)] for name, shapes in recorded.items()}
    for name in ("qwen3", "glm4moe", "gptoss"):
        assert len(shown[name]) == 9
    for name in ("qwen3", "deepseek_r1_distill", "glm4moe", "gptoss"):  # they drop earlier thoughts: a row per turn
        assert len(recorded[name]["multi_turn_reasoning"]) == 2
    assert "reasoning" in shown["deepseek_r1_distill"] and "reasoning" not in shown["phi3"]


@pytest.mark.parametrize("name", templates())
def test_loss_is_on_the_assistants_words_and_ends_of_turn_alone(name: str) -> None:
    shown = [shape for shape in shapes_for(name) if _check_words(name, shape)]
    assert {"single", "multi_turn", "prefilled"} <= set(shown)


def _check_words(name: str, shape: str) -> bool:
    if not (rows := rendered(name, shape)):
        return False
    processor = processor_for(name)
    tokenizer = getattr(processor, "tokenizer", processor)
    added = set(tokenizer.get_added_vocab().values())
    runs = [(decode(name, ids), ids) for row in rows for _, ids in supervised_runs(row)]
    said = [message for message in messages_of(shape) if message["role"] == "assistant"]
    if shape == "prefilled":
        said.remove({"role": "assistant", "content": "begun one"})
    assert len(runs) == len(said)
    for (text, ids), message in zip(runs, said, strict=True):
        for words in words_of(message):
            assert text.count(words) == 1
        assert ids[-1] in added and ids.count(ids[-1]) == 1  # the end of the turn, once
        assert not text.endswith("\n")
        rest = [other for other in messages_of(shape) if other is not message]
        for words in (words for other in rest for words in words_of(other)):
            assert words not in text
    image = getattr(processor, "image_token_id", None)
    for row in rows:
        assert not any(weight for token, weight in zip(row.ids, row.weights, strict=True) if token == image)
    return True


@pytest.mark.parametrize("name", [name for name in templates() if not name.startswith(INEXACT)])
def test_a_turn_stands_behind_what_generation_is_given(name: str) -> None:
    """Every run of loss begins where the model's own prompt for that turn ends."""
    for shape in SHAPES:
        rows = rendered(name, shape)
        given = [decode(name, row.ids[:place]) for row in rows for place, _ in supervised_runs(row)]
        prompts = [example(shape)["prompt"]]
        if shape != "prefilled":
            messages = messages_of(shape)
            prompts = [messages[:i] for i, message in enumerate(messages) if message["role"] == "assistant"]
        if name in ("gptoss", "lfm2_2_5"):  # they know the thought as `thinking`
            prompts = [[_with_thinking(m) for m in prompt] for prompt in prompts]
        tools = example(shape).get("tools")
        texts = [render_text(prompt, processor_for(name), frozen(name), tools=tools) for prompt in prompts if rows]
        assert given == texts, shape


@pytest.mark.parametrize("name", templates())
def test_ids_are_those_of_the_whole_text(name: str) -> None:
    """Whatever carries loss, the tokens are those that the tokenizer makes of the text in one piece."""
    processor = processor_for(name)
    tokenizer = getattr(processor, "tokenizer", processor)
    for shape in ("system", "multi_turn", "reasoning"):
        for row in rendered(name, shape):
            assert tokenizer(decode(name, row.ids), add_special_tokens=False)["input_ids"] == row.ids


@pytest.mark.parametrize("name", [name for name in templates() if name not in VISION and not name.startswith("gemma4")])
def test_against_trls_own_masks(name: str) -> None:
    """Where TRL's training template writes the same conversation: its mask has ours, and besides it no word of the
    assistant's, but what opens a turn (gpt-oss, DeepSeek-R1) or follows its end.
    """
    from trl.chat_template_utils import get_training_chat_template

    processor, compared = processor_for(name), 0
    try:
        template = get_training_chat_template(processor) or processor.chat_template
    except ValueError:
        assert name in ("llama3_1", "llama3_2")  # for these TRL has none
        return
    for shape in ("single", "system", "multi_turn", "reasoning", "tools"):
        rows = rendered(name, shape)
        if len(rows) != 1:
            continue
        theirs = processor.apply_chat_template(
            messages_of(shape), tools=example(shape).get("tools"), chat_template=template, tokenize=True,
            return_dict=True, return_assistant_tokens_mask=True, **frozen(name),
        )  # fmt: skip
        ids, mask = theirs["input_ids"], theirs["assistant_masks"]
        if ids[: len(rows[0].ids)] != rows[0].ids:
            continue
        compared += 1
        ours = [weight > 0 for weight in rows[0].weights] + [False] * (len(ids) - len(rows[0].ids))
        only_ours = decode(name, [ids[i] for i in range(len(ids)) if ours[i] and not mask[i]])
        only_theirs = decode(name, [ids[i] for i in range(len(ids)) if mask[i] and not ours[i]])
        # Gemma 4's generation ends with the token that opens a tool's result.
        assert only_ours == ("<|tool_response>" if (name, shape) == ("diffusion_gemma", "tools") else "")
        spoken = [words for m in messages_of(shape) if m["role"] == "assistant" for words in words_of(m)]
        assert not any(words in only_theirs for words in spoken)
    assert compared >= 1


@pytest.mark.parametrize("name", ["qwen3", "llama3", "phi3"])
def test_the_last_turn_alone(name: str) -> None:
    (row,) = rendered(name, "multi_turn", LossOn())
    ((_, ids),) = supervised_runs(row)
    assert "answer two" in decode(name, ids) and "answer one" not in decode(name, ids)


def _with_thinking(message: Any) -> Any:
    return {**message, "thinking": message["reasoning_content"]} if "reasoning_content" in message else message
