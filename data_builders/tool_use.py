"""Tool use: traces whose every call was run, with their answers verified, and texts with calls that help.

    python -m data_builders.tool_use --kind programs --source svamp_python_cot.jsonl --out data/programs
    python -m data_builders.tool_use --kind solve --source hotpotqa.jsonl --out data/hops --min_calls 2 --grounded \\
        --tools '[{name: search, corpus: wiki.jsonl}]' teacher.base_url=http://localhost:8000/v1 teacher.model=NAME
    python -m data_builders.tool_use replay data/hops

Kinds:

    solve       a teacher thinks and calls tools until it answers (ReAct); multi-hop search with a search tool
    programs    reasoning, program, output, answer (ToRA): gold programs or recorded ones, run again, or a teacher's
    notes       GSM8K's calculator notes, each of them a call
    calls       true calls of given schemas (BFCL and its like), single and parallel, held against the schemas
    toolformer  calls in plain text that lower the loss of what follows by tau (arXiv:2302.04761)

`replay FOLDER` runs every call of a built set again and tells what is different now; exit status 1 where something is.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data_builders.building.build import Builder, BuildOptions, Drop, Made, SourceNote, Task, Tools, option
from mmreason.types import ConfigError, DataError, Example, MMReasonError, OnBadRow

Kind = Literal["solve", "programs", "notes", "calls", "toolformer"]
_TOOLS: dict[str, list[Any]] = {
    "solve": ["calculator"],
    "programs": ["python"],
    "notes": ["calculator"],
    "calls": [],
    "toolformer": ["calculator"],
}
"""Kind -> the tools that it takes where none are given."""
_SOURCE, _TRACES, _ERRORS, _TEACHER, _FILTER = "Source", "Traces", "Planted errors", "Teacher", "Toolformer's filter"


@dataclass(frozen=True, kw_only=True)
class ToolUseOptions(BuildOptions):
    """Options of `tool_use`."""

    source: str = field(metadata=option("Hub id, file or folder of questions, solutions or schemas.", _SOURCE))
    source_split: str = field(default="train", metadata=option("Of the source.", _SOURCE))
    format: str = field(default="auto", metadata=option("How the source is read, see `mmreason doctor`.", _SOURCE))
    column_map: dict[str, str] | None = field(
        default=None, metadata=option("Our field -> the source's column, {prompt: …, answer: …}.", _SOURCE)
    )
    on_bad_row: OnBadRow = field(default="error", metadata=option("error, or drop.", _SOURCE))
    documents: bool = field(default=False, metadata=option("toolformer: the source holds plain texts.", _SOURCE))
    kind: Kind = field(default="solve", metadata=option("solve, programs, notes, calls or toolformer.", _TRACES))
    tools: list[str | dict[str, Any]] | None = field(
        default=None, metadata=option("[calculator, {name: search, corpus: FILE}, …]; default: by kind.", _TRACES)
    )
    timeout_s: float = field(default=5.0, metadata=option("Seconds of one call.", _TRACES))
    max_chars: int = field(default=4000, metadata=option("Characters of one result.", _TRACES))
    form: Literal["tool_calls", "react", "fenced", "inline"] | None = field(
        default=None,
        metadata=option("tool_calls, react, fenced (programs), inline (toolformer). Default tool_calls.", _TRACES),
    )
    rows: Literal["turns", "trace"] = field(
        default="turns",
        metadata=option("react, fenced: a row for each turn of the model, or for the whole trace.", _TRACES),
    )
    thoughts: Literal["reasoning", "content"] = field(
        default="reasoning", metadata=option("tool_calls: thoughts as reasoning_content, or before the call.", _TRACES)
    )
    instructions: bool = field(default=True, metadata=option("Rows begin with how to use the tools.", _TRACES))
    language: Literal["en", "zh"] = field(default="en", metadata=option("Of instructions and thoughts.", _TRACES))
    errors: float = field(default=0.0, metadata=option("Share of traces that begin with a wrong call.", _ERRORS))
    mistakes: list[str] | None = field(
        default=None,
        metadata=option(
            "Of unknown_tool, missing_argument, misspelt_argument, wrong_type, bad_json (react), syntax, bad_name.",
            _ERRORS,
        ),
    )
    learn_errors: bool = field(default=False, metadata=option("Turns that failed carry loss, too.", _ERRORS))
    programs_from: Literal["source", "teacher"] = field(
        default="source", metadata=option("programs: those of the source, or a teacher's.", _TEACHER)
    )
    teacher_form: Literal["text", "native"] = field(
        default="text", metadata=option("solve: actions as text, or the server's own tool calls.", _TEACHER)
    )
    samples: int = field(default=1, metadata=option("Traces (toolformer: proposals) for each row.", _TEACHER))
    max_turns: int = field(default=8, metadata=option("Turns with tools before a trace is given up.", _TEACHER))
    temperature: float | None = field(default=None, metadata=option("Of the teacher.", _TEACHER))
    max_tokens: int = field(default=1024, metadata=option("Of one reply.", _TEACHER))
    min_calls: int = field(default=1, metadata=option("Different successful calls of a trace; 2: multi-hop.", _TEACHER))
    grounded: bool = field(default=False, metadata=option("The gold must stand in a tool's result.", _TEACHER))
    calls_from: Literal["text", "notes", "teacher"] = field(
        default="teacher", metadata=option("Calls in the text, its calculator notes, or a teacher's.", _FILTER)
    )
    scorer: str | None = field(default=None, metadata=option("Causal model that judges: path or hub id.", _FILTER))
    tau: float = field(default=1.0, metadata=option("Nats by which a call must lower the loss.", _FILTER))
    scorer_device: str = field(default="auto", metadata=option("cpu, cuda:0, …", _FILTER, rows=False))
    scorer_dtype: str = field(default="auto", metadata=option("float32, bfloat16, …", _FILTER))
    scorer_batch: int = field(default=16, metadata=option("Sequences in one pass.", _FILTER, rows=False))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "max_turns", "max_tokens", "scorer_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.errors <= 1:
            raise ConfigError(f"errors is a share from 0 to 1, not {self.errors}")
        if self.kind == "toolformer" and not self.scorer:
            raise ConfigError("kind=toolformer needs the model that judges calls: --scorer PATH_OR_HUB_ID")
        if self.documents and self.kind != "toolformer":
            raise ConfigError(f"documents is for kind=toolformer; kind={self.kind} needs questions")
        self._check_form()
        if self.tools == [] or (self.tools and self.kind == "calls"):
            raise ConfigError("kind=calls takes the tools of its rows" if self.tools else "tools: name at least one")

    def _check_form(self) -> None:
        fits = {
            "fenced": self.kind == "programs",
            "inline": self.kind == "toolformer" and not self.errors,
            "react": self.kind != "calls",
        }
        if not fits.get(self.written, True):
            hint = " without errors" if self.written == "inline" and self.errors else ""
            raise ConfigError(f"form={self.written} doesn't go with kind={self.kind}{hint}")
        if self.documents and self.written != "inline":
            raise ConfigError(f"documents are written with form=inline, not {self.written}")

    @property
    def written(self) -> str:
        """The form of the rows."""
        return self.form or ("inline" if self.kind == "toolformer" else "tool_calls")


class ToolUse(Builder[ToolUseOptions]):
    """See the module."""

    name, version = "tool_use", 1
    columns: Sequence[str] = ("prompt", "completion", "answer", "tools", "id", "source", "meta")

    def __init__(self, options: ToolUseOptions) -> None:
        super().__init__(options)
        if options.documents:
            self.columns = ("text", "id", "source", "meta")
        self._examples: list[Example] = []
        self._seen: set[str] = set()

    def needs_endpoint(self) -> bool:
        options = self.options
        if options.kind == "programs":
            return options.programs_from == "teacher"
        return options.kind == "solve" or (options.kind == "toolformer" and options.calls_from == "teacher")

    def sources(self) -> Sequence[SourceNote]:
        from data_builders._tool_use.errors import check_mistakes
        from data_builders.building.sandbox import try_sandbox
        from data_builders.building.sources import read_source

        check_mistakes(self.options.mistakes or (), self.options.written)
        options = self.options
        settings: dict[str, Any] = {"format": options.format, "column_map": options.column_map}
        if self._reads_notes and options.format == "auto" and options.column_map is None and not options.documents:
            # GSM8K's own format leaves the notes out.
            columns = {"prompt": "question", "completion": "answer", "answer": "answer"}
            settings = {"format": "generic", "column_map": columns}
        if options.documents:
            settings["columns"] = ("text", "id", "source", "meta")
        self._examples, note = read_source(
            options.source, split=options.source_split, on_bad_row=options.on_bad_row, **settings
        )
        self._check_rows()
        if any(example.get("images") for example in self._examples) and not options.documents:
            self.columns = (*type(self).columns, "images")
        shop = self._shop  # makes the tools: an unknown one, or a corpus that isn't there, shows now
        if options.kind == "toolformer":
            self._toolformer  # noqa: B018  loads the model before anything is paid
        elif "python" in shop.toolbox.names:
            try_sandbox()
        return [note, *self._tool_sources()]

    @property
    def _reads_notes(self) -> bool:
        return self.options.kind == "notes" or (
            self.options.kind == "toolformer" and self.options.calls_from == "notes"
        )

    def _check_rows(self) -> None:
        """Raises: DataError where a row can't be what the kind needs, unless such rows shall be dropped."""
        if self.options.on_bad_row == "drop":
            return
        for example in self._examples:
            if missing := self._missing(example):
                raise DataError(
                    f"{self.options.source}: row {example.get('id')} has no {missing}, which kind={self.options.kind} "
                    "needs; name its column with --column_map, or drop such rows with --on_bad_row drop",
                    path=self.options.source,
                    row=example.get("id"),
                    reason=f"missing_{missing}",
                )

    def _missing(self, example: Example) -> str:
        """The field that the kind needs and the row lacks; "" where it has all."""
        kind = self.options.kind
        needs = [
            ("answer", kind in ("solve", "programs", "notes")),
            ("completion", kind in ("notes", "calls") or (kind == "programs" and not self._asks)),
            ("completion", kind == "toolformer" and not self.options.documents),
            ("tools", kind == "calls"),
        ]
        return next((name for name, needed in needs if needed and not example.get(name)), "")

    @property
    def _asks(self) -> bool:
        return self.needs_endpoint()

    def sends_images(self) -> bool:
        return "images" in self.columns and self._asks and self.options.kind != "toolformer"

    def _tool_sources(self) -> list[SourceNote]:
        """The files behind the tools: corpora, tables, data bases."""
        from data_builders.building.sources import note, read_raw

        found = []
        for entry, tool in zip(self._tools.get("tools", ()), self._made_tools, strict=False):
            settings = entry if isinstance(entry, Mapping) else {}
            for name in ("corpus", "database"):
                if isinstance(path := settings.get(name), str):
                    found.append(note(path, "all", len(getattr(tool, "passages", ())), _folder_digest(Path(path))))
            for path in (settings.get("tables") or {}).values():
                if isinstance(path, str):
                    found.append(read_raw(path)[1])
        return found

    @cached_property
    def _tools(self) -> dict[str, Any]:
        """The toolbox's settings, as `meta.tools` keeps them; {} where rows bring schemas of their own."""
        options = self.options
        if options.kind == "calls":
            return {}
        entries = _TOOLS[options.kind] if options.tools is None else options.tools
        return {"tools": list(entries), "timeout_s": options.timeout_s, "max_chars": options.max_chars}

    @cached_property
    def _made_tools(self) -> list[Any]:
        from mmreason.tools.registry import load_tools

        # Rows that bring schemas of their own need none; a toolbox must have one.
        return list(load_tools(self._tools["tools"] if self._tools else ["calculator"]))

    @cached_property
    def _shop(self) -> Any:
        from data_builders._tool_use.errors import mistakes_of
        from data_builders._tool_use.rows import Workshop
        from data_builders._tool_use.trace import Writing
        from mmreason.prompting.react import ReAct
        from mmreason.tools.toolbox import Toolbox

        options = self.options
        form: Any = "tool_calls" if options.written == "inline" else options.written
        writing = Writing(
            form=form,
            rows=options.rows,
            thoughts=options.thoughts,
            learn_errors=options.learn_errors,
            language=options.language,
        )
        tools: Any = tuple(self._made_tools)
        # The teacher is asked in its own form; rows show what a model is told that writes theirs.
        asked = options.teacher_form if options.kind == "solve" else "native" if form == "tool_calls" else "text"
        react = ReAct(
            tools=tools,
            form=asked,  # type: ignore[arg-type]
            language=options.language,
            max_turns=options.max_turns,
            timeout_s=options.timeout_s,
            max_chars=options.max_chars,
        )
        return Workshop(
            kind=options.kind,
            toolbox=Toolbox(tools, timeout_s=options.timeout_s, max_chars=options.max_chars),
            tools=self._tools,
            writing=writing,
            instructions=options.instructions,
            errors=options.errors,
            mistakes=tuple(options.mistakes or mistakes_of(form)),
            seed=options.seed,
            react=react,
        )

    @cached_property
    def _toolformer(self) -> Any:
        from data_builders._tool_use.filter import load_losses
        from data_builders._tool_use.inline import InlineForm
        from data_builders._tool_use.toolformer import Toolformer

        options = self.options
        assert options.scorer is not None
        losses = load_losses(
            options.scorer, device=options.scorer_device, dtype=options.scorer_dtype, batch_size=options.scorer_batch
        )
        return Toolformer(
            self._shop,
            InlineForm(self._shop.schemas),
            losses,
            options.tau,
            options.calls_from,
            samples=options.samples,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            inline=options.written == "inline",
        )

    def plan(self) -> Iterator[Task]:
        draws = self.options.samples if self._asks and self.options.kind != "toolformer" else 1
        for example in self._examples:
            for draw in range(draws):
                yield Task(f"{example['id']}:{draw}" if draws > 1 else str(example["id"]), (example, draw))

    async def make(self, task: Task, tools: Tools) -> Made:
        from data_builders._tool_use import gold, solve
        from data_builders._tool_use.rows import embedded

        example, draw = task.data
        if missing := self._missing(example):
            return Made(drops=[Drop(f"missing_{missing}", str(example.get("prompt"))[:500])])
        options, shop = self.options, self._shop
        example = await asyncio.to_thread(embedded, example)
        if options.kind == "toolformer":
            made: Made = await self._toolformer.make(task.id, example, tools.teacher if self._asks else None)
            return made
        if self._asks:
            asking = solve.Asking(
                temperature=options.temperature, max_tokens=options.max_tokens, max_turns=options.max_turns, draw=draw
            )
            demands = solve.Demands(min_calls=options.min_calls, grounded=options.grounded)
            by = solve.by_tools if options.kind == "solve" else solve.by_programs
            return await by(shop, task.id, example, tools.teacher, asking, demands)
        makers = {"programs": gold.from_program, "notes": gold.from_notes, "calls": gold.from_schema}
        return await makers[options.kind](shop, task.id, example)

    def keep(self, row: Example) -> Drop | None:
        """No two rows that say the same: several traces of a problem may begin alike."""
        import hashlib

        pictures = [hashlib.sha256(cell["bytes"]).hexdigest() for cell in row.get("images") or ()]
        said = json.dumps([row.get("prompt"), row.get("completion"), row.get("text"), pictures], sort_keys=True)
        key = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
        if key in self._seen:
            return Drop("duplicate", said[:500])
        self._seen.add(key)
        return None


def _folder_digest(path: Path) -> str:
    """Of the names and bytes of a folder's files; "" for a file, whose own digest is taken."""
    import hashlib

    digest = hashlib.sha256()
    if not path.is_dir():
        return ""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command: build, or `replay FOLDER [--split NAME]`."""
    from data_builders.building.runner import run_main

    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["replay"]:
        return replay_main(words[1:])
    return run_main(ToolUse, ToolUseOptions, words, description=__doc__)


def replay_main(argv: Sequence[str]) -> int:
    """Run all calls of a built set again. Returns: 0 where all rows give the same, 1 where some don't, 2 for errors."""
    import argparse

    parser = argparse.ArgumentParser(prog="mmreason build tool_use replay", description=replay_main.__doc__)
    parser.add_argument("folder", help="folder of a built set")
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--show", type=int, default=10, help="differences to show (default: %(default)s)")
    arguments = parser.parse_args(argv)
    from data_builders._tool_use.replay import replay_all

    try:
        rows = _built_rows(arguments.folder, arguments.split)
        counts, told = replay_all(rows)
    except MMReasonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text in told[: arguments.show]:
        print(text)
    print(f"{counts['rows']:,} rows run again, {counts['different']:,} differ ({len(told):,} differences)")
    return 1 if counts["different"] else 0


def _built_rows(folder: str, split: str) -> list[Example]:
    import pyarrow.parquet as parquet

    from data_builders.building.sources import read_source

    files = sorted(Path(folder).glob(f"{split}-*.parquet"))
    if not files:
        raise DataError(f"{folder}: no {split}-*.parquet of a built set is there", path=folder)
    names = parquet.read_schema(files[0]).names
    columns = ("text", "id", "source", "meta") if "text" in names else ToolUse.columns
    columns = (*columns, "images") if "images" in names else columns
    return read_source(folder, split=split, columns=columns)[0]


if __name__ == "__main__":
    raise SystemExit(main())
