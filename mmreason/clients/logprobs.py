"""Log-probabilities as an endpoint gives them: read, and refused where they can't be what was asked for.

What is checked: one entry for each generated token; every log-probability is at most 0; as many alternatives as were
asked for; their probabilities add up to at most 1; the chosen token has the same log-probability in the list of
alternatives and outside it; the tokens, joined, are the text.

Servers differ in what is no lie, and that passes: the end token may be listed or left out, special tokens are listed
and absent from the text, a stop string is cut off the text and not off the tokens, tokens that hold part of a UTF-8
character come as U+FFFD, as nothing or as `bytes`, and tokens decoded one by one may lose the blank in front.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.clients.types import TokenLogprob

MASS_TOLERANCE = 1e-3
"""By how much the probabilities of different tokens at one place may add up to more than 1 (float16 servers round)."""
ABSENT = -9999.0
"""What the OpenAI API writes for a chosen token that is not among the likeliest."""

_POSITIVE_TOLERANCE = 1e-5
_SPECIAL = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z_]{1,24}\]")
_UNKNOWN = "\ufffd"


class LogprobsError(Exception):
    """Log-probabilities that are missing or impossible; the text says which and where."""


def parse_logprobs(
    found: Any,
    *,
    k: int,
    text: str,
    reasoning: str | None,
    stop: Sequence[str],
    completion_tokens: int | None,
    is_text_only: bool,
) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of a completion.

    Args:
        found: `choices[0].logprobs` of the reply.
        k: how many alternatives were asked for at each place; 0 for the chosen tokens alone.
        text, reasoning: of the reply.
        stop: the stop strings of the request.
        completion_tokens: the server's own count, where it gave one.
        is_text_only: False for a reply with tool calls, whose tokens are not in the text.

    Raises:
        LogprobsError: missing, or not what a model can have computed for this text.
    """
    entries = found.get("content") if isinstance(found, Mapping) else None
    if not isinstance(entries, list) or (not entries and (text or completion_tokens)):
        raise LogprobsError("log-probabilities were asked for and are missing")
    tokens, pieces = [], []
    for place, entry in enumerate(entries):
        token, logprob, piece = _read_token(entry, f"token {place}")
        tokens.append(TokenLogprob(token, logprob, _read_top(entry, token, logprob, k, f"token {place}")))
        pieces.append(piece)
    widest = max((len(token.top) for token in tokens), default=k)
    if widest < k:
        raise LogprobsError(f"{k} alternatives were asked for, and no place has more than {widest}")
    if completion_tokens is not None and is_text_only:
        # One more or less for the end token. Thoughts may be counted and not listed.
        fewest = 0 if reasoning is not None else completion_tokens - 1
        if not fewest <= len(tokens) <= completion_tokens + 1:
            raise LogprobsError(f"{len(tokens)} tokens are listed, and {completion_tokens} were counted")
    if is_text_only:
        _check_text(pieces, text, reasoning, stop)
    return tuple(tokens)


def _read_token(entry: Any, where: str) -> tuple[str, float, str]:
    """(token as written, log-probability, what it adds to the text; U+FFFD where that is part of a character)."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("token"), str):
        raise LogprobsError(f"{where} is not a token with its log-probability")
    logprob = entry.get("logprob")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob <= _POSITIVE_TOLERANCE:
        raise LogprobsError(f"{where} has the log-probability {logprob!r}, which is none")
    raw = entry.get("bytes")
    piece = entry["token"]
    if isinstance(raw, list) and raw and all(isinstance(byte, int) and 0 <= byte < 256 for byte in raw):
        piece = bytes(raw).decode("utf-8", errors="surrogateescape")
    return entry["token"], min(float(logprob), 0.0), piece


def _read_top(
    entry: Mapping[str, Any], token: str, logprob: float, k: int, where: str
) -> tuple[tuple[str, float], ...]:
    listed = entry.get("top_logprobs") or []
    if not isinstance(listed, list) or len(listed) > max(k, 0):
        count = len(listed) if isinstance(listed, list) else "no list of"
        raise LogprobsError(f"{where} has {count} alternatives, {k} were asked for")
    read = [_read_token(item, f"an alternative of {where}") for item in listed]
    mass = sum(math.exp(lp) for _, lp, _ in read)
    if mass > 1 + MASS_TOLERANCE:
        raise LogprobsError(f"the probabilities at {where} add up to {mass:.4g}")
    # Parts of characters are told apart by their bytes only, which not every server gives.
    twice = [name for name, _, piece in read if not _is_opaque(piece) and [p for _, _, p in read].count(piece) > 1]
    if twice:
        raise LogprobsError(f"{where} has the alternative {twice[0]!r} twice")
    own = [lp for name, lp, piece in read if name == token and not _is_opaque(piece)]
    if own and logprob > ABSENT and not math.isclose(own[0], logprob, rel_tol=1e-3, abs_tol=1e-3):
        raise LogprobsError(f"{where} has the log-probability {logprob:.4g}, and {own[0]:.4g} among its alternatives")
    return tuple(sorted(((name, lp) for name, lp, _ in read), key=lambda pair: -pair[1]))


def _is_opaque(piece: str) -> bool:
    """Does it hold part of a character, or a special token that the text is shown without?"""
    part = not piece or _UNKNOWN in piece or _has_lone_bytes(piece)
    return part or bool(_SPECIAL.fullmatch(piece))


def _check_text(pieces: Sequence[str], text: str, reasoning: str | None, stop: Sequence[str]) -> None:
    """Hold the joined tokens against the text, blanks aside.

    A token that is opaque may stand for anything, but for few characters.
    """
    whole = _join_bytes(pieces)
    wanted = _squeeze(text)
    if reasoning is not None:
        # The thoughts and the marks around them are among the tokens, in a form that differs between servers.
        everything = _squeeze("".join(whole))
        if _UNKNOWN not in everything and wanted not in everything:
            raise LogprobsError("the tokens listed don't contain the text")
        return
    chunks = [""]  # exact texts; something opaque stands between two of them
    allowed = 0
    for piece in whole:
        if _is_opaque(piece):
            chunks.append("")
            allowed += len(piece) + 3 if piece else 1
        else:
            chunks[-1] += _squeeze(piece)
    if len(wanted) > sum(map(len, chunks)) + allowed:
        raise LogprobsError("the text has more than the tokens listed")
    *before, last = chunks
    words = [word for word in map(_squeeze, stop) if word in last]
    ends = [last, *(last[: last.rfind(word)] for word in words)]
    if not any(_covers([*before, end], wanted) for end in ends):
        raise LogprobsError("the tokens listed, joined, are not the text")


def _covers(chunks: Sequence[str], text: str) -> bool:
    """Does the text consist of the chunks in order, with anything between them? In linear time, greedily."""
    if len(chunks) == 1:
        return chunks[0] == text
    first, *middle, last = chunks
    if not text.startswith(first):
        return False
    at = len(first)
    for chunk in middle:
        found = text.find(chunk, at)
        if found < 0:
            return False
        at = found + len(chunk)
    return text.endswith(last) and len(text) - len(last) >= at


def _join_bytes(pieces: Sequence[str]) -> list[str]:
    """Runs of pieces with lone bytes, joined where the bytes make whole characters together."""
    joined: list[str] = []
    for has_bytes, run in itertools.groupby(pieces, key=_has_lone_bytes):
        if has_bytes:
            raw = "".join(run).encode("utf-8", errors="surrogateescape")
            joined.append(raw.decode("utf-8", errors="replace"))
        else:
            joined += run
    return joined


def _has_lone_bytes(piece: str) -> bool:
    """Does it hold bytes that are no whole character (as surrogates, see PEP 383)?"""
    return any("\udc80" <= char <= "\udcff" for char in piece)


def _squeeze(text: str) -> str:
    return "".join(text.split())
