"""How good the rows are: a score from 0 to 1 on each of six things, by rules that a person can check.

The rules see form, not sense: they find what is certainly odd (an instruction that points at nothing, an answer that
breaks off), and rank rows for a look. A judge (mmreason.data.quality_judge) reads for sense. Row by row:

    clarity       the instruction is whole, and says what to do
    correctness   the completion's answer equals the gold, where there is one (1, 0, or None)
    completeness  the answer doesn't break off, leave brackets open, or refuse
    style         share of the row's style features that are the set's usual ones
    diversity     share of the row's word 4-grams that no other row has
    difficulty    rank by given level, or else by the length and numbers of the reasoning
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmreason.answers import Judgement, Verdict
from mmreason.data._words import BREAK, signed_words
from mmreason.data.doctor_texts import answer_text, judge_answers
from mmreason.data.supervised import message_texts

SHINGLE = 4
LEVELS = ("level", "difficulty", "grade", "score")
"""Keys of `meta` that say how difficult a row is."""

_POINTS_AT_NOTHING = re.compile(
    r"\b(?:see|as (?:shown|described|mentioned|stated))\s+(?:above|below|earlier|previously)\b|"
    r"\b(?:the )?(?:attached|following|above|below)\s+(?:file|attachment|document|link)\b", re.I
)  # fmt: skip
_PLACEHOLDER = re.compile(
    r"\blorem ipsum\b|\bTODO\b|\bFIXME\b|\bXXX\b|\[(?:insert|your|name|text|placeholder)[^\]]*\]", re.I
)
_REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m|i am) (?:sorry|afraid|unable)|sorry\b|as an ai\b|"
    r"i (?:can'?t|cannot|can not) (?:help|assist|do|provide|fulfil|answer)|"
    r"unfortunately, i (?:can'?t|cannot)|抱歉|对不起|我无法)", re.I
)  # fmt: skip
_ENDED = re.compile(r"[.!?…。！？:;)\]}>\"'”’»`*|_$\d]\s*$")
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ("\\[", "\\]"), ("\\begin", "\\end"))
_STEP = re.compile(r"^\s*(?:\d+[.)]|step\s+\d+|[-*•])\s", re.I | re.M)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class RowQuality:
    """Scores of a row, 0 to 1, None where they don't apply; `notes`: what cost something, in words."""

    row: str
    clarity: float | None
    correctness: float | None
    completeness: float | None
    style: float | None
    diversity: float | None
    difficulty: float | None
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Of the scores that say good or bad (not of the difficulty)."""
        scores = (self.clarity, self.correctness, self.completeness, self.style, self.diversity)
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_rows(
    examples: Sequence[Mapping[str, Any]], judged: Sequence[Judgement | None] | None = None
) -> list[RowQuality]:
    """The scores of all rows; style, diversity and difficulty are relative to the set.

    Args: judged: what mmreason.data.doctor_texts.judge_answers says of them; None asks it.
    """
    correct = [_correctness(judgement) for judgement in (judge_answers(examples) if judged is None else judged)]
    styles = _styles(examples)
    diverse = _diversity(examples)
    difficult = _difficulty(examples)
    scored = []
    for i, example in enumerate(examples):
        notes: list[str] = []
        clarity = _clarity(example, notes)
        complete = _completeness(example, notes)
        if correct[i] == 0:
            notes.append("the answer isn't the gold")
        scored.append(
            RowQuality(
                str(example["id"]), clarity, correct[i], complete, styles[i], diverse[i], difficult[i], tuple(notes)
            )
        )
    return scored


def instruction_text(example: Mapping[str, Any]) -> str:
    """What the user says last."""
    prompt = example.get("prompt")
    if not prompt or isinstance(prompt, str):
        return prompt or ""
    asked = [message for message in prompt if message.get("role") == "user"]
    return "\n".join(message_texts(asked[-1:]))


def reply_text(example: Mapping[str, Any]) -> str:
    """What the model is to say, without its thoughts: the completion, or the chosen side."""
    return answer_text(example.get("completion") or example.get("chosen"))


def _clarity(example: Mapping[str, Any], notes: list[str]) -> float | None:
    """1, less for each thing that is wrong with the instruction."""
    if not example.get("prompt"):
        return None
    text = instruction_text(example)
    words = [word for word in signed_words(text) if word != BREAK]
    lost = 0.0
    if len(words) < 3 and not example.get("images"):
        lost += 0.5
        notes.append(f"the instruction is short: {text.strip()!r}")
    for pattern, cost, what in (
        (_PLACEHOLDER, 0.5, "a placeholder stands in the instruction"),
        (_POINTS_AT_NOTHING, 0.25, "the instruction points at something outside of it"),
    ):
        if (found := pattern.search(text)) is not None:
            lost += cost
            notes.append(f"{what}: {found[0]!r}")
    letters = [char for char in text if char.isalpha()]
    if len(letters) > 20 and sum(char.isupper() for char in letters) > 0.7 * len(letters):
        lost += 0.25
        notes.append("the instruction is in capitals")
    if re.search(r"[,\-–(]\s*$", text):
        lost += 0.25
        notes.append("the instruction breaks off")
    return max(0.0, 1 - lost)


def _completeness(example: Mapping[str, Any], notes: list[str]) -> float | None:
    text = reply_text(example)
    if not text.strip():
        return None
    if text.strip() == str(example.get("answer") or "").strip():
        return 1.0  # a bare answer is whole
    lost = 0.0
    line = text.rstrip().rsplit("\n", 1)[-1]
    # A list's last item, a title or a line of code need no full stop.
    prose = len(line.split()) > 8 and line[0] not in " \t" and not _STEP.match(line)
    if prose and not _ENDED.search(line):
        lost += 0.5
        notes.append(f"the answer breaks off: …{line[-30:]!r}")
    if text.count("```") % 2:
        lost += 0.5
        notes.append("a code block is left open")
    elif any(text.count(left) > text.count(right) for left, right in _PAIRS):
        lost += 0.25
        notes.append("a bracket is left open")
    if _REFUSAL.search(text):
        lost += 0.5
        notes.append("the answer refuses")
    return max(0.0, 1 - lost)


def _correctness(judgement: Judgement | None) -> float | None:
    """1 right, 0 wrong; None without a gold, without a completion beside it, or where nothing can be compared."""
    if judgement is None:
        return None
    return float(Verdict.WRONG not in (judgement.verdict, judgement.strict_verdict))


def style_features(example: Mapping[str, Any]) -> dict[str, Any]:
    """How an answer is written: its length class (powers of four words), script, marks, steps, thoughts."""
    text = reply_text(example)
    side = example.get("completion") or example.get("chosen")
    spoken = side if isinstance(side, list) else []
    letters = [char for char in text if char.isalpha()]
    return {
        "length": round(math.log(1 + len(text.split()), 4)),
        "script": "latin" if sum(char.isascii() for char in letters) >= len(letters) / 2 else "other",
        "markdown": bool(re.search(r"^#+ |\*\*|^\|", text, re.M)),
        "code": "```" in text,
        "formulas": bool(re.search(r"\$|\\\(|\\\[|\\frac", text)),
        "steps": len(_STEP.findall(text)) > 1,
        "thoughts": any(message.get("reasoning_content") for message in spoken),
        "marker": next((mark for mark in ("####", "\\boxed", "The answer is", "Answer:") if mark in text), None),
        "ended": bool(_ENDED.search(text)),
    }


def _styles(examples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Of each row's features, the share that is the set's most frequent."""
    features = [style_features(example) if reply_text(example).strip() else None for example in examples]
    counts: dict[str, Counter[Any]] = {}
    for row in features:
        for name, value in (row or {}).items():
            counts.setdefault(name, Counter())[value] += 1
    usual = {name: values.most_common(1)[0][0] for name, values in counts.items()}
    return [None if row is None else sum(usual[name] == v for name, v in row.items()) / len(row) for row in features]


def _diversity(examples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Of each row's word 4-grams (instruction and answer), the share that no other row has."""
    grams = [_shingles(f"{instruction_text(e)}\n{reply_text(e)}\n{e.get('text') or ''}") for e in examples]
    owners: Counter[int] = Counter(gram for row in grams for gram in row)
    return [sum(owners[gram] == 1 for gram in row) / len(row) if row else None for row in grams]


def _shingles(text: str) -> set[int]:
    words = [word for word in signed_words(text) if word != BREAK]
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(max(1, len(words) - SHINGLE + 1))} if words else set()


def _difficulty(examples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Ranks from 0 (easiest) to 1, equal for equal rows."""
    given = [_level(example.get("meta") or {}) for example in examples]
    values = given if all(level is not None for level in given) else [_effort(example) for example in examples]
    known = sorted(value for value in values if value is not None)
    if not known:
        return [None] * len(values)
    first = {value: known.index(value) for value in set(known)}
    last = {value: place for place, value in enumerate(known)}
    top = max(1, len(known) - 1)
    return [None if value is None else (first[value] + last[value]) / 2 / top for value in values]


def _level(meta: Mapping[str, Any]) -> float | None:
    for name in LEVELS:
        found = _NUMBER.search(str(meta.get(name, "")))
        if found is not None:
            return float(found[0].replace(",", ""))
    return None


def _effort(example: Mapping[str, Any]) -> float | None:
    """Words and numbers of what is to be written, thoughts too; of the instruction where nothing is."""
    text = "\n".join(message_texts(example.get("completion") or example.get("chosen") or ()))
    text = text if len(text.split()) > 3 else instruction_text(example)
    return math.log1p(len(text.split())) + math.log1p(len(_NUMBER.findall(text))) if text.strip() else None
