"""Span corruption (T5, arXiv 1910.10683, section 3.1.4): sentinels in the text, and what they stand for as target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Corrupted(NamedTuple):
    """What the model reads, and what it is to write: apart for an encoder-decoder, one after another for a decoder."""

    inputs: Ids
    targets: Ids


def random_spans_noise_mask(
    length: int, density: float, mean_length: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Which tokens of a text are noise: T5's `random_spans_noise_mask`, draw for draw.

    Spans of noise and of text alternate, beginning with text and ending with noise. How many there are follows from the
    arguments; all ways to cut them are equally likely.

    Args:
        length: of the text in tokens, at least 2. density: the share of noise. mean_length: of a span of noise.
    Returns: (length,) bool.
    Raises: ValueError for a text that is too short to be cut.
    """
    if length < 2:
        raise ValueError(f"a text of {length} tokens can't be corrupted: at least 2")
    noise = min(max(int(np.round(length * density)), 1), length - 1)
    spans = max(int(np.round(min(noise, length - noise) / mean_length)), 1)
    noise_lengths = _segments(noise, spans, generator)
    text_lengths = _segments(length - noise, spans, generator)
    lengths = np.stack([text_lengths, noise_lengths], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _segments(items: int, segments: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(segments,) positive lengths that add up to `items`; every such cut is equally likely."""
    ends = np.arange(items - 1) < segments - 1
    generator.shuffle(ends)
    return np.bincount(np.cumsum(np.pad(ends, (1, 0))), minlength=segments)


def noise_spans(noise: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, end) of each run of noise."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], noise, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def corrupt_spans(
    ids: Sequence[int] | Ids, noise: NDArray[np.bool_], sentinels: Sequence[int], end: Sequence[int] = ()
) -> Corrupted:
    """Put a sentinel in the place of each span of noise; the target names each sentinel with the span behind it.

    Where text follows the last span, a further sentinel ends the target, as in figure 2 of the paper.

    Args:
        ids: (T,) the text. noise: (T,) bool. sentinels: their ids in the order of use.
        end: what is put behind inputs and targets: the end-of-sequence token, for a model that has one.
    Raises: ValueError: more spans than sentinels.
    """
    text = np.asarray(ids, dtype=np.int64)
    spans = noise_spans(noise)
    needed = len(spans) + (not spans or spans[-1][1] < len(text))
    if needed > len(sentinels):
        raise ValueError(f"{needed} sentinels are needed for {len(text)} tokens, the tokenizer has {len(sentinels)}")
    inputs: list[Ids] = []
    targets: list[Ids] = []
    place = 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        mark = np.array([sentinel], dtype=np.int64)
        inputs += [text[place:start], mark]
        targets += [mark, text[start:stop]]
        place = stop
    inputs.append(text[place:])
    if needed > len(spans):
        targets.append(np.array([sentinels[len(spans)]], dtype=np.int64))
    last = np.asarray(end, dtype=np.int64)
    return Corrupted(np.concatenate([*inputs, last]), np.concatenate([*targets, last]))
