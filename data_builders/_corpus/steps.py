"""The ends of a corpus's pipelines: reading a task's documents, and writing its shard."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader

from data_builders._corpus.files import RawFile, ReadOptions, inspect_file, read_documents
from data_builders._corpus.rules import Drops
from mmreason._files import write_whole

CLEAN_NAME = "${rank}.jsonl.zst"
COLUMNS = ("text", "id", "source", "meta")
_SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


_are_tied = False


def die_with_parent() -> None:
    """A worker of a run that was killed must not write beside that of the run that takes its place."""
    global _are_tied
    from multiprocess import parent_process

    if parent_process() is not None:
        _ask_for_death()
        _are_tied = True


@contextlib.contextmanager
def tie_children() -> Iterator[None]:
    """Processes that this one forks inside the block end when it is killed, and so let go of the folder's lock."""
    global _are_tied
    before, _are_tied = _are_tied, True
    try:
        yield
    finally:
        _are_tied = before


def _ask_for_death() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


os.register_at_fork(after_in_child=lambda: _ask_for_death() if _are_tied else None)


class Inspect(PipelineStep):  # type: ignore[misc]
    """Reads the raw files through once: what they hold, what is wrong, their digests. A file is a task."""

    type = "🔎 - CHECK"
    name = "Raw files"

    def __init__(self, files: list[RawFile], options: ReadOptions, folder: Path) -> None:
        super().__init__()
        self._files, self._options, self._folder = files, options, folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        die_with_parent()
        with self.track_time():
            found = inspect_file(self._files[rank], self._options)
        self.stat_update("documents", value=found.rows)
        told = {"rows": found.rows, "sha256": found.sha256, "faults": dict(found.faults), "shown": found.shown}
        write_whole(self._folder / f"{rank:05d}.json", json.dumps(told))


class ReadRaw(PipelineStep):  # type: ignore[misc]
    """The raw documents of a task, as its plan names them.

    Args: plan: the file with the slices of all tasks. domain: the field that names a document's domain, or "source".
    """

    type = "📖 - READER"
    name = "Raw documents"

    def __init__(self, plan: Path, options: ReadOptions, domain: str, drops: Drops) -> None:
        super().__init__()
        self._plan, self._options, self._domain, self._drops = plan, options, domain, drops

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        die_with_parent()
        files, tasks = load_plan(str(self._plan))
        with self._drops as drops:
            for number, first, count in tasks[rank]:
                file = files[number]
                for raw in read_documents(file, self._options, first, count):
                    self.stat_update("documents")
                    doc = Document(raw.text, f"{file.source}/{file.label}#{raw.number}")
                    doc.metadata = {**raw.meta, "source": file.source, "task": rank}
                    doc.metadata["domain"] = str(doc.metadata.get(self._domain, file.source))
                    if raw.is_html:
                        doc.metadata["is_html"] = True
                    if raw.fault is None:
                        self.update_doc_stats(doc)
                        yield doc
                        continue
                    doc.text, doc.metadata["filter_reason"] = raw.fault[1], raw.fault[0]
                    self.stat_update("dropped", f"dropped_{raw.fault[0]}")
                    drops.write(doc, rank)


Plan = tuple[list[RawFile], list[list[tuple[int, int, int]]]]
"""The files, and for each task its slices: (number of the file, first document, how many)."""


@lru_cache(maxsize=1)
def load_plan(path: str) -> Plan:
    """What `save_plan` has written."""
    held = json.loads(Path(path).read_text(encoding="utf-8"))
    return [RawFile(**file) for file in held["files"]], [[tuple(one) for one in task] for task in held["tasks"]]  # type: ignore[misc]


def save_plan(path: Path, plan: Plan) -> None:
    """Write a plan. Raises: OSError."""
    write_whole(path, json.dumps({"files": [asdict(file) for file in plan[0]], "tasks": plan[1]}))


def make_plan(files: list[RawFile], rows: list[int], size: int, limit: int | None) -> Plan:
    """Tasks of `size` documents each, in the order of the files, over their borders. Args: rows: of each file."""
    left = sum(rows) if limit is None else min(limit, sum(rows))
    tasks: list[list[tuple[int, int, int]]] = []
    room = 0
    for number, count in enumerate(rows):
        first = 0
        while first < count and left:
            if not room:
                tasks.append([])
                room = size
            taken = min(count - first, room, left)
            tasks[-1].append((number, first, taken))
            first, room, left = first + taken, room - taken, left - taken
    return files, tasks


class ReadClean(JsonlReader):  # type: ignore[misc]
    """A task's cleaned documents; a task of which nothing was left has no file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), add_file_path=False)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        die_with_parent()
        name = CLEAN_NAME.replace("${rank}", f"{rank:05d}")
        yield from self.read_files_shard([name] if self.data_folder.exists(name) else [])


def documents_parquet(rows: Sequence[Mapping[str, Any]]) -> memoryview:
    """Documents as the bytes of a file that `datasets` reads with the features of `mmreason.data.schema`.

    Written without `datasets`: each of a corpus's tasks writes one file, and importing that library takes longer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(COLUMNS, pa.string()) | {"meta": pa.json_()}
    features = {name: {"dtype": "string", "_type": "Value"} for name in COLUMNS} | {"meta": {"_type": "Json"}}
    schema = pa.schema(list(kinds.items()), {"huggingface": json.dumps({"info": {"features": features}})})
    cells = {name: [row[name] for row in rows] for name in COLUMNS}
    cells["meta"] = [json.dumps(meta) for meta in cells["meta"]]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(cells, schema=schema), sink)
    return memoryview(sink.getvalue())


class WriteShard(PipelineStep):  # type: ignore[misc]
    """A task's documents as a parquet file, whole or not at all, and their tokens beside it.

    Args:
        name: of the file, with {rank}.
        tokenizer: counts each document's tokens, if given.
        tokens: the folder for the tokens, in the form of `mmreason.data.documents.open_documents`; None for none.
    """

    type = "💽 - WRITER"
    name = "Shard"

    def __init__(self, folder: Path, name: str, tokenizer: str | None, tokens: Path | None) -> None:
        super().__init__()
        self._folder, self._file_name, self._tokenizer, self._tokens = folder, name, tokenizer, tokens

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        rows = []
        for doc in data:
            meta = {key: value for key, value in doc.metadata.items() if key not in ("task", "source")}
            rows.append({"text": doc.text, "id": doc.id, "source": doc.metadata["source"], "meta": meta})
            self.stat_update("documents")
            self.stat_update("characters", value=len(doc.text))
        with self.track_time():
            name = self._file_name.format(rank=rank)
            if self._tokenizer is not None:
                self._tokenize(rows, name)
            path = self._folder / f"{name}.parquet"
            if rows:
                write_whole(path, documents_parquet(rows))
            else:
                path.unlink(missing_ok=True)

    def _tokenize(self, rows: list[dict[str, Any]], name: str) -> None:
        """Count tokens, between the borders that pretraining puts around a document; keep them where that is asked."""
        import numpy as np

        from mmreason.data.documents import encode_texts
        from mmreason.data.texts import Text

        texts = (Text(number, row["id"], row["text"]) for number, row in enumerate(rows))
        ids = [ids for _, ids in encode_texts(texts, _load_tokenizer(str(self._tokenizer)))]
        for row, found in zip(rows, ids, strict=True):
            row["meta"]["tokens"] = len(found)
            self.stat_update("tokens", value=len(found))
        if self._tokens is None or not rows:
            return
        import io

        folder = self._tokens / name
        lengths = io.BytesIO()
        np.save(lengths, np.array([len(found) for found in ids], dtype=np.int64))
        write_whole(folder / "tokens.bin", b"".join(found.astype("<u4").tobytes() for found in ids))
        write_whole(folder / "lengths.npy", lengths.getbuffer())


@lru_cache(maxsize=1)
def _load_tokenizer(path: str) -> Any:
    """Raises: ConfigError."""
    from transformers import AutoTokenizer

    from mmreason.types import ConfigError

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer {path}: can't be loaded: {str(error).splitlines()[0]}") from None
    tokenizer.model_max_length = 1 << 60  # documents are longer than a model's window
    return tokenizer


def check_tokenizer(path: str) -> None:
    """Raises: ConfigError: there is none."""
    _load_tokenizer(path)
