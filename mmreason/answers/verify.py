"""Is this answer right? `verify`, `verify_many`, `equivalent`, `check_gold`, `infer_kind`.

The easy path is plain Python: numbers (exact fractions), options, yes/no, words, equal strings, lists and tuples of
numbers. What is left goes to math-verify in the worker pool (`pool.py`) under a hard deadline. The rules of numeric
equality stand in `numbers.py`, those of lists and brackets in `structure.py`, those of extraction in `extract.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mmreason.answers.choices import choice_texts, gold_letter, letters_for, plain, read_choice, read_yesno
from mmreason.answers.extract import extract
from mmreason.answers.normalize import MAX_ANSWER, balanced, canonical, clean_math, fold
from mmreason.answers.numbers import parse_number, same_number
from mmreason.answers.pool import shared_pool
from mmreason.answers.spans import looks_symbolic
from mmreason.answers.structure import same_shape, unassigned
from mmreason.answers.types import KINDS, Choices, Judgement, Kind, Verdict

_LONG_DIGITS = re.compile(r"\d{1001}")
_MATHY = re.compile(r"[\\^_=<>{}]|\d|[-+*/|]|^[a-zA-Z]$|^\(?[a-z]\w?\)?$")
_TEXT_ONLY = re.compile(r"(?:\\(?:text|mathrm|mbox|textbf|textit|mathbf)\s*\{[^{}]*\}|[^\\{}^_$<>=+*/|\d])+")


@lru_cache(maxsize=8192)
def _infer(gold: str, choices: tuple[str, ...] | None) -> Kind:
    text = fold(gold).strip()
    if choices:
        return "choice"
    if parse_number(text) is not None:
        return "number"
    bare = plain(text)
    if bare in ("yes", "no", "true", "false", "是", "否", "对", "错"):
        return "yesno"
    if re.fullmatch(r"\(?[A-J]\)?\.?", text):
        return "choice"
    if _TEXT_ONLY.fullmatch(text) and len(bare) > 1 and re.search(r"[^\W\d_]{2}", bare):
        return "text"
    return "math" if _MATHY.search(text) else "text"


def infer_kind(gold: str, choices: Choices = None) -> Kind:
    """The kind of a gold: "choice" with choices or for a lone A-J, "number", "yesno", "math", else "text"."""
    return _infer(gold, tuple(choices) if choices else None)


def _gold_fault(gold: object, kind: Kind, choices: Choices) -> str | None:
    """Why a gold can't be used, as far as plain Python can tell; None where it seems fine."""
    if not isinstance(gold, str):
        return f"the gold is {type(gold).__name__}, not a string"
    text = fold(gold).strip()
    if not text:
        return "the gold is empty"
    if len(text) > MAX_ANSWER:
        return f"the gold has {len(text)} characters, more than {MAX_ANSWER}"
    if kind == "number" and parse_number(text) is None and not looks_symbolic(text):
        return f"the gold {text[:80]!r} is not a number"
    if kind == "choice":
        if choices is not None and not choices:
            return "the list of choices is empty"
        letter = gold_letter(text, choices)
        if letter is None or letter not in letters_for(choices):
            among = f" among {len(choices)} choices" if choices else ""
            return f"the gold {text[:80]!r} names no option{among}"
    if kind == "yesno" and not read_yesno(text):
        return f"the gold {text[:80]!r} is neither yes nor no"
    if kind == "math":
        if not clean_math(text):
            return "the gold is empty apart from LaTeX delimiters"
        if not balanced(text):
            return f"the gold {text[:80]!r} has unmatched braces"
    if kind == "text" and not plain(text):
        return f"the gold {text[:80]!r} holds no words"
    return None


@lru_cache(maxsize=8192)
def _gold_fault_cached(gold: str, kind: Kind, choices: tuple[str, ...] | None) -> str | None:
    return _gold_fault(gold, kind, choices)


def check_gold(
    gold: object, kind: Kind | None = None, choices: Choices = None, *, timeout_s: float = 5.0
) -> str | None:
    """Whether a gold can be used.

    Args:
        gold: the gold, of any type.
        kind: its kind; None infers it.
        choices: the options of a multiple-choice question.
        timeout_s: seconds that a symbolic gold may take to parse.

    Returns:
        None where the gold is fine, else the reason why not.
    """
    if kind is not None and kind not in KINDS:
        return f"unknown kind {kind!r}; known are {', '.join(KINDS)}"
    if not isinstance(gold, str):
        return _gold_fault(gold, "text", choices)
    kind = kind or infer_kind(gold[:MAX_ANSWER], choices)
    fault = _gold_fault(gold, kind, choices)
    if fault is not None or kind not in ("math", "number") or parse_number(gold) is not None:
        return fault
    if same_shape(clean_math(gold), clean_math(gold), _easy_equal) is True and _plainly_numeric(gold):
        return None
    verdict = shared_pool().run([("readable", gold, "")], timeout_s)[0]
    return None if verdict is Verdict.CORRECT else f"the gold {gold[:80]!r} can't be parsed ({verdict.value})"


def _plainly_numeric(text: str) -> bool:
    return same_shape(clean_math(text), clean_math(text), lambda a, b: parse_number(a) is not None or None) is True


def _easy_equal(gold: str, answer: str) -> bool | None:
    """Scalar equality without sympy; None where that needs sympy."""
    left, right = parse_number(gold), parse_number(answer)
    if left is not None and right is not None:
        return same_number(left, right)
    return True if canonical(gold) == canonical(answer) else None


def _judge_math(answer: str, gold: str) -> Verdict | None:
    """The verdict of a number or formula on the easy path, None where the pool has to decide."""
    if len(answer) > MAX_ANSWER or _LONG_DIGITS.search(answer):
        return Verdict.UNPARSEABLE
    if answer == gold:
        return Verdict.CORRECT
    gold_number, number = parse_number(gold), parse_number(answer)
    if gold_number is not None and number is not None:
        if "=" in gold and "=" in answer and unassigned(clean_math(gold), clean_math(answer)) is None:
            return Verdict.WRONG
        return Verdict.CORRECT if same_number(gold_number, number) else Verdict.WRONG
    if canonical(answer) == canonical(gold):
        return Verdict.CORRECT
    cleaned = clean_math(answer)
    if _is_words(cleaned):
        if plain(answer) == plain(gold):
            return Verdict.CORRECT
        return Verdict.UNPARSEABLE if not _is_words(clean_math(gold)) else Verdict.WRONG
    if not balanced(cleaned):
        return Verdict.UNPARSEABLE
    same = same_shape(clean_math(gold), cleaned, _easy_equal)
    if same is not None:
        return Verdict.CORRECT if same else Verdict.WRONG
    return None


def _is_words(text: str) -> bool:
    return (
        len(text) > 1 and _TEXT_ONLY.fullmatch(text) is not None and re.search(r"[^\W\d_]{2}", plain(text)) is not None
    )


def _judge_choice(answer: str, gold: str, choices: Choices) -> Verdict:
    letter = read_choice(answer, choices)
    if letter is None:
        return Verdict.UNPARSEABLE
    wanted = gold_letter(gold, choices)
    if letter == wanted:
        return Verdict.CORRECT
    if choices and letter and wanted:
        texts = choice_texts(choices)
        left, right = letters_for(choices).find(letter), letters_for(choices).find(wanted)
        if left >= 0 and right >= 0 and texts[left].strip() == texts[right].strip():
            return Verdict.CORRECT  # the same option is listed twice
    return Verdict.WRONG


def _judge(answer: str, gold: str, kind: Kind, choices: Choices) -> Verdict | None:
    """The verdict on an extracted answer, None where it needs the pool."""
    if kind in ("number", "math"):
        return _judge_math(answer, gold)
    if kind == "choice":
        return _judge_choice(answer, gold, choices)
    if kind == "yesno":
        said = read_yesno(answer)
        if said is None:
            return Verdict.UNPARSEABLE
        return Verdict.CORRECT if said == read_yesno(gold) else Verdict.WRONG
    key = plain(answer) if len(answer) <= MAX_ANSWER else ""
    if not key:
        return Verdict.UNPARSEABLE
    if key == plain(gold):
        return Verdict.CORRECT
    left, right = parse_number(gold), parse_number(answer)
    return Verdict.CORRECT if left is not None and right is not None and same_number(left, right) else Verdict.WRONG


@dataclass(slots=True)
class _Pending:
    """One completion on its way: what was extracted, and its verdict once known."""

    kind: Kind
    answer: str | None
    marker: str | None
    strict: bool
    verdict: Verdict | None

    def judgement(self) -> Judgement:
        verdict = self.verdict if self.verdict is not None else Verdict.UNPARSEABLE
        strict = verdict if self.strict or verdict is Verdict.BAD_GOLD else Verdict.UNPARSEABLE
        return Judgement(verdict, strict, self.answer, self.marker, self.kind)


def _first_pass(completion: str, gold: str, kind: Kind | None, choices: Choices) -> _Pending:
    """Extraction and the easy path for one completion."""
    key = tuple(choices) if choices is not None else None
    if kind is None:
        kind = infer_kind(gold, choices) if isinstance(gold, str) and len(gold) <= MAX_ANSWER else "text"
    elif kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; known are {', '.join(KINDS)}")
    fault = _gold_fault_cached(gold, kind, key) if isinstance(gold, str) and len(gold) <= MAX_ANSWER else "bad"
    found = extract(completion, kind, choices)
    if fault is not None:
        return _Pending(kind, found.answer, found.marker, found.strict is not None, Verdict.BAD_GOLD)
    if found.answer is None:
        return _Pending(kind, None, None, False, Verdict.UNPARSEABLE)
    verdict = _judge(found.answer, gold, kind, choices)
    return _Pending(kind, found.answer, found.marker, found.strict is not None, verdict)


def verify(
    completion: str, gold: str, kind: Kind | None = None, choices: Choices = None, *, timeout_s: float = 5.0
) -> Judgement:
    """Extracts a completion's answer and compares it with the gold.

    Args:
        completion: what the model wrote; any string.
        gold: the reference answer.
        kind: the gold's kind; None infers it from the gold.
        choices: the options, for kind "choice".
        timeout_s: wall seconds that a symbolic comparison may take.

    Returns:
        The judgement; never raises for any text.

    Raises:
        ValueError: for an unknown kind.
        PoolError: if worker processes are needed and can't be started.
    """
    pending = _first_pass(completion, gold, kind, choices)
    if pending.verdict is None:
        pending.verdict = shared_pool().run([("compare", gold, pending.answer or "")], timeout_s)[0]
    return pending.judgement()


def verify_many(
    completions: Sequence[str],
    golds: Sequence[str],
    kinds: Sequence[Kind | None] | None = None,
    choices: Sequence[Choices] | None = None,
    *,
    timeout_s: float = 5.0,
    workers: int | None = None,
) -> list[Judgement]:
    """`verify` for many completions at once; symbolic comparisons run side by side in the pool.

    Args:
        completions, golds: of equal length.
        kinds, choices: of the same length, or None.
        timeout_s: wall seconds that each symbolic comparison may take.
        workers: at least so many worker processes; None takes the default (see `pool.default_workers`).

    Returns:
        A judgement for each completion, in order. Equal (answer, gold) pairs are compared once.

    Raises:
        ValueError: for lengths that differ.
    """
    count = len(completions)
    for name, column in (("golds", golds), ("kinds", kinds), ("choices", choices)):
        if column is not None and len(column) != count:
            raise ValueError(f"{count} completions but {len(column)} {name}")
    pending = [
        _first_pass(completion, golds[i], kinds[i] if kinds else None, choices[i] if choices else None)
        for i, completion in enumerate(completions)
    ]
    hard: dict[tuple[str, str], list[int]] = {}
    for i, item in enumerate(pending):
        if item.verdict is None:
            hard.setdefault((golds[i], item.answer or ""), []).append(i)
    if hard:
        verdicts = shared_pool(workers).run([("compare", *pair) for pair in hard], timeout_s)
        for rows, verdict in zip(hard.values(), verdicts, strict=True):
            for i in rows:
                pending[i].verdict = verdict
    return [item.judgement() for item in pending]


def equivalent(
    answer: str, gold: str, kind: Kind | None = None, choices: Choices = None, *, timeout_s: float = 5.0
) -> Verdict:
    """Compares an answer that is already extracted with the gold; see `verify` for the arguments."""
    if not isinstance(gold, str) or len(gold) > MAX_ANSWER:
        return Verdict.BAD_GOLD
    kind = kind or infer_kind(gold, choices)
    if _gold_fault(gold, kind, choices) is not None:
        return Verdict.BAD_GOLD
    text = fold(answer[: MAX_ANSWER + 1]).strip()
    if not text:
        return Verdict.UNPARSEABLE
    verdict = _judge(text, gold, kind, choices)
    if verdict is None:
        verdict = shared_pool().run([("compare", gold, text)], timeout_s)[0]
    return verdict
