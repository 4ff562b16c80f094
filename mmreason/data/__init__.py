"""Data: raw rows to canonical Examples (`load_examples`), Examples to token ids (`render_prompt`)."""

from mmreason.data.formats import FORMATS
from mmreason.data.holdout import split_holdout
from mmreason.data.loader import LoadedExamples, load_examples
from mmreason.data.prompts import PROMPT_TEMPLATES
from mmreason.data.render import check_prompt_length, check_prompts, render_prompt
from mmreason.data.schema import example_features, to_dataset

__all__ = [
    "FORMATS",
    "PROMPT_TEMPLATES",
    "LoadedExamples",
    "check_prompt_length",
    "check_prompts",
    "example_features",
    "load_examples",
    "render_prompt",
    "split_holdout",
    "to_dataset",
]
