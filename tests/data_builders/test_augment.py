"""The augmenting builder: all kinds on real questions, proofs that can fail, families that stay in one split."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders._augment.distract import distract
from data_builders._augment.splits import family_of
from data_builders._augment.texts import addition_fault, read_answer, read_problem, wording_fault
from data_builders.augment import AugmentBuilder, AugmentOptions, main, split_by_parent
from data_builders.building.runner import run
from mmreason.clients.types import Reply, Request
from mmreason.types import ConfigError, DataError, Example
from tests.clients.server import running_server
from tests.data_builders.teaching import MOMENTS, Ruled, kill_when, manifest_of, rows_in, words, write_rows


def quiet(_: str) -> None:
    """Hears nothing."""


def gsm8k_file(shared_data: Path, tmp_path: Path, n: int) -> Path:
    with (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        return write_rows(tmp_path / "q.jsonl", [json.loads(next(file)) for _ in range(n)])


def options(tmp_path: Path, source: Path, **given: Any) -> AugmentOptions:
    defaults: dict[str, Any] = {"out": tmp_path / "out", "decontaminate": [], "report": False}
    return AugmentOptions(source=str(source), **(defaults | given))


def test_number_swap_through_the_command_line_needs_no_teacher(shared_data: Path, tmp_path: Path) -> None:
    source, out = gsm8k_file(shared_data, tmp_path, 40), tmp_path / "out"
    command = [
        "--out", str(out), "--source", str(source), "--decontaminate", "[]", "--per_row", "3", "--keep_parents", "true"
    ]  # fmt: skip
    assert main(command) == 0
    rows, manifest = rows_in(out), manifest_of(out)
    originals = {row["id"]: row for row in rows if row["meta"]["variant"] == "original"}
    swapped = [row for row in rows if row["meta"]["variant"] == "number_swap"]
    assert len(originals) == 40 and len(swapped) > 40
    assert manifest["told"]["kept_by_kind"] == {"number_swap": len(swapped), "original": 40}
    questions = [row["prompt"][0]["content"] for row in rows]
    assert len(set(questions)) == len(questions)
    for row in swapped:
        parent = originals[row["meta"]["parent"]]
        assert re.fullmatch(rf"{re.escape(parent['id'])}/number_swap-[0-2]", row["id"])
        assert row["meta"]["root"] == parent["id"] and row["meta"]["proof"] == "calculator"
        (message,) = row["completion"]
        assert message["content"] == row["answer"] != parent["answer"] and "<<" not in message["reasoning_content"]
        numbers = re.compile(r"\d[\d,.]*")
        assert numbers.sub("#", row["prompt"][0]["content"]) == numbers.sub("#", parent["prompt"][0]["content"])
    from mmreason.data import load_examples

    loaded = load_examples(str(out), columns=("prompt", "completion", "answer", "id", "source", "meta"))
    assert loaded.format == "canonical" and len(loaded.dataset) == len(rows)
    splits = split_by_parent(loaded.dataset.to_list(), {"train": 0.7, "test": 0.3})
    assert sum(map(len, splits.values())) == len(rows) and all(splits.values())
    where = {row["id"]: name for name, part in splits.items() for row in part}
    assert all(where[row["id"]] == where[row["meta"]["parent"]] for row in swapped)


QUESTION = "Tom has 12 apples and eats 5 of them. How many apples are left?"


def one(tmp_path: Path, **more: Any) -> Path:
    return write_rows(tmp_path / "one.jsonl", [{"id": "q1", "question": QUESTION, "answer": "7"} | more])


def teacher(replies: dict[str, str], solved: list[str]) -> Ruled:
    """Replies by fragment of the prompt; a question to be solved gets `solved` by sample."""

    def rule(text: str, request: Request) -> str:
        if "\\boxed" in text:
            return f"So the answer is \\boxed{{{solved[request.sample]}}}."
        return next(reply for part, reply in replies.items() if part in text)

    return Ruled(rule)


GOOD = "<problem>After eating 5 of his 12 apples, how many does Tom still have?</problem>"
REPLIES = {
    "in other words": GOOD,
    "into Spanish": "<problem>Tom tiene 12 manzanas y come 5. ¿Cuántas quedan?</problem>",
    "from Spanish into English": "<problem>Of 12 apples in all, Tom ate 5; what number of them remains?</problem>",
    "Add one sentence": (
        "<problem>Tom has 12 apples and eats 5 of them. His dog is 4. How many apples are left?</problem>"
    ),
    "but harder": "<problem>Tom has 12 apples, eats 5 and buys 6. How many has he?</problem>\n<answer>13</answer>",
    "but easier": "<problem>Tom has 2 apples and eats 1. How many are left?</problem>\n<answer>1</answer>",
}


@pytest.mark.parametrize(
    ("kind", "gold"),
    [("paraphrase", "7"), ("back_translation", "7"), ("distractor", "7"), ("harder", "13"), ("easier", "1")],
)
def test_a_variant_is_kept_only_if_its_answer_comes_out(kind: str, gold: str, tmp_path: Path) -> None:
    more = {"kinds": [kind], "pivot": "Spanish", "distractors": "teacher", "solve_k": 3, "min_agreement": 0.6}
    for name, solved, dropped in (
        ("good", [gold, "99", f"{gold}.0"], {}),
        ("split", [gold, "98", "99"], {"no_agreement": 1}),
        ("wrong", ["99", gold, "99"], {"other_answer": 1}),
    ):
        built = AugmentBuilder(options(tmp_path, one(tmp_path), out=tmp_path / name, **more))
        manifest = run(built, completers=[teacher(REPLIES, solved)], say=quiet)
        assert manifest["counts"]["dropped"] == dropped
        rows = rows_in(tmp_path / name)
        assert len(rows) == (not dropped)
        for row in rows:
            assert row["id"] == f"q1/{kind}-0" and row["answer"] == gold and row["meta"]["proof"] == "solved"
            assert row["meta"]["parent"] == row["meta"]["root"] == "q1" and row["meta"]["kind"] == "number"
            assert row["completion"][0]["content"] == f"So the answer is \\boxed{{{gold}}}."
            assert row["prompt"][0]["content"] == row["meta"]["question"] != QUESTION


@pytest.mark.parametrize(
    ("kind", "part", "reply", "reason"),
    [
        ("paraphrase", "in other words", f"<problem>{QUESTION}</problem>", "not_novel"),
        ("paraphrase", "in other words", GOOD.replace("5", "6"), "other_numbers"),
        ("paraphrase", "in other words", "<problem>汤姆有12个苹果，吃了5个。还剩几个？</problem>", "other_language"),
        ("paraphrase", "in other words", "<problem></problem>", "empty"),
        ("distractor", "Add one sentence", GOOD, "question_changed"),
        ("distractor", "Add one sentence", f"<problem>{QUESTION}</problem>", "nothing_added"),
        ("harder", "but harder", "<problem>Something else?</problem>", "unreadable"),
        ("harder", "but harder", f"{GOOD}<answer>7</answer>", "nothing_changed"),
    ],
)
def test_rules_refuse_before_anything_is_solved(kind: str, part: str, reply: str, reason: str, tmp_path: Path) -> None:
    built = AugmentBuilder(options(tmp_path, one(tmp_path), kinds=[kind], distractors="teacher"))
    asked = teacher({part: reply}, ["7"] * 3)
    assert run(built, completers=[asked], say=quiet)["counts"]["dropped"] == {reason: 1}
    assert len(asked.requests) == 1


def test_siblings_differ(tmp_path: Path) -> None:
    """Each draw gets its own request; the same wording, or nearly, is kept once."""
    texts = [
        GOOD,
        GOOD.replace("still have", "have still"),
        GOOD.replace("?", " ?"),
        "<problem>12 minus 5 apples, Tom: what is left?</problem>",
    ]

    def rule(text: str, request: Request) -> str:
        return "\\boxed{7}" if "\\boxed" in text else texts[request.sample]

    built = AugmentBuilder(options(tmp_path, one(tmp_path), kinds=["paraphrase"], per_row=4, solve_k=1))
    manifest = run(built, completers=[Ruled(rule)], say=quiet)
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["q1/paraphrase-0", "q1/paraphrase-3"]
    assert manifest["counts"]["dropped"] == {"duplicate": 1, "not_novel": 1}


def test_without_a_gold_both_must_ask_for_the_same(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "s.jsonl",
        [{"id": f"q{i}", "instruction": f"Name {w} rivers.", "output": "Nile"} for i, w in enumerate(("big", "old"))],
    )

    def rule(text: str, request: Request) -> str | Reply:
        if "Answer with Same or Different alone" in text:
            return "Same." if "big" in text else "Different"
        return f"<problem>Which rivers are {'big' if 'big' in text else 'new'}?</problem>"

    built = AugmentBuilder(options(tmp_path, source, kinds=["paraphrase", "harder"]))
    manifest = run(built, completers=[Ruled(rule)], say=quiet)
    (row,) = rows_in(tmp_path / "out")
    assert row["id"] == "q0/paraphrase-0" and row["completion"] == [{"role": "assistant", "content": "Nile"}]
    assert manifest["counts"]["dropped"] == {"another_question": 1, "no_gold": 2}


def test_distractors_by_template(shared_data: Path, tmp_path: Path) -> None:
    """The question's own words stay in order, the sentence stands before the question, and no number of it is there."""
    source = gsm8k_file(shared_data, tmp_path, 30)
    built = AugmentBuilder(options(tmp_path, source, kinds=["distractor"], per_row=2))
    assert not built.needs_endpoint()
    run(built, say=quiet)
    rows = rows_in(tmp_path / "out")
    old = {f"gsm8k/q/{i}": json.loads(line) for i, line in enumerate(source.read_text().splitlines())}
    assert len(rows) > 50
    for row in rows:
        before, after = old[row["meta"]["parent"]]["question"].strip(), row["prompt"][0]["content"]
        assert addition_fault(before, after) is None and after.endswith(before.split()[-1])
        added = set(re.findall(r"\d+", after)) - set(re.findall(r"\d+", before))
        assert len(added) == 1 and row["completion"][0]["content"] == row["answer"]
    assert distract("Solve this.", __import__("random").Random(0)) is None


def test_fragments_are_read() -> None:
    assert read_problem("So: <problem> a\nb </problem>") == "a\nb" and read_problem(" a ") == "a"
    assert read_answer("<answer>1</answer> no <answer> 2 </answer>") == "2" and read_answer("2") is None
    assert wording_fault("He has three cats and 12 dogs.", "There are 3 cats, 12 dogs, all his.", 0.9) is None


def test_a_variant_of_a_variant_keeps_the_root(tmp_path: Path) -> None:
    row = {
        "id": "q1/paraphrase-0", "prompt": [{"role": "user", "content": QUESTION}], "answer": "7",
        "meta": {"kind": "number", "parent": "q1", "root": "q1"},
    }  # fmt: skip
    source = write_rows(tmp_path / "c.jsonl", [row])
    built = AugmentBuilder(options(tmp_path, source, kinds=["paraphrase"], solve_k=0))
    run(built, completers=[teacher(REPLIES, [])], say=quiet)
    (child,) = rows_in(tmp_path / "out")
    assert child["meta"]["parent"] == "q1/paraphrase-0" and child["meta"]["root"] == "q1"


def test_without_solving_nobody_is_asked_for_more(tmp_path: Path) -> None:
    built = AugmentBuilder(options(tmp_path, one(tmp_path, answer=None), kinds=["paraphrase"], solve_k=0))
    asked = teacher(REPLIES, [])
    run(built, completers=[asked], say=quiet)
    assert len(rows_in(tmp_path / "out")) == 1 == len(asked.requests)


def test_solved_swaps_need_a_teacher(tmp_path: Path) -> None:
    assert options(tmp_path, tmp_path, solve_swaps=True).asks
    assert not options(tmp_path, tmp_path, solve_swaps=True, solve_k=0).asks
    assert not options(tmp_path, tmp_path, solve_swaps=True, kinds=["distractor"]).asks


# ---- splits


@given(
    parents=st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1, max_size=31),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_no_child_lies_in_another_split(parents: list[int | None], seed: int, order: Any) -> None:
    """Forests in any order, also with parents that are not among the rows (numbers beyond the list)."""
    rows: list[Example] = []
    for i, parent in enumerate(parents):
        above = None if parent == i else parent
        if above is not None and above < len(parents) and above >= i:
            above = above % i if i else None  # a forest: parents come first
        rows.append({"id": str(i), "meta": {"parent": None if above is None else str(above)}})
    order.shuffle(rows)
    splits = split_by_parent(rows, {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=seed)
    where = {row["id"]: name for name, part in splits.items() for row in part}
    assert len(where) == len(rows)
    for row in rows:
        parent = row["meta"]["parent"]
        siblings = {where[other["id"]] for other in rows if other["meta"]["parent"] == parent and parent is not None}
        assert len(siblings) <= 1 and (parent not in where or where[row["id"]] == where[parent])


def test_splits_follow_what_is_assigned_and_stay_when_a_set_grows() -> None:
    rows: list[Example] = [{"id": f"r{i}", "meta": {}} for i in range(400)]
    children: list[Example] = [{"id": f"r{i}/x", "meta": {"parent": f"r{i}", "root": f"r{i}"}} for i in range(400)]
    splits = split_by_parent(rows, {"train": 0.8, "test": 0.2})
    assert 50 < len(splits["test"]) < 110
    grown = split_by_parent([*children, *rows], {"train": 0.8, "test": 0.2})
    assert {row["id"] for row in grown["test"]} == {r["id"] for r in splits["test"]} | {
        f"{r['id']}/x" for r in splits["test"]
    }
    given = split_by_parent(children, assigned={f"r{i}": "dev" for i in range(10)})
    assert [row["id"] for row in given["dev"]] == [f"r{i}/x" for i in range(10)]
    assert family_of(children[0]) == "r0" and family_of(rows[0]) == "r0"
    with pytest.raises(DataError, match="same family"):
        split_by_parent([*rows, *children], assigned={"r1": "train", "r1/x": "test"})
    with pytest.raises(DataError, match="circle"):
        split_by_parent([{"id": "a", "meta": {"parent": "b"}}, {"id": "b", "meta": {"parent": "a"}}])
    with pytest.raises(ConfigError, match="shares"):
        split_by_parent(rows, {"train": -1.0})


# ---- bad input, kills, training


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"", {}, "empty"),
        (b'{"question": "\xff?", "answer": "1"}\n', {}, "UTF-8"),
        (b'{"title": "x"}\n', {}, "no known format has the columns title"),
        (b'{"question": "1?", "answer": "1"}\n', {}, "calculator notes"),
        (b'{"question": "1?", "answer": "1"}\n', {"kinds": ["paraphrases"]}, "Did you mean 'paraphrase'?"),
        (b'{"question": "1?", "answer": "1"}\n', {"kinds": ["harder"], "solve_k": 0}, "solve_k must be above 0"),
        (b'{"question": "1?", "answer": "1"}\n', {"kinds": ["easier"], "teacher": None}, "--teacher.base_url"),
    ],
)
def test_bad_input_before_the_first_paid_call(
    content: bytes, more: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with running_server() as server:
        assert main(words(server, out=tmp_path / "out", source=source, **more)) == 2
        assert not server.log
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_through_the_command_line(moment: float, shared_data: Path, tmp_path: Path) -> None:
    source = gsm8k_file(shared_data, tmp_path, 24)
    replies = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        numbers = " ".join(re.findall(r"\d[\d,]*(?:\.\d+)?|\b(?:three|four|five|six|ten|twenty)\b", row["question"]))
        new = f"Given {numbers}, in this order, what would you say comes out of {row['question'].split()[0]}'s story?"
        replies[f"<problem>\n{row['question'].strip()}"] = f"<problem>{new}</problem>"
        replies[new] = f"The answer is \\boxed{{{row['answer'].rpartition('####')[2].strip()}}}"
    more = {"source": source, "kinds": ["number_swap", "paraphrase"], "solve_k": 2, "tasks_per_shard": 6}
    with running_server(replies=replies) as server:
        assert main(words(server, out=tmp_path / "whole", **more)) == 0
        unbroken = len(server.log)
    with running_server(replies=replies, latency_s=0.1) as server:
        command = ["data_builders.augment", *words(server, out=tmp_path / "out", concurrency=4, **more)]
        assert kill_when(command, lambda: len(server.log) >= unbroken * moment)
        assert main(command[1:]) == 0
        assert len(server.log) <= unbroken + 8  # four tasks under way, two requests each
    rows = rows_in(tmp_path / "out")
    assert (
        rows == rows_in(tmp_path / "whole") and manifest_of(tmp_path / "out")["told"]["kept_by_kind"]["paraphrase"] > 12
    )


@pytest.mark.slow
def test_the_rows_train_one_sft_step(shared_data: Path, tmp_path: Path) -> None:
    from tests.data_builders.training import train_one_step

    run(AugmentBuilder(options(tmp_path, gsm8k_file(shared_data, tmp_path, 12))), say=quiet)
    train_one_step(tmp_path / "out", tmp_path, recipe="trl_sft")
