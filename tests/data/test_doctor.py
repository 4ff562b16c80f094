"""The doctor on copies of real files with one planted damage each: found, in that row, and nothing else.

On the files as they are: exactly the faults that tests/golden/doctor_clean.json lists.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmreason.data.doctor import FAULTS, DoctorOptions, examine, histogram
from mmreason.data.doctor_faults import Fault
from mmreason.data.doctor_rows import read_everything
from mmreason.data.formats import REASONS
from mmreason.types import ConfigError, DataError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "doctor_clean.json"
ROWS = 40
"""Rows of a real file that are copied."""
Row = dict[str, Any]
QUICK = DoctorOptions(quality=False)

GSM8K, MATH, MMLU = "gsm8k/train.jsonl", "math/train_answers.jsonl", "mcqa/mmlu_val.jsonl"
ALPACA, CHAT, TOOLS = (
    "instruction/alpaca_2k.jsonl",
    "instruction/sharegpt_dummy_conversation.jsonl",
    "tool_use/glaive_toolcall_en_demo.jsonl",
)
DPO, KTO, COT = "preference/dpo_en_demo.jsonl", "preference/kto_en_demo.jsonl", "sft_cot/svamp_nl_cot.jsonl"
PICTURES = "images/nlvr_dev_989.parquet"


def real_rows(shared: Path, file: str) -> list[Row]:
    with (shared / file).open(encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(ROWS), lines, strict=False)]


def picture_rows(shared: Path, folder: Path) -> list[Row]:
    """Real pictures as files beside a JSONL with their sentences."""
    import pyarrow.parquet as pq

    rows = []
    for i, row in enumerate(pq.read_table(shared / PICTURES).slice(0, 12).to_pylist()):
        (folder / f"{i}.png").write_bytes(row["image"]["bytes"])
        rows.append({"question": row["sentence"], "answer": row["label"], "images": [f"{i}.png"], "id": f"nlvr-{i}"})
    return rows


def write(path: Path, rows: list[Row | bytes]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def bomb() -> bytes:
    """A PNG of some bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --------------------------------------------------------------------------------------------------------------------
# Damages: rows and the number of the row to damage; what is returned takes its place.

Damage = Callable[[list[Any], int], None]


def put(**cells: Any) -> Damage:
    def damage(rows: list[Any], at: int) -> None:
        rows[at] = {**rows[at], **cells}

    return damage


def line(make: Callable[[bytes], bytes]) -> Damage:
    def damage(rows: list[Any], at: int) -> None:
        rows[at] = make(json.dumps(rows[at]).encode())

    return damage


def edit(change: Callable[[Row], Any]) -> Damage:
    def damage(rows: list[Any], at: int) -> None:
        rows[at] = json.loads(json.dumps(rows[at]))
        change(rows[at])

    return damage


def copied(rows: list[Any], at: int) -> None:
    rows[at] = dict(rows[0])


def score_column(rows: list[Any], at: int) -> None:
    for i, row in enumerate(rows):
        row["score"] = float("nan") if i == at else 0.5


def other_answer(rows: list[Any], at: int) -> None:
    rows[at] = {**rows[0], "answer": "77 / 12"}


def one_label(rows: list[Any], at: int) -> None:
    for row in rows:
        row["label"] = True


def turn(number: int, **cells: Any) -> Damage:
    """Cells of a message of the conversation."""

    def change(row: Row) -> None:
        name = "messages" if "messages" in row else "conversations"
        row[name][number] = {**row[name][number], **cells}

    return edit(change)


def call_of(row: Row) -> int:
    return next(i for i, message in enumerate(row["conversations"]) if message["from"] == "function_call")


def broken_call(row: Row) -> None:
    row["conversations"][call_of(row)]["value"] = '{"name": "search", "arguments": "{not JSON"}'


def no_call(row: Row) -> None:
    del row["conversations"][call_of(row)]


TEXT_DAMAGES: dict[str, tuple[str, int, Damage]] = {
    "unreadable_line": (GSM8K, 7, line(lambda text: text[:-9])),
    "bad_encoding": (GSM8K, 7, line(lambda text: text.replace(b"the", b"th\xe9", 1))),
    "bad_unicode": (GSM8K, 7, edit(lambda row: row.update(question=row["question"] + " \ud800"))),
    "null_bytes": (GSM8K, 7, edit(lambda row: row.update(question="\0" + row["question"]))),
    "mixed_types": (GSM8K, 7, put(question=5)),
    "nan_value": (ALPACA, 7, score_column),
    "missing_prompt": (GSM8K, 7, put(question="  ")),
    "missing_answer": (GSM8K, 7, put(answer="")),
    "missing_completion": (ALPACA, 7, put(output="")),
    "bad_gold": (MATH, 7, put(answer="\\frac{1}{")),
    "bad_gold (no such choice)": (MMLU, 7, put(answer="G")),
    "bad_choices": (MMLU, 7, put(choices=["4"])),
    "bad_messages": (CHAT, 7, put(conversations="Who are you?")),
    "unknown_role": (KTO, 7, turn(0, role="usr")),
    "empty_turn": (CHAT, 7, turn(1, value="")),
    "bad_tool_call": (TOOLS, 0, edit(broken_call)),
    "role_order": (TOOLS, 0, edit(no_call)),
    "tool_result": (KTO, 7, edit(lambda row: row["messages"].insert(1, {"role": "tool", "content": "42"}))),
    "bad_tools": (TOOLS, 0, put(tools="[{")),
    "bad_pair": (DPO, 7, edit(lambda row: row.update(rejected=row["chosen"]))),
    "missing_label": (KTO, 7, put(label=None)),
    "duplicate_id": (CHAT, 7, edit(lambda row: row.update(id="identity_0"))),
    "duplicate_row": (ALPACA, 7, copied),
    "conflicting_answers": (MATH, 7, other_answer),
    "constant_label": (KTO, 0, one_label),
    "mojibake": (GSM8K, 7, edit(lambda row: row.update(question=row["question"] + " At the cafÃ©."))),
    "control_characters": (GSM8K, 7, edit(lambda row: row.update(question=row["question"] + "\x08\x1b[0m"))),
    "stray_thought_mark": (ALPACA, 7, edit(lambda row: row.update(output=row["output"] + "</think>"))),
    "wrong_answer": (COT, 7, put(answer_value="31337.0")),
}


def cut_file(rows: list[Any], at: int, folder: Path) -> None:
    whole = (folder / f"{at}.png").read_bytes()
    (folder / f"{at}.png").write_bytes(whole[: len(whole) // 2])


def outside(rows: list[Any], at: int, folder: Path) -> None:
    shutil.copy(folder / f"{at}.png", folder.parent / "secret.png")
    rows[at]["images"] = ["../secret.png"]


IMAGE_DAMAGES: dict[str, Callable[[list[Any], int, Path], Any]] = {
    "two_image_columns": lambda rows, at, folder: rows[at].update(image="0.png"),
    "image_not_list": lambda rows, at, folder: rows[at].update(images="4.png"),
    "image_count": lambda rows, at, folder: rows[at].update(question="<image> and <image>: the same?"),
    "missing_image": lambda rows, at, folder: (folder / f"{at}.png").unlink(),
    "bad_image": lambda rows, at, folder: (folder / f"{at}.png").write_text("<html>404</html>"),
    "truncated_image": cut_file,
    "too_many_pixels": lambda rows, at, folder: (folder / f"{at}.png").write_bytes(bomb()),
    "outside_root": outside,
    "image_url": lambda rows, at, folder: rows[at].update(images=["http://localhost/a.png"]),
}


def row_name(path: Path, row: Any, at: int) -> str:
    """The id that a row of a copy has."""
    if isinstance(row, dict):
        for name in ("id", "item_id"):
            if name in row:
                return str(row[name])
    prefix = {"train.jsonl": "gsm8k/train", "train_answers.jsonl": "math/train_answers"}.get(path.name, path.stem)
    return f"{prefix}/{at}"


@pytest.mark.parametrize("code", TEXT_DAMAGES)
def test_a_planted_damage_is_found_with_its_row(code: str, shared_data: Path, tmp_path: Path) -> None:
    file, at, damage = TEXT_DAMAGES[code]
    code = code.split(" ")[0]
    rows: list[Any] = real_rows(shared_data, file)
    path = tmp_path / Path(file).name
    before = examine(str(write(path, rows)), QUICK)
    assert before.read.rows == ROWS
    damage(rows, at)
    found = examine(str(write(path, rows)), QUICK)
    expected = [(one.code, one.row) for one in before.faults]
    new = [(one.code, one.row) for one in found.faults if (one.code, one.row) not in expected]
    row = row_name(path, rows[at], at)
    assert new == [(code, row)]
    (fault,) = [one for one in found.faults if one.code == code and one.row == row]
    assert fault.where == f"{path}:{at + 1}" and fault.detail
    assert found.errors + found.warnings == len(found.faults)


@pytest.mark.parametrize("code", IMAGE_DAMAGES)
def test_a_planted_damage_of_pictures_is_found_with_its_row(code: str, shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows: list[Any] = picture_rows(shared_data, folder)
    assert not examine(str(write(folder / "train.jsonl", rows)), QUICK).faults
    IMAGE_DAMAGES[code](rows, 4, folder)
    found = examine(str(write(folder / "train.jsonl", rows)), QUICK)
    assert found.rows_by_code() == {code: ["nlvr-4"]}


def test_overlap_with_a_test_set_is_found(shared_data: Path, tmp_path: Path) -> None:
    rows: list[Any] = real_rows(shared_data, GSM8K)
    with (shared_data / "gsm8k" / "test.jsonl").open(encoding="utf-8") as lines:
        rows[7] = {**rows[7], "question": "Solve this. " + json.loads(next(lines))["question"].upper()}
    path = write(tmp_path / "train.jsonl", rows)
    options = DoctorOptions(quality=False, eval_sets={"gsm8k": str(shared_data / "gsm8k" / "test.jsonl")})
    found = examine(str(path), options)
    assert found.rows_by_code() == {"eval_overlap": ["gsm8k/train/7"]} and found.errors == 1
    assert found.facts["eval_sets"] == ["gsm8k"]


# --------------------------------------------------------------------------------------------------------------------
# With a model

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def thoughtful(rows: list[Any], at: int) -> None:
    rows[at] = {**rows[at], "output": f"<think>Let me see.</think>{rows[at]['output']}"}


MODEL_DAMAGES: dict[str, tuple[str, Damage, dict[str, Any], bool]] = {
    "too_long": (ALPACA, put(output="word " * 1000), {"max_length": 3000}, False),
    "unknown_tokens": (ALPACA, put(output="Ελληνικά"), {}, False),
    "template": (ALPACA, thoughtful, {}, False),
    "no_loss": (GSM8K, put(answer="#### 5"), {"loss_on": {"reasoning": 1.0}}, True),
}


@pytest.mark.parametrize("code", MODEL_DAMAGES)
def test_a_planted_damage_for_a_model_is_found(
    code: str, shared_data: Path, tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    file, damage, options, thinks = MODEL_DAMAGES[code]
    tokenizer = make_tokenizer(post=None, template=TEMPLATE) if thinks else make_tokenizer(post=None)
    rows: list[Any] = real_rows(shared_data, file)
    known = {char for row in rows for char in json.dumps(row, ensure_ascii=False)} | {"\n"}
    tokenizer.backend_tokenizer.add_tokens(sorted(known - set(tokenizer.get_vocab())))
    path = tmp_path / Path(file).name
    chosen = DoctorOptions(quality=False, **options)
    before = examine(str(write(path, rows)), chosen, tokenizer)
    assert not before.faults
    damage(rows, 7)
    found = examine(str(write(path, rows)), chosen, tokenizer)
    assert found.rows_by_code() == {code: [row_name(path, rows[7], 7)]}


def test_what_a_set_becomes_for_a_model(shared_data: Path, tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    """Lengths, padding and truncation against a literal count over the rendered rows."""
    from mmreason.data.supervised import render_supervised

    tokenizer = make_tokenizer(post=None)
    path = write(tmp_path / "alpaca_2k.jsonl", list(real_rows(shared_data, ALPACA)))
    options = DoctorOptions(quality=False, max_length=600, batch_rows=4, batch_steps=2, truncation="drop")
    found = examine(str(path), options, tokenizer)
    assert "too_long" not in found.rows_by_code()
    rows = [row for example in found.read.examples for row in render_supervised(example, tokenizer)]
    lengths = [len(row.ids) for row in rows]
    facts = found.facts
    assert facts["tokens"]["tokens"] == sum(lengths) and facts["tokens"]["longest"] == max(lengths)
    assert facts["tokens"]["supervised"] == sum(weight > 0 for row in rows for weight in row.weights)
    assert facts["limits"][1] == {"limit": 512, "rows": sum(length > 512 for length in lengths)}
    over = [row for row in rows if len(row.ids) > 600]
    cut = facts["truncation"]
    assert (cut["rows"], cut["tokens"]) == (len(over), sum(len(row.ids) - 600 for row in over))
    assert cut["answers"] == len(over) and cut["mended"] == 0  # single turns: nothing older to cut
    kept = [length for length in lengths if length <= 600]
    padding = facts["padding"]
    assert padding["real"] == sum(kept) and padding["tokens"]["packed"] % 600 == 0
    assert sum(kept) <= padding["tokens"]["packed"] <= padding["tokens"]["padded"]
    assert sum(kept) < padding["tokens"]["padded, sorted within steps"] < padding["tokens"]["padded"] <= len(kept) * 600
    assert padding["share"]["padded"] == pytest.approx(1 - sum(kept) / padding["tokens"]["padded"])


def test_cutting_the_oldest_turns_is_counted(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    def talk(*texts: str) -> Row:
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}

    rows = [talk("Hi.", "Hello."), talk("x" * 300, "y" * 300, "And?", "Yes."), talk("z" * 900, "No.")]
    path = write(tmp_path / "talk.jsonl", list(rows))
    options = DoctorOptions(quality=False, max_length=200, truncation="cut_oldest_turns")
    found = examine(str(path), options, make_tokenizer(post=None))
    cut = found.facts["truncation"]
    assert (cut["rows"], cut["mended"], cut["turns"], cut["answers"]) == (2, 1, 2, 2)


def test_what_a_template_drops(make_tokenizer: Callable[..., Any]) -> None:
    from mmreason.data.doctor_tokens import template_facts

    facts = template_facts(make_tokenizer(post=None, template=TEMPLATE))
    assert facts["thoughts of the last answer"] == facts["system message"] == facts["tool results"] == "kept"
    assert facts["thoughts of earlier answers"] == facts["tools"] == facts["tool calls"] == "left out"
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    refusing = template_facts(make_tokenizer(post=None, template=strict))
    assert refusing["system message"].startswith("refused: ") and "no system" in refusing["system message"]


# --------------------------------------------------------------------------------------------------------------------
# The files as they are


def clean_files(shared: Path) -> Iterator[Path]:
    for path in sorted(shared.glob("*/*")):
        if path.suffix in (".jsonl", ".parquet"):
            yield path


def faults_of(path: Path) -> dict[str, Any]:
    """What the golden file has for a set: its faults by code, or why it can't be read."""
    try:
        found = examine(str(path), QUICK)
    except DataError as error:
        return {"unreadable": error.reason}
    return found.rows_by_code()


MANY_PICTURES = "images/easyvqa_train.parquet"


@pytest.mark.slow
def test_the_clean_files_have_exactly_the_faults_that_are_known(shared_data: Path) -> None:
    """To record them anew after a change that was looked at: python -m tests.data.test_doctor."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    files = {str(path.relative_to(shared_data)): path for path in clean_files(shared_data)}
    assert set(golden) <= set(files) and len(golden) > 45
    for name, known in golden.items():
        if name != MANY_PICTURES:
            assert faults_of(files[name]) == known, name


@pytest.mark.soak
def test_the_largest_clean_file_has_exactly_the_faults_that_are_known(shared_data: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert faults_of(shared_data / MANY_PICTURES) == golden[MANY_PICTURES]


# --------------------------------------------------------------------------------------------------------------------
# The rest


def test_the_table_of_faults_is_whole() -> None:
    """Every reason of a bad row is a kind of fault, or can't come up, since the doctor asks for every field."""
    assert len(FAULTS) >= 40 and set(REASONS) - set(FAULTS) == {"images_unused", "tools_unused"}
    planted = {code.split(" ")[0] for code in (*TEXT_DAMAGES, *IMAGE_DAMAGES, *MODEL_DAMAGES, "eval_overlap")}
    assert planted <= set(FAULTS) and len(planted) >= 40
    assert {kind.severity for kind in FAULTS.values()} == {"error", "warning"}
    assert Fault("no_such_code", "r", "w", "d").severity == "error"


def test_every_kind_is_in_the_docs(repo_root: Path) -> None:
    text = (repo_root / "docs" / "doctor.md").read_text(encoding="utf-8")
    for code, kind in FAULTS.items():
        assert f"| `{code}` | {kind.severity} | {kind.found} | {kind.meaning} |" in text, code


@pytest.mark.parametrize(
    ("file", "stage", "required"),
    [
        (GSM8K, "sft", ("prompt", "completion", "answer")),
        (MATH, "rl", ("prompt", "answer")),
        (DPO, "preference", ("prompt", "chosen", "rejected")),
        (KTO, "kto", ("prompt", "completion", "label")),
        ("text/c4_demo.jsonl", "pretrain", ("text",)),
        ("instruction/mt_bench_question.jsonl", "prompts", ("prompt",)),
    ],
)
def test_the_stage_is_told_by_the_rows(file: str, stage: str, required: tuple[str, ...], shared_data: Path) -> None:
    read = read_everything(str(shared_data / file), max_rows=30)
    assert (read.stage, set(read.required)) == (stage, set(required)) and len(read.examples) == 30


def test_a_stage_asks_for_its_fields(shared_data: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "train_answers.jsonl", list(real_rows(shared_data, MATH)))
    read = read_everything(str(path), stage="sft")
    assert [fault.code for fault in read.faults] == ["missing_completion"] * ROWS


def test_a_set_without_rows_or_wrong_options(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        examine(str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match="batch_rows=0"):
        DoctorOptions(batch_rows=0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = [1]\nx -= 1", "x = [1]\nx *= 1", False),
        ("Write C++, please", "Write C#, please", False),
        ("He has 344 books.\nHow many?", "he has 344 books . how many ?", True),
    ],
)
def test_doubles_have_the_same_operators(one: str, other: str, same: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Go on:", "completion": text} for text in (one, other)])
    assert ("duplicate_row" in examine(str(path)).rows_by_code()) == same


def test_histogram() -> None:
    found = histogram([1, 1, 2, 50, 1000])
    assert sum(found["counts"]) == found["n"] == 5 and found["median"] == 2 and found["max"] == 1000
    assert histogram([]) == {"edges": [], "counts": [], "n": 0}
    assert histogram([7, 7])["counts"] == [2]
    zero = histogram([0, 0, 3])
    assert sum(zero["counts"]) == 3


def record(shared: Path) -> None:
    golden = {str(path.relative_to(shared)): faults_of(path) for path in clean_files(shared)}
    out = io.StringIO()
    json.dump(golden, out, indent=1, ensure_ascii=True)
    GOLDEN.write_text(out.getvalue() + "\n", encoding="utf-8")


if __name__ == "__main__":
    import os

    record(Path(os.environ.get("MMREASON_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")))
