"""Rows of a ranked group: pairs, rankings, or completions with a label, as plain TRL reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_builders._preferences.candidates import Candidate, Group
from data_builders._preferences.options import Form
from data_builders._preferences.rank import Ranked
from data_builders._preferences.select import Chosen, PairRules, select
from data_builders.building.build import Drop
from mmreason.data.prompts import build_completion
from mmreason.types import Example, Message

SOURCE = "preferences"
COLUMNS: dict[Form, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected", "answer", "id", "source", "meta"),
    "rankings": ("prompt", "completion", "answer", "id", "source", "meta"),
    "unpaired": ("prompt", "completion", "label", "answer", "id", "source", "meta"),
}
_SHOWN = 300


class RowWriter:
    """Writes a group's rows.

    Args:
        form: of the rows.
        ranked_by: for meta.
        rules: which pairs.
        template: text with {reasoning} and {answer} that a completion's thoughts are written down with; None: they stay
            apart.
        seed: decides what is drawn.
    """

    def __init__(self, form: Form, ranked_by: str, rules: PairRules, template: str | None, seed: int) -> None:
        self.form, self.ranked_by, self.rules, self.template, self.seed = form, ranked_by, rules, template, seed

    def write(self, group: Group, ranked: Ranked) -> tuple[list[Example], list[Drop], Counter[str]]:
        """The rows, what is dropped, and counts."""
        counts: Counter[str] = Counter(f"levels:{len(ranked.levels)}" for _ in ranked.levels[:1])
        if ranked.reason:
            return [], [Drop(ranked.reason, _shown(group))], counts
        if self.form == "rankings":
            return *self._ranking(group, ranked), counts
        if self.form == "unpaired":
            return *self._unpaired(group, ranked, counts), counts
        return *self._pairs(group, ranked, counts), counts

    def _pairs(self, group: Group, ranked: Ranked, counts: Counter[str]) -> tuple[list[Example], list[Drop]]:
        if len(ranked.levels) < 2:
            return [], [Drop(_why_level(ranked), _shown(group))]
        chosen, left_out = select(group, ranked, self.rules, str(self.seed))
        counts.update({f"left_out:{reason}": n for reason, n in left_out.items()})
        rows = [self._pair(group, ranked, pair) for pair in chosen]
        drops = [] if rows else [Drop(next(iter(left_out), "min_gap"), _shown(group))]
        return rows, drops

    def _pair(self, group: Group, ranked: Ranked, pair: Chosen) -> Example:
        better, worse = group.candidates[pair.better], group.candidates[pair.worse]
        meta: dict[str, Any] = {"gap": pair.gap, "margin": pair.margin}
        if pair.likeness is not None:
            like = pair.likeness
            meta |= {"likeness": round(like.total, 4), "near_answer": like.near_answer}
        meta |= {"chosen": self._note(better, ranked, pair.better), "rejected": self._note(worse, ranked, pair.worse)}
        sides: Example = {"chosen": self._written(better), "rejected": self._written(worse)}
        return self._row(group, f"{pair.better}-{pair.worse}", sides, meta)

    def _ranking(self, group: Group, ranked: Ranked) -> tuple[list[Example], list[Drop]]:
        if len(ranked.levels) < 2 and self.ranked_by != "none":
            return [], [Drop(_why_level(ranked), _shown(group))]
        entries = [
            {"completion": self._written(group.candidates[i]), "rank": rank}
            | self._note(group.candidates[i], ranked, i)
            for rank, level in enumerate(ranked.levels)
            for i in level
        ]
        best = group.candidates[ranked.levels[0][0]]
        return [self._row(group, "ranking", {"completion": self._written(best)}, {"ranking": entries})], []

    def _unpaired(self, group: Group, ranked: Ranked, counts: Counter[str]) -> tuple[list[Example], list[Drop]]:
        good = ranked.good
        if good is None:
            # A comparison says nothing of a completion alone: only the best and the worst get a label.
            if len(ranked.levels) < 2:
                return [], [Drop(_why_level(ranked), _shown(group))]
            good = dict.fromkeys(ranked.levels[0], True) | dict.fromkeys(ranked.levels[-1], False)
            counts["left_out:in_the_middle"] += sum(map(len, ranked.levels[1:-1]))
        rows = []
        for i, label in sorted(good.items()):
            candidate = group.candidates[i]
            sides: Example = {"completion": self._written(candidate), "label": label}
            rows.append(self._row(group, str(i), sides, self._note(candidate, ranked, i)))
        return rows, [] if rows else [Drop("nothing_judged", _shown(group))]

    def _note(self, candidate: Candidate, ranked: Ranked, number: int) -> dict[str, Any]:
        """Where a completion comes from and what was found of it."""
        note: dict[str, Any] = {"origin": candidate.origin, **candidate.meta, **ranked.notes.get(number, {})}
        score = ranked.scores.get(number, candidate.score)
        return note if score is None else {**note, "score": round(score, 6)}

    def _written(self, candidate: Candidate) -> list[Message]:
        if self.template is None or not any(message.get("reasoning_content") for message in candidate.completion):
            return candidate.completion
        return build_completion(candidate.completion, template=self.template, chat=True)  # type: ignore[return-value]

    def _row(self, group: Group, part: str, sides: Example, meta: Mapping[str, Any]) -> Example:
        kept = {"kind": group.kind, "choices": group.choices, "ranked_by": self.ranked_by}
        kept |= {"parent": group.id, "parent_source": group.example.get("source")}
        row: Example = {"prompt": group.prompt, **sides, "answer": group.answer}
        for name in ("tools", "images"):
            if group.example.get(name):
                row[name] = group.example[name]  # type: ignore[literal-required]
        return {**row, "id": f"{SOURCE}/{group.id}/{part}", "source": SOURCE, "meta": kept | dict(meta)}


def _why_level(ranked: Ranked) -> str:
    """Why candidates that were judged have no order."""
    if not ranked.levels:
        return "nothing_judged"
    if ranked.good is None:
        return "all_tied"
    return "all_good" if all(ranked.good.values()) else "all_bad"


def _shown(group: Group) -> str:
    """A group for the report's samples."""
    asked = next((m["content"] for m in reversed(group.prompt) if m["role"] == "user"), "")
    texts: Sequence[str] = [str(asked), *(f"[{c.origin}] {c.text}" for c in group.candidates[:4])]
    return "\n".join(text if len(text) <= _SHOWN else text[:_SHOWN] + " …" for text in texts)
