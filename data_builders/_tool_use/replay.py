"""Run the calls of built rows again: do they still give what the rows say?"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

from data_builders._tool_use.gold import schema_toolbox
from data_builders._tool_use.inline import InlineForm, one_line
from data_builders._tool_use.trace import differences, recorded_calls
from mmreason.tools.toolbox import Toolbox
from mmreason.types import DataError, Example, Message


def make_toolbox(tools: Mapping[str, Any]) -> Toolbox:
    """The toolbox of a run. Args: tools: {"tools": entries as `load_tools` takes them, "timeout_s", "max_chars"}.

    Raises: ConfigError, DataError as `load_tools`.
    """
    from mmreason.tools.registry import load_tools

    return Toolbox(load_tools(tools["tools"]), timeout_s=tools["timeout_s"], max_chars=tools["max_chars"])


@functools.lru_cache(maxsize=4)
def _kept(tools: str) -> Toolbox:
    return make_toolbox(json.loads(tools))


def replay(row: Example, toolbox: Toolbox | None = None) -> list[str]:
    """Run every call of a row again, in a sentence each what is different now; [] where all is as the row says.

    A call without a result in the row (its last turn, or a row of schemas alone) must succeed.

    Args: toolbox: the tools; by default they are made as `meta.tools` says (paths as they were given then).
    Raises: DataError for a row without that, and one whose calls can't be read.
    """
    meta, name = row.get("meta") or {}, row.get("id", "?")
    if meta.get("task") == "calls":
        return differences(recorded_calls(row), toolbox or schema_toolbox(row.get("tools") or []))
    if toolbox is None:
        if not meta.get("tools"):
            raise DataError(f"row {name}: its meta names no tools; give replay a toolbox", row=name)
        toolbox = _kept(json.dumps(meta["tools"], sort_keys=True))
    return _inline(row, toolbox) if meta.get("form") == "inline" else differences(recorded_calls(row), toolbox)


def replay_all(rows: Iterable[Example]) -> tuple[Counter[str], list[str]]:
    """(counts of rows, calls and rows that differ; the differences, each with its row)."""
    counts: Counter[str] = Counter(rows=0, different=0)
    told: list[str] = []
    for row in rows:
        found = replay(row)
        counts["rows"] += 1
        counts["different"] += bool(found)
        told += [f"row {row.get('id')}: {text}" for text in found]
    return counts, told


def _inline(row: Example, toolbox: Toolbox) -> list[str]:
    form = InlineForm(toolbox.schemas)
    if "text" in row:
        text = str(row["text"])
    else:
        last = cast(list[Message], row["completion"])[-1]
        text = f"{last.get('reasoning_content') or ''}\n{last['content']}"
    calls = form.read(text)[1]
    found = []
    for number, one in enumerate(calls, 1):
        now = one_line(toolbox.run(one.call))
        if one.result != now:
            found.append(f"call {number}, {form.write(one.call)}: recorded {one.result!r}, now {now!r}")
    return found if calls else ["the row has no call"]
