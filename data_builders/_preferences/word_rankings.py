"""Rankings of solutions to generated word problems: what reward models learn from where no set is named.

Right steps are above steps with a slip in them, all that follows recomputed (`corrupt.corruptions`), and these above
the same wrong answer without any steps. The rows are those of `mmreason build preferences form=rankings`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_builders._preferences.corrupt import corruptions
from data_builders._words import clauses_en, clauses_zh
from data_builders.building.cache import keep
from data_builders.building.writing import write_set
from data_builders.word_problems import SPLITS, SetOptions, generate
from mmreason.types import Example, Message

VERSION = 1  # raise it whenever the same seed would give other rows
_ANSWER = {"en": clauses_en.ANSWER, "zh": clauses_zh.ANSWER}


def cached(*, say: Callable[[str], None] = print, **options: Any) -> Path:
    """The folder of a set with these options, kept in the user's cache and built only where needed.

    Args: options: of `data_builders.word_problems`, of which the style plays no part.

    Raises: as `data_builders.word_problems.cached`.
    """
    chosen = SetOptions.of(options)
    return keep("word_rankings", chosen.as_json(), VERSION, lambda folder: _build(folder, chosen), say)


def rankings(n: int, split: str, options: SetOptions) -> list[Example]:
    """Rankings of n problems; one whose rationale can't be made wrong for certain gives none."""
    problems = generate(n, options.seed, level=options.level, split=split, language=options.language)
    return [row for problem in problems if (row := _ranking(problem)) is not None]


def _ranking(problem: Example) -> Example | None:
    completion: Any = problem["completion"]
    prompt: Any = problem["prompt"]
    (right,), question, name = completion, prompt[0]["content"], problem["id"]
    made = corruptions(question, right["reasoning_content"], str(problem["answer"]), seed=name)
    if isinstance(made, str):
        return None
    wrong, meta = made[0], problem["meta"]
    bare: Message = {"role": "assistant", "content": _ANSWER[meta["language"]].format(wrong.answer)}
    slipped: Message = {"role": "assistant", "reasoning_content": wrong.reasoning, "content": bare["content"]}
    ranking = [
        {"completion": [message], "rank": rank, "origin": origin}
        for rank, (message, origin) in enumerate([(right, "gold"), (slipped, wrong.kind), (bare, "bare")])
    ]
    told = {"ranking": ranking, "wrong_answer": wrong.answer}
    return problem | {"completion": [right], "source": "word_rankings", "meta": meta | told}


def _build(out: Path, options: SetOptions) -> None:
    sizes = zip(SPLITS, (options.n, options.n_test, options.n_unseen), strict=True)
    parts = {split: rankings(n, split, options) for split, n in sizes if n}
    name = "data_builders._preferences.word_rankings"
    write_set(out, parts, builder=name, version=VERSION, arguments=options.as_json())
