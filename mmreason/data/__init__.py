"""Data: raw rows to canonical Examples (`load_examples`), Examples to token ids (`render_prompt`)."""

from mmreason.data.check import check_prompts
from mmreason.data.formats import FORMATS
from mmreason.data.holdout import split_holdout
from mmreason.data.loader import LoadedExamples, load_examples
from mmreason.data.prompts import PROMPT_TEMPLATES
from mmreason.data.render import check_prompt_length, render_prompt
from mmreason.data.schema import example_features, to_dataset
from mmreason.data.visual import VisualPrompt, Visuals, collate_visual, render_visual_prompt

__all__ = [
    "FORMATS",
    "PROMPT_TEMPLATES",
    "LoadedExamples",
    "VisualPrompt",
    "Visuals",
    "check_prompt_length",
    "check_prompts",
    "collate_visual",
    "example_features",
    "load_examples",
    "render_prompt",
    "render_visual_prompt",
    "split_holdout",
    "to_dataset",
]
