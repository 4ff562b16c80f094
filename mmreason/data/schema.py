"""Examples <-> `datasets.Dataset`, with one Arrow schema for every set, so that any two can be concatenated.

Messages, ``tools`` and ``meta`` are `datasets.Json` cells: they come back as plain Python objects, a message has
exactly the keys it was given (no ``reasoning_content: None`` to confuse a chat template), contents may be strings in
one set and lists of parts in the next, and ``meta`` takes new keys without a new schema. ``prompt`` is a string column
instead where prompts are plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.types import Example

if TYPE_CHECKING:
    from datasets import Dataset, Features

RL_COLUMNS = ("prompt", "answer", "id", "source", "meta")


def example_features(columns: Sequence[str], *, plain_prompt: bool = False) -> Features:
    """The `datasets.Features` of some of an Example's columns. Raises KeyError for a column it doesn't know."""
    from datasets import Features, Json, List, Value

    text, messages = Value("string"), List(Json())
    kinds: dict[str, Any] = {
        "prompt": text if plain_prompt else messages,
        "completion": messages,
        "chosen": messages,
        "rejected": messages,
        "answer": text,
        "tools": List(Json()),
        "id": text,
        "source": text,
        "meta": Json(),
    }
    return Features({name: kinds[name] for name in columns})


def to_dataset(
    examples: Iterable[Example], columns: Sequence[str] = RL_COLUMNS, *, plain_prompt: bool = False
) -> Dataset:
    """Build the dataset of some columns; cells that an example lacks become None."""
    from datasets import Dataset

    data: dict[str, list[Any]] = {name: [] for name in columns}
    for example in examples:
        for name in columns:
            data[name].append(example.get(name))
    return Dataset.from_dict(data, features=example_features(columns, plain_prompt=plain_prompt))
