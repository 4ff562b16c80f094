"""Strategies that take a problem apart: least-to-most, skeleton-of-thought."""

from __future__ import annotations

from dataclasses import dataclass

from mmreason.prompting.prompts import answer_in, ask, assistant, fill, finish, said, user
from mmreason.prompting.reading import items
from mmreason.prompting.session import Session
from mmreason.prompting.single import solution_of
from mmreason.prompting.strategy import Strategy, at_least
from mmreason.prompting.types import Problem, Solution


def _read_list(text: str, limit: int, session: Session) -> list[str]:
    """At most `limit` items; a list that can't be read or is too long is counted."""
    found = items(text)
    session.counts["unreadable_list"] += not found
    session.counts["list_cut"] += len(found) > limit
    return found[:limit]


@dataclass(frozen=True, kw_only=True)
class LeastToMost(Strategy):
    """Simpler questions first, each answered with the earlier answers in view, the problem last (arXiv:2205.10625).

    2 calls and one for each part. Without a readable list the problem is solved at once, which is counted as
    "unreadable_list".

    Attributes:
        max_parts: simpler questions at most; a longer list is cut ("list_cut").
    """

    max_parts: int = at_least(1, 6)

    async def run(self, problem: Problem, session: Session) -> Solution:
        texts = self.texts
        listed = await session.ask_one(ask(texts.decompose, problem, texts, limit=self.max_parts), "decompose")
        parts = _read_list(said(listed), self.max_parts, session)
        if not parts:
            return solution_of(await session.ask_one(ask(texts.solve, problem, texts), "answer"), problem)
        prompt = ask(texts.first_part, problem, texts, part=parts[0])
        written: list[str] = []
        for following in (*parts[1:], None):
            reply = said(await session.ask_one(prompt, "part"))
            written.append(reply)
            turn = texts.whole if following is None else texts.next_part
            turn = fill(turn, finish=finish(problem, texts), part=following)
            prompt = prompt.then(assistant(reply), user(turn))
        last = await session.ask_one(prompt, "answer")
        solved = [f"{part}\n{reply}" for part, reply in zip(parts, written, strict=True)]
        return Solution(
            answer=answer_in(last.text, problem),
            text="\n\n".join([*solved, last.text.strip()]),
            reasoning=last.reasoning,
        )


@dataclass(frozen=True, kw_only=True)
class SkeletonOfThought(Strategy):
    """The points of a reply first, then all of them written out side by side (arXiv:2307.15337).

    1 call and one for each point. As in the paper the points don't see each other, which suits replies of independent
    parts, not derivations. Without a readable skeleton its text is the reply, which is counted as "unreadable_list".

    Attributes:
        max_points: points at most; a longer skeleton is cut ("list_cut").
    """

    max_points: int = at_least(1, 10)

    async def run(self, problem: Problem, session: Session) -> Solution:
        texts = self.texts
        first = await session.ask_one(ask(texts.skeleton, problem, texts, limit=self.max_points), "skeleton")
        points = _read_list(said(first), self.max_points, session)
        if not points:
            return solution_of(first, problem)
        skeleton = "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
        prompts = [
            ask(texts.point, problem, texts, skeleton=skeleton, index=i, point=point)
            for i, point in enumerate(points, 1)
        ]
        replies = await session.ask_each(prompts, "point")
        text = "\n".join(f"{i}. {said(reply)}" for i, (reply,) in enumerate(replies, 1))
        return Solution(answer=answer_in(text, problem), text=text)
