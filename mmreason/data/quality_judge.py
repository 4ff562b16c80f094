"""A judge's reading of a sample of rows: what rules can't see."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.clients.judge import Judge
from mmreason.clients.judge_types import Criterion, JudgeSettings, RubricItem
from mmreason.clients.types import Completer
from mmreason.data.images import load_image
from mmreason.data.quality import reply_text
from mmreason.data.supervised import message_texts
from mmreason.types import Message

CRITERIA = (
    Criterion("clarity", "The question is whole and clear: a person knows what to do, and with what."),
    Criterion("correctness", "The facts, the calculation and the final result of the answer are right."),
    Criterion("completeness", "The answer does all that was asked, and doesn't break off."),
    Criterion("style", "The answer is well ordered, in a fitting and even tone and form."),
    Criterion("difficulty", "How much knowledge and how many steps a right answer takes; 10 is hardest."),
)
"""What a judge rates, each from 1 to 10, after the scores of mmreason.data.quality."""


async def judge_rows(
    examples: Sequence[Mapping[str, Any]],
    completer: Completer,
    *,
    rows: int = 100,
    seed: int = 0,
    settings: JudgeSettings | None = None,
) -> dict[str, Any]:
    """Ratings of a random sample of the rows that have an answer to rate.

    Returns: {"rows": rated, "means": {criterion: mean from 1 to 10}, "lowest": the rows with the lowest ratings and the
        judge's reasons, "unreadable" and "errors": counts by reason, "cost": US dollars}.
    Raises: MMReasonError where the server can't be used at all.
    """
    whole = [example for example in examples if reply_text(example).strip()]
    picked = random.Random(seed).sample(whole, min(rows, len(whole)))
    report = await Judge(completer, settings=settings).score([_item(example) for example in picked], CRITERIA)
    rated = [(result, result.scores) for result in report.results if result.scores is not None]
    worst = sorted(rated, key=lambda pair: sum(n for name, n in pair[1].items() if name != "difficulty"))[:20]
    return {
        "rows": len(rated),
        "means": report.means,
        "lowest": [{"row": result.id, **scores, "reasons": result.call.explanation} for result, scores in worst],
        "unreadable": report.unreadable,
        "errors": report.errors,
        "cost": report.usage.cost,
    }


def _item(example: Mapping[str, Any]) -> RubricItem:
    prompt = example["prompt"]
    question: str | list[Message] = prompt if isinstance(prompt, str) else _bare(prompt)
    answer = "\n".join(message_texts(example.get("completion") or example.get("chosen") or ()))
    return RubricItem(
        id=str(example["id"]),
        question=question,
        answer=answer,
        reference=example.get("answer"),
        images=[_png(cell) for cell in example.get("images") or ()],
    )


def _bare(prompt: Sequence[Message]) -> list[Message]:
    """The conversation as texts: what a judge's prompt quotes."""
    return [{"role": message["role"], "content": "\n".join(message_texts([message]))} for message in prompt]


def _png(cell: Mapping[str, Any]) -> bytes:
    import io

    buffer = io.BytesIO()
    load_image(cell).save(buffer, "PNG")
    return buffer.getvalue()
