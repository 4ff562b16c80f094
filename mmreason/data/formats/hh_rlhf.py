"""hh-rlhf (arXiv 2204.05862): ``chosen`` and ``rejected``, two transcripts that begin alike.

A transcript is "\\n\\nHuman: ...\\n\\nAssistant: ...". Turns must alternate, the human's first. White
space around a turn is left out: it belongs to the transcript. The prompt is what both transcripts have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmreason.data.formats.common import Format, Row, RowError, shorten, take_name
from mmreason.data.formats.messages import common_prompt
from mmreason.types import Example, Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    return text.startswith("\n\nHuman:")


def detect(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    if not {"chosen", "rejected"} <= columns or "prompt" in columns:
        return False
    return any(isinstance(row.get("chosen"), str) and is_transcript(row["chosen"]) for row in rows)


def parse(row: Row, index: int) -> Example:
    """Prompt: the turns that both have in common. Chosen and rejected: the last turn of each."""
    sides = []
    for side in ("chosen", "rejected"):
        text = row.get(side)
        if not isinstance(text, str) or not text.strip():
            raise RowError("missing_pair", f"{side!r} is {shorten(text)}")
        sides.append(read_transcript(text))
    prompt, chosen, rejected = common_prompt(*sides)
    example: Example = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "meta": {"kind": None, "choices": None},
    }
    take_name(example, row)
    return example


def read_transcript(text: str) -> list[Message]:
    """The turns of a transcript. Raises: RowError where they don't alternate, or one says nothing."""
    before, *pieces = _TURN.split(text)
    if before.strip() or not pieces:
        raise RowError("bad_messages", f"no transcript, it begins with {shorten(text[:60])}")
    messages: list[Message] = []
    for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
        wanted = "Human" if len(messages) % 2 == 0 else "Assistant"
        if speaker != wanted:
            raise RowError("role_order", f"turn {len(messages) + 1} is of {speaker}, not of {wanted}")
        if not said.strip():
            raise RowError("empty_turn", f"turn {len(messages) + 1} of {len(pieces) // 2}, of {speaker}, is empty")
        messages.append({"role": _ROLES[speaker], "content": said.strip()})
    return messages


FORMAT = Format("hh_rlhf", parse, detect, own_template=True)
