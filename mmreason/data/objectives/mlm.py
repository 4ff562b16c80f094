"""Masked language modelling (BERT, arXiv 1810.04805, section 3.1): 80 % mask, 10 % random, 10 % unchanged tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmreason.types import IGNORE_INDEX

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def mask_tokens(
    ids: Tensor,
    special: Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    generator: torch.Generator | None,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to be predicted and replace most of them.

    The draws are those of transformers' DataCollatorForLanguageModeling, in its order: with equal generators and shares
    the result equals its own.

    Args:
        ids: (B, T) token ids; they are not changed.
        special: (B, T) bool, tokens that are never chosen: padding, class and separator tokens.
        vocab_size: random tokens are drawn below it.
        probability: of each token, or word, to be chosen.
        mask_share, random_share: of the chosen ones; the rest stays as it is and is predicted all the same.
        starts: (B, T) bool, first tokens of words: whole words are chosen (each of their tokens is replaced on its
            own). None: tokens are.

    Returns: (inputs (B, T), labels (B, T) with IGNORE_INDEX where nothing is predicted).
    Raises: ValueError for shares that are no probabilities.
    """
    import torch

    if not (0 <= probability <= 1 and mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1):
        raise ValueError(f"probability={probability}, mask_share={mask_share}, random_share={random_share}")
    chances = torch.full(ids.shape, probability)
    chances.masked_fill_(special if starts is None else special | ~starts, 0.0)
    chosen = torch.bernoulli(chances, generator=generator).bool()
    if starts is not None:
        chosen = _whole_words(chosen, starts, special)
    labels = ids.masked_fill(~chosen, IGNORE_INDEX)
    inputs = ids.clone()
    replaced = torch.bernoulli(torch.full(ids.shape, mask_share), generator=generator).bool() & chosen
    inputs[replaced] = mask_token_id
    if mask_share == 1 or random_share == 0:
        return inputs, labels
    # Of those that are left, so the share is one of the rest.
    rest = torch.full(ids.shape, random_share / (1 - mask_share))
    random = torch.bernoulli(rest, generator=generator).bool() & chosen & ~replaced
    words = torch.randint(vocab_size, ids.shape, dtype=torch.long, generator=generator)
    inputs[random] = words[random]
    return inputs, labels


def _whole_words(chosen: Tensor, starts: Tensor, special: Tensor) -> Tensor:
    """All tokens of the words whose first token was chosen; a special token ends a word."""
    import torch

    begins = starts | special
    last = torch.where(begins, torch.arange(chosen.shape[1]), -1).cummax(dim=1).values  # where a token's word begins
    return torch.where(last >= 0, chosen.gather(1, last.clamp(min=0)), False) & ~special


def word_starts(tokenizer: Any) -> Tensor:
    """(V,) bool, by token id: can this token begin a word?

    Read off the vocabulary's own marks: WordPiece's ## continues a word; the sign for a space of SentencePiece and of
    byte-level BPE begins one, and so do line breaks and tabs.
    """
    import torch

    tokens: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if any(token.startswith("##") for token in tokens):
        return torch.tensor([not token.startswith("##") for token in tokens])
    marks = ("▁", "Ġ", "Ċ", "ĉ", "č")
    return torch.tensor([token.startswith(marks) for token in tokens])
