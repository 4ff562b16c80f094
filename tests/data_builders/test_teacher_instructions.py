"""The teacher builder's new instructions: ROUGE-L novelty, Self-Instruct's rounds, deepening, rules and readers."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders._teacher.filters import AnswerFilter, ends_in_loop, repeated_share
from data_builders._teacher.language import language_of, other_language
from data_builders._teacher.novelty import Pool, rouge_l
from data_builders._teacher.prompts import numbered, read_examples, read_numbered, read_task
from data_builders._teacher.rules import copied_prompt, gives_up, instruction_fault, says_nothing
from data_builders.building.runner import run
from data_builders.teacher import TeacherBuilder, main
from mmreason.clients.packed_logprobs import pack_logprobs, unpack_logprobs
from mmreason.clients.types import EndpointError, Reply, Request, TokenLogprob
from tests.clients.server import running_server
from tests.data_builders.teaching import MOMENTS, Ruled, kill_when, manifest_of, options, rows_in, words, write_rows


def quiet(_: str) -> None:
    """Hears nothing."""


def seeds(shared_data: Path) -> list[dict[str, Any]]:
    path = shared_data / "instruction" / "alpaca_seed_tasks.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- novelty


def test_the_pool_decides_as_rouge_score_itself(shared_data: Path) -> None:
    """Against the brute force over all pairs with rouge_score's own tokenizer."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    texts = [row["instruction"] for row in seeds(shared_data)[:30]]
    rng = random.Random(0)
    for text in texts[:12]:  # near copies: some words left out
        texts.append(" ".join(word for word in text.split() if rng.random() < 0.8) or text)
    for threshold in (0.3, 0.7):
        pool = Pool(threshold)
        kept: list[str] = []
        for text in texts:
            brute = [scorer.score(other, text)["rougeL"].fmeasure for other in kept]
            found = pool.nearest(text)
            first = next((i for i, score in enumerate(brute) if score >= threshold), None)
            assert (found.index if found else None) == first
            if found is None:
                pool.add(text)
                kept.append(text)
        assert 5 < len(kept) < len(texts)


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.lists(st.sampled_from("abcde"), max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_bound_hides_a_near_text(left: list[str], right: list[str]) -> None:
    a, b = " ".join(left), " ".join(right)
    near = Pool(0.5, [a]).nearest(b) is not None
    assert near == (rouge_l(a, b) >= 0.5 or (not left and not right))


def test_other_scripts_count_characters() -> None:
    assert rouge_l("请把下面的句子翻译成英文", "请把下面的句子翻译成法文") == pytest.approx(11 / 12)
    assert Pool(0.7, ["请写一首关于春天的诗"]).nearest("把下面的数字从小到大排列") is None


# ---- rules


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Name three rivers in Asia.", None),
        ("写一首关于秋天的诗", None),
        ("Summarise it", "instruction_short"),
        ("Sing", "instruction_short"),
        ("word " * 151, "instruction_long"),
        ("Describe the picture above.", "beyond_text"),
        ("Draw a cat on a mat.", "beyond_text"),
        ("根据图片回答问题", "beyond_text"),
        ("Open the attached file and count the rows.", "beyond_text"),
        ("- list some fruits of the season", "instruction_odd"),
        ("Given the following words, sort them:", "instruction_unfinished"),
        ("Write a haiku about winter.", "blocked_word"),
    ],
)
def test_rules_for_instructions(text: str, fault: str | None) -> None:
    assert instruction_fault(text, ["haiku"]) == fault


def test_few_seed_tasks_break_the_rules(shared_data: Path) -> None:
    """People wrote them for text alone, so that the rules should refuse few (some end in a colon)."""
    faults = [instruction_fault(row["instruction"]) for row in seeds(shared_data)]
    assert faults.count(None) > 0.9 * len(faults) and faults.count("beyond_text") < 8


def test_rules_of_elimination() -> None:
    assert copied_prompt("Here is the rewritten prompt: list five rivers") and not copied_prompt("List five rivers.")
    assert gives_up("Sorry, I don't know.") and not gives_up("word " * 90 + "sorry") and not gives_up("Five.")
    assert says_nothing("... the of, and!") and not says_nothing("Rivers.")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the mat and it was not in the house.", "en"),
        ("Das ist nicht der Hund, und die Katze ist auch nicht da.", "de"),
        ("La réponse est dans le livre que vous avez sur la table, pas sur le sol.", "fr"),
        ("因此答案是四十二。", "zh"),
        ("答えは四十二です。わかりました。", "ja"),
        ("Ответ: сорок два.", "cyrillic"),
        ("42", None),
        ("Eins zwei drei vier", "latin"),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_what_is_in_another_language() -> None:
    english = "What is the capital of the country that is to the south of this one?"
    assert other_language(english, "因此答案是四十二，请看下面的说明。")
    assert other_language(english, "La réponse est dans le livre que vous avez sur la table, pas sur le sol.")
    assert not other_language(english, "Paris.") and not other_language(english, "x = 42, y = 17, z = 99")
    assert not other_language("Translate into Chinese: good morning, my friend.", "早上好，我的朋友，很高兴见到你。")
    code = "```python\nfor i in range(3): print('这里的代码没有关系，因为它是代码')\n```\nThis is how it is done."
    assert not other_language(english, code)


def test_the_first_fault_is_told() -> None:
    rules = AnswerFilter(min_chars=3, max_chars=500)
    asked = "What is the sum of these?"
    assert rules.fault(asked, "  ") == "empty" and rules.fault(asked, "42") == "too_short"
    assert rules.fault(asked, "x" * 501) == "too_long" and rules.fault(asked, "It is", "length") == "truncated"
    assert rules.fault(asked, "I cannot help with that request.") == "refusal"
    assert rules.fault(asked, "The sum of these numbers is 42, as 40 + 2 = 42.") is None
    assert rules.fault(asked, "It is 42.", thoughts="And so on and on. " * 20) == "repetition"
    assert AnswerFilter(truncated=False, refusals=False, same_language=False).fault(asked, "I can't.", "length") is None
    assert ends_in_loop("Well. " + "and then she said no " * 5) and ends_in_loop(
        "Well. " + "so it goes on, " * 6 + "so it"
    )
    assert not ends_in_loop("Table:\n" + "-" * 200) and not ends_in_loop("and then she said no " * 4)
    assert repeated_share("a b c d e f " * 10) == pytest.approx(1 - 6 / 55) and repeated_share("a b c") == 0


# ---- readers


def test_numbered_lists_are_read_back() -> None:
    texts = ["Name a river.", "What is 1.5 times 2?", "List:\n- one\n- two"]
    assert numbered(texts) == "1. Name a river.\n2. What is 1.5 times 2?\n3. List: - one - two"
    assert read_numbered("Sure:\n9. Name a\nriver.\n\n**10.** Count.\n11) Cut of", cut=True) == [
        "Name a\nriver.",
        "Count.",
    ]
    assert read_numbered("nothing", cut=False) == []


def test_examples_are_read_in_either_order() -> None:
    text = "### Example 1\nInput: 1 2\n3\nOutput: 6\n\n### Example 2\n**Output:** yes\nInput: none\n### 3\nInput: x"
    assert read_examples(text, cut=False) == [("1 2\n3", "6"), ("", "yes")]
    assert read_examples("### 例 1\n输入：一\n输出：二\n### 2\nInput: a\nOutput: cut of", cut=True) == [("一", "二")]
    assert read_task("Here:\n<task>\nDo it.\n</task> Done") == "Do it." and read_task(" Do it. ") == "Do it."


@given(
    st.lists(
        st.tuples(
            st.text(max_size=6),
            st.floats(-1e4, 0, allow_nan=False),
            st.lists(st.tuples(st.text(max_size=4), st.floats(-50, 0, allow_nan=False)), max_size=5),
        ),
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_logprobs_come_back_to_the_last_bit(given: list[tuple[str, float, list[tuple[str, float]]]]) -> None:
    tokens = tuple(TokenLogprob(text, logprob, tuple(top)) for text, logprob, top in given)
    cell = json.loads(json.dumps(pack_logprobs(tokens, 5)))
    assert unpack_logprobs(cell) == tokens and cell["tokens"] == len(tokens)


def test_logprobs_are_stored_compactly() -> None:
    rng = random.Random(0)
    tokens = [
        TokenLogprob(f"w{i % 300}", -rng.random(), tuple((f"w{rng.randrange(300)}", -rng.random()) for _ in range(5)))
        for i in range(1000)
    ]
    plain = json.dumps([(token.token, token.logprob, token.top) for token in tokens])
    assert len(pack_logprobs(tokens, 5)["data"]) < 0.5 * len(plain)


# ---- Self-Instruct

VERBS = "List Explain Compare Invent Rank Count Translate Summarise Classify Rewrite".split()  # noqa: SIM905
THINGS = "rivers planets recipes proverbs riddles tools birds colours cities games laws trees".split()  # noqa: SIM905


def invented(number: int) -> list[str]:
    """Four instructions: two that no other number has, one that all have, one that needs a picture."""
    rng = random.Random(number)

    def odd() -> str:
        return " ".join(f"{rng.choice(VERBS).lower()}{rng.randrange(999)} {rng.choice(THINGS)}" for _ in range(5))

    return [
        f"Think of {odd()}",
        f"Say how {odd()}",
        "Name the tallest mountain on each continent.",
        "Draw a map of Asia.",
    ]


def self_instruct_rule(text: str, request: Request) -> str | Reply:
    """New instructions by the request's id; one of two sorts; examples with a duplicate and a contradiction."""
    if "Continue it with" in text:
        return numbered(invented(int(request.id.rpartition("-")[2])))
    if "Answer with Yes or No alone" in text:
        return "Yes." if "Say how" in text else "No"
    if "output first" in text:
        return (
            "### 1\nOutput: good\nInput: Nice.\n### 2\nOutput: bad\nInput: Not nice.\n### 3\nOutput: bad\nInput: none"
        )
    task = text.split("Task: ")[1].split("\n")[0]
    first = f"### 1\nInput: one\nOutput: The first is {task[:20]}."
    return f"{first}\n### 2\nInput: two\nOutput: Either.\n### 3\nInput: two\nOutput: Or."


def test_self_instruct_in_rounds(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "instruction" / "alpaca_seed_tasks.jsonl"
    more = {"mode": "self_instruct", "target": 11, "requests_per_round": 3, "own_shots": 2, "tasks_per_shard": 2}
    manifests = []
    for name, concurrency in (("a", 1), ("b", 5)):
        teacher = Ruled(self_instruct_rule)
        built = TeacherBuilder(options(tmp_path, source, out=tmp_path / name, concurrency=concurrency, **more))
        manifests.append(run(built, completers=[teacher], say=quiet))
    assert rows_in(tmp_path / "a") == rows_in(tmp_path / "b") and manifests[0]["counts"] == manifests[1]["counts"]
    rows, manifest = rows_in(tmp_path / "a"), manifests[0]
    texts = list(dict.fromkeys(row["meta"]["instruction"] for row in rows))
    assert len(texts) == 11 == manifest["told"]["new_instructions"] and manifest["told"]["seed_tasks"] == 175
    old = [row["instruction"] for row in seeds(shared_data)]
    assert all(rouge_l(a, b) < 0.7 for a, b in combinations(texts, 2))
    assert all(rouge_l(old_text, text) < 0.7 for text in texts for old_text in old)
    dropped = manifest["counts"]["dropped"]
    assert dropped["beyond_text"] >= 5 and dropped["not_novel"] >= 4 and dropped["contradictory_examples"] % 2 == 0
    by_class = {row["meta"]["instruction"]: row["meta"]["classification"] for row in rows}
    assert all(sorts == text.startswith("Say how") for text, sorts in by_class.items())
    first = next(row for row in rows if not row["meta"]["classification"])
    assert first["prompt"][0]["content"] == f"{first['meta']['instruction']}\n\none"
    # Requests of later rounds show what earlier ones brought, those of the first only seed tasks.
    shown = {
        int(request.id.rpartition("-")[2]): str(request.messages[0]["content"])
        for request in teacher.requests
        if "Continue it with" in str(request.messages[0]["content"])
    }
    own = {number: sum(text in prompt for text in texts) for number, prompt in shown.items()}
    assert all(own[number] == 0 for number in range(3)) and all(own[number] == 2 for number in range(3, len(own)))
    assert all(prompt.count("\n9. ") == 0 and "numbered on from 9" in prompt for n, prompt in shown.items() if n >= 3)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_self_instruct_through_the_command_line_killed_and_resumed(
    moment: float, shared_data: Path, tmp_path: Path
) -> None:
    """A server that knows no ids: each seed task that a request shows first brings instructions of its own."""
    source = shared_data / "instruction" / "alpaca_seed_tasks.jsonl"
    replies = {
        "Answer with Yes or No alone": "No",
        "in exactly this form": "### 1\nInput: none\nOutput: It is done so.",
    }
    for number, row in enumerate(seeds(shared_data)):
        replies[f"{' '.join(row['instruction'].split())}\n"] = numbered(invented(number))
    more = {"source": source, "mode": "self_instruct", "target": 20, "requests_per_round": 4, "tasks_per_shard": 3}
    with running_server(replies=replies) as server:
        assert main(words(server, out=tmp_path / "whole", **more)) == 0
        unbroken = len(server.log)
    with running_server(replies=replies, latency_s=0.1) as server:
        command = ["data_builders.teacher", *words(server, out=tmp_path / "out", concurrency=2, **more)]
        assert kill_when(command, lambda: len(server.log) >= unbroken * moment)
        assert main(command[1:]) == 0
        assert len(server.log) <= unbroken + 8
    rows = rows_in(tmp_path / "out")
    assert rows == rows_in(tmp_path / "whole") and len({row["meta"]["instruction"] for row in rows}) == 20
    assert manifest_of(tmp_path / "out")["counts"] == manifest_of(tmp_path / "whole")["counts"]


def test_refused_examples_cost_no_other_instruction(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "s.jsonl", [{"instruction": "Name a river.", "output": "The Nile."}])

    def rule(text: str, request: Request) -> str | Reply | EndpointError:
        is_refused = "Answer with Yes or No alone" in text and "Say how" in text
        return EndpointError("refused", "filtered") if is_refused else self_instruct_rule(text, request)

    built = TeacherBuilder(options(tmp_path, source, mode="self_instruct", max_requests=2, target=9))
    manifest = run(built, completers=[Ruled(rule)], say=quiet)
    assert manifest["counts"]["dropped"]["refused"] == 2
    assert {row["meta"]["instruction"][:8] for row in rows_in(tmp_path / "out")} >= {"Think of"}


def test_self_instruct_ends_without_new_instructions(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "s.jsonl", [{"instruction": "Name a river.", "output": "The Nile."}])
    built = TeacherBuilder(options(tmp_path, source, mode="self_instruct", target=5, max_requests=4))
    manifest = run(built, completers=[Ruled(lambda text, _: "I have no idea.")], say=quiet)
    assert manifest["counts"]["dropped"] == {"no_instructions": 4} and rows_in(tmp_path / "out") == []


# ---- deepening


def deepen_rule(text: str, request: Request) -> str:
    """Adds a clause; says "Same" of one seed; gives up on another; copies its prompt on a third."""
    if "Answer with Same or Different alone" in text:
        return "Same" if "planets" in text else "Different."
    if "<task>\n" not in text:
        return "Sorry, I don't know." if "riddle" in text else f"An answer to it: {text.upper()}"
    task = text.split("<task>\n")[1].split("\n</task>")[0]
    if "another one" in text:
        return f"<task>Tell me about the rare kin of {task[:12]}</task>"
    return "<task>The rewritten prompt</task>" if "tools" in task else f"<task>{task} Also say why, {len(task)}.</task>"


def test_deepening(tmp_path: Path) -> None:
    things = ["rivers", "planets", "riddles", "tools"]
    source = write_rows(
        tmp_path / "s.jsonl", [{"id": name, "instruction": f"Name {name}.", "output": "x"} for name in things]
    )
    more = {"mode": "deepen", "generations": 3, "prompt_template": "Q: {question}"}
    built = TeacherBuilder(options(tmp_path, source, breadth=0.0, **more))
    manifest = run(built, completers=[Ruled(deepen_rule)], say=quiet)
    rows = rows_in(tmp_path / "out")
    assert [row["meta"]["parent"] for row in rows] == ["rivers"] * 3
    assert [row["meta"]["depth"] for row in rows] == [1, 2, 3]
    texts = ["Name rivers."]
    for row in rows:
        texts.append(f"{texts[-1]} Also say why, {len(texts[-1])}.")
        assert row["meta"]["instruction"] == texts[-1] and row["prompt"][0]["content"] == f"Q: {texts[-1]}"
        assert row["completion"][0]["content"] == f"An answer to it: Q: {texts[-1]}".replace(
            f"Q: {texts[-1]}", f"Q: {texts[-1]}".upper()
        )
    assert manifest["counts"]["dropped"] == {"nothing_gained": 3, "refusal": 3, "copied_prompt": 3} or manifest[
        "counts"
    ]["dropped"] == {"nothing_gained": 3, "too_hard": 3, "copied_prompt": 3}
    wide = TeacherBuilder(options(tmp_path, source, breadth=1.0, out=tmp_path / "wide", **more))
    manifest = run(wide, completers=[Ruled(deepen_rule)], say=quiet)
    rows = rows_in(tmp_path / "wide")
    # A step in breadth starts from the seed each time, so that this teacher says the same again.
    assert [row["meta"]["instruction"] for row in rows if row["meta"]["parent"] == "rivers"] == [
        "Tell me about the rare kin of Name rivers."
    ]
    assert {row["meta"]["operation"] for row in rows} == {"breadth"} and all(row["meta"]["depth"] == 0 for row in rows)
    assert manifest["counts"]["dropped"]["duplicate"] == 2 * len(rows)


def test_a_refused_step_costs_no_row_of_the_others(tmp_path: Path) -> None:
    """The seed is a variant itself, whose family its rows stay in."""
    prompt = [{"role": "user", "content": "Name rivers."}]
    source = write_rows(tmp_path / "s.jsonl", [{"id": "r", "prompt": prompt, "answer": "x", "meta": {"root": "r0"}}])

    def rule(text: str, request: Request) -> str | EndpointError:
        is_second = "<task>\n" in text and "Also say why" in text
        return EndpointError("refused", "filtered") if is_second else deepen_rule(text, request)

    built = TeacherBuilder(options(tmp_path, source, mode="deepen", generations=3, breadth=0.0))
    manifest = run(built, completers=[Ruled(rule)], say=quiet)
    (row,) = rows_in(tmp_path / "out")
    assert row["meta"]["generation"] == 1 and row["meta"]["root"] == "r0"
    assert manifest["complete"] and manifest["counts"]["dropped"] == {"refused": 2}


def test_only_text_can_be_deepened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.pictures import picture

    picture(8, 8).save(tmp_path / "a.png")
    source = write_rows(tmp_path / "train.jsonl", [{"id": "r1", "question": "What?", "answer": "x", "image": "a.png"}])
    with running_server() as server:
        assert main(words(server, out=tmp_path / "out", source=source, mode="deepen")) == 2
        assert not server.log
    assert "row r1" in capsys.readouterr().err
