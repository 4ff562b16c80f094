"""Which pairs of a ranking become rows: gaps and margins, the wrong answers most alike the right one, lengths."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_builders._preferences.candidates import Candidate, Group
from data_builders._preferences.corrupt import near_values
from data_builders._preferences.options import Negatives, PairMode
from data_builders._preferences.order import pairs_of
from data_builders._preferences.rank import Ranked
from mmreason.answers import extract
from mmreason.answers.numbers import parse_number
from mmreason.data._words import words


@dataclass(frozen=True, slots=True)
class PairRules:
    """Attributes:
    mode, min_gap: see `pairs_of`.
    min_margin: least difference of the two scores, where there are scores.
    inferred: also pairs that only follow from others (A > B, B > C: A > C).
    negatives, per_chosen: so many rejected ones for each chosen one, which of them: see `Negatives`; None: all.
    max_pairs: of a prompt.
    max_length_ratio: the longer text is at most so many times as long as the shorter one.
    """

    mode: PairMode = "all"
    min_gap: int = 1
    min_margin: float = 0.0
    inferred: bool = False
    negatives: Negatives = "any"
    per_chosen: int | None = None
    max_pairs: int | None = None
    max_length_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A pair that becomes a row.

    Attributes:
        better, worse: numbers of candidates. gap: levels between them. margin: difference of their scores.
        likeness: see `Likeness`; None where nobody asked.
    """

    better: int
    worse: int
    gap: int
    margin: float | None
    likeness: Likeness | None = None


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much a wrong answer is like a right one.

    Attributes:
        overlap: words that both have, over all (Jaccard, with repeats), 0 to 1.
        length: of the shorter text over the longer one's, 0 to 1.
        near_answer: whether the final answers are such as a slip makes of each other (off by one, digits exchanged, a
            factor of ten ...).
    """

    overlap: float
    length: float
    near_answer: bool

    @property
    def total(self) -> float:
        """0 to 1: the mean of the three."""
        return (self.overlap + self.length + self.near_answer) / 3


def select(group: Group, ranked: Ranked, rules: PairRules, seed: str) -> tuple[list[Chosen], Counter[str]]:
    """The pairs of a group, and how many were left out by reason; "max_pairs" and "per_chosen" are no faults."""
    found: list[Chosen] = []
    left_out: Counter[str] = Counter()
    for better, worse, gap in pairs_of(ranked.levels, rules.mode, min_gap=rules.min_gap):
        margin = None
        if better in ranked.scores and worse in ranked.scores:
            margin = ranked.scores[better] - ranked.scores[worse]
        if ranked.direct is not None and not rules.inferred and (better, worse) not in ranked.direct:
            left_out["not_compared"] += 1
        elif margin is not None and margin < rules.min_margin:
            left_out["min_margin"] += 1
        elif not _lengths_fit(group.candidates[better], group.candidates[worse], rules.max_length_ratio):
            left_out["length_ratio"] += 1
        else:
            found.append(Chosen(better, worse, gap, margin))
    kept = _limited(group, found, rules, random.Random(f"pairs {seed} {group.id}"))
    if len(kept) < len(found):
        left_out["limited"] += len(found) - len(kept)
    return kept, left_out


def _limited(group: Group, pairs: Sequence[Chosen], rules: PairRules, rng: random.Random) -> list[Chosen]:
    """So many rejected ones for each chosen one, and so many pairs in all, in the order of the ranking."""
    if rules.per_chosen is None and rules.max_pairs is None and rules.negatives == "any":
        return list(pairs)
    if rules.negatives == "hard":
        texts = {i: group.candidates[i].text for pair in pairs for i in (pair.better, pair.worse)}
        answers = {i: _answer(text, group) for i, text in texts.items()}
        pairs = [
            Chosen(p.better, p.worse, p.gap, p.margin, likeness(texts[p.better], texts[p.worse],
                                                               answers[p.better], answers[p.worse]))
            for p in pairs
        ]  # fmt: skip
    order = list(pairs)
    rng.shuffle(order)
    if rules.negatives == "hard":
        order.sort(key=lambda pair: -pair.likeness.total if pair.likeness else 0.0)
    met: dict[int, int] = defaultdict(int)
    kept: set[tuple[int, int]] = set()
    for pair in order:
        if rules.per_chosen is not None and met[pair.better] >= rules.per_chosen:
            continue
        if rules.max_pairs is not None and len(kept) >= rules.max_pairs:
            break
        met[pair.better] += 1
        kept.add((pair.better, pair.worse))
    return [pair for pair in pairs if (pair.better, pair.worse) in kept]


def likeness(right: str, wrong: str, right_answer: str | None, wrong_answer: str | None) -> Likeness:
    """How much a wrong answer is like the right one, from their texts and extracted answers."""
    one, other = Counter(words(right)), Counter(words(wrong))
    union = (one | other).total()
    shorter, longer = sorted((len(right), len(wrong)))
    return Likeness(
        overlap=(one & other).total() / union if union else 1.0,
        length=shorter / longer if longer else 1.0,
        near_answer=is_near(right_answer, wrong_answer),
    )


def is_near(right: str | None, wrong: str | None) -> bool:
    """Whether a slip makes one number of the other: off by 1 or 10, digits, a factor of 10, a sign, a percent sign."""
    if right is None or wrong is None:
        return False
    one, other = parse_number(right), parse_number(wrong)
    if one is None or other is None or one.value == other.value:
        return False
    value = one.value
    ten, hundred = Fraction(10), Fraction(100)
    near = [-value, value * ten, value / ten, value * hundred, value / hundred, *near_values(value)]
    return other.value in near


def _answer(text: str, group: Group) -> str | None:
    return extract(text, group.kind, group.choices).answer


def _lengths_fit(better: Candidate, worse: Candidate, ratio: float | None) -> bool:
    if ratio is None:
        return True
    shorter, longer = sorted((len(better.text), len(worse.text)))
    return longer <= ratio * max(1, shorter)


# --------------------------------------------------------------------------------------------------------------------
# Lengths


@dataclass
class Balance:
    """Keeps as many pairs whose chosen text is longer as pairs whose rejected text is, in the order in which they come.

    So a model can't learn that longer is better: the two kinds differ by at most `slack` at any time.
    """

    slack: int = 1
    longer: int = 0
    shorter: int = 0

    def takes(self, chosen: int, rejected: int) -> bool:
        """Whether a pair with these lengths fits; it is counted, then. Pairs of equal lengths always fit."""
        lead = (self.longer - self.shorter) * (1 if chosen > rejected else -1)
        if chosen != rejected and lead >= self.slack:
            return False
        self.longer += chosen > rejected
        self.shorter += chosen < rejected
        return True


def length_report(lengths: Sequence[tuple[int, int]], seed: int = 0) -> dict[str, object]:
    """The length bias of pairs, in characters. Args: lengths: of chosen and rejected."""
    import numpy as np

    from mmreason.clients.agreement import bootstrap_interval
    from mmreason.clients.judge_length import win_rate_by_length

    if not lengths:
        return {"pairs": 0}
    chosen, rejected = (np.array([pair[side] for pair in lengths], dtype=np.float64) for side in (0, 1))
    longer, gaps = (chosen > rejected) + 0.5 * (chosen == rejected), chosen - rejected
    share = bootstrap_interval(lambda rows: float(longer[rows].mean()), len(lengths), seed=seed)
    gap = bootstrap_interval(lambda rows: float(gaps[rows].mean()), len(lengths), seed=seed)
    # Each pair with the longer text as A: how often A is the chosen one, by how much longer it is.
    a, b = np.maximum(chosen, rejected), np.minimum(chosen, rejected)
    buckets = win_rate_by_length(longer.tolist(), a.astype(int).tolist(), b.astype(int).tolist(), (1.1, 1.5, 2.0, 4.0))
    return {
        "pairs": len(lengths),
        "mean_chosen": round(float(chosen.mean()), 2),
        "mean_rejected": round(float(rejected.mean()), 2),
        "mean_difference": round(float(gaps.mean()), 2),
        "mean_difference_interval": _rounded((gap.low, gap.high)),
        "chosen_is_longer": round(float(longer.mean()), 4),
        "chosen_is_longer_interval": _rounded((share.low, share.high)),
        "by_ratio_of_lengths": [
            {"from": bucket.low, "to": None if math.isinf(bucket.high) else bucket.high, "pairs": bucket.items,
             "longer_is_chosen": None if math.isnan(bucket.win_rate) else round(bucket.win_rate, 4)}
            for bucket in buckets
            if bucket.items
        ],
    }  # fmt: skip


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 4) for value in values]
