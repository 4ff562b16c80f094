"""A teacher's reply about a picture, checked against the annotation, becomes a row."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_builders._visual.grounding import Ground, ungrounded
from data_builders._visual.prompts import LANGUAGES, VERSION, messages, schema, user_question
from data_builders._visual.rows import Picture, picture_bytes
from data_builders.building.build import Drop, Made
from mmreason.clients.schemas import SchemaMismatchError, parse_fitting
from mmreason.clients.types import Completer, EndpointError, Reply, Request
from mmreason.data.images import ImageError
from mmreason.types import Example, Message

Sees = Literal["annotation", "image", "both"]
Cure = Literal["drop", "cut", "ask"]
_EXISTS = re.compile(
    r"\s*(is|are|was|were|do|does|can|could) (there|you|we|it|any)\b|.*(有没有|是否有|有.*吗)", re.IGNORECASE
)
_NO = re.compile(r"\s*(no|not|none|there (is|are) no)\b|没有|不|否|无", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a teacher is asked and its replies are taken; see the options of the builder."""

    sees: Sees = "annotation"
    cure: Cure = "drop"
    inventory: Literal["missing", "always", "never"] = "missing"
    turns: int = 4
    max_tokens: int = 1024
    temperature: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A task's data: a picture, and what is to be written of it."""

    picture: Picture
    kind: str
    language: str


class Writer:
    """Asks, checks, and makes rows. What one picture has is listed once, however many kinds are written of it."""

    def __init__(self, writing: Writing, source: str) -> None:
        self.writing = writing
        self.source = source
        self._inventories: dict[tuple[bytes, str], asyncio.Task[list[str]]] = {}

    async def write(self, asked: Asked, row_id: str, teacher: Completer) -> Made:
        """One row, or why there is none. Raises: EndpointError."""
        counts: Counter[str] = Counter()
        try:
            image = await asyncio.to_thread(picture_bytes, asked.picture.image)
        except ImageError as error:
            return Made(drops=[Drop(str(error.reason), f"{asked.picture.where}: {error}")])
        try:
            ground = await self._ground(asked, image, teacher)
            reply = await teacher.complete(self._request(asked, image, row_id))
            said, words, reply = await self._cured(asked, image, row_id, teacher, ground, reply, counts)
        except SchemaMismatchError as error:
            return Made(drops=[Drop("unreadable", f"{asked.picture.id} ({asked.kind}): {error}")])
        except EndpointError as error:
            if error.kind in ("schema", "refused"):  # the server did answer; another try would be no better
                return Made(drops=[Drop("unreadable" if error.kind == "schema" else "refused", str(error))])
            raise
        if words:
            counts["hallucinated_names"] += len(words)
            shown = f"{asked.picture.id} ({asked.kind}) names {', '.join(words)}: {_text_of(asked.kind, said)}"
            return Made(drops=[Drop("hallucinated", shown)], counts=counts)
        return Made(rows=[self._row(asked, image, row_id, said, reply)], counts=counts)

    # ---- asking

    def _request(self, asked: Asked, image: bytes, row_id: str) -> Request:
        writing = self.writing
        return Request(
            messages=messages(asked.picture, asked.kind, asked.language, writing.sees, writing.turns),
            images=[] if writing.sees == "annotation" else [image],
            max_tokens=writing.max_tokens,
            temperature=writing.temperature,
            json_schema=schema(asked.kind, writing.turns),
            id=row_id,
        )

    async def _ground(self, asked: Asked, image: bytes, teacher: Completer) -> Ground:
        """What the text may name: the annotation, and the list of a teacher that sees the picture, where asked for."""
        picture, wanted = asked.picture, self.writing.inventory
        names = [box.category for box in picture.boxes]
        if self.writing.sees != "annotation" and (
            wanted == "always" or (wanted == "missing" and not picture.is_annotated)
        ):
            key = (hashlib.sha256(image).digest(), asked.language)  # sources may give the same id to two pictures
            if key not in self._inventories:
                self._inventories[key] = asyncio.ensure_future(self._inventory(asked, image, teacher))
            names += await asyncio.shield(self._inventories[key])
        return Ground.of(picture.captions, names)

    async def _inventory(self, asked: Asked, image: bytes, teacher: Completer) -> list[str]:
        request = Request(
            messages=messages(asked.picture, "inventory", asked.language, "image", 1),
            images=[image],
            max_tokens=self.writing.max_tokens,
            temperature=0.0,
            json_schema=schema("inventory", 1),
            id=f"{asked.picture.id}/inventory",
        )
        return [str(name) for name in _value(await teacher.complete(request), request)["objects"]]

    # ---- checking

    async def _cured(
        self,
        asked: Asked,
        image: bytes,
        row_id: str,
        teacher: Completer,
        ground: Ground,
        reply: Reply,
        counts: Counter[str],
    ) -> tuple[Any, list[str], Reply]:
        """(what is said, the names in it that are still not grounded, the reply it comes from)."""
        request = self._request(asked, image, row_id)
        said = _value(reply, request)
        if self.writing.inventory == "never" and self.writing.sees != "annotation" and not asked.picture.is_annotated:
            return said, [], reply  # nothing to hold it against, by the user's own wish
        words = hallucinated(asked.kind, said, ground)
        if words and self.writing.cure == "ask":
            complaint = LANGUAGES[asked.language].repair.format(words=LANGUAGES[asked.language].comma.join(words))
            history = [*request.messages, {"role": "assistant", "content": reply.text}]
            reply = await teacher.complete(
                replace(request, messages=[*history, {"role": "user", "content": complaint}], id=f"{row_id}/repair")
            )
            said = _value(reply, request)
            words = hallucinated(asked.kind, said, ground)
            counts["asked_again"] += 1
            counts["repaired"] += not words
        elif words and self.writing.cure == "cut":
            cut = without_hallucinated(asked.kind, said, ground)
            if cut is not None:
                counts["repaired"] += 1
                said, words = cut, []
        return said, words, reply

    # ---- rows

    def _row(self, asked: Asked, image: bytes, row_id: str, said: Mapping[str, Any], reply: Reply) -> Example:
        prompt, completion = _turns(asked, said, self.writing.seed, row_id)
        return {
            "prompt": prompt,
            "completion": [completion],
            "images": [{"bytes": image, "path": None}],
            "answer": str(said["caption"]).strip() if asked.kind == "caption" else None,
            "id": row_id,
            "source": self.source,
            "meta": {
                "kind": "text",
                "choices": None,
                "task": asked.kind,
                "language": asked.language,
                "parent": asked.picture.id,
                "teacher": reply.model,
                "sees": self.writing.sees,
                "prompts": VERSION,
                **asked.picture.told(),
            },
        }


def _value(reply: Reply, request: Request) -> Any:
    """The JSON of a reply; a completer that checks no schema leaves that to us. Raises: SchemaMismatchError."""
    if reply.parsed is not None:
        return reply.parsed
    return parse_fitting(reply.text, request.json_schema or {})


def _turns(asked: Asked, said: Mapping[str, Any], seed: int, row_id: str) -> tuple[list[Message], Message]:
    """(the messages up to the last answer, the last answer)."""
    if asked.kind == "conversation":
        turns = [(turn["question"].strip(), turn["answer"].strip()) for turn in said["turns"]]
        spoken: list[Message] = [first_message(turns[0][0])]
        for (_, answer), (question, _) in itertools.pairwise(turns):
            spoken += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        return spoken, {"role": "assistant", "content": turns[-1][1]}
    if asked.kind == "reasoning":
        return [first_message(said["question"].strip())], {
            "role": "assistant",
            "reasoning_content": said["reasoning"].strip(),
            "content": said["answer"].strip(),
        }
    question = user_question(asked.kind, asked.language, seed, row_id)
    text = said["caption" if asked.kind == "caption" else "description"].strip()
    return [first_message(question)], {"role": "assistant", "content": text}


def first_message(question: str) -> Message:
    """The user's first turn: the picture, then the question."""
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


def hallucinated(kind: str, said: Mapping[str, Any], ground: Ground) -> list[str]:
    """The names in a reply that the annotation doesn't have, each once."""
    if kind == "conversation":
        found = [name for turn in said["turns"] for name in _of_turn(turn, ground)]
    elif kind == "reasoning":
        found = ungrounded(said["question"], ground, suppositions=True)
        found += ungrounded(said["reasoning"], ground, suppositions=True)
        found += ungrounded(said["answer"], ground, suppositions=True)
    else:
        found = ungrounded(_text_of(kind, said), ground)
    return list(dict.fromkeys(found))


def _of_turn(turn: Mapping[str, str], ground: Ground) -> list[str]:
    """A question whether something is there may name it, where the answer is that it isn't; it alone is excused."""
    question, answer = turn["question"], turn["answer"]
    denied = _EXISTS.match(question) and _NO.match(answer)
    excused = ungrounded(question, Ground.of(()))[:1] if denied else []
    found = [*ungrounded(question, ground), *ungrounded(answer, ground)]
    return [name for name in found if name not in excused]


def without_hallucinated(kind: str, said: Mapping[str, Any], ground: Ground) -> dict[str, Any] | None:
    """A reply without the turns or sentences that name what isn't there; None where nothing would be left.

    Reasoning is not cut: its steps build on each other.
    """
    if kind == "conversation":
        turns = [turn for turn in said["turns"] if not _of_turn(turn, ground)]
        return {"turns": turns} if turns else None
    if kind != "detail":
        return None
    kept = [s.strip() for s in _SENTENCE_END.split(said["description"]) if s.strip() and not ungrounded(s, ground)]
    joint = "" if re.search(r"[一-鿿]", said["description"]) else " "
    return {"description": joint.join(kept)} if kept else None


def _text_of(kind: str, said: Mapping[str, Any]) -> str:
    if kind == "conversation":
        return " / ".join(f"{turn['question']} {turn['answer']}" for turn in said["turns"])
    if kind == "reasoning":
        return " ".join(said[name] for name in ("question", "reasoning", "answer"))
    return str(said["caption" if kind == "caption" else "description"])


def languages_of(language: str) -> Sequence[str]:
    """ "both" as its two."""
    return tuple(LANGUAGES) if language == "both" else (language,)
