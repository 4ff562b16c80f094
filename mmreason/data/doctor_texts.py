"""What the doctor looks for in texts: damaged characters, stray marks, wrong answers, doubles, overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmreason.answers import Judgement, Verdict, verify_many
from mmreason.data._overlap_rows import row_text
from mmreason.data.doctor_faults import Fault
from mmreason.data.doctor_rows import ReadRows
from mmreason.data.duplicates import Method, find_duplicates
from mmreason.data.formats.common import shorten
from mmreason.data.holdout import question_key
from mmreason.data.images import encoded_digest
from mmreason.data.overlap import OverlapIndex
from mmreason.data.supervised import message_texts
from mmreason.types import Example

# A letter of UTF-8's two- and three-byte sequences read as Latin-1 or Windows-1252, what follows it there, and U+FFFD.
_CONTINUED = (
    "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e"
    "\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
_MOJIBAKE = re.compile(f"[\u00c2\u00c3]{_CONTINUED}|\u00e2[\u0080\u20ac]{_CONTINUED}|\u00ef\u00bb\u00bf|\ufffd")
# C0 and C1 without tab, line feed and carriage return; what changes the direction of text that follows unseen.
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
_THOUGHT_MARK = re.compile(r"</?think(?:ing)?>")
_NO_OPERATOR = re.compile(r"[^-+*/%^=<>#&|~@]+")
_BARE = 60  # characters of a completion that is but an answer
_ANSWERS = ("completion", "chosen", "rejected")


def answer_text(messages: Any) -> str:
    """What the model says at last in a completion, without its thoughts; with them where it says nothing else."""
    if isinstance(messages, str):
        return messages
    said = [message for message in messages or () if message.get("role") == "assistant"]
    if not said:
        return ""
    texts = list(message_texts([{"role": "assistant", "content": said[-1].get("content") or ""}]))
    return "\n".join(texts) if "".join(texts).strip() else "\n".join(message_texts(said[-1:]))


def example_texts(example: Example | Mapping[str, Any]) -> Iterator[str]:
    """All texts of an example that a model reads or learns."""
    for name in ("prompt", *_ANSWERS):
        yield from message_texts(example.get(name) or ())  # type: ignore[arg-type]
    if example.get("text"):
        yield str(example["text"])


def text_faults(read: ReadRows) -> Iterator[Fault]:
    """Damaged characters and stray marks, each row's own."""
    for example, where in zip(read.examples, read.wheres, strict=True):
        for code, detail in _damages(example):
            yield Fault(code, example["id"], where, detail)


def _damages(example: Example) -> Iterator[tuple[str, str]]:
    texts = list(example_texts(example))
    for code, pattern in (("mojibake", _MOJIBAKE), ("control_characters", _CONTROL)):
        found = next((match for text in texts if (match := pattern.search(text))), None)
        if found is not None:
            yield code, _around(found)
    for name in _ANSWERS:
        for text in message_texts(example.get(name) or ()):  # type: ignore[arg-type]
            marks = [match[0] for match in _THOUGHT_MARK.finditer(text)]
            opened = sum(not mark.startswith("</") for mark in marks)
            if 2 * opened != len(marks):
                yield "stray_thought_mark", f"{', '.join(marks[:4])} in the {name}"
                return


def _around(found: re.Match[str]) -> str:
    start = max(0, found.start() - 20)
    return f"{shorten(found[0], 40)} in {shorten(found.string[start : found.end() + 20])}"


def judge_answers(examples: Sequence[Mapping[str, Any]]) -> list[Judgement | None]:
    """How each completion's answer compares with the row's gold; None where there is no completion, gold or answer.

    A completion that is a bare answer is judged by its thoughts, too, where their last line marks an answer as such and
    doesn't mention the gold.
    """
    found: list[Judgement | None] = [None] * len(examples)
    picked = [i for i, example in enumerate(examples) if example.get("answer") and example.get("completion")]
    for said, strict in ((answer_text, False), (_end_of_thoughts, True)):
        texts = {i: text for i in picked if (text := said(examples[i]["completion"])).strip()}
        metas = [examples[i]["meta"] for i in texts]
        judged = verify_many(
            list(texts.values()),
            [str(examples[i]["answer"]) for i in texts],
            [meta.get("kind") for meta in metas],
            [meta.get("choices") for meta in metas],
        )
        for i, judgement in zip(texts, judged, strict=True):
            verdict = judgement.strict_verdict if strict else judgement.verdict
            mentioned = strict and str(examples[i]["answer"]).strip() in texts[i]
            if (verdict is Verdict.WRONG and not mentioned) or (verdict is Verdict.CORRECT and not strict):
                found[i] = judgement
    return found


def _end_of_thoughts(completion: Any) -> str:
    if isinstance(completion, str) or len(completion) != 1 or len(answer_text(completion)) > _BARE:
        return ""
    return str(completion[0].get("reasoning_content") or "").rstrip().rsplit("\n", 1)[-1]


def wrong_answers(read: ReadRows, judged: Sequence[Judgement | None]) -> Iterator[Fault]:
    """Rows whose completion ends in another answer than their gold. Completions that are labelled as bad may.

    Args: judged: of `judge_answers`.
    """
    for number, (example, judgement) in enumerate(zip(read.examples, judged, strict=True)):
        if judgement is None or example.get("label") is False:
            continue
        if Verdict.WRONG in (judgement.verdict, judgement.strict_verdict):
            detail = f"it says {shorten(judgement.answer)}, the gold is {shorten(example['answer'])}"
            yield _at(read, number, "wrong_answer", detail)


def question_keys(examples: Iterable[Example]) -> list[str]:
    """Equal for rows with the same question (see mmreason.data.holdout.question_key) and the same images."""
    return [question_key(example.get("prompt") or "", example.get("images") or ()) for example in examples]


def duplicate_faults(read: ReadRows, method: Method = "exact") -> Iterator[Fault]:
    """Rows that say what an earlier row says, and rows that give another gold to an earlier row's question."""
    texts = [_whole_text(example) for example in read.examples]
    doubled: set[int] = set()
    for group in find_duplicates(texts, method):
        seen: dict[tuple[str, ...], int] = {}
        for number in group:
            pictures = [encoded_digest(cell) for cell in read.examples[number].get("images") or ()]
            first = seen.setdefault((_operators(texts[number]) if method == "exact" else "", *pictures), number)
            if first != number:
                doubled.add(number)
                said = "as" if method == "exact" else "nearly as"
                yield _at(read, number, "duplicate_row", f"{said} row {read.examples[first]['id']}")
    answered: dict[str, int] = {}
    for number, key in enumerate(question_keys(read.examples)):
        gold = read.examples[number].get("answer")
        if gold is None or number in doubled or not key.strip("\0"):
            continue
        first = answered.setdefault(key, number)
        other = read.examples[first].get("answer")
        if other is not None and other.strip() != gold.strip():
            detail = f"the gold is {shorten(gold)}, in row {read.examples[first]['id']} it is {shorten(other)}"
            yield _at(read, number, "conflicting_answers", detail)


def _operators(text: str) -> str:
    """The operators of a text, which its words leave out in part: `C++` is not `C#`, nor `x -= 1` `x *= 1`."""
    return _NO_OPERATOR.sub("", text)


def _whole_text(example: Example) -> str:
    """The texts, calls and gold of a row: everything that makes it another row."""
    texts = list(example_texts(example))
    for name in _ANSWERS:
        side: Any = example.get(name)
        texts += [str(message["tool_calls"]) for message in side or () if "tool_calls" in message]
    texts += [str(example[name]) for name in ("answer", "label") if example.get(name) is not None]  # type: ignore[literal-required]
    return "\n".join(texts)


def label_faults(read: ReadRows) -> Iterator[Fault]:
    """A set of labels that never differ, and pairs that are none."""
    labels = [example["label"] for example in read.examples if "label" in example]
    if read.stage == "kto" and len(labels) > 1 and len(set(labels)) == 1:
        yield _at(read, 0, "constant_label", f"all {len(labels)} labels are {str(labels[0]).lower()}")
    for number, example in enumerate(read.examples):
        if "chosen" in example and "rejected" in example:
            sides = ["\n".join(message_texts(example[side])).split() for side in ("chosen", "rejected")]
            if sides[0] == sides[1] and "tool_calls" not in str(example["chosen"]):
                yield _at(read, number, "bad_pair", "chosen and rejected are the same text")


def overlap_faults(read: ReadRows, index: OverlapIndex, min_share: float = 0.9) -> Iterator[Fault]:
    """Rows in which an item of a test set stands."""
    numbers = [i for i, example in enumerate(read.examples) if any(map(str.strip, example_texts(example)))]
    hits = index.find([row_text(read.examples[i]) for i in numbers], min_share=min_share)
    for number, hit in zip(numbers, hits, strict=True):
        if hit is not None:
            yield _at(read, number, "eval_overlap", hit.reason)


def _at(read: ReadRows, number: int, code: str, detail: str) -> Fault:
    return Fault(code, read.examples[number]["id"], read.wheres[number], detail)
