"""Pretraining objectives: pure functions from token ids and a generator to what the model reads and is asked for.

The same ids and a generator in the same state give the same result, so that a row's masks depend on nothing but the
row. `mlm` draws with torch, as Hugging Face's collator does; the others with numpy, as T5's preprocessing does.
"""

from mmreason.data.objectives.infill import FimTokens, GlmTokens, fill_blanks, fill_in_the_middle
from mmreason.data.objectives.mlm import mask_tokens, word_starts
from mmreason.data.objectives.pieces import Layout, Objective, ObjectiveSettings, Piece, build_objective
from mmreason.data.objectives.span import Corrupted, corrupt_spans, noise_spans, random_spans_noise_mask
from mmreason.data.objectives.tokens import ObjectiveTokens, names_of, objective_tokens
from mmreason.data.objectives.ul2 import DENOISERS, Denoiser, denoise, mixed_denoising

__all__ = [
    "DENOISERS",
    "Corrupted",
    "Denoiser",
    "FimTokens",
    "GlmTokens",
    "Layout",
    "Objective",
    "ObjectiveSettings",
    "ObjectiveTokens",
    "Piece",
    "build_objective",
    "corrupt_spans",
    "denoise",
    "fill_blanks",
    "fill_in_the_middle",
    "mask_tokens",
    "mixed_denoising",
    "names_of",
    "noise_spans",
    "objective_tokens",
    "random_spans_noise_mask",
    "word_starts",
]
