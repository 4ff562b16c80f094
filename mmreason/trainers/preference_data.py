"""The rows of a preference run: pairs, or completions with a label, rendered and checked before a model is loaded.

What the trainer gets is always two rows with one prompt and its pictures: chosen and rejected, or, for KTO, a
completion and another prompt's completion, of which its baseline is made.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmreason.data.formats.common import RowError
from mmreason.data.holdout import question_key
from mmreason.data.images import encoded_digest
from mmreason.data.loader import BadRows
from mmreason.data.supervised import SupervisedRow, SupervisedRows
from mmreason.data.supervised_rendering import RowText, SupervisedRenderer
from mmreason.data.visual import VisualPrompt, image_counts
from mmreason.trainers.arguments import DataArguments
from mmreason.trainers.preference_arguments import PreferenceOptions
from mmreason.trainers.problems import HeldOut, Say, check_held_out, check_problems, hold_out, load_split
from mmreason.trainers.sft_features import CheckedRows, StoredRows
from mmreason.types import DataError

COLUMNS = ("prompt", "chosen", "rejected", "completion", "label", "images", "answer", "tools", "id", "source", "meta")
_RENDERED = ("id", "source", "prompt", "chosen", "rejected", "completion", "label", "images", "tools")
_CURES = "Put them right, or drop such rows with on_bad_row: drop (dropped rows are counted)"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows that begin with the same prompt and pictures.

    Attributes:
        first, second: chosen and rejected; or a completion and one that belongs to another prompt.
        label: whether `first` is wanted, where it is no pair of chosen and rejected.
        reference: log-probabilities of both under the reference, nats, where they are known already.
    """

    first: SupervisedRow
    second: SupervisedRow
    label: bool | None = None
    reference: tuple[float, float] | None = None


class PairRows:
    """Checked pairs. Tokens stay in memory; images are opened, once for both sides, when a pair is asked for.

    Attributes:
        labels: of each item, None for pairs of chosen and rejected.
        lengths: (N,) tokens of both rows together. sources, row_ids, image_counts: of each item.
        max_length: at which KTO's other completions are cut behind the prompt; one token stays in any case.
        reference: (N, 2) float32 log-probabilities under the reference, once they have been computed.
    """

    reference: np.ndarray[Any, Any] | None = None

    def __init__(
        self,
        first: SupervisedRows,
        second: SupervisedRows | None,
        labels: Sequence[bool] | None = None,
        partners: Sequence[int] | None = None,
        pictures: str = "",
        max_length: int | None = None,
    ) -> None:
        self.first: CheckedRows = first
        self._pictures, self.max_length = pictures, max_length
        self.second, self.labels, self.partners = second, labels, partners
        self.sources, self.row_ids, self.image_counts = first.sources, first.row_ids, first.image_counts
        others = second.lengths if second is not None else self._other_lengths()
        self.lengths: np.ndarray[Any, Any] = first.lengths + others

    def __len__(self) -> int:
        return len(self.row_ids)

    def use_features(self, features: Any) -> None:
        """Have images as stored features of a frozen tower (mmreason.models.features.TowerFeatures)."""
        self.first = StoredRows(self.first, features)

    def __getitem__(self, index: int) -> Pair:
        """Raises: as `SupervisedRows`."""
        first, other = self.first[index], self.without_images(index).second
        if first.visual is not None:
            other = replace(other, visual=shared_visual(first, _shared(first.ids, other.ids)))
        label = None if self.labels is None else self.labels[index]
        known = None if self.reference is None else (float(self.reference[index, 0]), float(self.reference[index, 1]))
        return Pair(first, other, label, known)

    def without_images(self, index: int) -> Pair:
        """An item's tokens alone."""
        first = self.first.without_images(index)
        if self.second is not None:
            return Pair(first, self.second.without_images(index))
        other = self._other(index)
        prompt = first.ids[: _start(first)]
        # Both fit with their own prompts, but a long prompt and a long completion need not fit together.
        room = None if self.max_length is None else max(1, self.max_length - len(prompt))
        ids, weights = prompt + other.ids[:room], [0.0] * len(prompt) + other.weights[:room]
        return Pair(first, SupervisedRow(ids, weights, first.row_id, first.source))

    def _other(self, index: int) -> _Completion:
        """The completion, without its prompt, that KTO's baseline takes for an item's prompt."""
        assert self.partners is not None
        row = self.first.without_images(self.partners[index])
        start = _start(row)
        return _Completion(row.ids[start:], row.weights[start:])

    def _other_lengths(self) -> np.ndarray[Any, Any]:
        return np.array([len(self.without_images(i).second.ids) for i in range(len(self))], dtype=np.int64)

    def digest(self) -> str:
        """SHA-256 of everything that log-probabilities depend on: tokens, weights, pictures."""
        found = hashlib.sha256()
        for index in range(len(self)):
            pair = self.without_images(index)
            for row in (pair.first, pair.second):
                found.update(array("q", [len(row.ids), *row.ids]).tobytes())
                found.update(array("f", row.weights).tobytes())
        found.update(self._pictures.encode())
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class _Completion:
    ids: list[int]
    weights: list[float]


def _start(row: SupervisedRow) -> int:
    """Place of a row's first token that counts: its prompt's length."""
    return next(i for i, weight in enumerate(row.weights) if weight)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def shared_visual(row: SupervisedRow, prompt_length: int) -> VisualPrompt:
    """The pictures of a row's prompt for another row with the same prompt: tensors are shared, per-token ones cut."""
    assert row.visual is not None
    whole = (1, len(row.ids))
    inputs = {
        name: value[:, :prompt_length] if tuple(value.shape) == whole else value
        for name, value in row.visual.inputs.items()
    }
    return VisualPrompt(row.ids[:prompt_length], [], [], inputs)


# ---- loading


@dataclass(frozen=True)
class RunRows:
    """What a run learns from and measures.

    Attributes:
        train: the training rows as Examples. train_pairs: the same, checked; None where a judge makes the pairs.
        held_out: pairs that are measured, problems: questions that are solved, by the name of their set.
        prompt_ids: tokens of the training prompts, where a judge makes the pairs.
    """

    train: Any
    train_pairs: PairRows | None
    held_out: dict[str, PairRows]
    problems: dict[str, HeldOut]
    prompt_ids: list[list[int]]

    @property
    def pairs(self) -> dict[str, PairRows]:
        """All sets of pairs by name."""
        return ({} if self.train_pairs is None else {"training": self.train_pairs}) | self.held_out

    @property
    def count(self) -> int:
        """Items of one pass over the training rows."""
        return len(self.train) if self.train_pairs is None else len(self.train_pairs)

    @property
    def image_counts(self) -> list[int]:
        """Images of each training row."""
        if self.train_pairs is not None:
            return list(self.train_pairs.image_counts)
        return list(image_counts(self.train)) or [0] * len(self.train)


def load_rows(data: DataArguments, args: PreferenceOptions, say: Say) -> tuple[Any, dict[str, Any]]:
    """(training rows, held-out rows by the name of their set); a row without what the loss needs is a bad one."""
    require: tuple[str, ...] = () if args.unpaired or args.online is not None else ("chosen", "rejected")
    reading: dict[str, Any] = {"columns": COLUMNS, "require_answer": False, "require": require}
    train = load_split(data, data.dataset_train_split, data.max_train_samples, say, **reading)
    return hold_out(data, train, args.seed, say, **reading)


def render_rows(
    train: Any, held_out: Mapping[str, Any], processor: Any, data: DataArguments, args: PreferenceOptions, say: Say
) -> RunRows:
    """Every row tokenized and every picture opened before a model is loaded; what is dropped is counted and said.

    Held-out pairs are measured as pairs with every loss.
    """
    rows = _rendered("training", train, processor, data, args, say, unpaired=args.unpaired)
    sets = {
        name: _rendered(name, held, processor, data, args, say, unpaired=args.unpaired and not _has_pairs(held))
        for name, held in held_out.items()
    }
    return RunRows(train, rows, sets, problems_of(held_out, processor, data, args, say), [])


def prompt_rows(
    train: Any, held_out: Mapping[str, Any], processor: Any, data: DataArguments, args: PreferenceOptions, say: Say
) -> RunRows:
    """Every prompt tokenized and every picture opened, for answers that are yet to be sampled."""
    problems = _with_answers(held_out)
    train, prompt_ids, sets = check_problems(train, problems, processor, data, args.chat_template_kwargs, say)
    return RunRows(train, None, {}, sets, prompt_ids)


def problems_of(
    held_out: Mapping[str, Any], processor: Any, data: DataArguments, args: PreferenceOptions, say: Say
) -> dict[str, HeldOut]:
    """Of the held-out rows those whose answers can be checked, by the name of their set."""
    return check_held_out(_with_answers(held_out), processor, data, args.chat_template_kwargs, say)


def _with_answers(held_out: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        name: held.select([i for i, answer in enumerate(held["answer"]) if answer is not None])
        for name, held in held_out.items()
    }
    return {name: held for name, held in found.items() if len(held)}


def _has_pairs(rows: Any) -> bool:
    return any(cell is not None for cell in rows["chosen"])


def _rendered(
    name: str, dataset: Any, processor: Any, data: DataArguments, args: PreferenceOptions, say: Say, *, unpaired: bool
) -> PairRows:
    rows, dropped = prepare_pairs(
        dataset,
        processor,
        unpaired=unpaired,
        max_length=args.max_length,
        on_bad_row=data.on_bad_row,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    labels = rows.labels
    what = "pairs" if labels is None else f"completions ({sum(labels)} wanted, {len(labels) - sum(labels)} not)"
    say(f"{name}: {len(rows)} {what}, {int(rows.lengths.sum()):,} tokens" + (f"; dropped: {counts}" if dropped else ""))
    return rows


# ---- rendering


def prepare_pairs(
    dataset: Any,
    processor: Any,
    *,
    unpaired: bool = False,
    max_length: int | None = None,
    on_bad_row: str = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[PairRows, dict[str, int]]:
    """Render both sides of every Example, and open every image, before a model is loaded.

    Args:
        dataset: columns `id`, `prompt` and `chosen`, `rejected` or `completion`, `label`; where there are any `source`,
            `images`, `tools`.
        unpaired: make single completions with labels (KTO); a pair is a wanted one and one that isn't.
        max_length: tokens of the longer side at most, those of images included. A longer row is a bad one; of KTO's
            baseline, the other question's completion is cut.
        on_bad_row: "error" names the first five bad rows and their number; "drop" counts them by reason.

    Returns: (the pairs, number of left out rows by reason).
    Raises: DataError naming bad rows (reasons "bad_pair": both sides are the same tokens, or begin with different
        prompts; "missing_pair", "missing_label", "too_long" …), or that no row is left; ConfigError as
        `mmreason.data.supervised_rendering.render_supervised`.
    """
    renderer = SupervisedRenderer(processor, max_length=max_length, chat_template_kwargs=chat_template_kwargs)
    made = _Maker(renderer, dataset, processor, unpaired)
    bad = BadRows()
    for place, example in enumerate(_with_progress(dataset)):
        try:
            made.add(place, example)
        except DataError as error:
            detail = str(error).removeprefix(f"row {error.row}: ")
            bad.add(f"row {example['id']}", None, RowError(error.reason or "bad_messages", detail))
    if not made.count or (bad.total and on_bad_row != "drop"):
        raise _refused(bad, len(dataset))
    return made.close(max_length), dict(bad.counts)


class _Maker:
    """Collects what Examples become."""

    def __init__(self, renderer: SupervisedRenderer, dataset: Any, processor: Any, unpaired: bool) -> None:
        self.renderer, self.unpaired = renderer, unpaired
        self.first = SupervisedRows(dataset, processor)
        self.second = SupervisedRows(dataset, processor)
        self.labels: list[bool] = []
        self.questions: list[str] = []
        self.pictures = hashlib.sha256()

    @property
    def count(self) -> int:
        return len(self.first)

    def add(self, place: int, example: Mapping[str, Any]) -> None:
        """Raises: DataError with the row's id."""
        if example.get("chosen") is not None and example.get("rejected") is not None:
            sides = [self._side(example, name) for name in ("chosen", "rejected")]
            _check_pair(str(example["id"]), sides[0][1], sides[1][1])
            labels = [True, False]
        elif not self.unpaired:
            raise _bad(example, "missing_pair", "chosen and rejected are not both there")
        elif example.get("completion") is None or example.get("label") is None:
            raise _bad(example, "missing_label", "neither chosen and rejected nor completion and label are there")
        else:
            sides, labels = [self._side(example, "completion")], [bool(example["label"])]
        for cell in example.get("images") or ():
            self.pictures.update(f"{place} {encoded_digest(cell)}".encode())
        if not self.unpaired:
            for rows, (text, row) in zip((self.first, self.second), sides, strict=True):
                rows.add(place, text, row)
            return
        question = question_key(example["prompt"], example.get("images") or ())
        for label, (text, row) in zip(labels, sides, strict=True):
            self.first.add(place, text, row)
            self.labels.append(label)
            self.questions.append(question)

    def _side(self, example: Mapping[str, Any], name: str) -> tuple[RowText, SupervisedRow]:
        given = {key: example.get(key) for key in ("id", "source", "prompt", "images", "tools")}
        rendered = self.renderer.render(given | {"completion": example[name]}).rows
        if len(rendered) != 1:
            raise _bad(example, "template", f"the chat template writes {name} in {len(rendered)} rows, not one")
        return rendered[0]

    def close(self, max_length: int | None) -> PairRows:
        if not self.unpaired:
            return PairRows(self.first.close(), self.second.close(), pictures=self.pictures.hexdigest())
        partners = _partners(self.questions)
        return PairRows(self.first.close(), None, self.labels, partners, self.pictures.hexdigest(), max_length)


def _check_pair(row_id: str, chosen: SupervisedRow, rejected: SupervisedRow) -> None:
    if chosen.ids == rejected.ids:
        raise DataError(
            f"row {row_id}: chosen and rejected are the same {len(chosen.ids)} tokens", row=row_id, reason="bad_pair"
        )
    if chosen.visual is None:
        return  # where texts' tokens merge across the prompt's end, both sides still are what they are
    start = min(_start(chosen), _start(rejected))
    if _shared(chosen.ids, rejected.ids) < start:
        raise DataError(
            f"row {row_id}: the prompt is rendered in two ways before chosen and rejected",
            row=row_id,
            reason="bad_pair",
        )


def _partners(questions: Sequence[str]) -> list[int]:
    """For each completion the nearest one before it (around the end) that answers another question.

    Raises: DataError where there is no other question.
    """
    if len(set(questions)) < 2:
        raise DataError("all rows ask the same question: KTO's baseline needs completions of others", reason="bad_pair")
    count, out = len(questions), []
    for index, question in enumerate(questions):
        step = next(step for step in range(1, count) if questions[index - step] != question)
        out.append((index - step) % count)
    return out


def _bad(example: Mapping[str, Any], reason: str, detail: str) -> DataError:
    return DataError(f"row {example['id']}: {detail}", row=str(example["id"]), reason=reason)


def _refused(bad: BadRows, count: int) -> DataError:
    if not bad.total:
        return DataError("the dataset is empty (no rows)", reason="empty")
    listed = "\n  ".join(bad.shown)
    more = f"\n  ... and {bad.total - len(bad.shown)} more" if bad.total > len(bad.shown) else ""
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(bad.counts.items()))
    longer = "Raise max_length. " if "too_long" in bad.counts else ""
    return DataError(
        f"{bad.total} of {count} rows can't be learned from ({reasons}):\n  {listed}{more}\n{longer}{_CURES}",
        row=bad.shown[0].split(": ", 1)[0].removeprefix("row "),
        reason=next(iter(bad.counts)),
    )


def _with_progress(dataset: Any) -> Iterator[Mapping[str, Any]]:
    from tqdm.auto import tqdm

    rows = dataset.select_columns([name for name in _RENDERED if name in dataset.column_names])
    quiet = os.environ.get("RANK", "0") != "0"
    every = 0.5 if sys.stderr.isatty() else 30.0  # a log file wants lines, not frames
    yield from tqdm(rows, desc="tokenizing", unit="row", dynamic_ncols=True, mininterval=every, disable=quiet)
