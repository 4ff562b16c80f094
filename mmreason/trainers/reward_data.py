"""The rows of a reward model: pairs, rankings, right and wrong answers, right and wrong steps, rendered and checked."""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from mmreason.data.formats.common import RowError, shorten
from mmreason.data.loader import BadRows
from mmreason.data.step_ends import step_ends
from mmreason.data.supervised import SupervisedRow, SupervisedRows
from mmreason.data.supervised_rendering import RowText, SupervisedRenderer
from mmreason.models.reward import Head
from mmreason.trainers.problems import Say, hold_out, load_split
from mmreason.trainers.reward_arguments import RewardData, RewardOptions
from mmreason.types import DataError

COLUMNS = (
    "prompt", "completion", "chosen", "rejected", "label", "completions", "labels", "images", "tools", "id", "source",
    "meta",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RewardRow:
    """What is learned from one example.

    Attributes:
        sequences: prompt and answer; of a pair or ranking one for each of its K completions.
        ranks: (K,) 0 for the best; equal ones are ties. margin: see `mmreason.losses.ranking.pair_loss`.
        places: (S,) tokens of the sequence at which the head is read: its last one, or the end of each step.
        labels: (S,) 1 for right, 0 for wrong; empty where sequences are ranked.
        weight: 0.0 for one that only fills up a batch.
    """

    sequences: tuple[SupervisedRow, ...]
    ranks: tuple[int, ...] = ()
    margin: float = 0.0
    places: tuple[int, ...] = ()
    labels: tuple[float, ...] = ()
    weight: float = 1.0


@dataclass(slots=True)
class RewardRows:
    """The rows of a set, checked; images are opened again when a row is asked for.

    Attributes:
        head: what they teach. sequences: prompts with their answers, those of a row next to each other.
        starts: (N + 1,) where each row's sequences begin.
        ranks: of each sequence. margins: of each row. places, labels: of each row, see `RewardRow`.
    """

    head: Head
    sequences: SupervisedRows
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    ranks: array[int] = field(default_factory=lambda: array("i"))
    margins: array[float] = field(default_factory=lambda: array("d"))
    places: list[tuple[int, ...]] = field(default_factory=list)
    labels: list[tuple[float, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> RewardRow:
        """A row; ~index: the same as a filler. Raises: IndexError; DataError where an image can't be read any more."""
        number = max(index, ~index)
        span = range(self.starts[number], self.starts[number + 1])
        row = RewardRow(
            tuple(self.sequences[i] for i in span),
            tuple(self.ranks[i] for i in span) if self.head == "preference" else (),
            self.margins[number],
            self.places[number],
            self.labels[number],
        )
        return row if index >= 0 else replace(row, weight=0.0)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's longest sequence times its sequences: what a padded batch pays for it."""
        found = self.sequences.lengths
        pairs = zip(self.starts, self.starts[1:], strict=False)
        return [int(found[a:b].max()) * (b - a) for a, b in pairs]

    @property
    def image_counts(self) -> list[int]:
        """Images of each row, all its sequences together."""
        counts = np.asarray([0, *np.cumsum(self.sequences.image_counts)])
        return [int(counts[b] - counts[a]) for a, b in zip(self.starts, self.starts[1:], strict=False)]

    def add(self, place: int, parts: Sequence[Part]) -> None:
        """Keep the row of the Example at this place of its dataset."""
        for part in parts:
            self.sequences.add(place, part.text, part.row)
            self.ranks.append(part.rank)
        self.starts.append(self.starts[-1] + len(parts))
        self.margins.append(parts[0].margin)
        self.places.append(parts[0].places)
        self.labels.append(parts[0].labels)


@dataclass(frozen=True, slots=True)
class Part:
    """One rendered sequence of a row, and what is known of it."""

    text: RowText
    row: SupervisedRow
    rank: int = 0
    margin: float = 0.0
    places: tuple[int, ...] = ()
    labels: tuple[float, ...] = ()


def load_reward_rows(data: RewardData, seed: int, say: Say) -> tuple[Any, dict[str, Any]]:
    """(training examples, held-out ones by the name of their set), as the options name them."""
    reading: dict[str, Any] = {"columns": COLUMNS, "require_answer": False}
    train = load_split(data, data.dataset_train_split, data.max_train_samples, say, **reading)
    return hold_out(data, train, seed, say, **reading)


def head_of(dataset: Any, head: str, name: str | None) -> Head:
    """The head that the rows are for, where the options don't say it.

    Raises: DataError: no row says what is better or right.
    """
    if head != "auto":
        return cast(Head, head)
    kinds = ("process", "completions"), ("preference", "chosen"), ("outcome", "label")
    for kind, column in kinds:
        if column in dataset.column_names and any(cell is not None for cell in dataset[column]):
            return cast(Head, kind)
        if kind == "preference" and any((meta or {}).get("ranking") for meta in dataset["meta"]):
            return "preference"
    raise DataError(
        f"{name}: no row says which answer is better or right. Rows need chosen and rejected, a ranking, a completion "
        "with a label, or completions (steps) with labels; see docs/reward_model.md",
        path=name,
        reason="missing_pair",
    )


def prepare_reward(
    dataset: Any, processor: Any, head: Head, args: RewardOptions, on_bad_row: str
) -> tuple[RewardRows, dict[str, int]]:
    """Render every sequence, and open every image, once, before a model is loaded.

    Args: dataset: columns of `COLUMNS`. processor: a tokenizer, or the model's processor where rows have images.

    Returns: (the rows, number of left out rows by reason).
    Raises: DataError naming the bad rows, or that none is left; ConfigError: images for a model that takes none.
    """
    renderer = SupervisedRenderer(
        processor,
        max_length=args.max_length,
        truncation=args.truncation,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    rows, bad, left_out = RewardRows(head, SupervisedRows(dataset, processor)), BadRows(), 0
    quiet = os.environ.get("RANK", "0") != "0"
    every = 0.5 if sys.stderr.isatty() else 30.0  # a log file wants lines, not frames
    bar = tqdm(dataset, desc="tokenizing", unit="row", dynamic_ncols=True, mininterval=every, disable=quiet)
    for place, example in enumerate(bar):
        try:
            parts = list(_parts(example, head, renderer, use_margin=args.use_margin))
        except (DataError, RowError) as error:
            detail = error.detail if isinstance(error, RowError) else str(error).removeprefix(f"row {error.row}: ")
            bad.add(f"row {example['id']}", None, RowError(error.reason or "bad_messages", detail))
            continue
        if any(part is None for part in parts):
            left_out += 1
        else:
            rows.add(place, cast(list[Part], parts))
    rows.sequences.close()
    dropped = dict(bad.counts)
    if left_out:
        dropped["too_long"] = dropped.get("too_long", 0) + left_out
    _report(bad, dropped, len(rows), len(dataset), args, on_bad_row)
    return rows, dropped


def _report(
    bad: BadRows, dropped: Mapping[str, int], good: int, count: int, args: RewardOptions, on_bad_row: str
) -> None:
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items()))
    listed = "".join(f"\n  {line}" for line in bad.shown)
    listed += f"\n  ... and {bad.total - len(bad.shown)} more" if bad.total > len(bad.shown) else ""
    if bad.total and on_bad_row == "error":
        cure = f", raise max_length={args.max_length} or set truncation: drop" if "too_long" in dropped else ""
        raise DataError(
            f"{bad.total} of {count} rows can't be learned from ({reasons}):{listed}\n"
            f"Put them right{cure}, or drop such rows with on_bad_row: drop (dropped rows are counted)",
            row=bad.shown[0].split(": ", 1)[0].removeprefix("row "),
            reason=next(iter(bad.counts)),
        )
    if not good:
        raise DataError(f"none of {count} rows is left ({reasons or 'the dataset is empty'}){listed}", reason="empty")


# --------------------------------------------------------------------------------------------------------------------
# One example


def _parts(
    example: Mapping[str, Any], head: Head, renderer: SupervisedRenderer, *, use_margin: bool
) -> Iterator[Part | None]:
    """The rendered sequences of an example; None for one that is too long and to be dropped. Raises RowError."""
    if head == "preference":
        margin = _margin(example) if use_margin else 0.0
        for name, completion, rank in _ranked(example):
            rendered = _rendered(renderer, example, completion, name)
            yield None if rendered is None else Part(*rendered, rank=rank, margin=margin)
        return
    if head == "outcome":
        label = example.get("label")
        if not isinstance(label, bool):
            raise RowError("missing_label", "an outcome head learns from completions with a label, true or false")
        if not example.get("completion"):
            raise RowError("missing_completion")
        rendered = _rendered(renderer, example, example["completion"], "completion")
        yield None if rendered is None else Part(*rendered, places=(len(rendered[1].ids) - 1,), labels=(float(label),))
        return
    steps, labels = example.get("completions"), example.get("labels")
    if not steps:
        raise RowError("missing_completion", "a process head learns from completions, the steps, with their labels")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise RowError("bad_label", f"{len(steps)} steps, {len(labels or [])} labels")
    text: Any = "\n".join(steps)
    written = text if isinstance(example["prompt"], str) else [{"role": "assistant", "content": text}]
    rendered = _rendered(renderer, example, written, "completions")
    yield (
        None
        if rendered is None
        else Part(
            *rendered, places=step_ends(*rendered, steps, renderer), labels=tuple(float(label) for label in labels)
        )
    )


def _rendered(
    renderer: SupervisedRenderer, example: Mapping[str, Any], completion: Any, name: str
) -> tuple[RowText, SupervisedRow] | None:
    """A completion behind its prompt; None where it is too long and to be dropped."""
    try:
        rendered = renderer.render({**example, "completion": completion})
    except DataError as error:
        detail = str(error).removeprefix(f"row {error.row}: ")
        raise DataError(f"row {error.row}: {name}: {detail}", row=error.row, reason=error.reason) from error
    return None if rendered.too_long else rendered.rows[-1]


def _ranked(example: Mapping[str, Any]) -> list[tuple[str, Any, int]]:
    """(name, completion, rank) of each completion of a pair or ranking. Raises RowError."""
    ranking = (example.get("meta") or {}).get("ranking")
    if ranking:
        return _of_ranking(ranking, isinstance(example["prompt"], str))
    chosen, rejected = example.get("chosen"), example.get("rejected")
    if not chosen or not rejected:
        raise RowError("missing_pair", "and no ranking")
    if chosen == rejected:
        raise RowError("bad_pair", f"both are {shorten(chosen)}")
    return [("chosen", chosen, 0), ("rejected", rejected, 1)]


def _of_ranking(ranking: Any, plain: bool) -> list[tuple[str, Any, int]]:
    found: list[tuple[str, Any, int]] = []
    for number, entry in enumerate(ranking if isinstance(ranking, list) else [ranking]):
        rank = entry.get("rank") if isinstance(entry, Mapping) else None
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0 or not entry.get("completion"):
            raise RowError("bad_pair", f"a ranking is a list of {{completion, rank}}, not of {shorten(entry)}")
        said = entry["completion"]
        if isinstance(said, str) and not plain:
            said = [{"role": "assistant", "content": said}]
        found.append((f"completion {number + 1}", said, rank))
    if len({rank for *_, rank in found}) < 2:
        raise RowError("bad_pair", f"{len(found)} completions of one rank: nothing is compared")
    for number, (_, said, rank) in enumerate(found):
        if any(said == other and rank != its for _, other, its in found[:number]):
            raise RowError("bad_pair", f"one completion stands at two ranks: {shorten(said)}")
    return found


def _margin(example: Mapping[str, Any]) -> float:
    margin = (example.get("meta") or {}).get("margin")
    if margin is None:
        return 0.0
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not math.isfinite(margin):
        raise RowError("bad_pair", f"'margin' is {shorten(margin)}, not a number")
    return float(margin)


def told(name: str, rows: RewardRows, dropped: Mapping[str, int]) -> str:
    """One line about a prepared set."""
    tokens = int(rows.sequences.lengths.sum())
    parts = [f"{name}: {len(rows)} rows for a {rows.head} head, {len(rows.sequences)} sequences, {tokens:,} tokens"]
    with_margin = sum(margin != 0 for margin in rows.margins)
    if with_margin:
        parts.append(f"{with_margin} pairs with a margin, {sum(rows.margins) / with_margin:.3g} on average")
    if dropped:
        parts.append("dropped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())))
    return "; ".join(parts)
