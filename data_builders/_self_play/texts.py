"""What self-play asks: for a new problem, in both languages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmreason.prompting.prompts import fill
from mmreason.prompting.types import Lang

WRITE: dict[Lang, str] = {
    "en": (
        "{examples}\n\nWrite one new problem of this kind. It must be about something else and need other steps, it "
        "must say everything that is needed to solve it, and it must have exactly one answer, which is {form}. Reply "
        "with the problem alone: no title, no solution, no answer."
    ),
    "zh": (
        "{examples}\n\n请写一道这一类的新题。它的内容和解题步骤要与上面的题不同，要给出解题所需的全部条件，并且只有一个答案，"
        "答案是{form}。只写题目本身，不要标题、解答或答案。"
    ),
}
EXAMPLE: dict[Lang, str] = {"en": "Problem {index}:\n{text}", "zh": "题目{index}：\n{text}"}

_HEADING = re.compile(r"\A[\s*#]*(?:new\s+)?(?:problem|question|新?题目?|问题)\s*\d*[\s*]*[:：][\s*]*", re.I)
_SOLUTION = re.compile(
    r"\n[\s*#]*(?:solution|answer|解答|解|答案|答)[\s*]*[:：].*\Z|\n[\s*]*the answer is\b.*\Z", re.I | re.S
)


def writing_prompt(seeds: Sequence[str], form: str, language: Lang) -> str:
    """The request for a new problem. Args: form: what its answer looks like, in words."""
    shown = [fill(EXAMPLE[language], index=i, text=text) for i, text in enumerate(seeds, 1)]
    return fill(WRITE[language], examples="\n\n".join(shown), form=form)


def written_problem(reply: str) -> str:
    """The problem of a reply, without the heading and the solution that some models add all the same."""
    return _SOLUTION.sub("", _HEADING.sub("", reply.strip())).strip()
