"""Training and held-out problems as a run's options name them, each prompt tokenized once.

A recipe calls `load_split`, `hold_out` and `check_problems` in this order; one that makes its own rows only the last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.data import check_prompts, load_examples, split_holdout
from mmreason.data.schema import RL_COLUMNS
from mmreason.data.visual import Visuals, image_counts, visuals_of
from mmreason.trainers.arguments import DataArguments
from mmreason.types import ConfigError

HELD_OUT = "held_out"
"""Name of the main held-out set; the others are named by their split."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """A set of problems that is measured on its own.

    dataset: rows with `answer` and `meta`. prompt_ids: their prompts' token ids. visuals: their pictures, if any.
    """

    dataset: Any
    prompt_ids: list[list[int]]
    visuals: Visuals | None = None


def load_split(
    data: DataArguments,
    split: str,
    max_rows: int | None,
    say: Say,
    *,
    columns: Sequence[str] = (*RL_COLUMNS, "images"),
    require_answer: bool = True,
    require: Sequence[str] = (),
) -> Any:
    """Rows of one split of `dataset_name`, read as the options say; what was dropped is said.

    The column `images` is there only where some row has images.
    """
    loaded = load_examples(
        data.dataset_name or "",
        split=split,
        format=data.dataset_format,
        column_map=data.column_map,
        system_prompt=data.system_prompt,
        prompt_template=data.prompt_template,
        completion_template=data.completion_template,
        chat=data.chat,
        on_bad_row=data.on_bad_row,
        max_rows=max_rows,
        columns=columns,
        require_answer=require_answer,
        require=require,
        image_root=data.image_root,
        image_urls=data.image_urls,
    )
    say(loaded.summary())
    return without_empty_images(loaded.dataset)


def without_empty_images(rows: Any) -> Any:
    """The same rows, without the column `images` where none has an image."""
    if "images" in rows.column_names and not any(image_counts(rows)):
        return rows.remove_columns("images")
    return rows


def hold_out(data: DataArguments, train: Any, seed: int, say: Say, **reading: Any) -> tuple[Any, dict[str, Any]]:
    """(training rows, held-out rows by the name of their set), at most `eval_samples` rows for each set.

    Without a test split the main set is cut off the training rows, and shares no question with what is left of them.

    Args: reading: how test splits are read, see `load_split`: its columns and what a row must have.
    """
    if not data.eval_samples:
        return train, {}
    held_out: dict[str, Any] = {}
    if data.dataset_test_split is not None:
        held_out[HELD_OUT] = load_split(data, data.dataset_test_split, data.eval_samples, say, **reading)
    elif len(train) > 1:
        train, held_out[HELD_OUT] = split_holdout(train, min(data.eval_samples, len(train) // 2), seed)
    for split in data.extra_test_splits or []:
        name = set_name(split)
        if name in held_out:
            raise ConfigError(f"extra_test_splits: two held-out sets have the name {name!r}; name each split once")
        held_out[name] = load_split(data, split, data.eval_samples, say, **reading)
    return train, held_out


def set_name(split: str) -> str:
    """A split's name as files and metrics can have it: `test[:100]` is `test_100`."""
    return re.sub(r"[^\w.-]+", "_", split).strip("_")


def check_problems(
    train: Any,
    held_out: Mapping[str, Any],
    tokenizer: Any,
    data: DataArguments,
    chat_template_kwargs: Mapping[str, Any] | None,
    say: Say,
) -> tuple[Any, list[list[int]], dict[str, HeldOut]]:
    """Tokenize every prompt and open every image before a model is loaded; what is dropped is counted and said.

    Args: tokenizer: the model's processor where there are images.
    Returns: (training rows, their prompts' token ids, held-out sets by name).
    Raises: DataError where a prompt is over `max_prompt_length`, or its images can't be used, and on_bad_row is
        "error"; ConfigError where the model takes no images and a row has some.
    """
    train, prompt_ids = _checked("training", train, tokenizer, data, chat_template_kwargs, say)
    sets = check_held_out(held_out, tokenizer, data, chat_template_kwargs, say)
    say(f"{len(prompt_ids)} training problems")
    return train, prompt_ids, sets


def check_held_out(
    held_out: Mapping[str, Any],
    tokenizer: Any,
    data: DataArguments,
    chat_template_kwargs: Mapping[str, Any] | None,
    say: Say,
) -> dict[str, HeldOut]:
    """The same for held-out sets alone."""
    sets: dict[str, HeldOut] = {}
    for name, rows in held_out.items():
        kept, prompt_ids = _checked(name, rows, tokenizer, data, chat_template_kwargs, say)
        sets[name] = HeldOut(kept, prompt_ids, visuals_of(kept, prompt_ids, tokenizer, chat_template_kwargs))
    say("held out: " + (", ".join(f"{len(held.prompt_ids)} {name}" for name, held in sets.items()) or "none"))
    return sets


def _checked(
    name: str, rows: Any, tokenizer: Any, data: DataArguments, kwargs: Mapping[str, Any] | None, say: Say
) -> tuple[Any, list[list[int]]]:
    kept, prompt_ids, dropped = check_prompts(
        rows, tokenizer, data.max_prompt_length, on_bad_row=data.on_bad_row, chat_template_kwargs=kwargs
    )
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        say(f"dropped of the {name} problems: {counts}")
    return kept, prompt_ids
