"""Top-k log-probabilities of a teacher, kept compactly in a row's meta for soft distillation, and read back exactly.

meta["logprobs"] = {"form": "topk-1", "k": 5, "tokens": 412, "data": BASE64}. BASE64 holds a zlib stream of these bytes,
all little-endian, for n tokens and m alternatives in all:

    uint32      length of the vocabulary in bytes
    bytes       the vocabulary: a JSON list of the different token texts, ASCII with \\u escapes
    int32[n]    the chosen tokens, as places in the vocabulary
    float64[n]  their log-probabilities, nats
    uint16[n]   how many alternatives each place has (k, or fewer where the server gave fewer)
    int32[m]    the alternatives, place after place, the likeliest first
    float64[m]  their log-probabilities

Tokens are texts as the server wrote them: those of the thoughts come first where the model has any, then those of the
answer, with the special tokens that the server lists. A student with the teacher's tokenizer maps them to ids.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from mmreason.clients.types import TokenLogprob
from mmreason.types import DataError

FORM = "topk-1"


def pack_logprobs(tokens: Sequence[TokenLogprob], k: int) -> dict[str, Any]:
    """The cell of `meta["logprobs"]`; see the module's docstring. k: alternatives that were asked for at each place."""
    places: dict[str, int] = {}
    chosen = [places.setdefault(token.token, len(places)) for token in tokens]
    top = [(places.setdefault(text, len(places)), logprob) for token in tokens for text, logprob in token.top]
    vocabulary = json.dumps(list(places)).encode("ascii")
    n, m = len(tokens), len(top)
    data = b"".join(
        (
            struct.pack("<I", len(vocabulary)),
            vocabulary,
            struct.pack(f"<{n}i", *chosen),
            struct.pack(f"<{n}d", *(token.logprob for token in tokens)),
            struct.pack(f"<{n}H", *(len(token.top) for token in tokens)),
            struct.pack(f"<{m}i", *(place for place, _ in top)),
            struct.pack(f"<{m}d", *(logprob for _, logprob in top)),
        )
    )
    return {"form": FORM, "k": k, "tokens": n, "data": base64.b64encode(zlib.compress(data, 9)).decode("ascii")}


def unpack_logprobs(cell: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """What `pack_logprobs` was given, to the last bit. Raises: DataError for a cell that is none."""
    if cell.get("form") != FORM:
        raise DataError(
            f"log-probabilities in form {cell.get('form')!r} can't be read; known is {FORM}", reason="logprobs"
        )
    try:
        data = zlib.decompress(base64.b64decode(cell["data"], validate=True))
        n, (size,) = int(cell["tokens"]), struct.unpack_from("<I", data)
        vocabulary = json.loads(data[4 : 4 + size])
        at = 4 + size

        def take(count: int, kind: str) -> tuple[Any, ...]:
            nonlocal at
            values = struct.unpack_from(f"<{count}{kind}", data, at)
            at += struct.calcsize(f"<{count}{kind}")
            return values

        chosen, logprobs, counts = take(n, "i"), take(n, "d"), take(n, "H")
        alternatives = iter(list(zip(take(sum(counts), "i"), take(sum(counts), "d"), strict=True)))
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes are left over")
        return tuple(
            TokenLogprob(
                vocabulary[place], logprob, tuple((vocabulary[i], value) for i, value in islice(alternatives, count))
            )
            for place, logprob, count in zip(chosen, logprobs, counts, strict=True)
        )
    except (KeyError, IndexError, TypeError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"log-probabilities can't be read: {error}", reason="logprobs") from None
