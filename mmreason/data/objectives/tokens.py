"""The special tokens that an objective needs: those that a tokenizer has under a known name, or new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmreason.data.objectives.infill import FimTokens, GlmTokens
from mmreason.types import ConfigError

SENTINELS = 100
"""How many a tokenizer gets that has none; T5 has as many."""
_MODES = (("[R]", "[S]", "[X]"), ("[NLU]", "[S2S]", "[NLG]"))
"""UL2's mode tokens: as the paper writes them, and as its released checkpoint does."""
_FIM = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),  # Qwen
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),  # StarCoder
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),  # SantaCoder
    ("▁<PRE>", "▁<MID>", "▁<SUF>"),  # Code Llama
)
_GLM = (("[MASK]", "<|startofpiece|>", "<|endofpiece|>"), ("[MASK]", "<sop>", "<eop>"))


@dataclass(frozen=True)
class ObjectiveTokens:
    """Ids of the tokens of one objective.

    Attributes: end: the end-of-sequence token, None where the tokenizer has none. mask: of mlm; around: what
            an encoder has before and behind a text, as BERT's class and separator tokens. sentinels: of span and
        ul2, in the order of use. modes: UL2's R, S, X. fim, glm: of infill. added: texts of those that were new.
    """

    end: int | None
    mask: int | None = None
    around: tuple[int, int] | None = None
    sentinels: tuple[int, ...] = ()
    modes: Mapping[str, int] = field(default_factory=dict)
    fim: FimTokens | None = None
    glm: GlmTokens | None = None
    added: tuple[str, ...] = ()


def names_of(objective: str, infill_format: str = "fim") -> tuple[str, ...]:
    """The tokens that a tokenizer without any gets for an objective: a new tokenizer is trained with them."""
    if objective == "mlm":
        return ("<|mask|>",)
    sentinels = tuple(f"<extra_id_{i}>" for i in range(SENTINELS))
    if objective == "span":
        return sentinels
    if objective == "ul2":
        return (*sentinels, *_MODES[0])
    if objective == "infill":
        return _FIM[0] if infill_format == "fim" else _GLM[0]
    return ()


def objective_tokens(tokenizer: Any, objective: str, infill_format: str = "fim") -> ObjectiveTokens:
    """Find the tokens of an objective, and add to the tokenizer what it lacks.

    A model's embeddings must then be resized to `len(tokenizer)`.

    Raises: ConfigError: the tokenizer has no end-of-sequence token where one is needed.
    """
    before = set(tokenizer.get_vocab())
    end = tokenizer.eos_token_id
    found: dict[str, Any] = {}
    if objective == "mlm":
        if tokenizer.mask_token_id is None:
            tokenizer.add_special_tokens({"mask_token": names_of(objective)[0]})
        found["mask"] = tokenizer.mask_token_id
        around = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        found["around"] = None if None in around else around
    if objective in ("span", "ul2"):
        found["sentinels"] = _sentinels(tokenizer)
    if objective == "ul2":
        found["modes"] = dict(zip("RSX", _ids(tokenizer, _MODES), strict=True))
    if objective == "infill" and infill_format == "fim":
        if end is None:
            raise ConfigError("infill: the tokenizer has no end-of-sequence token to end the middle with")
        prefix, middle, suffix = _ids(tokenizer, _FIM)
        found["fim"] = FimTokens(prefix, middle, suffix, end)
    if objective == "infill" and infill_format == "glm":
        found["glm"] = GlmTokens(*_ids(tokenizer, _GLM))
    added = sorted(set(tokenizer.get_vocab()) - before)
    return ObjectiveTokens(end=end, added=tuple(added), **found)


def _sentinels(tokenizer: Any) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    if "<extra_id_0>" not in vocabulary:
        _add(tokenizer, names_of("span"))
        vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    while f"<extra_id_{len(ids)}>" in vocabulary:
        ids.append(vocabulary[f"<extra_id_{len(ids)}>"])
    return tuple(ids)


def _ids(tokenizer: Any, families: Sequence[Sequence[str]]) -> list[int]:
    """Ids of the first family that the vocabulary has whole; else of the first one, added."""
    vocabulary = tokenizer.get_vocab()
    names = next((names for names in families if all(name in vocabulary for name in names)), families[0])
    _add(tokenizer, [name for name in names if name not in vocabulary])
    return [int(token) for token in tokenizer.convert_tokens_to_ids(list(names))]


def _add(tokenizer: Any, names: Sequence[str]) -> None:
    if names:
        given = {"additional_special_tokens": list(names)}
        tokenizer.add_special_tokens(given, replace_extra_special_tokens=False)
