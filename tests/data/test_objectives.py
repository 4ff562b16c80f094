"""Masks and targets equal Hugging Face's collator, T5's preprocessing and the papers' definitions on the same draws."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorForLanguageModeling

from mmreason.data.objectives import (
    DENOISERS,
    FimTokens,
    GlmTokens,
    corrupt_spans,
    denoise,
    fill_blanks,
    fill_in_the_middle,
    mask_tokens,
    mixed_denoising,
    random_spans_noise_mask,
    word_starts,
)
from mmreason.data.objectives.infill import draw_blanks
from mmreason.models.tiny import tiny_tokenizer

WORD_PIECES = ("[PAD]", "[UNK]", "[MASK]", "[SEP]", "un", "##believ", "##able", "to", "##tal", "good")
SENTINELS = range(5000, 5400)
lengths = st.integers(2, 300)
seeds = st.integers(0, 2**31)


def masked_tokenizer() -> Any:
    tokenizer = tiny_tokenizer(["to be or not to be, that is the question: whether it is nobler"] * 9, 320)
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    return tokenizer


# ---- mlm


@pytest.mark.parametrize("shares", [(0.15, 0.8, 0.1), (0.4, 0.5, 0.5), (0.3, 1.0, 0.0), (0.5, 0.0, 1.0)])
def test_mlm_equals_the_collator_of_transformers(shares: tuple[float, float, float]) -> None:
    tokenizer = masked_tokenizer()
    texts = ["to be or not to be", "that is the question", "whether it is nobler in the mind to suffer"]
    rows = [{"input_ids": tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]} for text in texts]
    never = set(tokenizer.all_special_ids)
    probability, mask, random = shares
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=probability, mask_replace_prob=mask, random_replace_prob=random, seed=7
    )
    flags = [[int(token in never) for token in row["input_ids"]] for row in rows]
    longest = max(map(len, flags))
    want = collator(
        [{"input_ids": row["input_ids"], "special_tokens_mask": flag} for row, flag in zip(rows, flags, strict=True)]
    )
    ids = tokenizer.pad(rows, return_tensors="pt")["input_ids"]
    special = torch.tensor([flag + [1] * (longest - len(flag)) for flag in flags]).bool()
    inputs, labels = mask_tokens(
        ids, special, mask_token_id=tokenizer.mask_token_id, vocab_size=len(tokenizer),
        generator=torch.Generator().manual_seed(7), probability=probability, mask_share=mask, random_share=random,
    )  # fmt: skip
    assert torch.equal(inputs, want["input_ids"]) and torch.equal(labels, want["labels"])
    assert 0 < (labels >= 0).sum() < (~special).sum()


def test_whole_words_equal_the_collator_of_transformers() -> None:
    """Its word boundaries come from offsets, ours from the vocabulary; with WordPiece's ## both are the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(WORD_PIECES)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", sep_token="[SEP]"
    )
    text = "unbelievable good total good unable total unbelievable good " * 4
    encoded = tokenizer(text, return_offsets_mapping=True)
    row = {"input_ids": encoded["input_ids"], "offset_mapping": encoded["offset_mapping"]}
    collator = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mlm_probability=0.3, mask_replace_prob=1.0, random_replace_prob=0.0, seed=3
    )
    want = collator([row])
    ids = torch.tensor([encoded["input_ids"]])
    inputs, labels = mask_tokens(
        ids, torch.zeros_like(ids).bool(), mask_token_id=tokenizer.mask_token_id, vocab_size=len(tokenizer),
        generator=torch.Generator().manual_seed(3), probability=0.3, mask_share=1.0, random_share=0.0,
        starts=word_starts(tokenizer)[ids],
    )  # fmt: skip
    assert torch.equal(inputs, want["input_ids"]) and torch.equal(labels, want["labels"])
    assert 0 < (labels >= 0).sum() < ids.numel()


def test_bert_shares_over_many_tokens() -> None:
    ids = torch.randint(100, 1000, (50, 2000), generator=torch.Generator().manual_seed(0))
    inputs, labels = mask_tokens(
        ids, torch.zeros_like(ids).bool(), mask_token_id=1, vocab_size=1000, generator=torch.Generator().manual_seed(1)
    )
    chosen = labels >= 0
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.005)
    assert (inputs[chosen] == 1).float().mean().item() == pytest.approx(0.8, abs=0.01)
    kept = inputs[chosen] == ids[chosen]
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(inputs[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])


def test_shares_that_are_none_are_refused() -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="random_share"):
        mask_tokens(ids, ids.bool(), mask_token_id=1, vocab_size=9, generator=None, mask_share=0.8, random_share=0.3)


# ---- span: the reference is T5's preprocessing as transformers' run_t5_mlm_flax.py has it, written with other means


def t5_noise_mask(length: int, density: float, mean_length: float, generator: np.random.Generator) -> list[bool]:
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(min(noise, length - noise) / mean_length), 1)

    def cut(items: int) -> list[int]:
        flags = np.array([True] * (spans - 1) + [False] * (items - spans))
        generator.shuffle(flags)
        pieces, size = [], 1
        for flag in flags:
            if flag:
                pieces.append(size)
                size = 0
            size += 1
        return [*pieces, size]

    noisy, plain = cut(noise), cut(length - noise)
    return [flag for a, b in zip(plain, noisy, strict=True) for flag in [False] * a + [True] * b]


def t5_side(ids: list[int], mask: list[bool], end: int) -> list[int]:
    """`create_sentinel_ids` and `filter_input_ids`: each run under the mask becomes the next sentinel."""
    out, used = [], 0
    for i, (token, masked) in enumerate(zip(ids, mask, strict=True)):
        if not masked:
            out.append(token)
        elif i == 0 or not mask[i - 1]:
            out.append(SENTINELS[used])
            used += 1
    return [*out, end]


@settings(deadline=None, max_examples=80)
@given(lengths, st.floats(0.05, 0.9), st.floats(1, 10), seeds)
def test_spans_equal_t5(length: int, density: float, mean_length: float, seed: int) -> None:
    mask = random_spans_noise_mask(length, density, mean_length, np.random.default_rng(seed))
    want = t5_noise_mask(length, density, mean_length, np.random.default_rng(seed))
    assert mask.tolist() == want
    ids = list(range(1, length + 1))
    inputs, targets = corrupt_spans(ids, mask, SENTINELS, [1])
    assert inputs.tolist() == t5_side(ids, want, 1)
    assert targets.tolist() == t5_side(ids, [not flag for flag in want], 1)


def test_the_papers_own_example() -> None:
    """Figure 2: "Thank you for inviting me to your party last week ." with two spans, and a final sentinel."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    mask = np.array([word in ("for", "inviting", "last") for word in words])
    inputs, targets = corrupt_spans(range(len(words)), mask, [100, 101, 102])
    read, written = (" ".join(words[i] if i < 100 else "XYZ"[i - 100] for i in side) for side in (inputs, targets))
    assert read == "Thank you X me to your party Y week ." and written == "X for inviting Y last Z"


def put_back(inputs: list[int], targets: list[int]) -> list[int]:
    """The text again: each sentinel of the inputs gives way to what the targets say behind it."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token >= SENTINELS[0]:
            spans[token] = current = []
        else:
            current.append(token)
    return [out for token in inputs for out in (spans[token] if token >= SENTINELS[0] else [token])]


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 400), seeds)
def test_every_denoiser_loses_nothing(length: int, seed: int) -> None:
    ids = list(range(1, length + 1))
    for number, denoiser in enumerate(DENOISERS):
        rng = np.random.default_rng([seed, number])
        inputs, targets = denoise(ids, denoiser, rng, sentinels=SENTINELS)
        assert put_back(inputs.tolist(), targets.tolist()) == ids
        hidden = sum(token < SENTINELS[0] for token in targets.tolist())
        if denoiser.mode == "S":
            assert inputs[-1] == SENTINELS[0] and targets[1:].tolist() == ids[-hidden:]
        else:
            assert hidden == min(max(round(length * denoiser.density), 1), length - 1)


def test_ul2_is_the_papers_table() -> None:
    """Table 1 of arXiv 2205.05131: seven denoisers; S writes a quarter of the text on average."""
    table = {("R", 3, 0.15), ("R", 8, 0.15), ("S", None, 0.25)}
    table |= {("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5)}
    assert {tuple(denoiser) for denoiser in DENOISERS} == table
    ids, modes = range(1, 513), {"R": 900, "S": 901, "X": 902}
    drawn = [
        mixed_denoising(ids, np.random.default_rng(i), sentinels=SENTINELS, modes=modes, end=[1]) for i in range(1400)
    ]
    counts = [sum(used == denoiser for _, used in drawn) for denoiser in DENOISERS]
    assert min(counts) > 140 and max(counts) < 260
    for (inputs, targets), used in drawn:
        assert inputs[0] == modes[used.mode] and inputs[-1] == targets[-1] == 1
    written = [len(c.targets) - 2 for c, used in drawn if used.mode == "S"]
    assert np.mean(written) == pytest.approx(128, rel=0.1)
    only = {
        mixed_denoising(ids, np.random.default_rng(i), sentinels=SENTINELS, weights={"S": 1.0})[1].mode
        for i in range(9)
    }
    assert only == {"S"}


def test_too_few_sentinels_are_named() -> None:
    with pytest.raises(ValueError, match="3 sentinels are needed for 5 tokens, the tokenizer has 2"):
        corrupt_spans(range(5), np.array([False, True, False, True, False]), [50, 51])


# ---- infill

FIM = FimTokens(prefix=901, middle=902, suffix=903, end=904)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 60), seeds, st.sampled_from([0.0, 1.0]))
def test_fim_is_the_papers_order(length: int, seed: int, spm: float) -> None:
    ids = list(range(length))
    out = fill_in_the_middle(ids, FIM, np.random.default_rng(seed), spm_rate=spm).tolist()
    assert sorted(out) == [*ids, 901, 902, 903, 904] and out[0] == FIM.prefix and out[-1] == FIM.end
    at = {token: out.index(token) for token in (FIM.suffix, FIM.middle)}
    if spm:  # <PRE> <SUF> suffix <MID> prefix middle <END>
        assert at[FIM.suffix] == 1
        suffix, rest = out[2 : at[FIM.middle]], out[at[FIM.middle] + 1 : -1]
        assert rest + suffix == ids
    else:  # <PRE> prefix <SUF> suffix <MID> middle <END>
        prefix, suffix = out[1 : at[FIM.suffix]], out[at[FIM.suffix] + 1 : at[FIM.middle]]
        assert prefix + out[at[FIM.middle] + 1 : -1] + suffix == ids


def test_fim_cuts_are_uniform() -> None:
    """Both cuts are drawn uniformly from the places of the text, its two ends included: thirds on average."""
    rng = np.random.default_rng(0)
    rows = [fill_in_the_middle(range(90), FIM, rng, spm_rate=0.0).tolist() for _ in range(3000)]
    middles = [len(row) - row.index(FIM.middle) - 2 for row in rows]
    assert np.mean(middles) == pytest.approx(30, rel=0.05)
    shared = [fill_in_the_middle(range(9), FIM, rng)[1] == FIM.suffix for _ in range(1000)]
    assert 0.55 < np.mean(shared) < 0.65  # half of them, and of the others those whose prefix is empty (0.19)


GLM = GlmTokens(mask=901, start=902, end=903)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 200), seeds, st.floats(0.02, 0.9), st.floats(1, 8))
def test_blanks_are_those_of_the_paper(length: int, seed: int, density: float, mean_length: float) -> None:
    rng = np.random.default_rng(seed)
    spans = draw_blanks(length, rng, density=density, mean_length=mean_length)
    assert spans and all(0 <= a < b <= length for a, b in spans)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(spans))
    ids = list(range(length))
    row = fill_blanks(ids, spans, GLM, rng)
    part_a, part_b = row.ids[: row.prefix].tolist(), row.ids[row.prefix :].tolist()
    assert part_a.count(GLM.mask) == part_b.count(GLM.start) == len(spans)
    assert (row.labels[: row.prefix] == -100).all()
    written: dict[int, list[int]] = {}
    for token, label, (place, inside) in zip(
        part_b, row.labels[row.prefix :].tolist(), row.positions[:, row.prefix :].T.tolist(), strict=True
    ):
        assert part_a[place] == GLM.mask  # equation 2: the first position is that of the span's mask token
        written.setdefault(place, []).append(label)
        assert inside == len(written[place])
        assert token == (GLM.start if inside == 1 else written[place][-2])  # reads what it was asked for before
    assert all(labels[-1] == GLM.end for labels in written.values())
    back = [token for i, read in enumerate(part_a) for token in (written[i][:-1] if read == GLM.mask else [read])]
    assert back == ids
    assert row.positions[:, : row.prefix].tolist() == [list(range(row.prefix)), [0] * row.prefix]


def test_blanks_take_the_share_that_is_wanted() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_blanks(200, rng) for _ in range(400)]
    assert {sum(b - a for a, b in spans) for spans in drawn} == {30}
    starts = [a for spans in drawn for a, _ in spans]
    assert np.mean(starts) == pytest.approx(98, rel=0.05)
