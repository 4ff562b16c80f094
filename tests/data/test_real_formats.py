"""Each real file: the format that is found for it, all its rows, its faults, and what its rows hold."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mmreason.data import LoadedExamples, load_examples
from mmreason.data.formats import RowError, detect_format
from mmreason.data.reader import READERS, read_rows, suffix_of
from mmreason.tools.schemas import ArgumentSchema

ALL = (
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "text",
    "tools",
    "images",
    "answer",
    "id",
    "source",
    "meta",
)
FORMAT_OF = {
    "answer_extraction/mathvista_gpt4_500.jsonl": "mathvista",
    "code/humaneval.jsonl": "humaneval",
    "gsm8k/model_solutions_labeled.jsonl": "gsm8k_solutions",
    "gsm8k/test.jsonl": "gsm8k",
    "gsm8k/train.jsonl": "gsm8k",
    "images/easyvqa_test_500.parquet": "easyvqa",
    "images/easyvqa_train.parquet": "easyvqa",
    "images/geometry3k_10.parquet": "geometry3k",
    "images/mathv_120.parquet": "mathvision",
    "images/nlvr_dev_989.parquet": "nlvr",
    "images/scienceqa_test_400.parquet": "scienceqa",
    "images/tabmwp_dev_500.parquet": "tabmwp",
    "instruction/alpaca_2k.jsonl": "alpaca",
    "instruction/alpaca_seed_tasks.jsonl": "self_instruct",
    "instruction/mt_bench_question.jsonl": "mt_bench",
    "instruction/mt_bench_reference_gpt4.jsonl": None,  # answers without their questions
    "instruction/sharegpt_dummy_conversation.jsonl": "sharegpt",
    "llava/caps_boxes_coco2014_val_80.jsonl": None,  # captions and boxes
    "llava/coco2014_val_gpt4_qa_30x3.jsonl": "alpaca",
    "llava/coco2014_val_qa_eval/qa90_gpt4_answer.jsonl": None,  # answers without their questions
    "llava/coco2014_val_qa_eval/qa90_questions.jsonl": "llava_bench",
    "llava/mm_vet_questions.jsonl": "llava_bench",
    "math/math500.jsonl": "math",
    "math/train_answers.jsonl": "math",
    "mcqa/cmmlu_dev.jsonl": "choice",
    "mcqa/cmmlu_test_10x67.jsonl": "choice",
    "mcqa/commonsenseqa_train.jsonl": "commonsenseqa",
    "mcqa/hellaswag_val_1k.jsonl": "hellaswag",
    "mcqa/mmlu_dev.jsonl": "choice",
    "mcqa/mmlu_test_2280.jsonl": "choice",
    "mcqa/mmlu_val.jsonl": "choice",
    "mcqa/strategyqa.jsonl": "bigbench",
    "mcqa/truthfulqa.jsonl": "truthfulqa",
    "mwp/aqua_dev.jsonl": "aqua",
    "mwp/asdiv.jsonl": "asdiv",
    "mwp/svamp.jsonl": "svamp",
    "preference/dpo_en_demo.jsonl": "sharegpt",
    "preference/hh_harmless_1k.jsonl": "hh_rlhf",
    "preference/kto_en_demo.jsonl": "messages",
    "scienceqa/minitrain_1000_cot.jsonl": "scienceqa",
    "scienceqa/problems_150_full_fields.jsonl": "scienceqa",
    "scienceqa/test_text.jsonl": "scienceqa",
    "sft_cot/svamp_nl_cot.jsonl": "generic",
    "sft_cot/svamp_python_cot.jsonl": "generic",
    "text/c4_demo.jsonl": "text",
    "tool_use/apibench_torchhub_train.jsonl": "apibench",
    "tool_use/bfcl_multiple.jsonl": "bfcl",
    "tool_use/bfcl_simple_python.jsonl": "bfcl",
    "tool_use/fever_dev_500.jsonl": "fever",
    "tool_use/glaive_toolcall_en_demo.jsonl": "sharegpt",
    "tool_use/hotpotqa_dev_1k.jsonl": "generic",
    "tool_use/reason_tool_use_50.jsonl": "messages",
    "tool_use/toolalpaca_eval_simulated.jsonl": "toolalpaca",
    "tool_use/tora_examples.jsonl": "tora",
} | {
    f"text/{name}.txt": "text"
    for name in (
        *("gutenberg_alice", "gutenberg_frankenstein", "gutenberg_pride", "gutenberg_sherlock"),
        *("gutenberg_timemachine", "names", "tinyshakespeare", "wikitext2_valid"),
    )
}  # fmt: skip


def test_each_file_finds_its_format(shared_data: Path) -> None:
    found = {}
    for path in sorted(shared_data.rglob("*")):
        if path.is_file() and suffix_of(path) in READERS and path.parent != shared_data and path.suffix != ".json":
            rows: Any = [located.row for located in islice(read_rows(path), 100)]
            fmt = detect_format(rows)
            found[str(path.relative_to(shared_data))] = fmt.name if fmt else None
    assert found == FORMAT_OF


@functools.cache
def loaded(path: Path) -> LoadedExamples:
    """All fields of all rows of a file; bad rows are dropped and counted."""
    return load_examples(str(path), columns=ALL, require_answer=False, on_bad_row="drop", prompt_template="none")


@functools.cache
def raw(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*row["prompt"], *(row["completion"] or row["chosen"] or [])]


# name: (questions, dropped, roles, completions)
WHOLE: dict[str, tuple[int, dict[str, int], dict[str, int], int]] = {
    "code/humaneval": (164, {}, {"user": 164, "assistant": 164}, 164),
    "gsm8k/model_solutions_labeled": (3600, {}, {"user": 3600, "assistant": 3600}, 3600),
    "instruction/alpaca_2k": (2000, {}, {"user": 2000, "assistant": 2000}, 2000),
    "instruction/alpaca_seed_tasks": (175, {}, {"user": 175, "assistant": 175}, 175),
    "instruction/mt_bench_question": (80, {}, {"user": 80}, 0),
    "instruction/sharegpt_dummy_conversation": (500, {}, {"user": 1000, "assistant": 1000}, 500),
    "mcqa/cmmlu_dev": (335, {}, {"user": 335, "assistant": 335}, 335),
    "mcqa/cmmlu_test_10x67": (670, {}, {"user": 670, "assistant": 670}, 670),
    "mcqa/commonsenseqa_train": (2000, {}, {"user": 2000, "assistant": 2000}, 2000),
    "mcqa/hellaswag_val_1k": (1000, {}, {"user": 1000, "assistant": 1000}, 1000),
    "mcqa/mmlu_dev": (285, {}, {"user": 285, "assistant": 285}, 285),
    "mcqa/mmlu_test_2280": (2280, {}, {"user": 2280, "assistant": 2280}, 2280),
    "mcqa/mmlu_val": (1531, {}, {"user": 1531, "assistant": 1531}, 1531),
    "mcqa/strategyqa": (1800, {}, {"user": 1800, "assistant": 1800}, 1800),
    "mcqa/truthfulqa": (600, {"bad_choices": 2}, {"user": 598, "assistant": 598}, 598),
    "mwp/asdiv": (2305, {}, {"user": 2305, "assistant": 2305}, 2305),
    "mwp/svamp": (1000, {}, {"user": 1000, "assistant": 1000}, 1000),
    "preference/dpo_en_demo": (149, {}, {"user": 284, "assistant": 284, "system": 43}, 0),
    "preference/hh_harmless_1k": (1000, {"empty_turn": 4, "role_order": 1}, {"user": 2459, "assistant": 2459}, 0),
    "preference/kto_en_demo": (150, {}, {"user": 246, "assistant": 246}, 150),
    "scienceqa/minitrain_1000_cot": (1000, {"missing_image": 470}, {"user": 530, "assistant": 530}, 530),
    "sft_cot/svamp_nl_cot": (3076, {}, {"user": 3076, "assistant": 3076}, 3076),
    "sft_cot/svamp_python_cot": (3043, {}, {"user": 3043, "assistant": 3043}, 3043),
    "tool_use/apibench_torchhub_train": (200, {}, {"user": 200, "assistant": 200}, 200),
    "tool_use/bfcl_multiple": (200, {}, {"user": 200, "assistant": 200}, 200),
    "tool_use/bfcl_simple_python": (400, {}, {"user": 400, "assistant": 400}, 400),
    "tool_use/fever_dev_500": (500, {}, {"user": 500, "assistant": 500}, 500),
    "tool_use/glaive_toolcall_en_demo": (300, {}, {"user": 746, "assistant": 957, "tool": 211}, 300),
    "tool_use/hotpotqa_dev_1k": (1000, {}, {"user": 1000}, 0),
    "tool_use/reason_tool_use_50": (50, {}, {"user": 70, "assistant": 112, "tool": 42, "system": 50}, 50),
    "tool_use/toolalpaca_eval_simulated": (100, {"bad_tool_call": 33}, {"user": 67, "assistant": 67}, 67),
    "tool_use/tora_examples": (30, {}, {"user": 30, "assistant": 55, "tool": 25}, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WHOLE))
def test_whole_file(shared_data: Path, name: str) -> None:
    questions, dropped, roles, completions = WHOLE[name]
    found = loaded(shared_data / f"{name}.jsonl")
    assert (found.format, found.dropped) == (FORMAT_OF[f"{name}.jsonl"], dropped)
    assert (found.rows_read, len(found.dataset)) == (questions, questions - sum(dropped.values()))
    rows = list(found.dataset)
    assert Counter(message["role"] for row in rows for message in turns(row)) == roles
    assert sum(bool(row["completion"]) for row in rows) == completions
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        answer = row["completion"] or row["chosen"] or [{"role": "assistant"}]
        assert row["prompt"][-1]["role"] == "user" and answer[0]["role"] == "assistant"


# Conversations


def test_sharegpt_turn_by_turn(shared_data: Path) -> None:
    path = shared_data / "instruction/sharegpt_dummy_conversation.jsonl"
    roles = {"human": "user", "gpt": "assistant"}
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        assert turns(example) == [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
        assert example["id"] == row["id"] and len(example["completion"]) == 1
    first = loaded(path).dataset[0]
    assert first["prompt"][0]["content"] == "Who are you?" and first["completion"][0]["content"] == "You too!"


def test_glaive_turn_by_turn(shared_data: Path) -> None:
    path = shared_data / "tool_use/glaive_toolcall_en_demo.jsonl"
    calls: Counter[str] = Counter()
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        assert len(example["tools"] or []) == len(json.loads(row["tools"]))
        for turn, message in zip(row["conversations"], turns(example), strict=True):
            if turn["from"] == "function_call":
                (call,) = message["tool_calls"]
                assert call["function"] == json.loads(turn["value"]) and message["content"] == ""
                calls["in the last turn" if message in example["completion"] else "before"] += 1
            else:
                assert message["content"] == turn["value"] and "tool_calls" not in message
    assert calls == {"in the last turn": 101, "before": 110}


def test_reasoning_and_tools_of_reason_tool_use(shared_data: Path) -> None:
    path = shared_data / "tool_use/reason_tool_use_50.jsonl"
    counts: Counter[str] = Counter()
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        for given, message in zip(row["messages"], turns(example), strict=True):
            texts = {part["type"]: part["value"] for part in given["content"]}
            assert message["content"] == texts.get("text", "")
            assert message.get("reasoning_content") == texts.get("reasoning")
            wanted = [json.loads(part["value"]) for part in given["content"] if part["type"] == "tool_call"]
            assert [call["function"] for call in message.get("tool_calls", [])] == wanted
            counts["calls"] += len(wanted)
            counts["reasoning"] += "reasoning_content" in message
        counts["tools"] += len(example["tools"] or [])
    assert counts == {"calls": 68, "reasoning": 112, "tools": 121}


def test_dpo_and_kto(shared_data: Path) -> None:
    path = shared_data / "preference/dpo_en_demo.jsonl"
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        assert [message["content"] for message in example["prompt"]] == [t["value"] for t in row["conversations"]]
        for side in ("chosen", "rejected"):
            assert example[side] == [{"role": "assistant", "content": row[side]["value"]}]
    path = shared_data / "preference/kto_en_demo.jsonl"
    assert Counter(loaded(path).dataset["label"]) == {True: 78, False: 72}
    assert [turns(example) for example in loaded(path).dataset] == [row["messages"] for row in raw(path)]


def test_hh_rlhf_faults_by_row(shared_data: Path) -> None:
    """Four empty answers and one row where the assistant speaks twice; all sides differ in the last turn only."""
    path = shared_data / "preference/hh_harmless_1k.jsonl"
    found = loaded(path)
    places = [line.partition(": ")[0].rpartition(":")[2] for line in found.bad_rows]
    assert places == ["80", "443", "659", "797", "949"]
    bad = {int(place) - 1 for place in places}
    good = [row for number, row in enumerate(raw(path)) if number not in bad]
    for row, example in zip(good, found.dataset, strict=True):
        for side in ("chosen", "rejected"):
            (answer,) = example[side]
            assert row[side].rpartition("\n\nAssistant:")[2].strip() == answer["content"]


def test_alpaca(shared_data: Path) -> None:
    path = shared_data / "instruction/alpaca_2k.jsonl"
    joined = 0
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        asked = example["prompt"][0]["content"]
        joined += bool(row["input"])
        assert asked.split() == f"{row['instruction']} {row['input']}".split()
        assert example["completion"] == [{"role": "assistant", "content": row["output"]}]
    assert joined == 795


def test_llava_questions_need_their_images(shared_data: Path) -> None:
    for name in ("coco2014_val_gpt4_qa_30x3", "coco2014_val_qa_eval/qa90_questions", "mm_vet_questions"):
        path = shared_data / f"llava/{name}.jsonl"
        with pytest.raises(
            Exception, match=rf"no row is left, all {len(raw(path))} were dropped \(\d+ missing_image\)"
        ):
            load_examples(str(path), columns=ALL, require_answer=False, on_bad_row="drop")


# Choices


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("mmlu_dev", {"A": 67, "B": 69, "C": 71, "D": 78}),
        ("mmlu_val", {"A": 381, "B": 379, "C": 387, "D": 384}),
        ("mmlu_test_2280", {"A": 533, "B": 563, "C": 573, "D": 611}),
        ("cmmlu_dev", {"A": 93, "B": 77, "C": 72, "D": 93}),
        ("cmmlu_test_10x67", {"A": 160, "B": 176, "C": 160, "D": 174}),
        ("commonsenseqa_train", {"A": 417, "B": 382, "C": 435, "D": 411, "E": 355}),
        ("hellaswag_val_1k", {"A": 244, "B": 254, "C": 262, "D": 240}),
        ("strategyqa", {"yes": 848, "no": 952}),
    ],
)
def test_golds(shared_data: Path, name: str, letters: dict[str, int]) -> None:
    dataset = loaded(shared_data / f"mcqa/{name}.jsonl").dataset
    assert Counter(dataset["answer"]) == letters
    for row in dataset:
        (message,) = row["completion"]
        assert message["content"] == row["answer"]
        choices = row["meta"]["choices"]
        assert choices is None or row["prompt"][0]["content"].endswith(
            "".join(f"\n({'ABCDE'[i]}) {choice}" for i, choice in enumerate(choices))
        )


def test_hellaswag_and_commonsenseqa_golds_name_the_right_texts(shared_data: Path) -> None:
    path = shared_data / "mcqa/hellaswag_val_1k.jsonl"
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        assert example["meta"]["choices"]["ABCD".index(example["answer"])] == row["endings"][row["label"]].strip()
    path = shared_data / "mcqa/commonsenseqa_train.jsonl"
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        texts = {choice["label"]: choice["text"].strip() for choice in row["question"]["choices"]}
        assert example["meta"]["choices"]["ABCDE".index(example["answer"])] == texts[row["answerKey"]]


def test_truthfulqa(shared_data: Path) -> None:
    """Two rows have an answer on both sides; the golds of the others are spread over the letters."""
    found = loaded(shared_data / "mcqa/truthfulqa.jsonl")
    assert [line.partition(": ")[0].rpartition(":")[2] for line in found.bad_rows] == ["263", "270"]
    rows = {row["Question"].strip(): row for row in raw(shared_data / "mcqa/truthfulqa.jsonl")}
    for example in found.dataset:
        question = example["prompt"][0]["content"].partition("\n(A)")[0]
        choices = example["meta"]["choices"]
        assert choices["ABCDEFGHIJKLM".index(example["answer"])] == rows[question]["Best Answer"].strip()
        assert len(set(choices)) == len(choices) and len(set(choices) & set(example["meta"]["correct"])) == 1
    expected = Counter(f"{1 / len(meta['choices']):.3f}" for meta in found.dataset["meta"])
    mean = sum(float(share) * count for share, count in expected.items())
    assert abs(Counter(found.dataset["answer"])["A"] - mean) < 3 * mean**0.5


# Reasoning and code


def test_worked_sets_give_their_reasoning(shared_data: Path) -> None:
    for name, field in (("mwp/svamp", "Equation"), ("mwp/asdiv", "formula")):
        path = shared_data / f"{name}.jsonl"
        for row, example in zip(raw(path), loaded(path).dataset, strict=True):
            (message,) = example["completion"]
            assert message["reasoning_content"] == row[field].strip() and message["content"] == example["answer"]
    for kind in ("nl", "python"):
        path = shared_data / f"sft_cot/svamp_{kind}_cot.jsonl"
        for row, example in zip(raw(path), loaded(path).dataset, strict=True):
            (message,) = example["completion"]
            assert message["reasoning_content"] == row["answer_cot"].strip()
            assert float(message["content"]) == float(row["answer_value"])


def test_labelled_solutions(shared_data: Path) -> None:
    path = shared_data / "gsm8k/model_solutions_labeled.jsonl"
    dataset = loaded(path).dataset
    assert Counter(dataset["label"]) == {False: 2208, True: 1392}
    for row, example in zip(raw(path), dataset, strict=True):
        assert (example["label"], example["answer"]) == (row["is_correct"], row["gold"])
        assert not re.search("<<[^<>]*>>", example["completion"][0]["content"])


def test_humaneval_programs_run(shared_data: Path) -> None:
    """Prompt and completion together compile, and define what the tests call."""
    for example in loaded(shared_data / "code/humaneval.jsonl").dataset:
        program = example["prompt"][0]["content"] + example["completion"][0]["content"]
        names = compile(program, example["id"], "exec").co_names
        assert example["meta"]["entry_point"] in names and "def check(candidate)" in example["meta"]["tests"]


def test_documents(shared_data: Path) -> None:
    path = shared_data / "text/c4_demo.jsonl"
    assert loaded(path).dataset["text"][:] == [row["text"] for row in raw(path)]
    book = shared_data / "text/gutenberg_alice.txt"
    assert loaded(book).dataset["text"][:] == [book.read_text(encoding="utf-8")]


# Tools


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bfcl_multiple", set()),
        ("bfcl_simple_python", set()),
        ("glaive_toolcall_en_demo", {"glaive_toolcall_en_demo/259"}),
        ("reason_tool_use_50", set()),
        ("tora_examples", set()),
    ],
)
def test_calls_fit_their_tools(shared_data: Path, name: str, wrong: set[str]) -> None:
    """Each call is of a tool of its row, and its arguments fit the schema, but for one row as it was published."""
    found = set()
    for row in loaded(shared_data / f"tool_use/{name}.jsonl").dataset:
        tools = [tool["function"] for tool in row["tools"] or []]
        schemas = {tool["name"]: ArgumentSchema(tool["name"], tool["parameters"]) for tool in tools}
        calls = [call["function"] for message in turns(row) for call in message.get("tool_calls", [])]
        if any(schemas[call["name"]].problems(call["arguments"]) for call in calls):
            found.add(row["id"])
    assert found == wrong


def test_apibench_and_tora(shared_data: Path) -> None:
    path = shared_data / "tool_use/apibench_torchhub_train.jsonl"
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        assert example["prompt"][0]["content"] in row["code"] and example["answer"] == row["api_call"]
        assert "Output" not in example["prompt"][0]["content"]
    path = shared_data / "tool_use/tora_examples.jsonl"
    for row, example in zip(raw(path), loaded(path).dataset, strict=True):
        pieces = [message["content"] for message in example["completion"]] + [
            call["function"]["arguments"]["code"]
            for message in example["completion"]
            for call in message.get("tool_calls", [])
        ]
        assert all(piece in row["messages"][1]["content"] for piece in pieces)
        assert example["answer"] == row["gt"]


def test_every_row_gives_the_same_example_twice(shared_data: Path) -> None:
    """Parsing is pure: it changes no row, and keeps nothing from one to the next."""
    for name, wanted in FORMAT_OF.items():
        if not name.endswith(".jsonl") or wanted is None:
            continue
        rows = raw(shared_data / name)[:20]
        fmt = detect_format(rows)
        assert fmt is not None
        before = json.dumps(rows)
        outcomes = []
        for _ in range(2):
            for row in rows:
                try:
                    parts = fmt.split(row) if fmt.split else [row]
                    outcomes += [json.dumps(fmt.parse(part, 0)) for part in parts]
                except RowError as error:
                    outcomes.append(str(error))
        assert json.dumps(rows) == before
        assert outcomes[: len(outcomes) // 2] == outcomes[len(outcomes) // 2 :]
