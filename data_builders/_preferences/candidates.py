"""Candidates: the completions of a prompt that are to be ranked, from a set's columns or from logged rollouts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_builders._preferences.options import GroupBy
from data_builders._preferences.order import Pair, pairs_of
from data_builders.building.build import SourceNote
from mmreason.answers import Kind
from mmreason.rewards.text import completion_text
from mmreason.types import DataError, Example, Message

_ROLLOUT_COLUMNS = ("rollout", "step", "group", "id", "prompt", "completion", "answer", "truncated", "reward")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion that may be chosen or rejected.

    Attributes:
        completion: its messages.
        origin: where it comes from: "chosen", "reference", "sample teacher/0", "corrupted slip" ...
        score: what the source says of it: a reward, 1 or 0 for a label, a score column; higher is better.
        label: whether the source calls it right.
        meta: what else is known of it.
    """

    completion: list[Message]
    origin: str
    score: float | None = None
    label: bool | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All that the model says, thoughts between <think> tags: what verifiers and judges read, and length counts."""
        return completion_text(self.completion)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its candidates.

    Attributes:
        id: unique in the run.
        prompt: messages.
        candidates: no two with the same completion.
        pairs: what the source says: (better, worse), numbers of candidates.
        answer, kind, choices: of the gold, for the verifier.
        example: the row that the group's other columns (images, tools, meta) are taken from.
    """

    id: str
    prompt: list[Message]
    candidates: tuple[Candidate, ...]
    pairs: tuple[Pair, ...] = ()
    answer: str | None = None
    kind: Kind | None = None
    choices: Sequence[str] | None = None
    example: Example = field(default_factory=lambda: Example())

    def with_candidates(self, more: Iterable[Candidate]) -> Group:
        """The group with further candidates after its own; repeated completions are left out."""
        known = {_key(candidate.completion) for candidate in self.candidates}
        added = []
        for candidate in more:
            if (key := _key(candidate.completion)) not in known:
                known.add(key)
                added.append(candidate)
        return replace(self, candidates=(*self.candidates, *added))


def answered(text: str, reasoning: str | None = None) -> list[Message]:
    """A completion of one message."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning and reasoning.strip():
        message["reasoning_content"] = reasoning.strip()
    return [message]


# --------------------------------------------------------------------------------------------------------------------
# A set's own columns


def groups_of(
    examples: Sequence[Example],
    *,
    group_by: GroupBy = "auto",
    references: bool = True,
    score_column: str | None = None,
    repeated: Counter[str] | None = None,
) -> list[Group]:
    """The groups of a set's rows, in the order of their first rows.

    Args:
        examples: rows with chosen and rejected, with a ranking (`meta.ranking`, as this builder writes it), with a
            completion, or with a prompt alone.
        group_by: see `GroupBy`.
        references: whether completions without a label are candidates.
        score_column: cell of meta that holds a completion's score.
        repeated: gets how many completions their prompt had already ("repeated_completion"); the first one counts.

    Raises: DataError for a score that is none.
    """
    found: dict[str, _Open] = {}
    for example in examples:
        alone = group_by == "row" or (group_by == "auto" and _is_ordered(example))
        key = f"row {example['id']}" if alone else f"prompt {_prompt_key(example)}"
        group = found.setdefault(key, _Open(example))
        group.take(example, references, score_column)
    if repeated is not None:
        repeated["repeated_completion"] += sum(group.repeated for group in found.values())
    return [group.closed() for group in found.values()]


def merged(sets: Sequence[Sequence[Example]], columns: Sequence[str], score_columns: Sequence[str]) -> list[Group]:
    """The groups of a set whose rows hold several candidates, read once for each candidate's column.

    Args:
        sets: the rows as read with each column as completion.
        columns: its name, for the origin.
        score_columns: the cell of meta with the score of each; none, or as many as columns.
    """
    found: dict[str, _Open] = {}
    for number, examples in enumerate(sets):
        for example in examples:
            group = found.setdefault(example["id"], _Open(example))
            score = _score(example, score_columns[number]) if score_columns else None
            group.add(Candidate(_messages(example["completion"]), columns[number], score))
    return [group.closed() for group in found.values()]


class _Open:
    """A group that is being read."""

    def __init__(self, example: Example) -> None:
        self.example = example
        self.candidates: list[Candidate] = []
        self.places: dict[str, int] = {}
        self.pairs: dict[Pair, None] = {}
        self.repeated = 0

    def add(self, candidate: Candidate) -> int:
        """The candidate's number; that of an equal one, where there is one, whose label and score stay."""
        place = self.places.setdefault(_key(candidate.completion), len(self.candidates))
        if place == len(self.candidates):
            self.candidates.append(candidate)
        else:
            self.repeated += 1
        return place

    def take(self, example: Example, references: bool, score_column: str | None) -> None:
        meta = example.get("meta") or {}
        ranking = meta.get("ranking")
        if isinstance(ranking, list) and ranking:
            self._ranking(example, ranking)
        elif example.get("chosen") is not None and example.get("rejected") is not None:
            self.pairs[self._side(example, "chosen"), self._side(example, "rejected")] = None
        elif example.get("completion"):
            label = example.get("label")
            if label is not None or references:
                score = _score(example, score_column) if score_column else None if label is None else float(label)
                origin = "reference" if label is None else str(meta.get("model") or "labelled")
                self.add(Candidate(_messages(example["completion"]), origin, score, label))

    def _side(self, example: Example, side: Literal["chosen", "rejected"]) -> int:
        """One side of a pair; rows of this builder say in meta where it came from."""
        note = (example.get("meta") or {}).get(side)
        origin = note.get("origin") if isinstance(note, Mapping) else None
        return self.add(Candidate(_messages(example[side]), str(origin or side)))

    def _ranking(self, example: Example, ranking: Sequence[Any]) -> None:
        levels: dict[int, list[int]] = {}
        for entry in ranking:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("rank"), int) or not entry.get("completion"):
                raise DataError(
                    f"row {example['id']}: meta.ranking is a list of {{completion, rank}}, as this builder writes it",
                    row=example["id"],
                    reason="bad_pair",
                )
            score = entry.get("score")
            # Its own score says more than its place, but scores of different rankings need not be on one scale.
            candidate = Candidate(_messages(entry["completion"]), str(entry.get("origin") or "ranked"), score)
            levels.setdefault(entry["rank"], []).append(self.add(candidate))
        self.pairs |= dict.fromkeys((i, j) for i, j, _ in pairs_of([levels[rank] for rank in sorted(levels)]))

    def closed(self) -> Group:
        example, meta = self.example, self.example.get("meta") or {}
        return Group(
            id=example["id"],
            prompt=_messages(example["prompt"], "user"),
            candidates=tuple(self.candidates),
            pairs=tuple(self.pairs),
            answer=example.get("answer"),
            kind=meta.get("kind"),
            choices=meta.get("choices"),
            example=example,
        )


def _is_ordered(example: Example) -> bool:
    return example.get("chosen") is not None or bool((example.get("meta") or {}).get("ranking"))


def _messages(completion: list[Message] | str, role: str = "assistant") -> list[Message]:
    return [{"role": role, "content": completion}] if isinstance(completion, str) else completion


def _key(completion: Sequence[Message]) -> str:
    return json.dumps(completion, sort_keys=True, ensure_ascii=False)


def _prompt_key(example: Example) -> str:
    """What makes two rows rows of one prompt: its messages, its images and its gold."""
    asked = [example["prompt"], example.get("answer"), example.get("tools")]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for image in example.get("images") or ():
        digest.update(image.get("bytes") or str(image.get("path")).encode())
    return digest.hexdigest()


def _score(example: Example, column: str) -> float:
    value = (example.get("meta") or {}).get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = ", ".join(name for name, cell in (example.get("meta") or {}).items() if isinstance(cell, int | float))
        raise DataError(
            f"row {example['id']}: the score in column {column!r} is {value!r}, no number; number columns: "
            f"{known or 'none'}",
            row=example["id"],
            reason="no_score",
        )
    return float(value)


# --------------------------------------------------------------------------------------------------------------------
# Logged rollouts


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """Which rollouts count.

    Attributes:
        first, last: numbers of the first and last rollout; None: from the beginning, to the end.
        across: completions of one problem from different rollouts, so of different policies, meet in one group.
        truncated: completions that were cut at the length limit are candidates, too.
    """

    first: int | None = None
    last: int | None = None
    across: bool = False
    truncated: bool = False


def rollout_groups(
    run: str, problems: Mapping[str, Example] | None, options: RolloutOptions, dropped: Counter[str]
) -> tuple[list[Group], SourceNote]:
    """The groups of a run's `rollouts/*.parquet`: the completions of a problem that were sampled together.

    Args:
        run: the run's output folder, or its `rollouts` folder.
        problems: id -> the row that the run was trained on, its prompt as the run had it; None: the logged text becomes
            one message of the user.
        options: see there.
        dropped: gets the completions that are left out, by reason.

    Raises: DataError for a folder without readable rollouts, an id that `problems` lacks, or a prompt that isn't the
        one that was logged.
    """
    files = _rollout_files(Path(run).expanduser(), options)
    digest = hashlib.sha256()
    found: dict[tuple[str, ...], tuple[Group, list[Candidate]]] = {}
    rows = 0
    for path in files:
        digest.update(path.read_bytes())
        for row in _rollout_rows(path):
            rows += 1
            if row.get("truncated") and not options.truncated:
                dropped["truncated"] += 1
                continue
            if not str(row.get("completion") or "").strip():
                dropped["empty_completion"] += 1
                continue
            name = str(row.get("id") or row["prompt"])
            key = (name,) if options.across else (path.stem, str(row.get("group")), name)
            if key not in found:
                found[key] = (_rollout_group(run, path, row, problems, options.across), [])
            found[key][1].append(_rollout_candidate(row))
    groups = [group.with_candidates(candidates) for group, candidates in found.values()]
    dropped["repeated_completion"] += sum(len(candidates) for _, candidates in found.values()) - sum(
        len(group.candidates) for group in groups
    )
    return groups, SourceNote(f"{run} [rollouts]", rows, digest.hexdigest())


def _rollout_files(run: Path, options: RolloutOptions) -> list[Path]:
    folder = run / "rollouts" if (run / "rollouts").is_dir() else run
    files = sorted(folder.glob("rollout-*.parquet"))
    if not files:
        raise DataError(
            f"{run}: no rollouts: looked for rollout-*.parquet in {run / 'rollouts'} and {run}. Give the output folder "
            "of an RL run",
            path=run,
            reason="missing_path",
        )

    def number(path: Path) -> int:
        return int("".join(character for character in path.stem if character.isdigit()) or 0)

    first, last = options.first or 0, options.last
    kept = [path for path in files if first <= number(path) and (last is None or number(path) <= last)]
    if not kept:
        raise DataError(
            f"{run}: none of the rollouts {number(files[0])} to {number(files[-1])} is among those asked for "
            f"({first} to {'the end' if last is None else last})",
            path=run,
        )
    return kept


def _rollout_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in ("prompt", "completion", "reward") if name not in names]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)}: no rollout of a recipe", path=path)
            wanted = [name for name in _ROLLOUT_COLUMNS if name in names]
            table = file.read(columns=[*wanted, *(["verdict"] if "verdict" in names else [])], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: can't be read: {error}. Leave the file out, or run again", path=path) from error
    yield from table.to_pylist()


def _rollout_group(
    run: str, path: Path, row: Mapping[str, Any], problems: Mapping[str, Example] | None, across: bool
) -> Group:
    name = str(row.get("id") or "")
    parts = [name] if across else [name, path.stem, str(row.get("group", 0))]
    id_ = "/".join(part for part in parts if part) or path.stem
    if problems is None:
        prompt: list[Message] = [{"role": "user", "content": str(row["prompt"])}]
        return Group(id_, prompt, (), answer=row.get("answer"), example={"source": Path(run).name, "meta": {}})
    problem = problems.get(name)
    if problem is None:
        raise DataError(
            f"{path}: the problem {name!r} is not in the set given as `prompts` ({len(problems)} rows, the first is "
            f"{next(iter(problems), 'none')!r}). Give the set and split that the run was trained on",
            path=path,
            row=name,
        )
    prompt = _messages(problem["prompt"], "user")
    content = next((m["content"] for m in reversed(prompt) if m["role"] == "user"), "")
    said = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    if _squeezed(said) not in _squeezed(str(row["prompt"])):
        raise DataError(
            f"{path}: the run's prompt of {name!r} was {str(row['prompt'])[-160:]!r}, the set's is {said[-160:]!r}: "
            "give the run's prompt_template (and system_prompt)",
            path=path,
            row=name,
        )
    meta = problem.get("meta") or {}
    answer = problem.get("answer") or row.get("answer")
    return Group(id_, prompt, (), (), answer, meta.get("kind"), meta.get("choices"), problem)


def _rollout_candidate(row: Mapping[str, Any]) -> Candidate:
    reward = row.get("reward")
    score = float(reward) if isinstance(reward, int | float) and reward == reward else None  # a failed reward is nan
    verdict = row.get("verdict")
    label = {"correct": True, "wrong": False, "unparseable": False}.get(str(verdict))
    meta = {"rollout": row.get("rollout"), "step": row.get("step")}
    return Candidate(answered(str(row["completion"])), f"rollout {row.get('rollout')}", score, label, meta)


def _squeezed(text: str) -> str:
    return " ".join(text.split())
