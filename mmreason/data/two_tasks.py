"""Rationale and answer as two tasks on one question (Distilling Step-by-Step, arXiv 2305.02301, eq. 3-4).

"[label] " before the question asks for the answer, "[rationale] " for the way to it. A student that learns both answers
at once when it is used, without the length of the rationale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mmreason.types import ContentPart, DataError, Example, Message

if TYPE_CHECKING:
    from datasets import Dataset

Task = Literal["label", "rationale"]
PREFIXES: dict[str, dict[str, str]] = {
    "en": {"label": "[label] ", "rationale": "[rationale] "},
    "zh": {"label": "【答案】", "rationale": "【解析】"},
}
"""Language -> task -> what stands before the question."""


def prefixed(prompt: Sequence[Message] | str, prefix: str) -> list[Message]:
    """The prompt with a text before its question; images stay where they are."""
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    content = messages[-1]["content"]
    if isinstance(content, str):
        changed: str | list[ContentPart] = prefix + content
    else:
        changed = [dict(part) for part in content]  # type: ignore[misc]
        place = next((i for i, part in enumerate(changed) if part.get("type") == "text"), None)  # type: ignore[union-attr]
        if place is None:
            changed.append({"type": "text", "text": prefix.strip()})  # type: ignore[union-attr]
        else:
            changed[place]["text"] = prefix + changed[place]["text"]  # type: ignore[index, typeddict-item]
    return [*messages[:-1], {**messages[-1], "content": changed}]


def two_tasks(dataset: Dataset, language: str = "en") -> Dataset:
    """Each row as two, "ID-label" and "ID-rationale"; one without reasoning as its label alone.

    Raises: DataError where no row has any `reasoning_content`, or a completion is more than one message.
    """
    from mmreason.data.schema import to_dataset

    rows: list[Example] = []
    rationales = 0
    for row in dataset:
        thoughts, answer = _parts(row)
        rows.append(_task(row, "label", language, answer))
        if thoughts:
            rationales += 1
            rows.append(_task(row, "rationale", language, thoughts))
    if not rationales:
        raise DataError(
            "step by step: no row's completion has reasoning_content, so there are no rationales; they are made by "
            "mmreason build cot",
            reason="no_rationale",
        )
    return to_dataset(rows, dataset.column_names)


def as_labels(dataset: Dataset, language: str = "en") -> Dataset:
    """The same problems, each asked for its answer alone; a completion without its reasoning."""
    from mmreason.data.schema import to_dataset

    rows: list[Example] = []
    for row in dataset:
        if row.get("completion") is None:
            rows.append({**row, "prompt": prefixed(row["prompt"], PREFIXES[language]["label"])})
        else:
            rows.append(_task(row, "label", language, _parts(row)[1]))
    return to_dataset(rows, dataset.column_names)


def _parts(row: Mapping[str, Any]) -> tuple[str, str]:
    """(reasoning, answer) of a completion."""
    completion = row["completion"]
    if isinstance(completion, str):
        return "", completion
    if len(completion) != 1:
        raise DataError(
            f"row {row['id']}: step by step takes completions of one message, this has {len(completion)}",
            row=str(row["id"]),
            reason="several_turns",
        )
    content = completion[0]["content"]
    said = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return str(completion[0].get("reasoning_content") or "").strip(), said


def _task(row: Mapping[str, Any], task: Task, language: str, said: str) -> Example:
    made: Example = {
        **row,  # type: ignore[typeddict-item]
        "id": f"{row['id']}-{task}",
        "prompt": prefixed(row["prompt"], PREFIXES[language][task]),
        "completion": [{"role": "assistant", "content": said}],
    }
    return made


def task_of(row_id: str) -> Task:
    """Of a row that `two_tasks` made, by its id."""
    return "rationale" if row_id.endswith("-rationale") else "label"
