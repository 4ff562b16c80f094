"""Objectives bound to a tokenizer: rows fit, special tokens are found or added, wrong kinds of model are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.data.objectives import ObjectiveSettings, ObjectiveTokens, build_objective, names_of, objective_tokens
from mmreason.models.tiny import tiny_tokenizer
from mmreason.types import IGNORE_INDEX, ConfigError

KINDS = [
    ("clm", False, {}),
    ("mlm", False, {}),
    ("span", False, {}),
    ("span", True, {}),
    ("span", False, {"bidirectional_prefix": True, "noise_density": 0.5}),
    ("ul2", False, {}),
    ("ul2", True, {}),
    ("infill", False, {}),
    ("infill", False, {"infill_format": "glm", "noise_density": 0.4}),
]


def tokens_for(name: str, chosen: ObjectiveSettings) -> tuple[Any, ObjectiveTokens]:
    tokenizer = tiny_tokenizer()
    return tokenizer, objective_tokens(tokenizer, name, chosen.infill_format)


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(KINDS), st.integers(32, 400), st.integers(0, 2**31), st.floats(0, 1))
def test_every_row_fits_and_says_what_is_learned(
    kind: tuple[str, bool, dict[str, Any]], max_length: int, seed: int, share: float
) -> None:
    name, both, given_settings = kind
    chosen = ObjectiveSettings(**given_settings)
    tokenizer, tokens = tokens_for(name, chosen)
    objective = build_objective(
        name, tokens, chosen, max_length=max_length, encoder_decoder=both, vocab_size=len(tokenizer)
    )
    length = max(1, round(share * objective.room))
    row = objective.make(np.arange(length, dtype=np.int64), np.random.default_rng(seed))
    assert len(row.ids) <= max_length and len(row.labels) <= max_length
    assert row.prefix <= len(row.ids)
    assert (len(row.ids) == len(row.labels)) or objective.layout == "seq2seq"
    if objective.layout == "packed":  # a decoder reads what it has predicted
        wanted = row.labels != IGNORE_INDEX
        assert (row.labels[wanted] == row.ids[wanted]).all()
        assert length < 2 or wanted.any()
    longer = objective.make(np.arange(objective.room, dtype=np.int64), np.random.default_rng(seed))
    assert max(len(longer.ids), len(longer.labels)) <= max_length


def test_room_is_not_wasted() -> None:
    """T5's own numbers: 512 tokens of inputs come of 568 tokens of text, with 114 of targets (compute_input_and_…)."""
    tokenizer, tokens = tokens_for("span", ObjectiveSettings())
    objective = build_objective(
        "span", tokens, ObjectiveSettings(), max_length=512, encoder_decoder=True, vocab_size=len(tokenizer)
    )
    assert 564 <= objective.room <= 568
    row = objective.make(np.arange(objective.room), np.random.default_rng(0))
    assert 508 <= len(row.ids) <= 512 and 112 <= len(row.labels) <= 115


def test_bert_puts_its_own_tokens_around() -> None:
    tokens = ObjectiveTokens(end=None, mask=3, around=(1, 2))
    objective = build_objective(
        "mlm", tokens, ObjectiveSettings(mlm_probability=1.0), max_length=64, encoder_decoder=False, vocab_size=100,
        special_ids=frozenset({0, 1, 2, 3}),
    )  # fmt: skip
    row = objective.make(np.arange(10, 72, dtype=np.int64), np.random.default_rng(0))
    assert objective.room == 62 and (row.ids[0], row.ids[-1]) == (1, 2)
    assert row.labels[0] == row.labels[-1] == IGNORE_INDEX and row.labels[1:-1].tolist() == list(range(10, 72))


def test_tokens_are_found_under_known_names() -> None:
    tokenizer = tiny_tokenizer()
    known = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "[NLU]", "[S2S]", "[NLG]", "<extra_id_0>", "<extra_id_1>"]
    tokenizer.add_special_tokens({"additional_special_tokens": known})
    size = len(tokenizer)
    ids = dict(zip(known, tokenizer.convert_tokens_to_ids(known), strict=True))
    fim = objective_tokens(tokenizer, "infill").fim
    assert fim is not None and fim.end == tokenizer.eos_token_id
    assert [fim.prefix, fim.middle, fim.suffix] == [ids[name] for name in known[:3]]
    found = objective_tokens(tokenizer, "ul2")
    assert found.modes == {"R": ids["[NLU]"], "S": ids["[S2S]"], "X": ids["[NLG]"]}
    assert found.sentinels == (ids["<extra_id_0>"], ids["<extra_id_1>"])
    assert len(tokenizer) == size and not found.added


@pytest.mark.parametrize("name", ["mlm", "span", "ul2", "infill"])
def test_tokens_are_added_once(name: str) -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    first = objective_tokens(tokenizer, name)
    assert set(first.added) == set(names_of(name)) and len(tokenizer) == size + len(first.added)
    again = objective_tokens(tokenizer, name)
    assert not again.added and again.sentinels == first.sentinels and again.mask == first.mask


def test_sentinels_bound_the_room() -> None:
    tokens = ObjectiveTokens(end=1, sentinels=tuple(range(100, 105)))
    objective = build_objective("span", tokens, ObjectiveSettings(), max_length=512, encoder_decoder=True, vocab_size=9)
    assert objective.room < 110  # four spans of three tokens are 15 % of some 90 tokens
    row = objective.make(np.arange(objective.room), np.random.default_rng(0))
    assert (row.ids >= 100).sum() == 4 and row.ids[-1] == 1


@pytest.mark.parametrize(
    ("name", "both", "length", "said"),
    [
        ("clm", True, 64, "objective: ul2"),
        ("infill", True, 64, "objective: span"),
        ("span", False, 9, "too short"),
        ("align", False, 64, "learns no documents"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, both: bool, length: int, said: str) -> None:
    _, tokens = tokens_for(name, ObjectiveSettings())
    with pytest.raises(ConfigError, match=said):
        build_objective(name, tokens, ObjectiveSettings(), max_length=length, encoder_decoder=both, vocab_size=99)
