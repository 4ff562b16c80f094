"""The rationales that a set brings itself."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.formats.gsm8k import CALCULATOR_NOTE
from mmreason.types import Example


def gold_texts(examples: Sequence[Example], source: str, split: str) -> list[str | None]:
    """Of each row its own rationale, None where it has none; GSM8K's with the notes that its format leaves out."""
    texts = [_reasoning(example) for example in examples]
    if not any(example.get("source") == "gsm8k" for example in examples):
        return texts
    with_notes = _noted(source, split)
    return [
        with_notes.get((_question(example), text or ""), text) for example, text in zip(examples, texts, strict=True)
    ]


def _reasoning(example: Example) -> str | None:
    completion = example.get("completion")
    if not completion or isinstance(completion, str) or len(completion) != 1:
        return None
    text = completion[0].get("reasoning_content")
    if text is None and isinstance(completion[0]["content"], str) and completion[0]["content"] != example.get("answer"):
        text = completion[0]["content"]  # a solution that ends with its answer
    return text.strip() or None if text is not None else None


def _question(example: Example) -> str:
    prompt = example["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _noted(source: str, split: str) -> dict[tuple[str, str], str]:
    """(question, rationale without notes) -> the rationale with them."""
    from data_builders.building.sources import read_raw

    found = {}
    for _, row in read_raw(source, split=split)[0]:
        question, solution = row.get("question"), row.get("answer")
        if isinstance(question, str) and isinstance(solution, str):
            rationale = solution.strip().rpartition("####")[0]
            found[question.strip(), CALCULATOR_NOTE.sub("", rationale).strip()] = rationale.strip()
    return found
