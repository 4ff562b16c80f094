"""Majority vote over sampled answers (self-consistency, maj@k): equivalent answers count together."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.answers.types import Choices, Kind, Verdict
from mmreason.answers.verify import equivalent

MAX_CLUSTERS = 32


def clusters(
    answers: Sequence[str | None], kind: Kind | None = None, choices: Choices = None, *, timeout_s: float = 2.0
) -> list[list[int]]:
    """Groups equivalent answers.

    Args:
        answers: extracted answers; None and blanks are left out.
        kind: their kind; None infers it from each first answer.
        choices: the options, for kind "choice".
        timeout_s: seconds for each symbolic comparison.

    Returns:
        Lists of indices, the largest group first, ties by first appearance. After `MAX_CLUSTERS` different answers only
        equal strings are joined, so that the work stays linear.
    """
    groups: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer is not None and answer.strip():
            groups.setdefault(answer.strip(), []).append(i)
    merged: list[tuple[str, list[int]]] = []
    for text, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[1][0])):
        for head, members in merged[:MAX_CLUSTERS]:
            if equivalent(text, head, kind, choices, timeout_s=timeout_s) is Verdict.CORRECT:
                members.extend(rows)
                break
        else:
            merged.append((text, list(rows)))
    found = [sorted(rows) for _, rows in merged]
    return sorted(found, key=lambda rows: (-len(rows), rows[0]))


def majority_vote(
    answers: Sequence[str | None], kind: Kind | None = None, choices: Choices = None, *, timeout_s: float = 2.0
) -> str | None:
    """The answer that most samples gave (its first spelling); ties go to the earliest; None if there is no answer."""
    found = clusters(answers, kind, choices, timeout_s=timeout_s)
    return answers[found[0][0]] if found else None
