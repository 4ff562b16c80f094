"""Micro-batches: padded rows and one sequence hold the same tokens, weights and pictures."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmreason.data.collate import collate_rows
from mmreason.data.supervised import SupervisedRow
from mmreason.data.visual import VisualPrompt
from mmreason.types import IGNORE_INDEX

PAD = 0
TOKENS = st.lists(st.tuples(st.integers(1, 99), st.sampled_from([0.0, 0.5, 1.0, 2.0])), min_size=1, max_size=9)


def text_row(cells: list[tuple[int, float]], visual: VisualPrompt | None = None) -> SupervisedRow:
    return SupervisedRow([token for token, _ in cells], [weight for _, weight in cells], "row", "set", visual)


def seeing_row(length: int, images: int, seed: int) -> SupervisedRow:
    """Per-token marks for its whole length, and two kinds of tensors per image."""
    inputs = {
        "pixel_values": torch.full((images, 3, 2), float(seed)),
        "image_grid_thw": torch.full((images, 3), seed),
        "mm_token_type_ids": (torch.arange(length) % 2)[None] + 2 * seed,
    }
    ids = list(range(10, 10 + length))
    visual = VisualPrompt(ids, [], [], inputs)
    return SupervisedRow(ids, [0.0] * (length - 1) + [1.0], f"row {seed}", "set", visual)


@given(st.lists(TOKENS, min_size=1, max_size=5))
def test_both_forms_hold_the_same(cells: list[list[tuple[int, float]]]) -> None:
    rows = [text_row(one) for one in cells]
    padded, flat = collate_rows(rows, PAD), collate_rows(rows, PAD, padding_free=True)
    real = padded["attention_mask"].bool()
    for name in ("input_ids", "labels", "loss_weights", "row_numbers"):
        assert torch.equal(padded[name][real], flat[name][0]), name
    assert padded["loss_weights"].dtype == torch.float32 and not padded["loss_weights"][~real].any()
    assert (padded["labels"][~real] == IGNORE_INDEX).all() and (padded["input_ids"][~real] == PAD).all()
    assert flat["position_ids"][0].tolist() == [place for one in cells for place in range(len(one))]
    assert "attention_mask" not in flat, "with a mask, transformers would not look for packed rows"


@given(st.lists(TOKENS, min_size=1, max_size=5))
def test_a_first_token_is_predicted_by_nothing(cells: list[list[tuple[int, float]]]) -> None:
    """Its predecessor in a packed sequence is another row's last token."""
    flat = collate_rows([text_row(one) for one in cells], PAD, padding_free=True)
    starts = flat["position_ids"][0] == 0
    assert not flat["loss_weights"][0][starts].any() and (flat["labels"][0][starts] == IGNORE_INDEX).all()
    want = [(token, weight) for one in cells for token, weight in one[1:] if weight]
    learned = flat["labels"][0] != IGNORE_INDEX
    found = zip(flat["labels"][0][learned].tolist(), flat["loss_weights"][0][learned].tolist(), strict=True)
    assert list(found) == want


def test_pictures_follow_their_rows() -> None:
    rows = [seeing_row(4, 2, 1), text_row([(1, 0.0), (2, 1.0), (3, 1.0)]), seeing_row(2, 1, 5)]
    padded = collate_rows(rows, PAD, visual_dtype=torch.bfloat16)
    flat = collate_rows(rows, PAD, padding_free=True, visual_dtype=torch.bfloat16)
    for batch in (padded, flat):
        assert batch["pixel_values"].dtype == torch.bfloat16
        assert batch["pixel_values"][:, 0, 0].tolist() == [1.0, 1.0, 5.0]
        assert batch["image_grid_thw"][:, 0].tolist() == [1, 1, 5]
    assert padded["mm_token_type_ids"].tolist() == [[2, 3, 2, 3], [0, 0, 0, 0], [10, 11, 0, 0]]
    assert flat["mm_token_type_ids"].tolist() == [[2, 3, 2, 3, 0, 0, 0, 10, 11]]


def test_several_position_axes() -> None:
    """Plain positions first, then what the model counts for each row by itself."""
    asked: list[tuple[list[int], list[str]]] = []

    def count(ids: torch.Tensor, visual: Any) -> torch.Tensor:
        asked.append((ids[0].tolist(), sorted(visual)))
        return torch.stack([torch.arange(ids.shape[1]) + axis for axis in (7, 8, 9)])

    rows = [seeing_row(3, 1, 1), text_row([(1, 0.0), (2, 1.0)])]
    flat = collate_rows(rows, PAD, padding_free=True, row_positions=count)
    assert flat["position_ids"].shape == (4, 1, 5)
    assert flat["position_ids"][:, 0].tolist() == [
        [0, 1, 2, 0, 1], [7, 8, 9, 7, 8], [8, 9, 10, 8, 9], [9, 10, 11, 9, 10]
    ]  # fmt: skip
    assert asked == [([10, 11, 12], ["image_grid_thw", "mm_token_type_ids", "pixel_values"]), ([1, 2], [])]
