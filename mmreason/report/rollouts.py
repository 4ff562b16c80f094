"""rollouts/*.parquet: statistics of every completion, texts of a sample of the groups. One file in memory at a time."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmreason.report.data import Completion, Group, Limits, Rollouts, RolloutStep
from mmreason.report.values import number, text, whole, why

_LIGHT = ("rollout", "step", "group", "reward", "verdict", "completion_length", "truncated")
# Everything else that is a single value is shown as what a reward logged.
_KNOWN = {*_LIGHT, "id", "prompt", "completion", "answer", "prompt_length", "advantage", "completion_ids"}
_KNOWN |= {"sampling_logps", "completion_tokens"}
_UNKNOWN_LENGTH = 256  # tokens, for the budget, where a file doesn't say
_EXTRA_CHARACTERS = 300
_NAN = float("nan")


class GroupSize(NamedTuple):
    """What showing a group costs; `tokens` only as far as they would be shown."""

    group: int
    completions: int
    tokens: int


@dataclass(slots=True)
class _File:
    """What is kept of a file after its first reading: a few numbers per completion."""

    stats: RolloutStep
    group_of_row: array[int]
    sizes: list[GroupSize]
    has_tokens: bool


@dataclass(slots=True)
class _Entry:
    version: tuple[int, int]  # (mtime, size)
    file: _File | None = None
    problem: str | None = None
    groups: dict[int, Group] = field(default_factory=dict)


class RolloutReader:
    """Reads the rollouts of one run, again and again while it goes on: files that haven't changed are read once."""

    def __init__(self) -> None:
        self._entries: dict[Path, _Entry] = {}

    def read(self, folder: Path, limits: Limits) -> tuple[Rollouts | None, list[str]]:
        """Statistics and a sample of the run's completions.

        Returns: (None where there is no rollout file, else what was found; what could not be read).
        """
        paths = sorted(folder.glob("*.parquet"))
        if not paths:
            return None, []
        self._entries = {path: self._summary(path, i, limits) for i, path in enumerate(paths)}
        problems = [entry.problem for entry in self._entries.values() if entry.problem is not None]
        readable = [(path, entry) for path, entry in self._entries.items() if entry.file is not None]
        readable.sort(
            key=lambda pair: (pair[1].file.stats.step, pair[1].file.stats.rollout) if pair[1].file else (0, 0)
        )
        files = [entry.file for _, entry in readable if entry.file is not None]
        chosen = choose_groups([file.sizes for file in files], limits)
        groups: list[Group] = []
        for (path, entry), wanted in zip(readable, chosen, strict=True):
            missing = [group for group in wanted if group not in entry.groups]
            try:
                entry.groups = {g: entry.groups[g] for g in wanted if g in entry.groups}
                entry.groups |= _read_groups(path, entry.file, missing, limits) if missing and entry.file else {}
            except Exception as error:  # a damaged column: pyarrow raises whatever its decoders do
                problems.append(f"rollouts/{path.name} can't be read whole ({why(error)}); its texts are left out")
            groups += [entry.groups[g] for g in wanted if g in entry.groups]
        found = Rollouts(
            steps=[file.stats for file in files],
            groups=groups,
            total_groups=sum(len(file.sizes) for file in files),
            total_completions=sum(len(file.group_of_row) for file in files),
            has_tokens=any(file.has_tokens for file in files),
        )
        return found, problems

    def _summary(self, path: Path, index: int, limits: Limits) -> _Entry:
        known = self._entries.get(path)
        try:
            stat = path.stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if known is not None and known.version == version:
                return known
            return _Entry(version, _read_file(path, index, limits))
        except Exception as error:  # half-written, no parquet, vanished: any of pyarrow's errors, or the system's
            return _Entry((0, 0), problem=f"rollouts/{path.name} can't be read ({why(error)}), skipped")


def choose_groups(files: Sequence[Sequence[GroupSize]], limits: Limits) -> list[list[int]]:
    """The groups of each file that the page shows, within the limits; one group is shown however large it is.

    The first and the last file come whole as far as a quarter of the page holds each; then every file gives one group
    in turn, in an order that spreads over the run however early the page is full, until it is.
    """
    chosen: list[set[int]] = [set() for _ in files]
    left = [limits.completions, limits.tokens]

    def take(file: int, size: GroupSize, keep: Sequence[float] = (0, 0)) -> bool:
        """Add a group unless less than `keep` would then be left."""
        if size.group not in chosen[file]:
            if any(chosen) and (left[0] - size.completions < keep[0] or left[1] - size.tokens < keep[1]):
                return False
            chosen[file].add(size.group)
            left[0] -= size.completions
            left[1] -= size.tokens
        return True

    for file in dict.fromkeys((0, len(files) - 1)) if files else ():
        keep = (left[0] - limits.completions / 4, left[1] - limits.tokens / 4)
        for size in files[file]:
            if not take(file, size, keep):
                break
    turns = ((turn, file) for turn in range(max(map(len, files), default=0)) for file in _spread(len(files)))
    for turn, file in turns:
        # Which group of a file comes first differs from file to file, so that no place in the batch is preferred.
        n = len(files[file])
        if turn < n and not take(file, files[file][(turn + file) % n]):
            break
    return [[size.group for size in files[file] if size.group in chosen[file]] for file in range(len(files))]


def _spread(n: int) -> list[int]:
    """0 … n-1 so that each beginning of the list covers the range evenly (van der Corput: bits reversed)."""
    bits = max(1, n - 1).bit_length()
    return sorted(range(n), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


def _read_file(path: Path, index: int, limits: Limits) -> _File:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        light = [name for name in _LIGHT if name in names]
        if "group" not in names:
            light += [name for name in ("prompt",) if name in names]
        table = file.read(columns=light, use_threads=False)
        n = table.num_rows
    columns = {name: table.column(name).to_pylist() for name in light}
    if not n:
        raise ValueError("no rows")
    lengths = [whole(v) for v in columns.get("completion_length", [None] * n)]
    groups = _group_of_row(columns, n)
    tokens: Counter[int] = Counter()
    for group, length in zip(groups, lengths, strict=True):
        tokens[group] += min(_UNKNOWN_LENGTH if length is None else length, limits.tokens_per_completion)
    members = Counter(groups)
    rewards = array("d", (_NAN if (reward := number(v)) is None else reward for v in columns.get("reward", [])))
    known_lengths = [length for length in lengths if length is not None]
    cut = [bool(v) for v in columns.get("truncated", []) if v is not None]
    rollout = whole(columns["rollout"][0]) if "rollout" in columns else None
    step = whole(columns["step"][0]) if "step" in columns else None
    rollout = index + 1 if rollout is None else rollout
    stats = RolloutStep(
        # The column has the updates done before; metrics.jsonl counts the update that these completions feed.
        step=rollout if step is None else step + 1,
        rollout=rollout,
        rewards=rewards,
        verdicts=Counter(str(v) for v in columns.get("verdict", []) if v is not None),
        mean_length=sum(known_lengths) / len(known_lengths) if known_lengths else None,
        truncated=sum(cut) / len(cut) if cut else None,
    )
    sizes = [GroupSize(group, members[group], tokens[group]) for group in members]
    return _File(stats, array("q", groups), sizes, {"completion_tokens", "sampling_logps"} <= names)


def _group_of_row(columns: dict[str, list[Any]], n: int) -> list[int]:
    """The group of each row; without that column, neighbouring rows of the same prompt are one."""
    if "group" in columns:
        return [-1 if (group := whole(v)) is None else group for v in columns["group"]]
    prompts = columns.get("prompt", list(range(n)))
    groups, current = [], -1
    for i, prompt in enumerate(prompts):
        current += i == 0 or prompt != prompts[i - 1]
        groups.append(current)
    return groups


def _read_groups(path: Path, file: _File, wanted: Sequence[int], limits: Limits) -> dict[int, Group]:
    """The texts of some groups, decoded row by row only for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = set(wanted)
    rows = [i for i, group in enumerate(file.group_of_row) if group in chosen]
    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        extra = [f.name for f in schema if f.name not in _KNOWN and not pa.types.is_nested(f.type)]
        names = [name for name in schema.names if name in _KNOWN - {"completion_ids", "prompt_length"}] + extra
        table = parquet.read(columns=names, use_threads=False).take(rows)
    columns = {name: table.column(name).to_pylist() for name in names}
    found: dict[int, Group] = {}
    for i, row in enumerate(_rows(columns, len(rows))):
        number_of_group = file.group_of_row[rows[i]]
        if number_of_group not in found:
            found[number_of_group] = Group(
                step=file.stats.step,
                rollout=file.stats.rollout,
                group=number_of_group,
                id=text(row.get("id"), _EXTRA_CHARACTERS),
                prompt=text(row.get("prompt"), limits.text_characters) or "",
                answer=text(row.get("answer"), limits.text_characters),
                completions=[],
            )
        found[number_of_group].completions.append(_completion(row, extra, limits))
    return found


def _rows(columns: dict[str, list[Any]], n: int) -> Iterator[dict[str, Any]]:
    for i in range(n):
        yield {name: values[i] for name, values in columns.items()}


def _completion(row: dict[str, Any], extra: Sequence[str], limits: Limits) -> Completion:
    cut = limits.tokens_per_completion
    tokens, logps = row.get("completion_tokens"), row.get("sampling_logps")
    advantage = row.get("advantage")
    verdict = row.get("verdict")
    length = whole(row.get("completion_length"))
    if length is None:
        length = len(tokens) if isinstance(tokens, list) else 0
    return Completion(
        reward=number(row.get("reward")),
        advantage=[number(v) for v in advantage[:cut]] if isinstance(advantage, list) else number(advantage),
        verdict=None if verdict is None else str(verdict),
        length=length,
        truncated=bool(row.get("truncated")),
        text=text(row.get("completion"), limits.text_characters) or "",
        tokens=["" if token is None else str(token) for token in tokens[:cut]] if isinstance(tokens, list) else None,
        logps=[number(v) for v in logps[:cut]] if isinstance(logps, list) else None,
        extra={name: shown for name in extra if (shown := _shown(row[name])) is not None},
    )


def _shown(value: Any) -> str | float | bool | None:
    """A logged value for the page: numbers stay numbers, the rest is text; None and nan are left out."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return text(value, _EXTRA_CHARACTERS)
