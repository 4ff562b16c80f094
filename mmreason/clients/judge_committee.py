"""Several judges on the same items: majority for choices, mean for scores, and how far the judges agree."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmreason.clients.agreement import Agreement, agreement
from mmreason.clients.judge import Judge, Orders, PairReport, RubricReport
from mmreason.clients.judge_types import Criterion, PairItem, RubricItem, Usage, Verdict, check_ids
from mmreason.types import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteeScore:
    """Attributes:
    id: the item's.
    scores: criterion -> mean over the judges that could be read; None below the quorum.
    by_judge: judge -> its scores, None where it couldn't be read.
    """

    id: str
    scores: dict[str, float] | None
    by_judge: dict[str, dict[str, int] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteeScores:
    """Attributes:
    results: in the order of the items.
    reports: judge -> its own report.
    agreement: criterion -> figures at level "interval".
    usage: of all judges.
    """

    results: list[CommitteeScore]
    reports: dict[str, RubricReport]
    agreement: dict[str, Agreement]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteeVerdict:
    """Attributes:
    id: the item's.
    verdict: what most judges that could be read say; "tie" if no verdict has most; None below the quorum.
    by_judge: judge -> its verdict, None where it couldn't be read.
    """

    id: str
    verdict: Verdict | None
    by_judge: dict[str, Verdict | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteeVerdicts:
    """Attributes:
    results: in the order of the items.
    reports: judge -> its own report, with its position bias.
    agreement: figures at level "nominal".
    usage: of all judges.
    """

    results: list[CommitteeVerdict]
    reports: dict[str, PairReport]
    agreement: Agreement
    usage: Usage


class JudgeCommittee:
    """Judges that see the same items, each with its own settings and concurrency, all at the same time.

    Args:
        judges: two or more, with different names.
        quorum: how many have to be readable for a result of the committee; None: more than half.

    Raises: ConfigError for fewer than two judges, a name that stands twice, or a quorum that can't be met.
    """

    def __init__(self, judges: Sequence[Judge], *, quorum: int | None = None) -> None:
        if len(judges) < 2:
            raise ConfigError(f"committee: {len(judges)} judges; a committee has two or more")
        check_ids([judge.name for judge in judges], "committee: names of the judges")
        self.judges = list(judges)
        self.quorum = len(judges) // 2 + 1 if quorum is None else quorum
        if not 1 <= self.quorum <= len(judges):
            raise ConfigError(f"committee: quorum {quorum} of {len(judges)} judges")

    async def score(self, items: Sequence[RubricItem], criteria: Sequence[Criterion]) -> CommitteeScores:
        """Every judge's scores and their means. Raises: ConfigError as `Judge.score`."""
        given = await asyncio.gather(*(judge.score(items, criteria) for judge in self.judges))
        reports = {judge.name: report for judge, report in zip(self.judges, given, strict=True)}
        results = []
        for i, item in enumerate(items):
            by_judge = {name: report.results[i].scores for name, report in reports.items()}
            read = [scores for scores in by_judge.values() if scores is not None]
            means = {c.name: sum(scores[c.name] for scores in read) / len(read) for c in criteria if read}
            results.append(
                CommitteeScore(id=item.id, scores=means if len(read) >= self.quorum else None, by_judge=by_judge)
            )
        figures = {
            c.name: agreement(
                [[scores and scores[c.name] for scores in result.by_judge.values()] for result in results], "interval"
            )
            for c in criteria
        }
        return CommitteeScores(results=results, reports=reports, agreement=figures, usage=_usage(reports))

    async def compare(
        self, items: Sequence[PairItem], criteria: Sequence[Criterion] = (), *, orders: Orders = "both"
    ) -> CommitteeVerdicts:
        """Every judge's verdicts and their majority. Raises: ConfigError as `Judge.compare`."""
        given = await asyncio.gather(*(judge.compare(items, criteria, orders=orders) for judge in self.judges))
        reports = {judge.name: report for judge, report in zip(self.judges, given, strict=True)}
        results = []
        for i, item in enumerate(items):
            by_judge = {name: report.results[i].verdict for name, report in reports.items()}
            read = [verdict for verdict in by_judge.values() if verdict is not None]
            verdict = majority(read) if len(read) >= self.quorum else None
            results.append(CommitteeVerdict(id=item.id, verdict=verdict, by_judge=by_judge))
        figures = agreement([list(result.by_judge.values()) for result in results])
        return CommitteeVerdicts(results=results, reports=reports, agreement=figures, usage=_usage(reports))


def majority(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that stands most often; "tie" where two or three stand equally often.

    Raises: ValueError without verdicts.
    """
    if not verdicts:
        raise ValueError("no verdicts to take a majority of")
    ranked = Counter(verdicts).most_common()
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else "tie"


def _usage(reports: Mapping[str, RubricReport | PairReport]) -> Usage:
    return sum((report.usage for report in reports.values()), Usage())
