"""`mmreason ask PROMPTS.jsonl --out REPLIES.jsonl …`: ask a server a file of prompts, and pay for each of them once.

Exit status: 0 every request has a reply; 1 some failed, counted by kind and named; 2 something the user can put right;
3 the budget stopped the run; 130 interrupted. The same command goes on where the last one ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmreason._files import whole_file
from mmreason.clients.prices import format_dollars, require_price
from mmreason.clients.settings import EndpointConfig, LedgerConfig
from mmreason.clients.types import Request
from mmreason.config import parse_config
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from mmreason.clients.endpoint import Endpoint
    from mmreason.clients.ledger import Ledger
    from mmreason.clients.run import Outcome, Tally

ANSWERED, SOME_FAILED, USER_ERROR, OUT_OF_BUDGET, INTERRUPTED = 0, 1, 2, 3, 130
NAMED = 5
"""Failed rows of each kind that are named."""

DESCRIPTION = """\
PROMPTS.jsonl has a row per line: `prompt` (text or messages) or `messages`, perhaps `id`, `images` (paths beside the
file), and any of max_tokens, temperature, top_p, stop, seed, json_schema, top_logprobs, tools, extra for this row.
Exit status: 0 all answered, 1 some failed, 2 wrong input, 3 stopped by the budget. The same command goes on."""

_PER_ROW = ("max_tokens", "temperature", "top_p", "stop", "seed", "json_schema", "top_logprobs", "tools", "extra")


def _help(text: str, group: str = "Asking") -> dict[str, str]:
    return {"help": text, "group": group}


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """What `mmreason ask` needs besides the endpoint and the ledger."""

    prompts: Path = field(metadata=_help("JSONL file with a prompt per line; may stand first, without --prompts."))
    out: Path = field(metadata=_help("JSONL file for the replies, in the order of the prompts."))
    quote: bool = field(default=False, metadata=_help("Ask 50 rows as a pilot, say what the rest would cost, and end."))
    batch: bool = field(default=False, metadata=_help("Use the server's Batch API: within a day, often cheaper."))
    batch_size: int = field(default=50_000, metadata=_help("Requests in one batch at most."))
    poll_s: float = field(default=30.0, metadata=_help("Seconds between two looks at a batch."))
    system: str | None = field(default=None, metadata=_help("System message in front of prompts that have none."))
    samples: int = field(default=1, metadata=_help("Draws of each prompt.", "Sampling"))
    max_tokens: int = field(default=1024, metadata=_help("Tokens of a reply at most.", "Sampling"))
    temperature: float | None = field(default=None, metadata=_help("Left to the server if null.", "Sampling"))
    top_p: float | None = field(default=None, metadata=_help("Left to the server if null.", "Sampling"))
    stop: list[str] = field(default_factory=list, metadata=_help("Texts that end a reply.", "Sampling"))
    sampling_seed: int | None = field(default=None, metadata=_help("Sent as `seed`, plus the draw.", "Sampling"))
    json_schema: Path | None = field(default=None, metadata=_help("JSON schema that each reply must fit.", "Sampling"))
    top_logprobs: int | None = field(default=None, metadata=_help("Log-probs of the k likeliest tokens.", "Sampling"))

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, not {self.samples}")
        if self.poll_s <= 0:
            raise ConfigError(f"poll_s must be above 0, not {self.poll_s}")
        if self.quote and self.batch:
            raise ConfigError("quote and batch exclude each other: take the quote first, then batch the rest")
        if self.out.resolve() == self.prompts.resolve():
            raise ConfigError(f"--out would overwrite the prompts {self.prompts}")


def run_ask(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        The exit status, see the top of this module.

    Raises:
        MMReasonError: what the user can put right.
    """
    ask, config, money = parse_arguments(arguments)
    config = money.priced(config)
    if ask.quote:
        require_price(config.prices, config.model, "a quote")
    requests = list(read_requests(ask))
    with money.open(ask.out.with_name(ask.out.name + ".ledger"), [config]) as ledger:
        if money.settle_doubtful is not None:
            settled = ledger.settle_doubtful(money.settle_doubtful)
            _say(f"{settled} doubtful requests settled at ${money.settle_doubtful:g}")
        try:
            return asyncio.run(_ask(ask, config, ledger, requests))
        except KeyboardInterrupt:
            _say("interrupted; the same command goes on where it ended")
            return INTERRUPTED
        finally:
            _say(_describe_account(ledger))


def parse_arguments(arguments: Sequence[str]) -> tuple[AskConfig, EndpointConfig, LedgerConfig]:
    """The command line as settings. Raises: ConfigError; SystemExit after --help."""
    words = list(arguments) or ["--help"]
    if not words[0].startswith("-"):
        words = ["--prompts", *words]
    parts = parse_config((AskConfig, EndpointConfig, LedgerConfig), words, "mmreason ask PROMPTS.jsonl", DESCRIPTION)
    ask, config, money = parts
    return ask, config, money


# --------------------------------------------------------------------------------------------------------------------
# Prompts in


def read_requests(ask: AskConfig) -> Iterator[Request]:
    """The requests of a file of prompts, `samples` for each row.

    Raises:
        DataError: names the file and line.
    """
    from mmreason.clients.schemas import check_schema
    from mmreason.data.formats.common import RowError
    from mmreason.data.reader import read_rows

    schema = None if ask.json_schema is None else _read_schema(ask.json_schema)
    is_empty = True
    for located in read_rows(ask.prompts):
        is_empty = False
        if isinstance(located.row, RowError):
            raise DataError(f"{located.where}: {located.row}", path=ask.prompts, row=located.where)
        fields = _row_request(located.row, located.where, ask, schema)
        if fields["json_schema"] is not None:
            try:
                check_schema(fields["json_schema"])
            except ConfigError as error:
                raise ConfigError(f"{located.where}: {error}") from None
        seed = fields.pop("seed")
        for sample in range(ask.samples):
            yield Request(**fields, sample=sample, seed=None if seed is None else seed + sample)
    if is_empty:
        raise DataError(f"{ask.prompts} has no rows", path=ask.prompts)


def _row_request(
    row: Mapping[str, Any], place: str, ask: AskConfig, schema: Mapping[str, Any] | None
) -> dict[str, Any]:
    prompt = row.get("messages", row.get("prompt"))
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt or not all(isinstance(m, dict) and "role" in m for m in prompt):
        raise DataError(f"{place}: expected `prompt` (text or messages) or `messages`", path=ask.prompts, row=place)
    if ask.system is not None and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": ask.system}, *prompt]
    defaults: dict[str, Any] = {
        "max_tokens": ask.max_tokens, "temperature": ask.temperature, "top_p": ask.top_p, "stop": ask.stop,
        "seed": ask.sampling_seed, "json_schema": schema, "top_logprobs": ask.top_logprobs, "tools": [], "extra": {},
    }  # fmt: skip
    own = {name: row[name] for name in _PER_ROW if row.get(name) is not None}
    _check_types(own, place, ask.prompts)
    images = [_read_image(ask.prompts.parent, name, place) for name in row.get("images") or ()]
    return {**defaults, **own, "messages": prompt, "images": images, "id": str(row.get("id", Path(place).name))}


def _check_types(own: Mapping[str, Any], place: str, path: Path) -> None:
    types: dict[str, tuple[type, ...]] = {
        "max_tokens": (int,), "temperature": (int, float), "top_p": (int, float), "stop": (list,), "seed": (int,),
        "json_schema": (dict,), "top_logprobs": (int,), "tools": (list,), "extra": (dict,),
    }  # fmt: skip
    for name, value in own.items():
        if not isinstance(value, types[name]) or isinstance(value, bool):
            names = " or ".join(kind.__name__ for kind in types[name])
            raise DataError(f"{place}: {name} must be {names}, not {value!r}", path=path, row=place)


def _read_image(folder: Path, name: Any, place: str) -> bytes:
    root = folder.resolve()
    path = (root / str(name)).resolve()
    if not path.is_relative_to(root):
        raise DataError(f"{place}: the image {name} lies outside of {folder}", row=place)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{place}: the image {name} can't be read: {error.strerror}", row=place) from None


def _read_schema(path: Path) -> Mapping[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--json_schema: {path} can't be read as JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConfigError(f"--json_schema: {path} must hold a JSON object")
    return schema


# --------------------------------------------------------------------------------------------------------------------
# Asking


async def _ask(ask: AskConfig, config: EndpointConfig, ledger: Ledger, requests: Sequence[Request]) -> int:
    from mmreason.clients.endpoint import Endpoint
    from mmreason.clients.quote import quote

    async with Endpoint(config, ledger=ledger) as endpoint:
        if ask.quote:
            found = await quote(
                endpoint, requests, ledger=ledger, concurrency=config.concurrency, progress=_bar_name("pilot")
            )
            print(found.describe())
            return _status(found.pilot)
        outcomes = _batched(ask, endpoint, requests) if ask.batch else _online(endpoint, requests)
        return await _write(ask.out, outcomes)


async def _online(endpoint: Endpoint, requests: Sequence[Request]) -> AsyncGenerator[Outcome, None]:
    from mmreason.clients.run import complete_all

    # More than are in flight at the server: a row that waits for its next try must not hold back another.
    begun = 4 * endpoint.config.concurrency
    async for outcome in complete_all(endpoint, requests, in_flight=begun, ordered=True, progress=_bar_name("asking")):
        yield outcome


async def _batched(ask: AskConfig, endpoint: Endpoint, requests: Sequence[Request]) -> AsyncGenerator[Outcome, None]:
    from tqdm import tqdm

    from mmreason.clients.batch import BatchRun

    run = BatchRun(endpoint, requests, max_requests=ask.batch_size, poll_s=ask.poll_s)
    with tqdm(desc="batches", total=len(requests), unit="row", disable=_bar_name("") is None) as bar:

        def look(done: int) -> None:
            bar.update(done - bar.n)

        for outcome in await run.run(look):
            yield outcome


def _bar_name(name: str) -> str | None:
    """A bar for a terminal only: in a log file it would be thousands of lines."""
    return name if sys.stderr.isatty() else None


# --------------------------------------------------------------------------------------------------------------------
# Replies out


async def _write(out: Path, outcomes: AsyncGenerator[Outcome, None]) -> int:
    """Write a line per outcome; the file is there whole or not at all."""
    from mmreason.clients.run import Tally

    tally, named = Tally(), dict[str, list[str]]()
    with whole_file(out) as file:
        async for outcome in outcomes:
            tally.add(outcome)
            if outcome.error is not None:
                named.setdefault(outcome.error.kind, []).append(f"{outcome.request.id}: {outcome.error}")
            file.write(json.dumps(reply_row(outcome), ensure_ascii=False).encode() + b"\n")
    for kind, failures in named.items():
        more = f"\n  and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
        _say(f"{kind}: {len(failures)} failed\n" + "\n".join(f"  {line}" for line in failures[:NAMED]) + more)
    _say(f"{tally.describe()}; written to {out}")
    return _status(tally)


def reply_row(outcome: Outcome) -> dict[str, Any]:
    """A line of the output: the request's id and draw, and the reply or the error."""
    row: dict[str, Any] = {"id": outcome.request.id, "sample": outcome.request.sample}
    if outcome.error is not None:
        error = outcome.error
        return row | {"error": {"kind": error.kind, "message": str(error), "status": error.status}}
    assert outcome.reply is not None
    reply = asdict(outcome.reply)
    del reply["from_ledger"], reply["seconds"]  # the file is the same after a resume
    return row | {name: value for name, value in reply.items() if value not in (None, ())}


def _status(tally: Tally) -> int:
    if tally.failed["budget"]:
        return OUT_OF_BUDGET
    return SOME_FAILED if tally.failed else ANSWERED


def _describe_account(ledger: Ledger) -> str:
    account = ledger.account()
    lines = [
        f"ledger {ledger.path}: {format_dollars(account.spent)} spent on {account.paid.requests} replies"
        + (f" and {account.wasted.requests} unusable ones" if account.wasted.requests else "")
    ]
    doubtful = account.doubtful
    if doubtful.requests:
        most = format_dollars(doubtful.amount) + (" and what has no price" if doubtful.unpriced else "")
        lines.append(
            f"{doubtful.requests} requests may have been charged without a reply, {most} at most; that counts as spent "
            "until --settle_doubtful says what the bill has for them"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
