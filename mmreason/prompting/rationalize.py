"""Rationalisation: the model is told the answer and explains it, as if it had found it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from mmreason.answers import Verdict, extract, verify
from mmreason.prompting.prompts import ask
from mmreason.prompting.session import Session
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.types import Attempt, Completion, Lang, Problem, Solution
from mmreason.types import DataError

LEAKS: dict[Lang, re.Pattern[str]] = {
    "en": re.compile(
        r"\bhint\w*"
        r"|\b(?:given|provided|known|stated|supplied|reference|gold|expected|official)\s+(?:\w+\s+)?answer\b(?!\s+(?:choice|option))"
        r"|\b(?:provided|reference|gold|official)\s+solution\b"
        # "The answer is given by x = 4" gives nothing away.
        r"|\banswer\s+(?:(?:is|was|has\s+been)\s+)?(?:already\s+)?(?:given|provided|known|supplied|told|revealed)\b(?!\s+(?:by|as|in)\b)"
        r"|\b(?:we|i)(?:'re|'m|'ve\s+been|\s+(?:are|am|were|was|have\s+been))\s+(?:already\s+)?(?:told|given)\s+"
        r"(?:that\s+)?(?:the\s+)?(?:\w+\s+)?answer\b(?!\s+(?:choice|option))"
        r"|\b(?:match|matches|matching|agree|agrees|consistent)\s+(?:with\s+)?the\s+(?:\w+\s+)?answer\b(?!\s+(?:choice|option))",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"提示|(?:给定|已知|参考|标准)的?(?:正确)?答案|(?:给出|提供|预期)的(?:正确)?答案"
        r"|答案(?:已经?|是已|为已)(?:给出|给定|知|提供|告诉|告知)|(?:告诉|告知)(?:了)?(?:我们?)?(?:的)?(?:正确)?答案"
        r"|(?:与|和)(?:正确)?答案(?:一致|相符|吻合)"
    ),
}
"""Language -> turns of phrase by which a text shows that its writer knew the answer beforehand."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


def leak_in(text: str, problem: Problem) -> str | None:
    """How a text shows that the answer was known: the phrase, "answer first", or None.

    A phrase that the question itself uses is none. "Answer first" is a first sentence that states the gold behind an
    explicit marker, with more to come. Both languages' phrases count: models mix them.
    """
    for pattern in LEAKS.values():
        for found in pattern.finditer(text):
            if found[0].casefold() not in problem.text.casefold():
                return found[0]
    sentences = [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]
    if len(sentences) > 1 and problem.gold is not None:
        first = extract(sentences[0], problem.answer_kind, problem.choices)
        if first.strict is not None and _is_right(sentences[0], problem):
            return "answer first"
    return None


def _is_right(text: str, problem: Problem) -> bool:
    """Raises: DataError where the problem has no gold that can be used."""
    row = problem.id or "?"
    if problem.gold is None:
        message = f"problem {row}: there is no gold to rationalise; fill Problem.gold"
        raise DataError(message, row=problem.id, reason="missing_answer")
    judgement = verify(text, problem.gold, problem.answer_kind, problem.choices)
    if judgement.verdict is Verdict.BAD_GOLD:
        message = f"problem {row}: the gold {problem.gold[:80]!r} can't be used"
        raise DataError(message, row=problem.id, reason="bad_gold")
    return judgement.correct


@dataclass(frozen=True, kw_only=True)
class Rationalize(Strategy):
    """k explanations of the gold, and the first that can be kept (STaR, arXiv:2203.14465). 1 call of k completions.

    Kept is a text that ends at the gold and doesn't show that it was known (`leak_in`); the rest is counted as
    "wrong_answer" and "hint_leak". Thoughts that leak are left out of the solution ("reasoning_leak"). Train on the
    text as a reply to the bare question, not to the prompt of this strategy. Where nothing can be kept, text is "".

    Attributes:
        k: explanations.
        temperature: above 0, or all k are the same.
    """

    k: int = at_least(1, 4)
    temperature: float | None = at_least(0, 0.7)

    async def run(self, problem: Problem, session: Session) -> Solution:
        await asyncio.to_thread(_is_right, "", problem)  # no call is paid for a problem without a usable gold
        prompt = ask(self.texts.explain, problem, self.texts, gold=problem.gold)
        drawn = await session.ask(prompt, "explain", n=self.k)
        attempts = [await asyncio.to_thread(self._judge, completion, problem) for completion in drawn]
        session.counts["wrong_answer"] += sum(attempt.reason == "wrong_answer" for attempt in attempts)
        session.counts["hint_leak"] += sum(attempt.reason.startswith("hint_leak") for attempt in attempts)
        kept = next((i for i, attempt in enumerate(attempts) if attempt.accepted), None)
        if kept is None:
            return Solution(answer=None, text="", attempts=tuple(attempts), accepted=False)
        reasoning = drawn[kept].reasoning
        if reasoning is not None and leak_in(reasoning, problem) is not None:
            session.counts["reasoning_leak"] += 1
            reasoning = None
        return Solution(
            answer=attempts[kept].answer,
            text=attempts[kept].text,
            reasoning=reasoning,
            attempts=tuple(attempts),
            accepted=True,
        )

    def _judge(self, completion: Completion, problem: Problem) -> Attempt:
        text = completion.text.strip()
        answer = extract(text, problem.answer_kind, problem.choices).answer
        if not _is_right(text, problem):
            return Attempt(text, answer, accepted=False, reason="wrong_answer")
        leak = leak_in(text, problem)
        return Attempt(text, answer, accepted=leak is None, reason="" if leak is None else f"hint_leak: {leak}")
