"""Infilling with a decoder: the middle of a text (FIM, arXiv 2207.14255), or its blanks (GLM, arXiv 2103.10360)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmreason.data.objectives.span import Ids


class FimTokens(NamedTuple):
    """Ids of the tokens that mark the three parts, and of the one that ends the middle."""

    prefix: int
    middle: int
    suffix: int
    end: int


class GlmTokens(NamedTuple):
    """Ids of the tokens that stand for a blank, and that begin and end what belongs into it."""

    mask: int
    start: int
    end: int


class Blanks(NamedTuple):
    """A text with blanks as a decoder reads it.

    Attributes:
        ids: (T,) part A, the text with a mask token for each span, then part B, the spans in random order, each after a
            start token.
        labels: (T,) what is to be predicted *at* each place (not shifted): -100 in part A, in part B the span's tokens
            and then the end token.
        prefix: length of part A, in which all tokens see each other.
        positions: (2, T) equation 2 of the paper: the place in the text (for part B that of the span's mask token), and
            the place within the span (0 in part A, 1, 2, … in part B).
    """

    ids: Ids
    labels: Ids
    prefix: int
    positions: NDArray[np.int64]


def fill_in_the_middle(
    ids: Sequence[int] | Ids, tokens: FimTokens, generator: np.random.Generator, *, spm_rate: float = 0.5
) -> Ids:
    """Cut a text into prefix, middle and suffix at two uniform places and put the middle last.

    PSM: `<PRE> prefix <SUF> suffix <MID> middle <END>`. SPM in the variant of section 3 that shares with PSM:
    `<PRE> <SUF> suffix <MID> prefix middle <END>`. Any part may be empty. All tokens are learned, as in the paper.

    Args:
        ids: (T,). spm_rate: the share of SPM; the paper trains on both alike.
    Returns: (T + 4,).
    """
    text = np.asarray(ids, dtype=np.int64)
    first, second = sorted(generator.integers(0, len(text), size=2, endpoint=True).tolist())
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    marks = {name: np.array([token], dtype=np.int64) for name, token in tokens._asdict().items()}
    if generator.random() < spm_rate:
        parts = [marks["prefix"], marks["suffix"], suffix, marks["middle"], prefix, middle, marks["end"]]
    else:
        parts = [marks["prefix"], prefix, marks["suffix"], suffix, marks["middle"], middle, marks["end"]]
    return np.concatenate(parts)


def draw_blanks(
    length: int, generator: np.random.Generator, *, density: float = 0.15, mean_length: float = 3.0
) -> list[tuple[int, int]]:
    """Spans (start, end) to be blanked out, in the order of the text, apart from each other by at least one token.

    Lengths are drawn from a Poisson distribution until at least `density` of the tokens is in a span (section 2.1); the
    last span is cut to what is wanted, so that a short text is not blanked out whole.
    """
    wanted = max(1, round(density * length))
    lengths: list[int] = []
    while sum(lengths) < wanted:
        lengths.append(min(max(1, int(generator.poisson(mean_length))), wanted - sum(lengths)))
    # Between two spans stands a token at least, or they would be one.
    free = length - sum(lengths) - (len(lengths) - 1)
    while free < 0:
        lengths[-1] -= 1
        lengths = [n for n in lengths if n]
        free = length - sum(lengths) - (len(lengths) - 1)
    lengths = [lengths[i] for i in generator.permutation(len(lengths))]
    # Where the spans lie: the free tokens are shared out over the gaps, every way equally likely.
    places = np.sort(generator.choice(free + len(lengths), size=len(lengths), replace=False))
    spans, taken = [], 0
    for place, span in zip(places.tolist(), lengths, strict=True):
        start = place + taken  # a place counts the free tokens before it and one for each gap
        spans.append((start, start + span))
        taken += span
    return spans


def fill_blanks(
    ids: Sequence[int] | Ids, spans: Sequence[tuple[int, int]], tokens: GlmTokens, generator: np.random.Generator
) -> Blanks:
    """Blank out spans of a text and have them written behind it, in random order (section 2.1, figure 2).

    Args: ids: (T,). spans: (start, end) in the order of the text, see `draw_blanks`.
    """
    text = np.asarray(ids, dtype=np.int64)
    kept: list[int] = []
    mask_places: list[int] = []
    place = 0
    for start, stop in [*spans, (len(text), len(text))]:
        kept += text[place:start].tolist()
        if start < stop:
            mask_places.append(len(kept))
            kept.append(tokens.mask)
        place = stop
    part_b: list[int] = []
    labels: list[int] = [-100] * len(kept)
    first, second = list(range(len(kept))), [0] * len(kept)
    for index in generator.permutation(len(spans)).tolist():
        start, stop = spans[index]
        span = text[start:stop].tolist()
        part_b += [tokens.start, *span]
        labels += [*span, tokens.end]
        first += [mask_places[index]] * (len(span) + 1)
        second += range(1, len(span) + 2)
    return Blanks(
        np.array(kept + part_b, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        len(kept),
        np.array([first, second], dtype=np.int64),
    )
