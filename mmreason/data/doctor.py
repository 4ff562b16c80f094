"""A set examined from end to end, before a training: every fault with its row, lengths, doubles, overlap, quality.

Nothing stops at the first fault. `mmreason doctor` prints what `examine` finds, and mmreason.report.doctor shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmreason.data._words import BREAK, signed_words
from mmreason.data.doctor_faults import FAULTS, Fault
from mmreason.data.doctor_rows import ReadRows, Stage, read_everything
from mmreason.data.doctor_texts import (
    duplicate_faults,
    example_texts,
    judge_answers,
    label_faults,
    overlap_faults,
    text_faults,
    wrong_answers,
)
from mmreason.data.duplicates import Method
from mmreason.data.overlap import OverlapIndex
from mmreason.data.quality import RowQuality, score_rows
from mmreason.data.quality_set import summarise
from mmreason.types import ConfigError

LIMITS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Limits of tokens for which the rows beyond are counted."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What is looked at, and how. What isn't explained here is as in `mmreason.data.load_examples`.

    Attributes:
        stage: what the rows are for, see mmreason.data.doctor_rows.REQUIRED.
        max_rows: look at the first so many.
        eval_sets: name -> file, folder or hub id of a test set that may not stand in the rows. eval_split: of folders
            and hub ids. min_share: see mmreason.data.overlap.
        duplicates: how they are found, see mmreason.data.duplicates.
        quality: score the rows.
        loss_on, max_length, max_prompt_length, truncation, chat_template_kwargs: of the training; used with a model.
        batch_rows, batch_steps: rows of a micro-batch, and micro-batches of a step, for what padding costs.
    """

    split: str = "train"
    format: str = "auto"
    column_map: Mapping[str, str] | None = None
    prompt_template: str | None = "none"
    completion_template: str | None = None
    system_prompt: str | None = None
    stage: Stage = "auto"
    image_root: str | None = None
    image_urls: bool = False
    max_rows: int | None = None
    eval_sets: Mapping[str, str] = field(default_factory=dict)
    eval_split: str = "test"
    min_share: float = 0.9
    duplicates: Method = "exact"
    quality: bool = True
    loss_on: str | Mapping[str, Any] | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    truncation: Literal["error", "drop", "cut_oldest_turns"] = "error"
    chat_template_kwargs: Mapping[str, Any] | None = None
    batch_rows: int = 8
    batch_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_rows", "batch_steps", "max_rows", "max_length", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not 0 < self.min_share <= 1:
            raise ConfigError(f"min_share={self.min_share:g} must be above 0 and at most 1")


@dataclass(slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        read: the rows. faults: every finding, in the order of the checks.
        words: of each good row. quality: of each good row. facts: the rest, as plain values (see `to_json`).
    """

    read: ReadRows
    faults: list[Fault] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    quality: list[RowQuality] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        return sum(fault.severity == "error" for fault in self.faults)

    @property
    def warnings(self) -> int:
        return len(self.faults) - self.errors

    def rows_by_code(self) -> dict[str, list[str]]:
        """Code -> ids of its rows, in order."""
        found: dict[str, list[str]] = {}
        for fault in self.faults:
            found.setdefault(fault.code, []).append(fault.row)
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values: of each kind of fault all rows with what was seen; lengths as histograms."""
        read = self.read
        counts = Counter(fault.code for fault in self.faults)
        kinds = {fault.code: fault.kind for fault in self.faults}
        order = sorted(counts, key=lambda code: (kinds[code].severity, -counts[code], code))
        return {
            "source": read.label,
            "format": read.format,
            "stage": read.stage,
            "rows": read.rows,
            "good": len(read.examples),
            "errors": self.errors,
            "warnings": self.warnings,
            "faults": [
                {
                    "code": code,
                    "severity": kinds[code].severity,
                    "meaning": kinds[code].meaning,
                    "rows": [
                        {"row": fault.row, "where": fault.where, "detail": fault.detail}
                        for fault in self.faults
                        if fault.code == code
                    ],
                }
                for code in order
            ],
            "words": histogram(self.words),
            **self.facts,
        }


def examine(
    source: str,
    options: DoctorOptions | None = None,
    processor: Any = None,
    say: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Look at every row of a set.

    Args:
        source: hub id, file or folder.
        processor: of the model that is to learn from it (a tokenizer for text): then lengths are in its tokens too.
        say: gets a line per check.

    Raises: DataError where there is nothing to look at; ConfigError for wrong options, and where the model can't read
        such rows at all.
    """
    options = options or DoctorOptions()
    index = OverlapIndex.build(dict(options.eval_sets), split=options.eval_split) if options.eval_sets else None
    say("reading rows and opening images")
    read = read_everything(
        source,
        split=options.split,
        format=options.format,
        column_map=options.column_map,
        prompt_template=options.prompt_template,
        completion_template=options.completion_template,
        system_prompt=options.system_prompt,
        stage=options.stage,
        image_root=options.image_root,
        image_urls=options.image_urls,
        max_rows=options.max_rows,
    )
    found = Diagnosis(read, list(read.faults))
    found.words = [
        sum(word != BREAK for text in example_texts(example) for word in signed_words(text))
        for example in read.examples
    ]
    say("looking at texts, answers and doubles")
    judged = judge_answers(read.examples)
    found.faults += [*text_faults(read), *wrong_answers(read, judged), *label_faults(read)]
    found.faults += duplicate_faults(read, options.duplicates)
    if index is not None:
        say("looking for test items")
        found.faults += overlap_faults(read, index, options.min_share)
        found.facts["eval_sets"] = [one.name for one in index.sets]
    if options.quality:
        say("scoring quality")
        found.quality = score_rows(read.examples, judged)
        found.facts["quality"] = summarise(read.examples, found.quality)
    if processor is not None:
        say("rendering rows")
        _with_model(found, options, processor)
    return found


def _words(example: Mapping[str, Any]) -> int:
    return sum(word != BREAK for text in example_texts(example) for word in signed_words(text))


def _with_model(found: Diagnosis, options: DoctorOptions, processor: Any) -> None:
    from mmreason.data.doctor_tokens import PROMPTS_ONLY, limit_facts, padding_facts, render_rows
    from mmreason.data.loss_spans import LossOn

    read = found.read
    strict = options.truncation == "error"
    tokens, faults = render_rows(
        read,
        processor,
        loss_on=LossOn.parse(options.loss_on),
        max_length=options.max_length if strict else None,
        max_prompt_length=options.max_prompt_length,
        chat_template_kwargs=options.chat_template_kwargs,
    )
    found.faults += faults
    lengths = tokens.lengths
    facts = {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "supervised": sum(tokens.supervised),
        "several": tokens.several,
    }
    found.facts["tokens"] = facts | {"lengths": histogram(lengths), "longest": max(lengths, default=0)}
    found.facts["template"] = tokens.template
    found.facts["limits"] = [{"limit": limit, "rows": sum(n > limit for n in lengths)} for limit in LIMITS]
    if options.max_length is not None and read.stage not in (*PROMPTS_ONLY, "pretrain", "preference"):
        limit = limit_facts(read, processor, options.max_length, options.chat_template_kwargs)
        found.facts["truncation"] = asdict(limit)
    if lengths:
        padding = padding_facts(lengths, options.batch_rows, options.batch_steps, options.max_length)
        found.facts["padding"] = asdict(padding) | {"share": padding.share}


def histogram(values: Sequence[int], bins: int = 24) -> dict[str, Any]:
    """Counts in bins that double in some steps, from the least to the greatest value, with mean and quantiles.

    Returns: {"edges": (bins + 1), "counts": (bins), "n", "mean", "min", "median", "p95", "max"}; all empty or 0 for
        no values.
    """
    import numpy as np

    if not len(values):
        return {"edges": [], "counts": [], "n": 0}
    numbers = np.asarray(values, dtype=np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    edges = np.unique(np.geomspace(max(1, low), high + 1, bins + 1).astype(np.int64))
    edges[0] = low
    edges = edges if len(edges) > 1 else np.array([low, high + 1])
    counts, _ = np.histogram(numbers, edges)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "n": len(numbers),
        "mean": float(numbers.mean()),
        "min": low,
        "median": float(np.median(numbers)),
        "p95": float(np.quantile(numbers, 0.95)),
        "max": high,
    }


__all__ = ["FAULTS", "Diagnosis", "DoctorOptions", "Fault", "Stage", "examine", "histogram"]
