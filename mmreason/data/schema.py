"""Examples <-> `datasets.Dataset`, with one Arrow schema for every set, so that any two can be concatenated.

Messages, ``tools`` and ``meta`` are `datasets.Json` cells: they come back as plain Python objects, a message has
exactly the keys it was given (no ``reasoning_content: None`` to confuse a chat template), contents may be strings in
one set and lists of parts in the next, and ``meta`` takes new keys without a new schema. ``prompt`` is a string column
instead where prompts are plain text. ``label`` and ``text`` are the cells of KTO rows and of documents, ``completions``
and ``labels`` those of TRL's stepwise rows. ``images`` are `datasets.Image` cells, ``{"bytes": ..., "path": ...}``:
undecoded while a set is prepared, decoded in files from which plain TRL shall read pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmreason.types import Example

if TYPE_CHECKING:
    from datasets import Dataset, Features

RL_COLUMNS = ("prompt", "answer", "id", "source", "meta")
_ARRAY_BYTES = 1 << 30  # an Arrow array of binary cells ends at 2 GiB


def example_features(columns: Sequence[str], *, plain_prompt: bool = False, decode_images: bool = False) -> Features:
    """The `datasets.Features` of some of an Example's columns. Raises KeyError for a column it doesn't know.

    Args:
        columns: names of an Example's fields.
        plain_prompt: prompts and completions are plain text, not messages.
        decode_images: reading ``images`` gives PIL images; False gives the cells (see mmreason.data.images).
    """
    from datasets import Features, Image, Json, List, Value

    text, messages = Value("string"), List(Json())
    kinds: dict[str, Any] = {
        "prompt": text if plain_prompt else messages,
        **dict.fromkeys(("completion", "chosen", "rejected"), text if plain_prompt else messages),
        "images": List(Image(decode=decode_images)),
        "label": Value("bool"),
        "completions": List(text),
        "labels": List(Value("bool")),
        "text": text,
        "answer": text,
        "tools": List(Json()),
        "id": text,
        "source": text,
        "meta": Json(),
    }
    return Features({name: kinds[name] for name in columns})


def to_dataset(
    examples: Iterable[Example],
    columns: Sequence[str] = RL_COLUMNS,
    *,
    plain_prompt: bool = False,
    decode_images: bool = False,
) -> Dataset:
    """Build the dataset of some columns; cells that an example lacks become None, missing ``images`` an empty list.

    Args: see `example_features`. Cells of ``images`` are what `mmreason.data.images.image_cell` makes.
    """
    from datasets import Dataset, concatenate_datasets

    features = example_features(columns, plain_prompt=plain_prompt, decode_images=decode_images)
    parts = []
    for group in _groups(examples):
        data = {name: [example.get(name) for example in group] for name in columns}
        if "images" in data:
            data["images"] = [images or [] for images in data["images"]]
        parts.append(Dataset.from_dict(data, features=features))
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples in order, in groups whose images fit into one Arrow array; at least one group."""
    group: list[Example] = []
    size = 0
    for example in examples:
        held = sum(len(cell.get("bytes") or b"") for cell in example.get("images") or ())
        if group and size + held > _ARRAY_BYTES:
            yield group
            group, size = [], 0
        group.append(example)
        size += held
    yield group
