"""Prompts with pictures: as each processor itself would make them, errors with numbers, batches, flat memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mmreason.data import check_prompts, collate_visual, render_prompt, render_visual_prompt
from mmreason.data.schema import example_features
from mmreason.data.visual import VisualPrompt, Visuals, image_counts, visuals_of
from mmreason.types import ConfigError, DataError
from tests.pictures import SEEING, ask, cell, picture, save_seeing

SIZES = [(60, 40), (30, 90), (56, 56)]


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoProcessor

    return {kind: AutoProcessor.from_pretrained(save_seeing(kind, tmp_path_factory.mktemp(kind))) for kind in SEEING}


@pytest.fixture
def llava(processors: dict[str, Any]) -> Any:
    return processors["llava"]


def rows_of(*rows: tuple[str, list[Any]]) -> Dataset:
    """A dataset of (text, images) rows with ids r0, r1 …"""
    data = {
        "id": [f"r{i}" for i in range(len(rows))],
        "prompt": [ask(text, len(images)) for text, images in rows],
        "images": [[image if isinstance(image, dict) else cell(image) for image in images] for _, images in rows],
    }
    return Dataset.from_dict(data, features=example_features(("id", "prompt", "images")))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", SEEING)
def test_ids_and_inputs_are_the_processors_own(kind: str, count: int, processors: dict[str, Any]) -> None:
    """Against `apply_chat_template(tokenize=True)` on messages that hold the pictures themselves."""
    processor = processors[kind]
    images = [picture(*size, seed) for seed, size in enumerate(SIZES[:count])]
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": "How many?"}]
    own = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    visual = render_visual_prompt(ask("How many?", count), [cell(image) for image in images], processor)
    assert visual.ids == own["input_ids"][0].tolist()
    assert visual.inputs.keys() == own.keys() - {"input_ids", "attention_mask"}
    assert all(torch.equal(value, own[name]) for name, value in visual.inputs.items())
    assert [image.size for image in visual.images] == SIZES[:count]
    # vLLM's prompt: the same, with a single placeholder for each picture.
    token = processor.image_token_id
    assert visual.engine_ids.count(token) == count and visual.ids.count(token) > count
    assert visual.engine_ids[-10:] == visual.ids[-10:]  # the question and what follows


def test_text_through_a_processor(llava: Any) -> None:
    assert render_prompt(ask("2+2?"), llava) == render_prompt(ask("2+2?"), llava.tokenizer)


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        (ask("Which?", 2), 1, r"the prompt has 2 image part\(s\).*the row has 1 image$"),
        (ask("Which?"), 3, r"the prompt has 0 image part\(s\).*the row has 3 images$"),
        (ask("What does <image> mean?", 1), 1, "the text of the prompt holds '<image>'"),
    ],
    ids=["too few images", "no place", "placeholder in the text"],
)
def test_images_that_do_not_fit_the_prompt(prompt: Any, images: int, message: str, llava: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        render_visual_prompt(prompt, [picture(30, 30, i) for i in range(images)], llava)
    assert caught.value.reason == "image_count"


def test_a_placeholder_in_a_prompt_of_text(llava: Any) -> None:
    """It would stand for a picture that isn't there, and break the forward pass."""
    for prompt in (
        "Say <image>",
        ask("Say <image>"),
        [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}],
    ):
        with pytest.raises(DataError, match="'<image>', which stands for an image"):
            render_prompt(prompt, llava)
    assert render_prompt("Say <image>", llava.tokenizer)  # a model of text alone: nothing to break


def test_templates_that_can_not_place_images(llava: Any) -> None:
    before = llava.chat_template
    text = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    try:
        llava.chat_template = text
        with pytest.raises(
            ConfigError, match=r"can't place images: it rendered 0 placeholders \(<image>\) for 2 images"
        ):
            render_visual_prompt(ask("Which?", 2), [picture(30, 30)] * 2, llava)
        for tokens, rendered in (("<image><image>", 4), ("{% if loop.first %}<image>{% endif %}", 1)):
            llava.chat_template = text.replace("{{ p.text }}", f"{{% if p.type == 'image' %}}{tokens}{{% endif %}}")
            with pytest.raises(DataError, match=rf"rendered {rendered} placeholder\(s\) \(<image>\) for 2 images"):
                render_visual_prompt(ask("Which?", 2), [picture(30, 30)] * 2, llava)
    finally:
        llava.chat_template = before


def test_models_that_can_not_see(llava: Any) -> None:
    with pytest.raises(ConfigError, match="reads text only, but the row has 1 image"):
        render_visual_prompt(ask("What?", 1), [picture(30, 30)], llava.tokenizer)
    with pytest.raises(ConfigError, match="a plain-text prompt has no place for images.*chat: true"):
        render_visual_prompt("What?", [picture(30, 30)], llava)


def test_a_processor_that_refuses_an_image(processors: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"refuses the prompt's 1 image \(900 × 2 pixels\): .*aspect ratio") as caught:
        render_visual_prompt(ask("What?", 1), [picture(900, 2)], processors["qwen2_5_vl"])
    assert caught.value.reason == "bad_image"


def test_a_processor_that_makes_no_image_tokens(llava: Any) -> None:
    blind = SimpleNamespace(
        image_processor=llava.image_processor, image_token="<image>", image_token_id=llava.image_token_id,
        tokenizer=llava.tokenizer, chat_template=llava.chat_template, apply_chat_template=llava.apply_chat_template,
    )  # fmt: skip

    class Blind(SimpleNamespace):
        def __call__(self, text: list[str], **kwargs: Any) -> Any:
            return llava.tokenizer([each.replace("<image>", "") for each in text], return_tensors="pt")

    with pytest.raises(DataError, match=r"made 0 image tokens \(<image>\) of 1 image"):
        render_visual_prompt(ask("What?", 1), [picture(30, 30)], Blind(**vars(blind)))


def test_nothing_is_cut(processors: dict[str, Any]) -> None:
    """Not even by a tokenizer that was saved with truncation switched on."""
    for kind, processor in processors.items():
        images = [picture(60, 40, i) for i in range(3)]
        whole = render_visual_prompt(ask("How many?", 3), images, processor)
        limit, processor.tokenizer.model_max_length = processor.tokenizer.model_max_length, 8
        processor.tokenizer.init_kwargs |= {"truncation": True, "max_length": 8}
        try:
            assert render_visual_prompt(ask("How many?", 3), images, processor).ids == whole.ids, kind
        finally:
            processor.tokenizer.model_max_length = limit
            for name in ("truncation", "max_length"):
                processor.tokenizer.init_kwargs.pop(name)


# ---- checking a set


def test_check_prompts_opens_every_image(llava: Any) -> None:
    good, other = picture(30, 30), picture(90, 20)
    broken = {"bytes": cell(good)["bytes"][:60], "path": None}
    rows = rows_of(("a", [good]), ("b", [good, broken]), ("text", []), ("c", [other, good, good]), ("d", [broken]))
    with pytest.raises(DataError, match=r"2 of 5 prompts can't be used \(2 truncated_image\)") as caught:
        check_prompts(rows, llava, None)
    assert "row r1: truncated_image" in str(caught.value) and "image 2: image of 60 bytes" in str(caught.value)
    assert caught.value.row == "r1" and caught.value.reason == "truncated_image"

    kept, ids, dropped = check_prompts(rows, llava, None, on_bad_row="drop")
    assert kept["id"][:] == ["r0", "r2", "r3"] and dropped == {"truncated_image": 2}
    visuals = visuals_of(kept, ids, llava)
    assert visuals is not None and visuals.max_images == 3 and list(image_counts(kept)) == [1, 0, 3]
    assert visuals[1] is None and [visuals[i].ids for i in (0, 2)] == [ids[0], ids[2]]  # type: ignore[union-attr]

    # A limit counts the tokens that the images become.
    with pytest.raises(DataError, match=r"row r3: .*\(\d+ tokens, with those of 3 image\(s\), the limit is 40\)"):
        check_prompts(kept, llava, 40)
    kept, ids, dropped = check_prompts(rows, llava, 40, on_bad_row="drop")
    assert kept["id"][:] == ["r0", "r2"] and dropped == {"truncated_image": 2, "prompt_too_long": 1}


def test_a_text_model_meets_images(llava: Any) -> None:
    rows = rows_of(("text", []), ("a", [picture(30, 30)]))
    with pytest.raises(ConfigError, match="reads text only"):
        check_prompts(rows, llava.tokenizer, None, on_bad_row="drop")


# ---- batches


def visual(ids: int, **inputs: torch.Tensor) -> VisualPrompt:
    return VisualPrompt([1] * ids, [1], [], inputs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_per_token_tensors_follow_the_padding(side: Any) -> None:
    rows = [
        visual(3, kinds=torch.tensor([[0, 1, 1]]), pixel_values=torch.ones(2, 4)),
        None,
        visual(5, kinds=torch.tensor([[1, 1, 1, 1, 0]]), pixel_values=torch.zeros(1, 4)),
    ]
    out = collate_visual(rows, 7, padding_side=side, dtype=torch.bfloat16)
    short, long = [0, 1, 1], [1, 1, 1, 1, 0]
    if side == "left":
        expected = [[0] * 4 + short, [0] * 7, [0] * 2 + long]
    else:
        expected = [short + [0] * 4, [0] * 7, long + [0] * 2]
    assert out["kinds"].tolist() == expected and out["kinds"].dtype == torch.long
    assert out["pixel_values"].shape == (3, 4) and out["pixel_values"].dtype == torch.bfloat16


def test_no_row_with_images_gives_nothing() -> None:
    assert collate_visual([None, None], 9) == {}


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda ndim: st.lists(
            hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=4).flatmap(
                lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(1, 2, width=32))
            ),
            min_size=1,
            max_size=4,
        )
    )
)
def test_tensors_of_unequal_shapes_are_padded_with_zeros(arrays: list[np.ndarray]) -> None:
    """Each row's values come back where they were, all else is 0."""
    rows = [visual(100, pixel_values=torch.from_numpy(array)) for array in arrays]
    joined = collate_visual(rows, 100)["pixel_values"].numpy()
    assert len(joined) == sum(len(array) for array in arrays)
    start = 0
    for array in arrays:
        for i, row in enumerate(array):
            found = joined[start + i]
            if array.ndim == 1:
                assert found == row
            else:
                box = tuple(slice(size) for size in row.shape)
                assert (found[box] == row).all() and np.count_nonzero(found) == row.size
        start += len(array)


# ---- memory


def test_a_group_shares_one_object(llava: Any) -> None:
    rows = rows_of(*((f"question {i}", [picture(40, 40, i)]) for i in range(6)))
    _, ids, _ = check_prompts(rows, llava, None)
    visuals = Visuals(rows, ids, llava)
    assert len({id(visuals[row]) for row in [3] * 16}) == 1


def test_memory_is_flat(llava: Any) -> None:
    """Whatever is asked for, in whatever order: no more than the limit stays alive."""
    rows = rows_of(*((f"question {i}", [picture(40, 40, i)]) for i in range(12)))
    _, ids, _ = check_prompts(rows, llava, None)
    one = Visuals(rows, ids, llava)[0]
    assert one is not None
    size = 40 * 40 * 3 + sum(tensor.nbytes for tensor in one.inputs.values())
    visuals = Visuals(rows, ids, llava, cache_bytes=3 * size)
    alive: list[weakref.ref[VisualPrompt]] = []
    for row in [0, 1, 2, 0, 3, *range(12), 5, 5, 11]:
        rendered = visuals[row]
        assert rendered is not None and rendered.ids == ids[row]
        alive.append(weakref.ref(rendered))
        del rendered
        assert len({id(ref()) for ref in alive if ref() is not None}) <= 3
    # The one that was used last is never thrown away, however large.
    tight = Visuals(rows, ids, llava, cache_bytes=1)
    assert tight[4] is tight[4]


def test_an_image_that_changes_while_it_is_in_use(processors: dict[str, Any], tmp_path: Path) -> None:
    processor, path = processors["qwen2_5_vl"], tmp_path / "a.png"
    picture(56, 56).save(path)
    rows = rows_of(("What?", [{"bytes": None, "path": str(path)}]))
    _, ids, _ = check_prompts(rows, processor, None)
    Image.new("RGB", (300, 60)).save(path)
    with pytest.raises(DataError, match=r"row r0: its images have another size"):
        Visuals(rows, ids, processor)[0]
    path.unlink()
    with pytest.raises(DataError, match=r"row r0: .*a.png"):
        Visuals(rows, ids, processor)[0]
