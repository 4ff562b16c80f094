"""Human votes: items out to people, votes back in, and how far people and judges agree.

Items go out as flat rows. As `.jsonl` they are what Argilla's `dataset.records.log` and Label Studio's API and storage
import take, and what a person can read; as `.json` they are the list of tasks that Label Studio's upload page takes,
which takes no `.jsonl`. `votes_tools` makes the settings of both tools and reads their exports.

The two answers of a pair stand in an order that the task's seed and the item's id decide, so that nobody knows which
model wrote which; reading the votes undoes it. Each row carries a digest by which reading with another seed is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from mmreason._files import write_whole
from mmreason.clients.agreement import Agreement, Level, agreement
from mmreason.clients.judge_committee import majority
from mmreason.clients.judge_prompts import question_text
from mmreason.clients.judge_types import Criterion, Language, PairItem, RubricItem, Verdict, check_ids
from mmreason.types import ConfigError, DataError

VERDICT = "verdict"
"""The question of a pairwise task; a rubric task's questions are its criteria."""
_IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}
_RESERVED = {"id", "annotator", "question", "answer", "reference", "blind", VERDICT}


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteTask:
    """What people are asked. Reading votes takes the task that the items were written with.

    Attributes:
        criteria: what an answer is rated by; none: two answers are compared.
        seed: decides the order of the answers of each pair; keep it from the annotators.
        language: of labels and guidelines.
        reference: show the reference answer; every item needs one.
        images: how many images every item has.
    """

    criteria: tuple[Criterion, ...] = ()
    seed: int = 0
    language: Language = "en"
    reference: bool = False
    images: int = 0

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            raise ConfigError(f"votes: language {self.language!r}; there are {', '.join(get_args(Language))}")
        if self.images < 0:
            raise ConfigError(f"votes: images {self.images} must be at least 0")
        check_ids([c.name for c in self.criteria], "criteria")
        taken = sorted(c.name for c in self.criteria if c.name in _RESERVED or c.name.startswith("image_"))
        if taken:
            raise ConfigError(f"criterion {taken[0]!r}: items have a field of this name; take another")

    @property
    def pairwise(self) -> bool:
        return not self.criteria

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.criteria) or (VERDICT,)

    @property
    def fields(self) -> tuple[str, ...]:
        """The shown fields of a row, in order."""
        images = tuple(f"image_{i + 1}" for i in range(self.images))
        answers = ("answer_1", "answer_2") if self.pairwise else ("answer",)
        return ("question", *images, *(("reference",) if self.reference else ()), *answers)

    def exchanged(self, item: str) -> bool:
        """Whether the item's B is shown as answer 1."""
        return self._hash(item)[-1] % 2 == 1

    def blind(self, item: str) -> str:
        """What a row carries so that reading with another seed is noticed; says nothing about the order."""
        return self._hash(item)[:4].hex()

    def _hash(self, item: str) -> bytes:
        return hashlib.sha256(f"{self.seed}\x00{item}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person said of one item.

    Attributes:
        item: its id.
        annotator: who, as the tool names them.
        values: question -> "A", "B", "tie" (of the item's own A and B), or a rating.
    """

    item: str
    annotator: str
    values: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Votes:
    """Attributes:
    votes: one for each item and annotator.
    skipped: reason -> how many were left out: "cancelled", "not_submitted", "empty" (no question answered),
        "repeated" (an earlier vote of the same person on the same item), "item_without_votes".
    """

    votes: list[Vote]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def annotators(self) -> list[str]:
        return sorted({vote.annotator for vote in self.votes})

    def table(self, question: str = VERDICT) -> tuple[list[str], list[list[str | int | None]]]:
        """Item ids in order of appearance, and their ratings (items, annotators), None for missing.

        Raises: ConfigError for a question that no vote answers.
        """
        if self.votes and not any(question in vote.values for vote in self.votes):
            known = sorted({name for vote in self.votes for name in vote.values})
            raise ConfigError(f"votes: nobody answered {question!r}; there are {', '.join(known)}")
        place = {name: i for i, name in enumerate(self.annotators)}
        rows: dict[str, list[str | int | None]] = {}
        for vote in self.votes:
            rows.setdefault(vote.item, [None] * len(place))[place[vote.annotator]] = vote.values.get(question)
        return list(rows), list(rows.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAgreement:
    """People against a judge on one question.

    Attributes:
        humans: among the people.
        with_consensus: the judge against the people's majority (verdicts) or mean (ratings, where `percent`, which
            counts equal values, says little).
        with_each: annotator -> the judge against that person.
        only_people, only_judge: items that have no verdict of the other side.
    """

    humans: Agreement
    with_consensus: Agreement
    with_each: dict[str, Agreement]
    only_people: int
    only_judge: int


def vote_rows(items: Sequence[PairItem] | Sequence[RubricItem], task: VoteTask) -> list[dict[str, Any]]:
    """The rows that people see, one for each item.

    Raises: DataError naming the item that doesn't fit the task; ConfigError for an id that stands twice.
    """
    check_ids([item.id for item in items], "items to vote on")
    rows = []
    for item in items:
        if isinstance(item, PairItem) != task.pairwise:
            wanted = "pairs (PairItem)" if task.pairwise else "single answers (RubricItem)"
            raise DataError(f"item {item.id}: the task takes {wanted}", row=item.id, reason="wrong_kind")
        if len(item.images) != task.images:
            raise DataError(
                f"item {item.id}: {len(item.images)} images; the task says {task.images} for every item",
                row=item.id,
                reason="images",
            )
        if task.reference and item.reference is None:
            raise DataError(f"item {item.id}: no reference, but the task shows one", row=item.id, reason="no_reference")
        row: dict[str, Any] = {"id": item.id, "question": question_text(item.question)}
        row |= {f"image_{i + 1}": _data_uri(image, item.id) for i, image in enumerate(item.images)}
        if task.reference:
            row["reference"] = item.reference
        if isinstance(item, PairItem):
            shown = (item.answer_a, item.answer_b)
            row["answer_1"], row["answer_2"] = shown[::-1] if task.exchanged(item.id) else shown
            row["blind"] = task.blind(item.id)
        else:
            row["answer"] = item.answer
        rows.append(row)
    return rows


def write_items(path: str | Path, items: Sequence[PairItem] | Sequence[RubricItem], task: VoteTask) -> None:
    """Writes the rows, atomically: `.jsonl` one flat row a line, `.json` Label Studio's list of `{"data": row}`.

    Raises: as `vote_rows`; ConfigError for another suffix.
    """
    target = Path(path)
    rows = vote_rows(items, task)
    if target.suffix == ".jsonl":
        text = "".join(_dumps(row) + "\n" for row in rows)
    elif target.suffix == ".json":
        text = "[\n" + ",\n".join(_dumps({"data": row}) for row in rows) + "\n]\n"
    else:
        raise ConfigError(f"{target}: items are written as .jsonl, or as .json for Label Studio's upload page")
    _write(target, text)


def write_votes(path: str | Path, votes: Votes) -> None:
    """Writes plain votes, atomically: a line `{"id", "annotator", question: value, ...}` each, for `read_votes`.

    A and B are the item's own, whatever the order people saw.
    """
    lines = (_dumps({"id": vote.item, "annotator": vote.annotator, **vote.values}) for vote in votes.votes)
    _write(Path(path), "".join(line + "\n" for line in lines))


def collect(votes: Iterable[Vote], skipped: Counter[str]) -> Votes:
    """One vote for each item and person: the last one counts, the earlier are counted as "repeated"."""
    last: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        key = (vote.item, vote.annotator)
        if key in last:
            skipped["repeated"] += 1
        last[key] = vote
    return Votes(list(last.values()), dict(skipped))


def human_agreement(votes: Votes, question: str = VERDICT, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """The people's agreement on a question: level "nominal" for verdicts, "interval" for ratings."""
    return agreement(votes.table(question)[1], _level(question), resamples=resamples, seed=seed)


def judge_agreement(
    votes: Votes,
    judged: Mapping[str, str | int | float | None],
    question: str = VERDICT,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> JudgeAgreement:
    """People against a judge, or a committee.

    Args:
        votes: the people's.
        judged: item id -> the judge's verdict or rating; None where there is none.
        question: which one.
        resamples, seed: of the bootstrap.

    Raises: ConfigError for a question that no vote answers; DataError for a judge's verdict that is none.
    """
    if question == VERDICT:
        for item, value in judged.items():
            if value not in (None, *get_args(Verdict)):
                known = ", ".join(get_args(Verdict))
                raise DataError(f"item {item}: the judge's verdict is {value!r}; there are {known}", row=item)
    items, rows = votes.table(question)
    level = _level(question)

    def against(people: Sequence[str | int | float | None]) -> Agreement:
        pairs = [[person, judged.get(item)] for person, item in zip(people, items, strict=True)]
        return agreement(pairs, level, resamples=resamples, seed=seed)

    voted = {item for item, row in zip(items, rows, strict=True) if any(value is not None for value in row)}
    has_verdict = {item for item, value in judged.items() if value is not None}
    return JudgeAgreement(
        humans=agreement(rows, level, resamples=resamples, seed=seed),
        with_consensus=against([_consensus(row, level) for row in rows]),
        with_each={name: against([row[i] for row in rows]) for i, name in enumerate(votes.annotators)},
        only_people=len(voted - has_verdict),
        only_judge=len(has_verdict - voted),
    )


def _level(question: str) -> Level:
    return "nominal" if question == VERDICT else "interval"


def _consensus(row: Sequence[Any], level: Level) -> str | float | None:
    given = [value for value in row if value is not None]
    if not given:
        return None
    return majority(given) if level == "nominal" else statistics.fmean(given)


def _data_uri(image: bytes, item: str) -> str:
    kind = next((kind for magic, kind in _IMAGE_TYPES.items() if image.startswith(magic)), None)
    if kind is None:
        raise DataError(f"item {item}: an image is neither PNG nor JPEG", row=item, reason="images")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _dumps(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: a text has a lone surrogate at {error.object[error.start : error.end]!r}") from None
    write_whole(path, data)
