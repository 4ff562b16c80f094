"""Rows with images for supervised training, through the processors of all models that see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data import to_dataset
from mmreason.data.images import load_image
from mmreason.data.loss_spans import LossOn
from mmreason.data.supervised import prepare_supervised, render_supervised
from mmreason.data.visual import VisualPrompt, expanded_positions
from mmreason.types import ConfigError, DataError
from tests.data.mask_cases import says, user
from tests.pictures import SEEING, cell, picture, save_seeing

COLUMNS = ("prompt", "completion", "images", "id", "source")
SIZES = [(60, 40), (30, 90), (56, 56)]
ALL = LossOn(turns="all")


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoProcessor

    return {kind: AutoProcessor.from_pretrained(save_seeing(kind, tmp_path_factory.mktemp(kind))) for kind in SEEING}


def talk(images: list[Any] | None = None, **more: Any) -> Any:
    """Two images and a question, an answer, text and an image in turn, an answer."""
    second: Any = {
        "role": "user",
        "content": [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": " here?"}],
    }
    return {
        "id": "talk",
        "source": "pictures",
        "prompt": [user("How many?", 2), says("Two dots."), second],
        "completion": [says("Three.")],
        "images": images or [cell(picture(*size, seed)) for seed, size in enumerate(SIZES)],
    } | more


def learned(row: Any, tokenizer: Any) -> list[str]:
    """The text of each run of tokens with loss."""
    found: list[list[int]] = []
    inside = False
    for token, weight in zip(row.ids, row.weights, strict=True):
        if weight:
            found = [*found[:-1], found[-1] + [token]] if inside else [*found, [token]]
        inside = weight > 0
    return [tokenizer.decode(ids) for ids in found]


@pytest.mark.parametrize("kind", SEEING)
def test_ids_and_inputs_are_the_processors_own(kind: str, processors: dict[str, Any]) -> None:
    """Against `apply_chat_template(tokenize=True)` on messages that hold the pictures themselves."""
    processor = processors[kind]
    example = talk()
    pictures = iter(load_image(image, where="") for image in example["images"])

    def held(message: Any) -> Any:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [{**part, "image": next(pictures)} if part["type"] == "image" else part for part in parts]
        return {"role": message["role"], "content": parts}

    messages = [held(message) for message in [*example["prompt"], *example["completion"]]]
    own = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    (row,) = render_supervised(example, processor, loss_on=ALL)
    assert row.ids == own["input_ids"][0].tolist()
    assert row.visual is not None and row.visual.ids == row.ids
    assert row.visual.inputs.keys() == own.keys() - {"input_ids", "attention_mask"}
    assert all(torch.equal(value, own[name]) for name, value in row.visual.inputs.items())
    assert [image.size for image in row.visual.images] == SIZES
    assert learned(row, processor.tokenizer) == ["Two dots.<|end|>", "Three.<|end|>"]
    assert len(row.weights) == len(row.ids) > 40
    (last,) = render_supervised(example, processor)
    assert learned(last, processor.tokenizer) == ["Three.<|end|>"] and last.ids == row.ids


@pytest.mark.parametrize("kind", SEEING)
def test_the_images_of_cut_turns_leave_with_them(kind: str, processors: dict[str, Any]) -> None:
    processor = processors[kind]
    example = talk()
    (whole,) = render_supervised(example, processor)
    alone = talk(example["images"][2:], prompt=example["prompt"][2:])
    (expected,) = render_supervised(alone, processor)
    options: Any = {"truncation": "cut_oldest_turns", "loss_on": ALL}
    for limit in (len(whole.ids) - 1, len(expected.ids)):
        (row,) = render_supervised(example, processor, max_length=limit, **options)
        assert (row.ids, row.weights) == (expected.ids, expected.weights)
        assert row.visual is not None and expected.visual is not None
        assert all(torch.equal(value, expected.visual.inputs[name]) for name, value in row.visual.inputs.items())
    with pytest.raises(DataError, match="max_length is"):  # never through the image that is left
        render_supervised(example, processor, max_length=len(expected.ids) - 1, **options)


def test_the_set_opens_images_again(processors: dict[str, Any], tmp_path: Path) -> None:
    processor = processors["qwen2_5_vl"]
    picture(60, 40).save(tmp_path / "a.png")
    text = {"id": "text", "source": "words", "prompt": [user("2+2?")], "completion": [says("4")]}
    seen = talk([{"path": str(tmp_path / "a.png")}, *talk()["images"][1:]])
    dataset = to_dataset([text, seen], COLUMNS)  # type: ignore[list-item]
    rows, dropped = prepare_supervised(dataset, processor, loss_on=ALL)
    assert dropped == {} and rows.row_ids == ["text", "talk"] and rows[0].visual is None
    (expected,) = render_supervised(dataset[1], processor, loss_on=ALL)
    row = rows[1]
    assert (row.ids, row.weights) == (expected.ids, expected.weights) and rows.lengths[1] == len(row.ids)
    assert row.visual is not None and expected.visual is not None
    assert all(torch.equal(value, expected.visual.inputs[name]) for name, value in row.visual.inputs.items())
    picture(200, 200).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="row talk: its images have another size") as caught:
        rows[1]
    assert caught.value.row == "talk"
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="row talk: .*image 1"):
        rows[1]
    limit = int(rows.lengths[1]) - 1
    with pytest.raises(DataError, match="row talk: missing_image"):
        prepare_supervised(dataset, processor)
    picture(60, 40).save(tmp_path / "a.png")
    rows, _ = prepare_supervised(dataset, processor, max_length=limit, truncation="cut_oldest_turns", loss_on=ALL)
    assert (rows.cut.messages, rows.cut.supervised, rows.cut.images) == (2, 1, 2)
    assert rows[1].visual is not None and len(rows[1].visual.images) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("example", "reason", "said"),
    [
        (talk(images=talk()["images"][:2]), "image_count", "3 image part.* 2 image"),
        (talk(images=[*talk()["images"], cell(picture(9, 9))]), "image_count", "3 image part.* 4 image"),
        (talk(completion=[says("see <image> there")]), "image_count", "stands for an image"),
        (talk(completion=[{"role": "assistant", "content": [{"type": "image"}]}]), "bad_messages", "own turn"),
        ({**talk(), "images": "a.png"}, "image_not_list", "not a list"),
        (talk(images=[{"bytes": b"no picture"}, *talk()["images"][1:]]), "bad_image", "image 1"),
    ],
)
def test_bad_rows(example: Any, reason: str, said: str, processors: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=said) as caught:
        render_supervised(example, processors["llava"])
    assert caught.value.row == "talk" and caught.value.reason == reason


def test_models_that_take_none(processors: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="reads text only, but the row has 3 image"):
        render_supervised(talk(), processors["llava"].tokenizer)
    with pytest.raises(ConfigError, match="no place for images"):
        render_supervised(talk(prompt="2+2=", completion="4"), processors["llava"])


PLACEHOLDER = 9


@settings(max_examples=200, deadline=None)
@given(
    segments=st.lists(st.lists(st.integers(10, 15), max_size=6), min_size=1, max_size=4),
    blocks=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 2)), min_size=3, max_size=3),
)
def test_positions_behind_expanded_images(segments: list[list[int]], blocks: list[Any]) -> None:
    """What stands between images is found again whatever a processor puts around an image's tokens."""
    # Every segment's tokens are its own, as the header of a role and what was said are.
    segments = [[token + 10 * (i + 1) for token in segment] for i, segment in enumerate(segments)]
    short: list[int] = []
    long: list[int] = []
    expected: list[int | None] = []
    for i, segment in enumerate(segments):
        if i:
            before, tokens, after = blocks[i - 1]
            short.append(PLACEHOLDER)
            expected.append(None)
            long += [7] * before + [PLACEHOLDER] * tokens + [8] * after
        expected += range(len(long), len(long) + len(segment))
        short += segment
        long += segment
    assert expanded_positions(VisualPrompt(long, short, [], {}), PLACEHOLDER) == expected


def test_text_that_a_processor_changes() -> None:
    with pytest.raises(DataError, match="changes the text"):
        expanded_positions(VisualPrompt([9, 9, 1, 2, 3, 4, 5, 6], [9, 1, 2, 7, 7, 7, 5, 6], [], {}), PLACEHOLDER)
    merged = VisualPrompt([1, 2, 7, 9, 9, 8, 4, 5], [1, 2, 3, 9, 3, 4, 5], [], {})
    assert expanded_positions(merged, PLACEHOLDER) == [0, 1, None, None, None, 6, 7]
