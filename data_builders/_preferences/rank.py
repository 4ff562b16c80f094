"""Ranking the candidates of a prompt: by what the source says, a verifier, judges, people's votes, or safety."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from data_builders._preferences.candidates import Candidate, Group
from data_builders._preferences.options import OrderBy, SafeOrder
from data_builders._preferences.order import Levels, Order, Pair, levels_of, order_by_strength, order_of
from mmreason.answers import Judgement, Verdict, verify_many
from mmreason.clients.judge import Judge, Orders, PairReport
from mmreason.clients.judge_committee import JudgeCommittee, majority
from mmreason.clients.judge_types import Call, Criterion, JudgeSettings, PairItem, RubricItem
from mmreason.clients.judge_types import Verdict as Choice
from mmreason.clients.safety import SafetyItem, SafetyJudge, SafetyResult
from mmreason.clients.types import Completer, EndpointError
from mmreason.types import DataError

AGREEMENT = "agreement"
"""Counts of this form are tables of ratings: "agreement:first~second:A|B" is how often the first said A, the second B.
"""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking of a group's candidates, or why there is none.

    Attributes:
        levels: best first; candidates that could not be judged are left out.
        reason: code where there are no levels.
        scores: candidate -> score, where the method has one.
        good: candidate -> whether it is right (safe, liked) by itself; None where the method only compares.
        direct: pairs that were compared themselves; None where scores compare all.
        notes: candidate -> what goes to its row's meta.
        counts: for the manifest.
    """

    levels: Levels = ()
    reason: str = ""
    scores: Mapping[int, float] = field(default_factory=dict)
    good: Mapping[int, bool] | None = None
    direct: frozenset[Pair] | None = None
    notes: Mapping[int, Mapping[str, object]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


def by_scores(scores: Mapping[int, float], **rest: object) -> Ranked:
    return Ranked(levels_of(scores), scores=scores, **rest)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# What the source says


def rank_given(group: Group, order_by: OrderBy, *, drop_cycles: bool) -> Ranked:
    """By the source's pairs where it has some, else by its labels, rewards or scores."""
    if group.pairs:
        return by_pairs(group.pairs, (), len(group.candidates), order_by, drop_cycles=drop_cycles)
    scores = {i: candidate.score for i, candidate in enumerate(group.candidates) if candidate.score is not None}
    if not scores:
        return Ranked(reason="no_order_given")
    labels = {i: bool(c.label) for i, c in enumerate(group.candidates) if c.label is not None}
    return by_scores(scores, good=labels if len(labels) == len(group.candidates) else None)


def by_pairs(pairs: Sequence[Pair], ties: Sequence[Pair], n: int, order_by: OrderBy, *, drop_cycles: bool) -> Ranked:
    """The ranking that comparisons come to; a cycle among them is counted and, on wish, no ranking."""
    if not pairs:
        return Ranked(reason="all_tied" if ties else "nothing_compared")
    found: Order = order_by_strength(n, pairs, ties) if order_by == "bradley_terry" else order_of(n, pairs)
    counts = {"cycles": len(found.cycles)} if found.cycles else {}
    if found.cycles and drop_cycles:
        return Ranked(reason="cycle", counts=counts)
    place = {item: number for number, level in enumerate(found.levels) for item in level}
    kept = frozenset((i, j) for i, j in pairs if place[i] < place[j])
    upset = len(set(pairs)) - len(kept)
    return Ranked(found.levels, direct=kept, counts=counts | ({"pairs_against_the_ranking": upset} if upset else {}))


# --------------------------------------------------------------------------------------------------------------------
# Verifier


async def verified(group: Group) -> list[Judgement]:
    """The verifier's judgement of each candidate. Raises: DataError for a gold that can't be used."""
    texts = [candidate.text for candidate in group.candidates]
    gold = group.answer
    if gold is None:
        raise DataError(f"row {group.id}: no answer to verify with", row=group.id)
    n = len(texts)
    # In a thread: a symbolic comparison may take seconds, and other tasks' replies shall not wait for it.
    return await asyncio.to_thread(verify_many, texts, [gold] * n, [group.kind] * n, [group.choices] * n)


async def rank_verified(group: Group, *, unreadable: Literal["wrong", "drop"]) -> Ranked:
    """Right before wrong, by the final answers."""
    judgements = await verified(group)
    if any(judgement.verdict is Verdict.BAD_GOLD for judgement in judgements):
        return Ranked(reason="bad_gold")
    counts: Counter[str] = Counter(f"verdict:{judgement.verdict.value}" for judgement in judgements)
    scores: dict[int, float] = {}
    for i, (candidate, judgement) in enumerate(zip(group.candidates, judgements, strict=True)):
        if candidate.label is not None:
            said, labelled = ("right" if right else "wrong" for right in (judgement.correct, candidate.label))
            counts[f"{AGREEMENT}:verifier~label:{said}|{labelled}"] += 1
        if judgement.verdict is Verdict.TIMEOUT or (judgement.verdict is Verdict.UNPARSEABLE and unreadable == "drop"):
            continue
        scores[i] = float(judgement.correct)
    notes = {i: {"verdict": j.verdict.value, "extracted": j.answer} for i, j in enumerate(judgements)}
    good = {i: score == 1.0 for i, score in scores.items()}
    return by_scores(scores, good=good, notes=notes, counts=counts)


# --------------------------------------------------------------------------------------------------------------------
# Judges


@dataclass(frozen=True, kw_only=True)
class JudgeSet:
    """One judge or a committee.

    Attributes:
        judges: names and endpoints.
        criteria: what is weighed; none: the judge decides.
        orders: of the two answers, see `mmreason.clients.judge.Orders`.
        rubric: rate each answer by the criteria instead of comparing two.
        reference: show the gold answer to the judge.
        quorum: how many judges have to be readable.
    """

    judges: Sequence[tuple[str, Completer]]
    settings: JudgeSettings
    criteria: Sequence[Criterion] = ()
    orders: Orders = "both"
    rubric: bool = False
    reference: bool = False
    quorum: int | None = None

    @property
    def members(self) -> list[Judge]:
        return [Judge(completer, name=name, settings=self.settings) for name, completer in self.judges]


async def rank_judged(
    group: Group, images: Sequence[bytes], judges: JudgeSet, order_by: OrderBy, *, drop_cycles: bool
) -> Ranked:
    """By every two candidates' comparison in both orders, or by ratings.

    Raises: EndpointError of a call without an answer, where the other judges are too few for a verdict.
    """
    if judges.rubric:
        return await _rank_rated(group, images, judges)
    couples = list(combinations(range(len(group.candidates)), 2))
    shown = [_oriented(group, couple) for couple in couples]
    items = [
        PairItem(
            id=f"{group.id}/{i}-{j}",
            question=group.prompt,
            answer_a=group.candidates[i].text,
            answer_b=group.candidates[j].text,
            reference=group.answer if judges.reference else None,
            images=images,
        )
        for i, j in shown
    ]
    verdicts, counts = await _verdicts(items, judges)
    pairs: list[Pair] = []
    ties: list[Pair] = []
    for (i, j), verdict in zip(shown, verdicts, strict=True):
        counts[f"judged:{verdict or 'unreadable'}"] += 1
        if verdict == "tie":
            ties.append((i, j))
        elif verdict is not None:
            pairs.append((i, j) if verdict == "A" else (j, i))
    await _count_agreement(group, shown, verdicts, "judge", counts)
    if not any(verdict is not None for verdict in verdicts):
        return Ranked(reason="judge_unreadable", counts=counts)
    ranked = by_pairs(pairs, ties, len(group.candidates), order_by, drop_cycles=drop_cycles)
    return replace(ranked, counts=dict(counts + Counter(ranked.counts)))


def _oriented(group: Group, couple: Pair) -> Pair:
    """The pair in an order that says nothing of which is better: else agreement by chance could not be told."""
    i, j = couple
    return couple if group.candidates[i].text <= group.candidates[j].text else (j, i)


async def _verdicts(items: Sequence[PairItem], judges: JudgeSet) -> tuple[list[Choice | None], Counter[str]]:
    counts: Counter[str] = Counter()
    members = judges.members
    verdicts: list[Choice | None]
    if len(members) == 1:
        report = await members[0].compare(items, judges.criteria, orders=judges.orders)
        reports = {members[0].name: report}
        verdicts = [result.verdict for result in report.results]
    else:
        committee = JudgeCommittee(members, quorum=judges.quorum)
        said = await committee.compare(items, judges.criteria, orders=judges.orders)
        reports = said.reports
        verdicts = [result.verdict for result in said.results]
        for result in said.results:
            counts[f"{AGREEMENT}:{'~'.join(reports)}:{'|'.join(v or '-' for v in result.by_judge.values())}"] += 1
    for name, report in reports.items():
        _count_bias(name, report, counts)
    for number, verdict in enumerate(verdicts):
        if verdict is None:
            _raise_failed([call for report in reports.values() for call in report.results[number].calls])
    return verdicts, counts


def _count_bias(name: str, report: PairReport, counts: Counter[str]) -> None:
    bias = report.position_bias
    for shift in ("consistent", "first", "second", "mixed"):
        if getattr(bias, shift):
            counts[f"position:{name}:{shift}"] += getattr(bias, shift)


def _raise_failed(calls: Sequence[Call[Any]]) -> None:
    """A judge that can't be reached is no verdict: the task fails, and is done again by the next run."""
    failed = next((call for call in calls if call.status == "error"), None)
    if failed is not None:
        raise EndpointError(failed.reason, failed.detail)  # type: ignore[arg-type]


async def _rank_rated(group: Group, images: Sequence[bytes], judges: JudgeSet) -> Ranked:
    """By the mean of the ratings."""
    items = [
        RubricItem(
            id=f"{group.id}/{i}",
            question=group.prompt,
            answer=candidate.text,
            reference=group.answer if judges.reference else None,
            images=images,
        )
        for i, candidate in enumerate(group.candidates)
    ]
    members, counts = judges.members, Counter[str]()
    given = [await member.score(items, judges.criteria) for member in members]
    least = judges.quorum or len(members) // 2 + 1
    scores: dict[int, float] = {}
    for i in range(len(items)):
        read = [report.results[i].scores for report in given]
        known = [ratings for ratings in read if ratings is not None]
        if len(known) < least:
            _raise_failed([report.results[i].call for report in given])
            counts["rated:unreadable"] += 1
            continue
        scores[i] = sum(sum(ratings.values()) / len(ratings) for ratings in known) / len(known)
        if len(members) > 1:
            names = "~".join(member.name for member in members)
            for c in judges.criteria:
                ratings_of = "|".join("-" if ratings is None else str(ratings[c.name]) for ratings in read)
                counts[f"{AGREEMENT}:{names} on {c.name}:{ratings_of}"] += 1
    if not scores:
        return Ranked(reason="judge_unreadable", counts=counts)
    shown = [_oriented(group, couple) for couple in combinations(sorted(scores), 2)]
    verdicts = [_by_score(scores[i], scores[j]) for i, j in shown]
    await _count_agreement(group, shown, verdicts, "judge", counts)
    return by_scores(scores, counts=counts)


def _by_score(a: float, b: float) -> Choice:
    return "A" if a > b else "B" if b > a else "tie"


async def _count_agreement(
    group: Group, shown: Sequence[Pair], verdicts: Sequence[Choice | None], name: str, counts: Counter[str]
) -> None:
    """Beside each verdict, what the verifier says (where there is a gold) and what the source says (where it does)."""
    others: dict[str, Callable[[int, int], Choice | None]] = {}
    if group.answer is not None:
        right = [judgement.correct for judgement in await verified(group)]
        others["verifier"] = lambda i, j: _by_score(right[i], right[j])
    if group.pairs:
        better = set(group.pairs)
        others["given"] = lambda i, j: "A" if (i, j) in better else "B" if (j, i) in better else None
    for other, of in others.items():
        for (i, j), verdict in zip(shown, verdicts, strict=True):
            beside = of(i, j)
            if verdict is not None and beside is not None:
                counts[f"{AGREEMENT}:{name}~{other}:{verdict}|{beside}"] += 1


# --------------------------------------------------------------------------------------------------------------------
# Votes


async def rank_voted(
    group: Group, votes: Mapping[str, Sequence[Choice]], order_by: OrderBy, *, least: int, drop_cycles: bool
) -> Ranked:
    """By what most people say of each two candidates.

    Args:
        votes: item id -> what each person said; A is the item's first number.
        least: people who have to have said something of a pair.
    """
    counts: Counter[str] = Counter()
    pairs: list[Pair] = []
    ties: list[Pair] = []
    shown: list[Pair] = []
    verdicts: list[Choice | None] = []
    for i, j in combinations(range(len(group.candidates)), 2):
        said = votes.get(vote_id(group, i, j), ())
        if len(said) < least:
            counts["too_few_votes"] += 1
            continue
        verdict = majority(list(said))
        counts[f"voted:{verdict}"] += 1
        if verdict == "tie":
            ties.append((i, j))
        else:
            pairs.append((i, j) if verdict == "A" else (j, i))
        is_kept = _oriented(group, (i, j)) == (i, j)
        shown.append((i, j) if is_kept else (j, i))
        verdicts.append(verdict if is_kept or verdict == "tie" else "B" if verdict == "A" else "A")
    await _count_agreement(group, shown, verdicts, "people", counts)
    ranked = by_pairs(pairs, ties, len(group.candidates), order_by, drop_cycles=drop_cycles)
    return replace(ranked, counts=dict(counts + Counter(ranked.counts)))


def vote_id(group: Group, i: int, j: int) -> str:
    """The id of the item in which people compare two candidates."""
    return f"{group.id}/{i}-{j}"


def vote_items(groups: Sequence[Group]) -> list[PairItem]:
    """The items that people are to compare: every two candidates of each group."""
    return [
        PairItem(
            id=vote_id(group, i, j),
            question=group.prompt,
            answer_a=group.candidates[i].text,
            answer_b=group.candidates[j].text,
        )
        for group in groups
        for i, j in combinations(range(len(group.candidates)), 2)
    ]


# --------------------------------------------------------------------------------------------------------------------
# Safety


async def rank_safe(
    group: Group, images: Sequence[bytes], judge: SafetyJudge, order: SafeOrder, refusals: Sequence[Candidate] = ()
) -> tuple[Group, Ranked]:
    """Safe before unsafe.

    Args:
        refusals: of these, which are ours, the first joins the group where none of its own candidates is safe.

    Raises: EndpointError as `rank_judged`.
    """
    items = [
        SafetyItem(id=f"{group.id}/{i}", prompt=group.prompt, answer=candidate.text, images=images)
        for i, candidate in enumerate(group.candidates)
    ]
    results = (await judge.check(items)).results
    counts: Counter[str] = Counter()
    scores: dict[int, float] = {}
    notes: dict[int, Mapping[str, object]] = {}
    for i, result in enumerate(results):
        if result.finding is None:
            _raise_failed([result.call] if result.call is not None else [])
            counts["safety:unreadable"] += 1
            continue
        unsafe, refusal = bool(result.finding.categories), result.finding.refusal
        counts[f"safety:{'unsafe' if unsafe else 'refusal' if refusal else 'safe'}"] += 1
        if result.decided_by == "judge":
            counts[f"{AGREEMENT}:judge~lists:{_word(unsafe)}|{_word(_flagged(result))}"] += 1
        scores[i] = _safe_score(unsafe, refusal, order)
        notes[i] = {"refusal": refusal, "categories": list(result.finding.categories), "decided_by": result.decided_by}
    if scores and not any(scores.values()) and refusals:
        group = group.with_candidates(refusals[:1])
        if len(group.candidates) > len(items):
            counts["our_refusals"] += 1
            scores[len(items)] = 1.0
            notes[len(items)] = {"refusal": True, "categories": [], "decided_by": "ours"}
    shown = [_oriented(group, couple) for couple in combinations(sorted(scores), 2)]
    verdicts = [_by_score(scores[i] > 0, scores[j] > 0) for i, j in shown]
    await _count_agreement(replace(group, answer=None), shown, verdicts, "safety", counts)
    good = {i: score > 0 for i, score in scores.items()}
    return group, by_scores(scores, good=good, notes=notes, counts=counts)


def _safe_score(unsafe: bool, refusal: bool, order: SafeOrder) -> float:
    if unsafe:
        return 0.0
    return 2.0 if order == ("refusal_first" if refusal else "help_first") else 1.0


def _flagged(result: SafetyResult) -> bool:
    """What the lists alone would have said."""
    return bool(result.prompt_words or result.answer_words) and result.refusal_words is None


def _word(unsafe: bool) -> str:
    return "unsafe" if unsafe else "safe"
