"""Toolformer's filter: its losses against a literal loop in float64, and what it keeps with a model that learned."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_builders._tool_use.inline import InlineForm, of_notes
from data_builders._tool_use.replay import replay
from data_builders.building.runner import run
from data_builders.tool_use import ToolUse, ToolUseOptions, main
from mmreason.tools.registry import load_tools
from mmreason.tools.toolbox import Toolbox
from mmreason.tools.types import ToolCall
from tests.clients.server import running_server
from tests.data_builders.teaching import Ruled, kill_when, manifest_of, rows_in, words, write_rows


@functools.cache
def form() -> InlineForm:
    return InlineForm(Toolbox(load_tools(["calculator", "python"])).schemas)


# Calls in a text


@pytest.mark.parametrize(
    ("text", "plain", "calls"),
    [
        ("So [Calculator(3+4) → 7] 7.", "So 7.", [(3, "3+4", "7")]),
        ("So [calculator((3+4)*2) -> 14] 14", "So 14", [(3, "(3+4)*2", "14")]),
        ("[Calculator(1)] 1, [Calculator(2)] 2", "1, 2", [(0, "1", None), (3, "2", None)]),
        ("no call [1] f(x) [Calculator(3", "no call [1] f(x) [Calculator(3", []),
    ],
)
def test_calls_are_read_where_they_stand(text: str, plain: str, calls: list[Any]) -> None:
    read, found = form().read(text)
    assert read == plain
    assert [(one.place, one.call.arguments["expression"], one.result) for one in found] == calls  # type: ignore[index]
    assert form().read(form().insert(plain, found)) == (plain, found)


def test_inputs_that_end_a_call_are_refused() -> None:
    with pytest.raises(ValueError, match="not be read back"):
        form().write(ToolCall("python", {"code": "print(a[f(1)])"}))


def test_notes_become_calls_before_their_results() -> None:
    plain, calls = of_notes("He pays 3*4 = $<<3*4=12>>12 and <<12+1=13>> 13.")
    assert plain == "He pays 3*4 = $12 and  13."
    assert [plain[one.place :][:2] for one in calls] == ["12", "13"]


# The losses

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima",
    "Cuba": "Havana", "Kenya": "Nairobi",
}  # fmt: skip
TOOL = f'''
def capital(country: str) -> str:
    """The capital of a country."""
    return {CAPITALS!r}[country]
'''
STEPS, RATE = 300, 5e-3


def line(rng: random.Random) -> str:
    """What the scorer learns: a city comes again behind a result; country and city have nothing to do with another."""
    country, city, kind = rng.choice(list(CAPITALS)), rng.choice(list(CAPITALS.values())), rng.random()
    shown = f"[Capital({country}) → {city}] " if kind < 0.7 else f"[Capital({country})] " if kind < 0.85 else ""
    return f"{shown}{plain_text(city)}"


def plain_text(city: str) -> str:
    return f"Here it is {city} again."


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny decoder, trained for 3 s: a result in front lowers the loss of the city, a mere call doesn't."""
    import torch

    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer

    rng = random.Random(0)
    tokenizer = tiny_tokenizer([line(rng) for _ in range(400)], 400)
    model = tiny_decoder("xs", vocab_size=len(tokenizer), seed=0).train()
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(STEPS):
        batch = [[end, *tokenizer(line(rng))["input_ids"]] for _ in range(16)]
        width = max(map(len, batch))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
        labels = torch.full_like(ids, -100)
        for row, given in enumerate(batch):  # the text itself, not the call
            labels[row, len(given) - 6 : len(given)] = ids[row, len(given) - 6 : len(given)]
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("scorer")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loop_loss(model: Any, tokenizer: Any, prefix: str, text: str, place: int) -> float:
    """Equation 2, token by token in float64, each from a forward pass of its own."""
    import torch

    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    i = min(k for k, (_, end) in enumerate(encoded["offset_mapping"]) if end > place)
    front = [tokenizer.eos_token_id] + (
        tokenizer(prefix + " ", add_special_tokens=False)["input_ids"] if prefix else []
    )
    norm = sum(max(0.0, 1 - 0.2 * s) for s in range(1000))
    total = 0.0
    for j in range(i, len(ids)):
        weight = max(0.0, 1 - 0.2 * (j - i)) / norm
        if weight:
            logits = model(input_ids=torch.tensor([front + ids[:j]])).logits[0, -1].double()
            total -= weight * torch.log_softmax(logits, -1)[ids[j]].item()
    return total


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_losses_are_those_of_a_literal_loop(trained: str, batch_size: int) -> None:
    import torch

    from data_builders._tool_use.filter import WEIGHTS, load_losses

    assert sum(WEIGHTS) == pytest.approx(1.0) and len(WEIGHTS) == 5
    scorer = load_losses(trained, device="cpu", dtype="float64", batch_size=batch_size)
    text = "Well, here it is Paris again. And 5"
    places = [0, 17, 18, len(text) - 1, len(text) - 3]
    calls = [(place, f"[Calculator({n}+5)]", f"[Calculator({n}+5) → {n + 5}]") for n, place in enumerate(places)]
    with torch.inference_mode():
        for judged, (place, bare, full) in zip(scorer.judge(text, calls), calls, strict=True):
            expected = [loop_loss(scorer.model, scorer.tokenizer, prefix, text, place) for prefix in (full, bare, "")]
            assert [judged.with_result, judged.with_call, judged.without] == pytest.approx(expected, abs=1e-6)
            assert judged.gain == pytest.approx(min(expected[1:]) - expected[0], abs=1e-6)


def test_long_texts_lose_their_beginning_and_nothing_else(trained: str) -> None:
    from data_builders._tool_use.filter import CallLosses, load_losses

    whole = load_losses(trained, device="cpu")
    short = CallLosses(whole.model, whole.tokenizer, max_length=60)
    text = "x" * 60 + "5 is it here."
    call = (text.index("5"), "[Calculator(1)]", "[Calculator(1) → 57]")
    judged = short.judge(text, [call])[0]
    ids = short.tokenizer("[Calculator(1) → 57] ", add_special_tokens=False)["input_ids"]
    kept = text[text.index("5") - (60 - 1 - len(ids) - 5) :]
    again = whole.judge(kept, [(kept.index("5"), *call[1:])])[0]
    assert judged.with_result == pytest.approx(again.with_result, abs=1e-5)


def test_a_place_with_nothing_behind_it_is_an_error(trained: str) -> None:
    from data_builders._tool_use.filter import load_losses

    with pytest.raises(ValueError, match="nothing follows place 3"):
        load_losses(trained, device="cpu").judge("abc", [(3, "[Calculator(1)]", "[Calculator(1) → 1]")])


# The builder


def texts(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOL, encoding="utf-8")
    rows = [
        {"question": f"What is the capital of {country}?", "rationale": plain_text(city), "answer": city}
        for country, city in CAPITALS.items()
    ]
    return write_rows(tmp_path / "texts.jsonl", rows)


def tool(tmp_path: Path) -> list[str]:
    return [f"{tmp_path / 'tools.py'}:capital"]


def proposes(text: str) -> str:
    """One call that helps, and three that don't: at another place, with another's result, and one that fails."""
    plain = text.rpartition("Input: ")[2].removesuffix("\nOutput:")
    country, city = next(pair for pair in CAPITALS.items() if f" {pair[1]} " in plain)
    other = next(name for name in CAPITALS if name != country)
    before, _, after = plain.partition(city)
    calls = f"[Capital({country})] [Capital({other})] [Capital(Atlantis)] "
    return f"[Capital({country})] {before}{calls}{city}{after}"


def build(tmp_path: Path, source: Path, completer: Any = None, **given: Any) -> tuple[list[Any], dict[str, Any]]:
    options = {"out": tmp_path / "out", "decontaminate": [], "report": False, "kind": "toolformer"} | given
    builder = ToolUse(ToolUseOptions(source=str(source), **options))
    run(builder, completers=None if completer is None else [completer], say=lambda text: None)
    return rows_in(options["out"]), manifest_of(options["out"])


def test_the_useful_call_is_kept_and_the_useless_ones_go(trained: str, tmp_path: Path) -> None:
    teacher = Ruled(lambda text, request: proposes(text))
    given = {"scorer": trained, "tools": tool(tmp_path)}
    rows, manifest = build(tmp_path, texts(tmp_path), teacher, tau=0.4, **given)
    assert [row["completion"][0]["reasoning_content"] for row in rows] == [
        f"Here it is [Capital({country}) → {city}] {city} again." for country, city in CAPITALS.items()
    ]
    counts = manifest["counts"]["extra"]
    assert (counts["calls_proposed"], counts["calls_failed"], counts["calls_useless"]) == (32, 8, 16)
    assert counts["calls_kept"] == 8
    for row in rows:
        (losses,) = row["meta"]["losses"]
        assert losses["gain"] >= 0.4 and losses["with_result"] < min(losses["with_call"], losses["without"])
        assert replay(row) == []
        spoiled = json.loads(json.dumps(row, ensure_ascii=False).replace("→ ", "→ New "))
        assert "'New " in replay(spoiled)[0]
    none, manifest = build(tmp_path, texts(tmp_path), teacher, tau=50.0, out=tmp_path / "none", **given)
    assert not none and manifest["counts"]["dropped"] == {"no_useful_call": 8}


def test_kept_calls_as_messages_and_in_documents(trained: str, tmp_path: Path) -> None:
    teacher = Ruled(lambda text, request: proposes(text))
    given = {"scorer": trained, "tools": tool(tmp_path), "tau": 0.4}
    rows, _ = build(tmp_path, texts(tmp_path), teacher, form="tool_calls", **given)
    said, result, last = rows[0]["completion"]
    assert said["reasoning_content"] == "Here it is" and result["content"] == "Paris"
    assert last["content"] == "Paris again.\nThe answer is Paris." and replay(rows[0]) == []
    documents = write_rows(tmp_path / "docs.jsonl", [{"text": plain_text(city)} for city in CAPITALS.values()])
    rows, _ = build(tmp_path, documents, teacher, documents=True, out=tmp_path / "docs", **given)
    assert rows[0]["text"] == "Here it is [Capital(France) → Paris] Paris again." and len(rows) == 8
    assert set(rows[0]) == {"text", "id", "source", "meta"} and all(replay(row) == [] for row in rows)


def test_a_reply_that_changes_the_text_is_not_used(trained: str, tmp_path: Path) -> None:
    teacher = Ruled(lambda text, request: proposes(text).replace("again", "once more"))
    rows, manifest = build(tmp_path, texts(tmp_path), teacher, scorer=trained, tools=tool(tmp_path))
    assert not rows and manifest["counts"]["dropped"] == {"text_changed": 8}


def test_calls_that_stand_in_the_text_or_its_notes(trained: str, tmp_path: Path) -> None:
    notes = write_rows(tmp_path / "n.jsonl", [{"question": "23+34?", "answer": "It is <<23+34=57>>57 now.\n#### 57"}])
    rows, _ = build(tmp_path, notes, scorer=trained, calls_from="notes", tau=-50.0)
    assert rows[0]["completion"][0]["reasoning_content"] == "It is [Calculator(23+34) → 57] 57 now."
    assert rows[0]["answer"] == "57"
    inline = write_rows(tmp_path / "i.jsonl", [{"text": "It is [Calculator(23+34) → 99] 57 now."}])
    given = {"scorer": trained, "calls_from": "text", "documents": True, "tau": -50.0}
    rows, _ = build(tmp_path, inline, out=tmp_path / "i", **given)
    assert rows[0]["text"] == "It is [Calculator(23+34) → 57] 57 now.", "the result is the tool's own"


NOTED = "It is <<23+34=57>>57 now."


@pytest.mark.parametrize("calls_from", ["notes", "teacher"])
def test_a_text_with_another_answer_than_its_gold_is_dropped(trained: str, tmp_path: Path, calls_from: str) -> None:
    prompt, said = [[{"role": role, "content": text}] for role, text in (("user", "23+34?"), ("assistant", NOTED))]
    source = write_rows(tmp_path / "n.jsonl", [{"prompt": prompt, "completion": said, "answer": "58"}])
    teacher = Ruled(lambda text, request: "") if calls_from == "teacher" else None
    given: dict[str, Any] = {"scorer": trained, "calls_from": calls_from, "tau": -50.0, "format": "prompt_completion"}
    rows, manifest = build(tmp_path, source, teacher, **given)
    assert not rows and manifest["counts"]["dropped"] == {"wrong_answer": 1}
    assert teacher is None or not teacher.requests, "nothing is paid for it"


def test_a_call_that_gives_something_else_the_next_time_is_dropped(trained: str, tmp_path: Path) -> None:
    (tmp_path / "clock.py").write_text(
        'import itertools\nTICKS = itertools.count()\n\ndef clock(zone: str) -> str:\n    """The time."""\n'
        "    return str(next(TICKS))\n",
        encoding="utf-8",
    )
    source = write_rows(tmp_path / "d.jsonl", [{"text": "It is [Clock(UTC)] 57 now."}])
    given: dict[str, Any] = {"scorer": trained, "calls_from": "text", "documents": True, "tau": -50.0}
    rows, manifest = build(tmp_path, source, tools=[f"{tmp_path / 'clock.py'}:clock"], **given)
    assert not rows and manifest["counts"]["dropped"] == {"not_repeatable": 1}


@pytest.mark.soak
def test_killed_and_resumed_through_the_command(trained: str, tmp_path: Path) -> None:
    source = texts(tmp_path)
    asked = [f"Input: {plain_text(city)}\nOutput:" for city in CAPITALS.values()]
    replies = {text: proposes(text) for text in asked}
    more: dict[str, Any] = {"source": source, "kind": "toolformer", "scorer": trained, "tools": tool(tmp_path)}
    more |= {"concurrency": 1, "tasks_per_shard": 2, "tau": 0.4}
    with running_server(replies=replies) as server:
        assert main(words(server, out=tmp_path / "whole", **more)) == 0
    with running_server(replies=replies, latency_s=0.2) as server:
        arguments = words(server, out=tmp_path / "out", **more)
        assert kill_when(["data_builders.tool_use", *arguments], lambda: len(server.log) >= 5)
        assert main(arguments) == 0
        assert len(server.log) <= 9, "only what was under way is asked again"
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")
    assert len(rows_in(tmp_path / "out")) == 8


def test_a_tool_of_two_arguments_has_no_plain_text_form() -> None:
    from mmreason.types import ConfigError

    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    with pytest.raises(ConfigError, match="exactly one text"):
        InlineForm(Toolbox(load_tools([add])).schemas)
