"""UL2's mixture of denoisers (arXiv 2205.05131, section 3.1 and table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mmreason.data.objectives.span import Corrupted, Ids, corrupt_spans, random_spans_noise_mask

Mode = Literal["R", "S", "X"]


class Denoiser(NamedTuple):
    """One row of table 1. mode: R regular, S sequential (the end of the text is to be written), X extreme.

    mean_length: µ, of a span in tokens; None: a share `density` of the text in one span, its end. density: r.
    """

    mode: Mode
    mean_length: float | None
    density: float


DENOISERS: tuple[Denoiser, ...] = (
    Denoiser("R", 3, 0.15),
    Denoiser("R", 8, 0.15),
    Denoiser("S", None, 0.25),
    Denoiser("X", 3, 0.5),
    Denoiser("X", 8, 0.5),
    Denoiser("X", 64, 0.15),
    Denoiser("X", 64, 0.5),
)
"""Table 1: R (µ=3, r=0.15, n) ∪ (µ=8, r=0.15, n); S (µ=L/4, r=0.25, 1); X (µ=3, r=0.5, n) ∪ (µ=8, r=0.5, n) ∪
(µ=64, r=0.15, n) ∪ (µ=64, r=0.5, n). n, the number of spans, follows from the length of the text."""


def denoise(
    ids: Sequence[int] | Ids,
    denoiser: Denoiser,
    generator: np.random.Generator,
    *,
    sentinels: Sequence[int],
    modes: Mapping[str, int] | None = None,
    end: Sequence[int] = (),
) -> Corrupted:
    """Corrupt a text as one denoiser does; the mode's token stands before what is read ("mode switching").

    The S-denoiser draws the length of the text's end uniformly, with a mean of a quarter of the text: from 1 to
    L/2 - 1 tokens. The sentinel stands where that end begins.

    Args:
        ids: (T,) with T at least 2. sentinels, end: see `corrupt_spans`. modes: mode → id of its token; None: none.
    Raises: ValueError: a text of one token, or more spans than sentinels.
    """
    text = np.asarray(ids, dtype=np.int64)
    if denoiser.mean_length is None:
        if len(text) < 2:
            raise ValueError(f"a text of {len(text)} tokens can't be corrupted: at least 2")
        most = max(1, round(2 * denoiser.density * len(text)) - 1)
        noise = np.arange(len(text)) >= len(text) - int(generator.integers(1, most, endpoint=True))
    else:
        noise = random_spans_noise_mask(len(text), denoiser.density, denoiser.mean_length, generator)
    inputs, targets = corrupt_spans(text, noise, sentinels, end)
    if modes is not None:
        inputs = np.concatenate([np.array([modes[denoiser.mode]], dtype=np.int64), inputs])
    return Corrupted(inputs, targets)


def mixed_denoising(
    ids: Sequence[int] | Ids,
    generator: np.random.Generator,
    *,
    sentinels: Sequence[int],
    modes: Mapping[str, int] | None = None,
    end: Sequence[int] = (),
    weights: Mapping[str, float] | None = None,
) -> tuple[Corrupted, Denoiser]:
    """Draw one of `DENOISERS` and corrupt a text with it.

    Args:
        weights: mode → share of the rows, split evenly over the mode's denoisers. None: all seven equally often.
        Else as for `denoise`.
    """
    shares = np.ones(len(DENOISERS))
    if weights is not None:
        in_mode = [sum(other.mode == denoiser.mode for other in DENOISERS) for denoiser in DENOISERS]
        shares = np.array([weights.get(d.mode, 0.0) / n for d, n in zip(DENOISERS, in_mode, strict=True)])
    denoiser = DENOISERS[int(generator.choice(len(DENOISERS), p=shares / shares.sum()))]
    return denoise(ids, denoiser, generator, sentinels=sentinels, modes=modes, end=end), denoiser
