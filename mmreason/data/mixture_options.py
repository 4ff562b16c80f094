"""The options `datasets`, `replay` and `curriculum` of a run: checked, loaded as one set, and made into its order.

datasets:
  - {name: openai/gsm8k:main, weight: 2}
  - {name: data/tools.jsonl, format: sharegpt, weight: 1, max_epochs: 3}
replay: {name: data/pretraining.jsonl, share: 0.1}
curriculum: {by: meta.level, pacing: root, start: 0.1, epochs: 1}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mmreason._functions import did_you_mean
from mmreason.data.curriculum import LENGTH, CurriculumOrder, Pacing
from mmreason.data.loader import LoadedExamples, load_examples
from mmreason.data.mixture import MixtureOrder, MixtureSet, RowOrder, ShuffledOrder, Stop, mixed_seed
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

LOADED_WITH = ("split", "format", "column_map", "system_prompt", "prompt_template", "completion_template", "image_root")
"""Keys of an entry that say how its rows are read: arguments of `load_examples`."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of `datasets`, or the one of `replay`.

    Attributes:
        name: hub id, file or folder.
        source: what its rows' column `source` says, and the name of its loss; unique in the mixture.
        weight: relative to the others'; None: by its size.
        share: of all rows, of a replay; None for a set that is trained on for its own sake.
        max_rows, max_epochs: rows drawn, or passes over the set, after which it is used up.
        read_with: arguments of `load_examples` (see LOADED_WITH) that differ from the run's.
    """

    name: str
    source: str
    weight: int | float | None = None
    share: float | None = None
    max_rows: int | None = None
    max_epochs: float | None = None
    read_with: Mapping[str, Any] | None = None


def parse_members(datasets: Sequence[Mapping[str, Any]], replay: Mapping[str, Any] | None = None) -> list[Member]:
    """The entries of `datasets`, and that of `replay` behind them.

    Raises: ConfigError naming the entry and key: unknown, missing, of the wrong type or out of range; weights for some
        sets only; two entries with the same `source`.
    """
    if not datasets:
        raise ConfigError("datasets is empty: name at least one set, or leave the option out for dataset_name")
    names = _sources([entry.get("source") or _short_name(entry.get("name")) for entry in datasets])
    members = [_member(entry, f"datasets[{i}]", names[i]) for i, entry in enumerate(datasets)]
    weighted = [member.weight is not None for member in members]
    if any(weighted) and not all(weighted):
        missing = members[weighted.index(False)]
        raise ConfigError(f"datasets: {missing.name} has no weight, others have one: give every set a weight, or none")
    if replay is not None:
        members.append(_member(replay, "replay", str(replay.get("source") or "replay")))
    twice = [name for name, count in Counter(member.source for member in members).items() if count > 1]
    if twice:
        raise ConfigError(f"datasets: two sets have the source {twice[0]!r}; give each its own `source`")
    return members


def _member(entry: Mapping[str, Any], where: str, source: str) -> Member:
    own = ("share",) if where == "replay" else ("weight", "max_rows", "max_epochs")
    known = ("name", "source", *own, *LOADED_WITH)
    for key in entry:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}; known: {', '.join(known)}.{did_you_mean(str(key), known)}"
            )
    for key in ("name", "source", *LOADED_WITH):
        if entry.get(key) is not None and not isinstance(entry[key], Mapping if key == "column_map" else str):
            raise ConfigError(f"{where}: {key}={entry[key]!r} must be a {'mapping' if key == 'column_map' else 'text'}")
    if not entry.get("name"):
        raise ConfigError(f"{where}: no name: give a hub id, a file or a folder")
    numbers = {key: _number(entry.get(key), f"{where}: {key}", whole=key == "max_rows") for key in own}
    share = numbers.get("share")
    if where == "replay" and not (share is not None and share < 1):
        raise ConfigError(f"replay: share={share} must be above 0 and below 1: its part of all rows")
    read_with = {key: entry[key] for key in LOADED_WITH if entry.get(key) is not None}
    return Member(entry["name"], source, read_with=read_with, **numbers)  # type: ignore[arg-type]


def _number(value: Any, what: str, *, whole: bool) -> int | float | None:
    """A number above 0, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigError(f"{what}={value!r} must be a {'whole number' if whole else 'number'}")
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{what}={value} must be above 0")
    return value


def _short_name(name: object) -> str:
    """ "openai/gsm8k:main" -> "gsm8k", "data/tools.jsonl.gz" -> "tools"."""
    last = PurePath(str(name or "set")).name
    return last.split(":")[0].split(".")[0] or last


def _sources(names: Sequence[str]) -> list[str]:
    """The names, those that occur more than once numbered."""
    counts = Counter(names)
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
    return numbered


def load_members(
    members: Sequence[Member], say: Callable[[str], None] = lambda line: None, **read_with: Any
) -> Dataset:
    """The rows of all sets, one set after the other, as one dataset whose column `source` names the set.

    Args:
        members: what to read. say: gets a line per set: its rows and what was dropped why.
        read_with: arguments of `load_examples` for all sets (chat, on_bad_row, columns …); an entry's own go before.

    Ids that two sets share are told apart by the set's name put before them.
    Raises: as `load_examples`, and DataError where a set has no row.
    """
    from datasets import concatenate_datasets

    loaded: list[LoadedExamples] = []
    for member in members:
        loaded.append(load_examples(member.name, **{**read_with, **(member.read_with or {})}))
        say(f"{member.source}: {loaded[-1].summary()}")
    seen: set[str] = set()
    parts = []
    for member, one in zip(members, loaded, strict=True):
        ids = one.dataset["id"]
        if not seen.isdisjoint(ids):
            ids = [f"{member.source}/{row_id}" for row_id in ids]
        seen.update(ids)
        names = {"id": list(ids), "source": [member.source] * len(one.dataset)}
        parts.append(_with_columns(one.dataset, names))
    return concatenate_datasets(parts)


def _with_columns(dataset: Dataset, columns: Mapping[str, list[str]]) -> Dataset:
    order, features = dataset.column_names, dataset.features
    for name, cells in columns.items():
        dataset = dataset.remove_columns(name) if name in dataset.column_names else dataset
        dataset = dataset.add_column(name, cells, feature=features.get(name))
    return dataset.select_columns([*order, *(name for name in columns if name not in order)])


def member_weights(members: Sequence[Member], sizes: Sequence[int], temperature: float = 1.0) -> list[Fraction]:
    """The share of each set: as its weights say, or p_i ∝ n_i^(1/T) of the sizes; a replay has its own share.

    T = 1 draws in proportion to the sizes, larger T more evenly (Arivazhagan et al. 2019, arXiv 1907.05019).

    Args: sizes: rows n_i of each set. temperature: T ≥ 1, or infinity.
    Returns: shares that sum to 1.
    """
    if not temperature > 0:
        raise ConfigError(f"mixture_temperature={temperature} must be above 0")
    if temperature != 1 and any(member.weight is not None for member in members):
        raise ConfigError(f"mixture_temperature={temperature} weighs sets by size: leave it, or their weights, out")
    shares: list[Fraction] = []
    for member, size in zip(members, sizes, strict=True):
        if member.weight is not None:
            shares.append(Fraction(str(member.weight)))
        else:
            shares.append(Fraction(size) if temperature == 1 else Fraction(size ** (1 / temperature)))
    replayed = sum((Fraction(str(member.share)) for member in members if member.share is not None), Fraction(0))
    rest = sum((w for w, member in zip(shares, members, strict=True) if member.share is None), Fraction(0))
    return [
        Fraction(str(member.share)) if member.share is not None else weight / rest * (1 - replayed)
        for weight, member in zip(shares, members, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class CurriculumOptions:
    """The option `curriculum`.

    Attributes:
        by: "length" (tokens), a column, or a key in one: "meta.level".
        pacing, start, power, steps: see mmreason.data.curriculum.Pacing.
        rows, epochs: until when harder rows are held back: one of the two; of the whole mixture. Default: one epoch.
        hardest_first: begin with the hardest rows instead.
    """

    by: str = LENGTH
    pacing: str = "root"
    start: float = 0.1
    power: float = 2.0
    steps: int = 4
    rows: int | None = None
    epochs: float | None = None
    hardest_first: bool = False

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> CurriculumOptions:
        """Raises: ConfigError naming an unknown key, a value of another type or out of range."""
        known = {f.name: f.type for f in fields(cls)}
        for key, value in options.items():
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise ConfigError(f"curriculum: unknown key {key!r}; known: {', '.join(known)}.{hint}")
            kinds = {"str": str, "bool": bool, "int": int}.get(str(known[key]).split(" ")[0], (int, float))
            if isinstance(value, bool) != (kinds is bool) or not isinstance(value, kinds):
                raise ConfigError(f"curriculum: {key}={value!r} must be of the type {known[key]}")
        parsed = cls(**options)
        if parsed.rows is not None and parsed.epochs is not None:
            raise ConfigError("curriculum: give rows or epochs, not both")
        if parsed.epochs is not None and not (parsed.epochs > 0 and math.isfinite(parsed.epochs)):
            raise ConfigError(f"curriculum: epochs={parsed.epochs} must be above 0")
        parsed.paced(parsed.rows or 1)
        return parsed

    def paced(self, rows: int) -> Pacing:
        return Pacing(rows, self.pacing, self.start, self.power, self.steps)  # type: ignore[arg-type]

    def until(self, rows_per_epoch: int) -> int:
        """Rows of the whole mixture until everything is open."""
        if self.rows is not None:
            return self.rows
        return max(1, round((self.epochs or 1.0) * rows_per_epoch))


def build_order(
    sources: Sequence[str],
    seed: int,
    members: Sequence[Member] = (),
    *,
    temperature: float = 1.0,
    stop: Stop = "all_exhausted",
    shuffle: bool = True,
    curriculum: CurriculumOptions | None = None,
    difficulty: Sequence[float] | None = None,
) -> RowOrder:
    """The order of a run's rows.

    Args:
        sources: (N,) the set of each row, by the members' `source`.
        seed: of every set's own order.
        members: of the mixture; none: all rows are one set.
        temperature: see `member_weights`. stop: see MixtureOrder. shuffle: False keeps each set's rows in order.
        curriculum: every set begins with its own easy rows, all at the same pace, so that the shares hold throughout.
        difficulty: (N,) that the curriculum goes by (see mmreason.data.curriculum.difficulties).

    Raises: DataError for a set of which no row is left; ConfigError for settings that can't be.
    """
    if curriculum is not None and difficulty is None:
        raise ConfigError("curriculum: the rows' difficulty is missing")

    def plain(rows: Sequence[int], number: int) -> RowOrder:
        return ShuffledOrder(rows, mixed_seed(seed, number), shuffle=shuffle)

    groups = _rows_of_members(sources, members)
    shares = member_weights(members, [len(rows) for rows in groups], temperature) if members else [Fraction(1)]
    inner = [plain(rows, number) for number, rows in enumerate(groups)]
    if curriculum is not None:
        assert difficulty is not None
        until = curriculum.until(_mixed(inner, shares, members, stop).rows_per_epoch)
        inner = [
            _paced(rows, number, curriculum, max(1, round(until * share)), difficulty, seed)
            if not members or members[number].share is None
            else inner[number]
            for number, (rows, share) in enumerate(zip(groups, shares, strict=True))
        ]
    return _mixed(inner, shares, members, stop)


def _rows_of_members(sources: Sequence[str], members: Sequence[Member]) -> list[list[int]]:
    if not members:
        return [list(range(len(sources)))]
    groups: dict[str, list[int]] = {member.source: [] for member in members}
    for row, source in enumerate(sources):
        if source not in groups:
            raise DataError(f"row {row}: source {source!r} is no set of the mixture ({', '.join(groups)})")
        groups[source].append(row)
    for source, rows in groups.items():
        if not rows:
            raise DataError(f"datasets: no row of {source} is left to learn from", reason="empty")
    return list(groups.values())


def _paced(
    rows: Sequence[int], number: int, options: CurriculumOptions, until: int, difficulty: Sequence[float], seed: int
) -> RowOrder:
    mine = [difficulty[row] for row in rows]
    pacing = options.paced(until)
    return CurriculumOrder(mine, pacing, mixed_seed(seed, number), rows=rows, hardest_first=options.hardest_first)


def _mixed(inner: Sequence[RowOrder], shares: Sequence[Fraction], members: Sequence[Member], stop: Stop) -> RowOrder:
    if not members:
        return inner[0]
    return MixtureOrder(
        [
            MixtureSet(order, share, member.max_rows, member.max_epochs, counts=member.share is None)
            for order, share, member in zip(inner, shares, members, strict=True)
        ],
        stop,
    )
