"""The chat templates that a model's turns are learned through: TRL's training variant of its template, and its own."""

from __future__ import annotations

import copy
from typing import Any

TEXT_EXTENSION_END = "{%- set messages = mm.messages -%}"
"""How the extension of a text-only template ends that lets it place images (see mmreason.models.templates)."""


def own_template(processor: Any) -> str | None:
    """The chat template that `apply_chat_template` of a tokenizer or processor uses; None where it has none."""
    inner = getattr(processor, "tokenizer", None)
    template = getattr(processor, "chat_template", None) or getattr(inner, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return str(template) if template else None


def training_template(processor: Any) -> str | None:
    """TRL's training variant of a processor's chat template; None where TRL has none, or none is needed.

    Such a variant (trl.chat_template_utils.get_training_chat_template) keeps what the template of a published model
    drops or forgets: reasoning (DeepSeek-R1), the token that ends a turn (GLM-4.x). It may also write earlier turns
    as the model never sees them, so whoever uses it compares its text with that of the model's own template.
    """
    from trl.chat_template_utils import get_training_chat_template

    template = own_template(processor)
    if template is None:
        return None
    extension, mark, core = template.rpartition(TEXT_EXTENSION_END)
    # A text-only template that was extended to place images is known to TRL without the extension.
    bare = copy.copy(getattr(processor, "tokenizer", processor)) if mark else _owner(processor)
    if mark:
        bare.chat_template = core
    try:
        found = get_training_chat_template(bare)
    except ValueError:  # a template that TRL doesn't know
        return None
    return None if found is None else extension + mark + str(found)


def _owner(processor: Any) -> Any:
    inner = getattr(processor, "tokenizer", None)
    return processor if getattr(processor, "chat_template", None) or inner is None else inner
