"""Test questions planted in text are found, and real training sets hit only where a reader sees the same question."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mmreason.data._overlap_rows import EvalItem, eval_item
from mmreason.data.formats.common import lettered
from mmreason.data.overlap import Hit, OverlapIndex, row_text

SETS = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math/math500.jsonl",
    "mmlu": "mcqa/mmlu_test_2280.jsonl",
    "cmmlu": "mcqa/cmmlu_test_10x67.jsonl",
    "scienceqa": "scienceqa/test_text.jsonl",
    "humaneval": "code/humaneval.jsonl",
}
PLANTED = {"gsm8k": 40, "math500": 35, "mmlu": 60, "cmmlu": 25, "scienceqa": 25, "humaneval": 15}


@pytest.fixture(scope="module")
def items(shared_data: Path) -> dict[str, list[EvalItem]]:
    return {
        name: [eval_item(row, name, number) for number, row in enumerate(read(shared_data / path))]
        for name, path in SETS.items()
    }


@pytest.fixture(scope="module")
def index(items: dict[str, list[EvalItem]]) -> OverlapIndex:
    return OverlapIndex.build(items)


def read(path: Path) -> list[dict[str, object]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def verbatim(text: str, rng: random.Random) -> str:
    return text


def recased(text: str, rng: random.Random) -> str:
    return rng.choice((str.upper, str.lower, str.swapcase, str.title))(text)


def repunctuated(text: str, rng: random.Random) -> str:
    """Other marks for prose; what belongs to formulas and code stays."""
    text = re.sub(r"(?<=[a-z])'(?=[a-z])", "’", text)
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text)
    text = re.sub(r"(?<=[A-Za-z]),(?= )", rng.choice((" –", ";", "")), text)
    text = re.sub(r"(?<=[A-Za-z])\.(?=\s|$)", rng.choice(("!", "...", ";")), text)
    text = re.sub(r"\?(?=\s|$)", rng.choice(("", " ?", "?!", ".")), text)
    text = text.replace("，", rng.choice((",", " ", "、"))).replace("。", ".").replace("？", " ?").replace("（", " (")
    text = re.sub(r"_{2,}", "…", text)
    return re.sub(r"\bquestion\b", "*question*", text).replace("\n", rng.choice(("\n\n", "\n> ")))


def prose(folder: Path) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", (folder / "text/gutenberg_alice.txt").read_text()) if len(part) > 200]


def ask(item: EvalItem, rng: random.Random) -> str:
    """The question as training data has it, its choices in any of the usual forms and orders."""
    if not item.choices:
        return item.question
    choices = rng.sample(item.choices, len(item.choices))
    letters = "ABCDEFGHIJ"
    forms: list[Callable[[], str]] = [
        lambda: f"{item.question}\n{lettered(choices)}",
        lambda: f"{item.question}\nOptions: " + " ".join(f"{letters[i]}. {choice}" for i, choice in enumerate(choices)),
        lambda: (
            f"{item.question}\nAnswer with one of these choices:\n" + "\n".join(f"- {choice}" for choice in choices)
        ),
        lambda: f"{item.question}\n" + "\n".join(f"选项{letters[i]}：{choice}" for i, choice in enumerate(choices)),
    ]
    return rng.choice(forms)()


def test_planted_questions_are_found(items: dict[str, list[EvalItem]], index: OverlapIndex, shared_data: Path) -> None:
    rng = random.Random(4)
    paragraphs = prose(shared_data)
    texts: list[str] = []
    wanted: list[tuple[str, EvalItem, str]] = []
    for name, count in PLANTED.items():
        for number, item in enumerate(rng.sample(items[name], count)):
            change = (verbatim, recased, repunctuated)[number % 3]
            text = change(ask(item, rng), rng)
            embedded = number % 2 == 0
            if embedded:
                text = f"{rng.choice(paragraphs)}\n\nQuestion {number}: {text}\n\n{rng.choice(paragraphs)}"
            texts.append(text)
            wanted.append((name, item, f"{change.__name__}{' embedded' if embedded else ''}"))
    assert len(texts) == 200
    found = [
        any(hit.dataset == name and same_words(items[name], hit, item) for hit in hits)
        for hits, (name, item, _) in zip(index.find_all(texts), wanted, strict=True)
    ]
    missed = [f"{how}: {name} {item}" for (name, item, how), ok in zip(wanted, found, strict=True) if not ok]
    assert sum(found) >= 199, "\n".join(missed)


@pytest.mark.slow
@pytest.mark.parametrize("change", [verbatim, recased, repunctuated])
@pytest.mark.parametrize("embedded", [False, True])
def test_every_item_is_found(
    items: dict[str, list[EvalItem]],
    index: OverlapIndex,
    shared_data: Path,
    change: Callable[[str, random.Random], str],
    embedded: bool,
) -> None:
    """All 8,864, of which at most one in a thousand may be missed."""
    rng = random.Random(1)
    paragraphs = prose(shared_data)
    missed = []
    for name, entries in items.items():
        texts = [change(ask(item, rng), rng) for item in entries]
        if embedded:
            texts = [f"{rng.choice(paragraphs)}\n\nQuestion 3: {text}\n\n{rng.choice(paragraphs)}" for text in texts]
        for item, hits in zip(entries, index.find_all(texts), strict=True):
            if not any(hit.dataset == name and same_words(entries, hit, item) for hit in hits):
                missed.append((name, item))
    assert len(missed) <= sum(map(len, items.values())) // 1000, missed


def same_words(items: list[EvalItem], hit: Hit, item: EvalItem) -> bool:
    """Is the item that was hit this one, or a copy of it? Of copies the first is indexed."""
    if hit.item == item.id:
        return True
    other = next(entry for entry in items if entry.id == hit.item)
    return bare(other.question) == bare(item.question) and sorted(map(bare, other.choices)) == sorted(
        map(bare, item.choices)
    )


def bare(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


@pytest.mark.parametrize("change", [verbatim, recased, repunctuated])
def test_short_mmlu_questions_have_a_rule_of_their_own(
    items: dict[str, list[EvalItem]], index: OverlapIndex, change: Callable[[str, random.Random], str]
) -> None:
    """All of MMLU's questions with fewer than 13 words: found with their choices, and by nothing but the choices."""
    rng = random.Random(5)
    short = [item for item in items["mmlu"] if len(re.findall(r"[^\W_]+", item.question.replace("'", ""))) < 13]
    assert len(short) > 700
    hits = index.find([change(ask(item, rng), rng) for item in short])
    missed = [item for item, hit in zip(short, hits, strict=True) if hit is None]
    assert len(missed) <= len(short) // 200, missed
    named = [item for item in short if any(map(bare, item.choices))]  # one item's choices are "/", "//", "%", "|"
    alone = index.find([f"Someone asked: {item.question} Nobody knew." for item in named])
    assert [hit for hit in alone if hit is not None] == []


# Every hit of these training sets, as a reader of both texts judges it:
#   same     the test question itself
#   picture  the same question and choices, but about another picture, which the text doesn't tell
#   passage  the same long passage or figure with another question about it, or with other choices
#   variant  the same problem with one name, quantity or formula exchanged
READ: dict[str, dict[str, set[int]]] = {
    "math/train_answers.jsonl": {"same": {355, 391, 526, 1755, 1841, 1931, 2407}, "passage": {1253, 1321, 2629}},
    "mcqa/mmlu_val.jsonl": {
        "same": {77, 137, 149, 151, 152, 463, 1394},
        "passage": {354, 357, 361, 362, 363, 364, 366, 367, 368, 370, 612, 616, 622, 625, 637, 644, 655, 656},
        "variant": {522},
    },
    "mcqa/mmlu_dev.jsonl": {"same": {128}, "passage": {107, 151, 153}},
    "scienceqa/minitrain_1000_cot.jsonl": {
        "same": {112, 155, 273, 291, 309, 454, 662, 989},
        "picture": {
            42, 47, 61, 130, 136, 148, 180, 193, 256, 266, 286, 298, 321, 324, 327, 340, 395, 418, 435, 451, 473, 534,
            544, 546, 556, 575, 605, 629, 633, 752, 759, 773, 775, 799, 816, 856, 878, 884, 890, 927, 941, 952, 975,
        },
        "passage": {177, 235, 253, 255, 284, 430},
        "variant": {405, 496},
    },
}  # fmt: skip
WITHOUT = [
    "gsm8k/train", "mcqa/cmmlu_dev", "mcqa/commonsenseqa_train", "mcqa/hellaswag_val_1k", "mcqa/strategyqa",
    "mcqa/truthfulqa", "mwp/aqua_dev", "mwp/asdiv", "mwp/svamp", "instruction/alpaca_2k",
    "instruction/alpaca_seed_tasks", "instruction/mt_bench_question", "instruction/sharegpt_dummy_conversation",
    "sft_cot/svamp_nl_cot", "sft_cot/svamp_python_cot", "preference/hh_harmless_1k", "text/c4_demo",
    "tool_use/hotpotqa_dev_1k", "tool_use/glaive_toolcall_en_demo", "tool_use/tora_examples",
    "tool_use/bfcl_simple_python", "tool_use/apibench_torchhub_train",
]  # fmt: skip


def test_every_hit_of_real_training_sets_was_read(index: OverlapIndex, shared_data: Path) -> None:
    """None of the hits rests on a phrase, an instruction or a licence that many texts share."""
    for path, kinds in READ.items():
        hits = index.find(row_text(row) for row in read(shared_data / path))
        assert {row for row, hit in enumerate(hits) if hit is not None} == set().union(*kinds.values()), path


def test_no_hits_where_no_test_question_is(index: OverlapIndex, shared_data: Path) -> None:
    for name in WITHOUT:
        hits = index.find(row_text(row) for row in read(shared_data / f"{name}.jsonl"))
        assert [(row, hit.reason) for row, hit in enumerate(hits) if hit is not None] == [], name
    for path in sorted((shared_data / "text").glob("*.txt")):
        parts = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        assert [hit.reason for hit in index.find([*parts, "\n".join(parts)]) if hit is not None] == [], path.name


def test_a_training_set_holds_none_of_its_own_test_set_but_itself_all(items: dict[str, list[EvalItem]]) -> None:
    """A set against itself: each item hits under its own id, or that of the item that says the same."""
    for name in ("gsm8k", "humaneval"):
        found = OverlapIndex.build({name: items[name]}).find([item.question for item in items[name]], min_share=1.0)
        assert Counter(hit.item if hit else None for hit in found) == Counter(item.id for item in items[name])
