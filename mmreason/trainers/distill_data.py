"""The teachers that a run's options name, and where their log-probabilities are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmreason.data.loss_spans import LossOn
from mmreason.data.mixture_options import Member
from mmreason.data.supervised import SupervisedRows, prepare_supervised
from mmreason.data.two_tasks import task_of
from mmreason.data.visual import can_see
from mmreason.trainers.arguments import DataArguments
from mmreason.trainers.distill_arguments import ROWS, TEXTS, DistillOptions, Schedule
from mmreason.trainers.distill_endpoint import RowsTeacher, rows_teacher
from mmreason.trainers.distill_gap import GapOrder
from mmreason.trainers.distill_rows import PickedRows
from mmreason.trainers.distill_store import TeacherStore, rows_digest
from mmreason.trainers.distill_teacher import LocalTeacher, load_teacher, teacher_digest, tokenizer_digest
from mmreason.trainers.problems import Say
from mmreason.trainers.sft_data import load_rows
from mmreason.types import ConfigError

FOLDER = "teacher"
"""In a run's output folder: what teachers gave."""


def load_data(
    args: DistillOptions, data: DataArguments, members: Sequence[Member], config: Any, say: Say
) -> tuple[Any, dict[str, Any]]:
    """(training rows, held-out rows by the name of their set), as the mode has them."""
    from mmreason.data.two_tasks import as_labels, two_tasks

    writes = args.mode in TEXTS and bool(args.all_teachers())
    train, held_out = load_rows(data, members, args.seed, say, with_completion=not writes)
    if writes:
        from mmreason.trainers.distill_texts import teacher_texts

        train = teacher_texts(args, data, train, config, say)
    if args.mode == "step_by_step":
        train = two_tasks(train, args.prefix_language)
        held_out = {name: as_labels(rows, args.prefix_language) for name, rows in held_out.items()}
    return train, held_out


def by_gap(args: DistillOptions, rows: int) -> GapOrder | None:
    """The order of the rows, where they are drawn by the gap between student and teacher."""
    return GapOrder(rows, args.seed, args.sample_by_gap) if args.sample_by_gap else None


def scale_rationales(args: DistillOptions, rows: SupervisedRows) -> None:
    """Give the rationales of `step_by_step` their weight."""
    if args.mode == "step_by_step" and args.rationale_weight != 1:
        rows.scale([args.rationale_weight if task_of(name) == "rationale" else 1.0 for name in rows.row_ids])


def load_teachers(
    args: DistillOptions,
    student: Any,
    train: Any,
    rows: SupervisedRows,
    loss_on: LossOn,
    data: DataArguments,
    say: Say,
) -> list[LocalTeacher | RowsTeacher]:
    """The teachers that have to be asked, with their own rendering of rows with pictures.

    Args: student: its processor. train: the rows as Examples. rows: as the student reads them.
    Raises: ConfigError: another vocabulary, or a teacher without eyes for rows with pictures.
    """
    found: list[LocalTeacher | RowsTeacher] = []
    if args.mode in TEXTS:
        return found
    pictures = any(rows.image_counts)
    for options in args.all_teachers():
        if options.path == ROWS:
            found.append(rows_teacher(options, train, rows, args.stored_k, getattr(student, "tokenizer", student)))
            continue
        in_spans = args.teacher_alignment == "spans"
        model, processor = load_teacher(options, None if in_spans else student)
        if pictures and not can_see(processor):
            raise ConfigError(
                f"the teacher {options.path} takes no images, and rows have some: it would grade what it can't see. "
                "Name a teacher that sees, or let it write texts from captions (mmreason build visual_instruct) and "
                "learn those with mode: hard"
            )
        own = None
        if pictures or in_spans:
            say(f"Rendering the rows for the teacher {options.path}.")
            whole, _ = prepare_supervised(
                train,
                processor,
                loss_on=loss_on,
                on_bad_row=data.on_bad_row,
                chat_template_kwargs=args.chat_template_kwargs,
            )
            own = PickedRows(whole, rows.row_ids, options.path)
        found.append(LocalTeacher(options, model, own, getattr(processor, "tokenizer", processor)))
    return found


def _digest(teacher: LocalTeacher | RowsTeacher) -> dict[str, Any]:
    if isinstance(teacher, RowsTeacher):
        return teacher.digest()
    return teacher_digest(teacher.options)


def stores_of(
    args: DistillOptions, teachers: list[LocalTeacher | RowsTeacher], rows: SupervisedRows, processor: Any
) -> list[TeacherStore]:
    """A store for each teacher, where what they say is kept; else none.

    Without a teacher the store is read alone, whoever's it is.
    """
    if args.teacher_logits != "stored":
        return []
    root = Path(args.teacher_store or Path(args.output_dir) / FOLDER)
    tokenizer = getattr(processor, "tokenizer", processor)
    key = {
        "tokenizer": tokenizer_digest(tokenizer),
        "data": rows_digest(rows),
        "k": min(args.stored_k, len(tokenizer)),
        "temperature": Schedule.parse(args.temperature, "temperature").start,
    }
    if not teachers and (root / "1").is_dir():
        raise ConfigError(
            f"{root} holds the log-probabilities of several teachers: name them in teachers, in their order, so that "
            "their weights are known"
        )
    if not teachers:
        return [TeacherStore(root / "0", key, len(rows))]
    return [
        TeacherStore(root / str(place), key | {"teacher": _digest(one)}, len(rows))
        for place, one in enumerate(teachers)
    ]
