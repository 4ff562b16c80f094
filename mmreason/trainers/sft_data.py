"""The rows of a supervised run: loaded as its options say, rendered and checked, and the order they are learned in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.data import split_holdout
from mmreason.data.curriculum import difficulties
from mmreason.data.loss_spans import LossOn
from mmreason.data.mixture import RowOrder
from mmreason.data.mixture_options import CurriculumOptions, Member, build_order, load_members, parse_members
from mmreason.data.supervised import SupervisedRows, prepare_supervised
from mmreason.trainers.arguments import DataArguments
from mmreason.trainers.problems import (
    HELD_OUT,
    HeldOut,
    Say,
    check_held_out,
    hold_out,
    load_split,
    without_empty_images,
)
from mmreason.trainers.sft_arguments import SFTOptions
from mmreason.types import ConfigError

COLUMNS = ("prompt", "completion", "images", "answer", "tools", "id", "source", "meta")


@dataclass(frozen=True)
class HeldOutSets:
    """What is measured: rows whose loss is taken, and problems that are solved, by the name of their set."""

    rows: dict[str, SupervisedRows]
    problems: dict[str, HeldOut]


def check_data(data: DataArguments, args: SFTOptions) -> tuple[list[Member], CurriculumOptions | None, LossOn]:
    """The options of mixture, curriculum and loss as what they mean. Raises: ConfigError before anything is loaded."""
    members = parse_members(args.datasets, args.replay) if args.datasets is not None else []
    if members:
        given = [name for name in ("dataset_name", "dataset_test_split", "extra_test_splits") if getattr(data, name)]
        if given:
            raise ConfigError(f"datasets and {' and '.join(given)}: the sets of a mixture are named in datasets alone")
    curriculum = None if args.curriculum is None else CurriculumOptions.parse(args.curriculum)
    return members, curriculum, LossOn.parse(args.loss_on)


def load_rows(
    data: DataArguments, members: Sequence[Member], seed: int, say: Say, *, with_completion: bool = True
) -> tuple[Any, dict[str, Any]]:
    """(training rows, held-out rows by the name of their set).

    Args: with_completion: a row without a completion is a bad one.
    """
    require = ("completion",) if with_completion else ()
    reading = {"columns": COLUMNS, "require_answer": False, "require": require}
    if not members:
        train = load_split(data, data.dataset_train_split, data.max_train_samples, say, **reading)  # type: ignore[arg-type]
        return hold_out(data, train, seed, say, **reading)
    train = load_members(
        members,
        say,
        split=data.dataset_train_split,
        column_map=data.column_map,
        system_prompt=data.system_prompt,
        prompt_template=data.prompt_template,
        completion_template=data.completion_template,
        chat=data.chat,
        on_bad_row=data.on_bad_row,
        max_rows=data.max_train_samples,
        image_root=data.image_root,
        image_urls=data.image_urls,
        **reading,
    )
    train = without_empty_images(train)
    if not data.eval_samples:
        return train, {}
    train, held = split_holdout(train, min(data.eval_samples, len(train) // 2), seed)
    return train, {HELD_OUT: held}


def render_rows(
    train: Any,
    held_out: Mapping[str, Any],
    processor: Any,
    data: DataArguments,
    args: SFTOptions,
    loss_on: LossOn,
    say: Say,
) -> tuple[SupervisedRows, HeldOutSets]:
    """Every row tokenized and every picture opened before a model is loaded; what is dropped is counted and said."""
    rows = _rendered("training", train, processor, data, args, loss_on, say)
    sets = {name: _rendered(name, held, processor, data, args, loss_on, say) for name, held in held_out.items()}
    problems = {name: _with_answer(held) for name, held in held_out.items()}
    solved = {name: held for name, held in problems.items() if len(held)}
    return rows, HeldOutSets(sets, check_held_out(solved, processor, data, args.chat_template_kwargs, say))


def _rendered(
    name: str, dataset: Any, processor: Any, data: DataArguments, args: SFTOptions, loss_on: LossOn, say: Say
) -> SupervisedRows:
    rows, dropped = prepare_supervised(
        dataset,
        processor,
        loss_on=loss_on,
        max_length=args.max_length,
        truncation=args.truncation,
        on_bad_row=data.on_bad_row,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    tokens, learned = int(rows.lengths.sum()), int(rows.supervised.sum())
    told = f"{name}: {len(rows)} rows, {tokens:,} tokens, {learned:,} of them supervised"
    say(told + (f"; dropped: {counts}" if dropped else ""))
    return rows


def _with_answer(held: Any) -> Any:
    """The rows whose answers can be checked."""
    return held.select([i for i, answer in enumerate(held["answer"]) if answer is not None])


def order_of(
    train: Any,
    rows: SupervisedRows,
    members: Sequence[Member],
    curriculum: CurriculumOptions | None,
    args: SFTOptions,
) -> RowOrder:
    """In which order rows are learned from: shuffled, mixed, or easy ones first."""
    difficulty = None
    if curriculum is not None:
        difficulty = _difficulty(train, rows, curriculum.by)
    return build_order(
        rows.sources,
        args.seed,
        members,
        temperature=args.mixture_temperature,
        stop=args.mixture_stop,
        curriculum=curriculum,
        difficulty=difficulty,
    )


def _difficulty(train: Any, rows: SupervisedRows, by: str) -> list[float]:
    """Of each supervised row; several rows of one example share its own."""
    if by == "length":
        return [float(length) for length in rows.lengths]
    of_example = dict(zip(train["id"], difficulties(train, by), strict=True))
    return [of_example[row_id] for row_id in rows.row_ids]
