"""What a run leaves behind while it goes on: metrics.jsonl, one parquet per rollout, and the trackers' curves."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from mmreason._files import write_whole
from mmreason.types import MMReasonError


class RunRecords:
    """Files under an output folder, written by the main process only.

    `metrics.jsonl` has one line per optimizer step; `rollouts/rollout-000001.parquet` one row per completion. Both are
    rewound to the checkpoint on resume, so nothing is counted twice.
    """

    def __init__(self, output_dir: str | os.PathLike[str], enabled: bool):
        self.folder, self.enabled = Path(output_dir), enabled
        self.metrics_path = self.folder / "metrics.jsonl"
        self.rollouts = self.folder / "rollouts"
        if enabled:
            self.folder.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int, rollouts: int) -> None:
        """Forget what came after a checkpoint: it is about to be done again."""
        if not self.enabled:
            return
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        temporary = self.metrics_path.with_name("metrics.jsonl.tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.metrics_path)
        for path in self.rollouts.glob("rollout-*.parquet"):
            if int(path.stem.split("-")[1]) > rollouts:
                path.unlink()

    def _lines(self) -> list[str]:
        """Whole lines: the last one may be cut off by a kill."""
        if not self.metrics_path.is_file():
            return []
        text = self.metrics_path.read_text(encoding="utf-8")
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line; nan and inf become null, which JSON can hold."""
        if not self.enabled:
            return
        row = {"step": step} | {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise MMReasonError(
                f"{self.metrics_path} can't be written ({error}); the checkpoints are untouched"
            ) from error

    def rollout(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Write one rollout's completions, atomically."""
        if self.enabled:
            write_rows(self.rollouts / f"rollout-{number:06d}.parquet", rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as parquet, atomically. Raises MMReasonError naming the file where that fails."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
        buffer = pa.BufferOutputStream()  # pyarrow's writer aborts the process when the disk under its file is full
        pq.write_table(table, buffer, compression="zstd")
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise MMReasonError(f"{path} can't be written ({error}); the checkpoints are untouched") from error


def _column(values: list[Any]) -> Any:
    """An Arrow array of whatever a model wrote or a reward logged; what has no common type becomes JSON texts."""
    import pyarrow as pa

    try:
        return pa.array([_utf8(value) for value in values])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # the last: a lone surrogate in a nested text
        return pa.array([None if value is None else _utf8(json.dumps(value, default=str)) for value in values])


def _utf8(value: Any) -> Any:
    """Lone surrogates, which UTF-8 can't hold, become question marks."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def tracker_config(args: Any) -> dict[str, int | float | str | bool]:
    """An option object as the flat scalars that every tracker accepts."""
    plain = (int, float, str, bool)
    return {
        k: v if isinstance(v, plain) else json.dumps(v, default=str) for k, v in vars(args).items() if v is not None
    }
