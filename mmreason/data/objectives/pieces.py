"""Objectives bound to a tokenizer: a piece of a document → what one row of training reads and is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mmreason.data.objectives.infill import draw_blanks, fill_blanks, fill_in_the_middle
from mmreason.data.objectives.mlm import mask_tokens
from mmreason.data.objectives.span import Corrupted, Ids, corrupt_spans, random_spans_noise_mask
from mmreason.data.objectives.tokens import ObjectiveTokens
from mmreason.data.objectives.ul2 import DENOISERS, Denoiser, mixed_denoising
from mmreason.types import IGNORE_INDEX, ConfigError

Layout = Literal["packed", "prefix", "masked", "seq2seq"]
"""packed: a decoder, pieces share a sequence. prefix: a decoder that sees a piece's first part both ways, one piece per
row. masked: an encoder, labels at their places. seq2seq: an encoder-decoder, labels of their own length."""
_SHORTEST = 2
"""Tokens of a piece that can be corrupted; a shorter rest of a document is learned as it is."""


class Piece(NamedTuple):
    """One row, or a part of a packed one.

    Attributes:
        ids: (T,) what the model, or its encoder, reads.
        labels: IGNORE_INDEX where nothing is learned. Decoder: (T,) the tokens themselves, each predicted one place
            earlier. masked: (T,) what stood there. seq2seq: (target tokens,).
        prefix: tokens at the beginning that see each other both ways.
    """

    ids: Ids
    labels: Ids
    prefix: int = 0


@dataclass(frozen=True)
class Objective:
    """How pieces of documents become rows.

    Attributes:
        make: (ids of a piece, generator) → row. room: longest piece in tokens, so that its row fits into max_length.
        overlap: tokens that a piece shares with the one before it: with 1, every token of a document but its first is
            predicted exactly once.
    """

    make: Callable[[Ids, np.random.Generator], Piece]
    room: int
    layout: Layout
    overlap: int = 0


@dataclass(frozen=True)
class ObjectiveSettings:
    """Numbers of the objectives, under the names of the recipe's options."""

    mlm_probability: float = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    ul2_weights: Mapping[str, float] | None = None
    infill_format: Literal["fim", "glm"] = "fim"
    fim_rate: float = 0.5
    fim_spm_rate: float = 0.5
    bidirectional_prefix: bool = False


def build_objective(
    name: str,
    tokens: ObjectiveTokens,
    settings: ObjectiveSettings,
    *,
    max_length: int,
    encoder_decoder: bool,
    vocab_size: int,
    special_ids: frozenset[int] = frozenset(),
    word_starts: Ids | None = None,
) -> Objective:
    """The objective of that name for a model with a decoder alone or with both; for mlm, with an encoder alone.

    Args:
        max_length: of a row in tokens; with an encoder-decoder of its inputs and of its targets.
        vocab_size, special_ids: of mlm: which tokens are drawn at random, and which are never chosen.
        word_starts: (V,) bool, of mlm: whole words are masked; None: tokens.
    Raises: ConfigError where the objective doesn't fit the model, or no piece fits into max_length.
    """
    if encoder_decoder and name in ("clm", "infill"):
        raise ConfigError(
            f"objective {name} is for decoders; an encoder-decoder learns the same with objective: "
            + ("ul2" if name == "clm" else "span")
        )
    if name == "clm":
        made = Objective(lambda ids, rng: Piece(ids, ids), max_length, "packed", overlap=1)
    elif name == "mlm":
        room = max_length - len(tokens.around or ())
        made = Objective(_mlm(tokens, settings, vocab_size, special_ids, word_starts), room, "masked")
    elif name == "infill":
        made = _infill(tokens, settings, max_length)
    elif name in ("span", "ul2"):
        made = _denoising(name, tokens, settings, max_length, encoder_decoder)
    else:
        raise ConfigError(f"objective {name!r} learns no documents")
    if made.room < 8:
        raise ConfigError(f"max_length={max_length} is too short for objective {name}: {made.room} tokens of text fit")
    return made


def _mlm(
    tokens: ObjectiveTokens,
    settings: ObjectiveSettings,
    vocab_size: int,
    special_ids: frozenset[int],
    word_starts: Ids | None,
) -> Callable[[Ids, np.random.Generator], Piece]:
    import torch

    assert tokens.mask is not None
    mask, never = tokens.mask, np.array(sorted(special_ids), dtype=np.int64)

    def make(ids: Ids, rng: np.random.Generator) -> Piece:
        if tokens.around is not None:
            ids = np.concatenate([tokens.around[:1], ids, tokens.around[1:]])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        row = torch.from_numpy(ids)[None]
        starts = None if word_starts is None else torch.from_numpy(word_starts[ids])[None]
        if starts is not None:
            starts[:, 0] = True  # a piece may begin within a word
        inputs, labels = mask_tokens(
            row,
            torch.from_numpy(np.isin(ids, never))[None],
            mask_token_id=mask,
            vocab_size=vocab_size,
            generator=generator,
            probability=settings.mlm_probability,
            mask_share=settings.mask_replace_prob,
            random_share=settings.random_replace_prob,
            starts=starts,
        )
        return Piece(inputs[0].numpy(), labels[0].numpy())

    return make


def _infill(tokens: ObjectiveTokens, settings: ObjectiveSettings, max_length: int) -> Objective:
    if settings.infill_format == "fim":
        fim = tokens.fim
        assert fim is not None

        def make(ids: Ids, rng: np.random.Generator) -> Piece:
            row = ids
            if rng.random() < settings.fim_rate:
                row = fill_in_the_middle(ids, fim, rng, spm_rate=settings.fim_spm_rate)
            return Piece(row, row)

        return Objective(make, max_length - len(fim), "packed")
    glm = tokens.glm
    assert glm is not None

    def blank(ids: Ids, rng: np.random.Generator) -> Piece:
        density, mean_length = settings.noise_density, settings.mean_noise_span_length
        row = fill_blanks(ids, draw_blanks(len(ids), rng, density=density, mean_length=mean_length), glm, rng)
        # What is predicted at a place is the label of the next one: the row is one token longer than what is read.
        return Piece(np.append(row.ids, glm.end), np.insert(row.labels, 0, IGNORE_INDEX), row.prefix)

    # Each blank adds a mask and a start token; there are no more blanks than blanked-out tokens.
    room = _largest(lambda n: n + 2 * max(1, round(settings.noise_density * n)) + 1 <= max_length, max_length)
    return Objective(blank, room, "prefix")


def _denoising(
    name: str, tokens: ObjectiveTokens, settings: ObjectiveSettings, max_length: int, encoder_decoder: bool
) -> Objective:
    end = () if tokens.end is None else (tokens.end,)
    own = Denoiser("R", settings.mean_noise_span_length, settings.noise_density)
    denoisers = (own,) if name == "span" else DENOISERS
    modes = tokens.modes if name == "ul2" else None

    def corrupt(ids: Ids, rng: np.random.Generator) -> Corrupted:
        if name == "span":
            noise = random_spans_noise_mask(len(ids), own.density, settings.mean_noise_span_length, rng)
            return corrupt_spans(ids, noise, tokens.sentinels, end)
        weights = settings.ul2_weights
        return mixed_denoising(ids, rng, sentinels=tokens.sentinels, modes=modes, end=end, weights=weights)[0]

    def make(ids: Ids, rng: np.random.Generator) -> Piece:
        if len(ids) < _SHORTEST:
            return Piece(ids, ids if encoder_decoder else np.full_like(ids, IGNORE_INDEX))
        inputs, targets = corrupt(ids, rng)
        if encoder_decoder:
            return Piece(inputs, targets)
        inputs = inputs[: len(inputs) - len(end)]  # one sequence has one end
        labels = np.concatenate([np.full_like(inputs, IGNORE_INDEX), targets])
        prefix = len(inputs) if settings.bidirectional_prefix else 0
        return Piece(np.concatenate([inputs, targets]), labels, prefix)

    def fits(length: int) -> bool:
        return all(_fits(length, one, len(tokens.sentinels), max_length, encoder_decoder) for one in denoisers)

    layout: Layout = "prefix" if settings.bidirectional_prefix else "packed"
    return Objective(make, _largest(fits, 4 * max_length), "seq2seq" if encoder_decoder else layout)


def _fits(length: int, denoiser: Denoiser, sentinels: int, max_length: int, encoder_decoder: bool) -> bool:
    """Does the row of a piece fit, at worst? Spans and noise follow from the piece's length (`random_spans_…`)."""
    if denoiser.mean_length is None:
        spans, least, most = 1, 1, max(1, round(2 * denoiser.density * length) - 1)
    else:
        least = most = min(max(round(length * denoiser.density), 1), length - 1)
        spans = max(round(min(most, length - most) / denoiser.mean_length), 1)
    inputs, targets = length - least + spans + 2, most + spans + 2  # a mode token, a last sentinel, the end
    if encoder_decoder:
        return spans < sentinels and max(inputs, targets) <= max_length
    return spans < sentinels and length + 2 * spans + 3 <= max_length


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 2 to `limit` that fits; 0 where none does. What fits shall fit if it is smaller, too."""
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low if low > 1 else 0
