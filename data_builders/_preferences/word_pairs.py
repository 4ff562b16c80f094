"""Pairs of generated word problems: the right steps over wrong ones, what runs where no preference set is named.

Chosen is the problem's own rationale. Rejected is what a careless solver writes: the rationale with a slip in it, all
that follows recomputed (`corrupt.corruptions`), or a wrong answer without any steps.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_builders._preferences.corrupt import corruptions
from data_builders._words import clauses_en, clauses_zh
from data_builders.building.cache import keep
from data_builders.building.writing import MANIFEST, file_digest, library_versions, write_parquet
from data_builders.word_problems import SPLITS, SetOptions, generate
from mmreason._files import write_whole
from mmreason.types import Example, Message

VERSION = 1  # raise it whenever the same seed would give other rows
COLUMNS = ("prompt", "chosen", "rejected", "answer", "id", "source", "meta")
_ANSWER = {"en": clauses_en.ANSWER, "zh": clauses_zh.ANSWER}


def cached(*, say: Callable[[str], None] = print, **options: Any) -> Path:
    """The folder of a set with these options, kept in the user's cache and built only where needed.

    Args: options: of `data_builders.word_problems`; `bare_share` is the share of rejected answers without steps.

    Raises: as `data_builders.word_problems.cached`.
    """
    chosen = SetOptions.of(options)
    return keep("word_pairs", chosen.as_json(), VERSION, lambda folder: _build(folder, chosen), say)


def pairs(n: int, split: str, options: SetOptions) -> list[Example]:
    """Pairs of n problems; one whose rationale can't be made wrong for certain gives none."""
    problems = generate(n, options.seed, level=options.level, split=split, language=options.language)
    return [pair for problem in problems if (pair := _pair(problem, options.bare_share)) is not None]


def _pair(problem: Example, bare_share: float) -> Example | None:
    prompt, completion, name = problem["prompt"], problem["completion"], problem["id"]
    assert not isinstance(prompt, str) and not isinstance(completion, str)
    question, right = prompt[0]["content"], completion[0]
    assert isinstance(question, str)
    made = corruptions(question, right["reasoning_content"], str(problem["answer"]), seed=name)
    if isinstance(made, str):
        return None
    wrong, meta = made[0], problem["meta"]
    rejected: Message = {"role": "assistant", "content": _ANSWER[meta["language"]].format(wrong.answer)}
    bare = random.Random(f"word_pairs {VERSION} {name}").random() < bare_share
    if not bare:
        rejected = {"role": "assistant", "reasoning_content": wrong.reasoning, "content": rejected["content"]}
    told = {"rejected": "bare" if bare else wrong.kind, "wrong_answer": wrong.answer}
    kept: Example = {"prompt": prompt, "answer": problem["answer"], "id": name, "source": "word_pairs"}
    return kept | {"chosen": [right], "rejected": [rejected], "meta": meta | told}


def _build(out: Path, options: SetOptions) -> None:
    from mmreason.data.schema import to_dataset

    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, object]] = {}
    for split, n in zip(SPLITS, (options.n, options.n_test, options.n_unseen), strict=True):
        if n:
            rows, path = pairs(n, split, options), out / f"{split}.parquet"
            write_parquet(to_dataset(rows, COLUMNS), path)
            files[path.name] = {"rows": len(rows), "sha256": file_digest(path), "bytes": path.stat().st_size}
    manifest = {
        "builder": "data_builders._preferences.word_pairs",
        "builder_version": VERSION,
        "arguments": options.as_json(),
        "files": files,
        "versions": library_versions(),
    }
    write_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
