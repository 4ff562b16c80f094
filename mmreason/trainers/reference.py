"""Whether a reference model reads the same token ids as the policy: the KL compares probabilities token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmreason.types import ConfigError

_SHOWN = 3  # differing tokens that the error shows


def check_reference(reference: Any, policy: Any, tokenizer: Any) -> None:
    """Refuse a reference whose vocabulary is another one, before anything is sampled.

    Rows of the embedding beyond the tokenizer's are padding, of which two models of one family may have different
    numbers. Where the reference comes from another checkpoint than the tokenizer, the two tokenizers are compared, if
    that checkpoint has one.

    Args: reference, policy: the models. tokenizer: the policy's.

    Raises: ConfigError: names both vocabularies, and what differs.
    """
    size, own = (model.config.get_text_config().vocab_size for model in (reference, policy))
    needed = min(own, len(tokenizer))
    path, mine = str(getattr(reference.config, "_name_or_path", "") or ""), str(tokenizer.name_or_path or "")
    advice = "take a reference of the policy's own family, or beta: 0"
    if size < needed:
        raise ConfigError(
            f"the reference {path or type(reference).__name__} knows {size} tokens, the policy {needed}: their "
            f"probabilities can't be compared; {advice}"
        )
    if not path or path == mine:
        return
    theirs = _vocabulary_of(path)
    if theirs is None:
        return
    ours = tokenizer.get_vocab()
    differing = [token for token, index in ours.items() if theirs.get(token) != index]
    if differing:
        shown = ", ".join(f"{token!r} ({ours[token]} and {theirs.get(token)})" for token in sorted(differing)[:_SHOWN])
        raise ConfigError(
            f"the reference {path} has another vocabulary than the policy: {len(differing)} of {len(ours)} tokens have "
            f"another id there, such as {shown}; {advice}"
        )


def _vocabulary_of(path: str) -> dict[str, int] | None:
    """Token → id of a checkpoint's tokenizer; None where it has none of its own."""
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any(Path(path).glob("*token*")):  # transformers would make up an empty one
        return None
    try:
        return dict(AutoTokenizer.from_pretrained(path).get_vocab())
    except (OSError, ValueError, KeyError, TypeError):
        return None
