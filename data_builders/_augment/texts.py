"""Variants that a teacher writes: what it is asked, how its replies are read, and what rules say of them."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from data_builders._augment.numbers import NUMBER, WORD, WORDS, value_of
from data_builders._teacher.language import other_language
from data_builders._teacher.novelty import rouge_l, tokenize

_BETWEEN = "between <problem> and </problem>.\n\n<problem>\n{question}\n</problem>"

PARAPHRASE = (
    "Say the problem between the tags in other words: another order of the facts, other sentences. Keep all facts, "
    "names and numbers, what is asked, the options if there are any, and the language. Don't solve it. Reply with the "
    f"new wording alone, {_BETWEEN}"
)

TO_PIVOT = (
    "Translate the problem between the tags into {language}. Translate all of it, keep numbers as digits where they "
    f"are, and don't solve it. Reply with the translation alone, {_BETWEEN}"
)

FROM_PIVOT = (
    "Translate the problem between the tags from {pivot} into {language}. Translate all of it, keep numbers as digits "
    f"where they are, and don't solve it. Reply with the translation alone, {_BETWEEN}"
)

DISTRACT = (
    "Add one sentence to the problem between the tags, somewhere before it asks its question: a fact with a number "
    "that sounds fitting but has no bearing on the answer. Change nothing else. Reply with the whole problem alone, "
    f"{_BETWEEN}"
)

HARDER = """\
Write a problem like the one between the tags, but harder: it takes one or two steps more, or a harder idea. It must \
have one answer that can be checked, of the same kind as the old one, and say all that is needed. Solve it in your \
mind before you write it down. Reply in this form, with nothing but the final answer in the last tag:

<problem>the new problem</problem>
<answer>its answer</answer>

The old problem, whose answer is {answer}:

<problem>
{question}
</problem>"""

EASIER = HARDER.replace(
    "but harder: it takes one or two steps more, or a harder idea.",
    "but easier: it takes one or two steps less, or smaller numbers.",
)

_PROBLEM = re.compile(r"<problem>(.*?)(?:</problem>|\Z)", re.S | re.I)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S | re.I)
_LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "latin": "English",
}  # fmt: skip


def language_name(code: str | None) -> str:
    """The English name of a language, for a prompt."""
    return _LANGUAGES.get(code or "en", "the language of the names in it")


def read_problem(text: str) -> str:
    """What stands between the tags; the whole reply where there are none."""
    found = _PROBLEM.search(text)
    return (found[1] if found else text).strip()


def read_answer(text: str) -> str | None:
    """The last <answer>, None where there is none."""
    found = _ANSWER.findall(text)
    return found[-1].strip() or None if found else None


def numbers_in(text: str) -> Counter[Fraction]:
    """The numbers of a text, as digits or as words, except those to two, which words such as "twice" may stand for."""
    found = Counter(value_of(match[0]) for match in NUMBER.finditer(text))
    found.update(Fraction(WORDS[match[0].lower()]) for match in WORD.finditer(text))
    return Counter({value: count for value, count in found.items() if value > 2})


def wording_fault(parent: str, child: str, max_similarity: float) -> str | None:
    """What is wrong with another wording of a question: the same words, other numbers, another language."""
    if not child:
        return "empty"
    if rouge_l(parent, child) >= max_similarity:
        return "not_novel"
    if set(numbers_in(parent)) != set(numbers_in(child)):
        return "other_numbers"
    return "other_language" if other_language(parent, child) else None


def addition_fault(parent: str, child: str) -> str | None:
    """What is wrong with a question that got a sentence more: all words of the old one must still stand in it, in
    order, and there must be something new."""
    if not child:
        return "empty"
    old, new = tokenize(parent), iter(tokenize(child))
    if not all(word in new for word in old):
        return "question_changed"
    return "nothing_added" if len(tokenize(child)) <= len(old) + 2 else None
