"""How fast are test questions looked for? Measures `mmreason.data.overlap` against a plain set of 13-grams, same rows.

    python benchmarks/overlap.py --data ../shared/data        # GSM8K's training questions, six real test sets
    python benchmarks/overlap.py                               # questions made by code

One thread; one row in a thousand is a test question. The peer is the recipe that is usually written: lower case, no
punctuation, a Python set of 13-gram strings, and each 13-gram of a row looked up in it. It says that a row has one,
where the index says whose, what share of the question's, and knows short questions by their choices. Also what
each `min_share` finds in the real sets, and how long duplicates take among copies of the questions with words
exchanged. Writes a line per measurement to benchmarks/results/overlap.csv.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import RESULTS, provenance, save_rows
from mmreason.data.duplicates import Method, find_duplicates
from mmreason.data.overlap import EvalItem, OverlapIndex, eval_item, row_text

TEST_SETS = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math/math500.jsonl",
    "mmlu": "mcqa/mmlu_test_2280.jsonl",
    "cmmlu": "mcqa/cmmlu_test_10x67.jsonl",
    "scienceqa": "scienceqa/test_text.jsonl",
    "humaneval": "code/humaneval.jsonl",
}
TRAINING_SETS = {
    "MATH train": ("math/train_answers.jsonl",),
    "MMLU validation": ("mcqa/mmlu_val.jsonl",),
    "ScienceQA train": ("scienceqa/minitrain_1000_cot.jsonl",),
    "other sets": (
        "gsm8k/train.jsonl", "mcqa/mmlu_dev.jsonl", "mcqa/cmmlu_dev.jsonl", "mcqa/commonsenseqa_train.jsonl",
        "mcqa/strategyqa.jsonl", "mcqa/truthfulqa.jsonl", "mwp/aqua_dev.jsonl", "mwp/asdiv.jsonl", "mwp/svamp.jsonl",
        "instruction/alpaca_2k.jsonl", "instruction/mt_bench_question.jsonl", "sft_cot/svamp_nl_cot.jsonl",
        "sft_cot/svamp_python_cot.jsonl", "tool_use/tora_examples.jsonl", "text/c4_demo.jsonl",
    ),
}  # fmt: skip
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 1e-9)
N = 13


def made_question(rng: random.Random) -> str:
    """A word problem of the length of GSM8K's."""
    names, things = ("Ann", "Ben", "Chloe", "Dan", "Ella"), ("pens", "apples", "books", "coins", "stamps", "eggs")
    parts = [
        f"{rng.choice(names)} buys {rng.randint(2, 99)} {rng.choice(things)} for ${rng.randint(2, 99)} and gives "
        f"{rng.randint(1, 9)} of them to {rng.choice(names)}."
        for _ in range(3)
    ]
    return " ".join([*parts, f"How many {rng.choice(things)} does {rng.choice(names)} have in the end?"])


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(data: Path | None, count: int, rng: random.Random) -> tuple[dict[str, list[EvalItem]], list[str]]:
    """The test sets, and `count` training questions, every thousandth of them a test question."""
    if data is None:
        sets = {"made": [EvalItem(str(i), made_question(rng)) for i in range(5000)]}
        texts = [made_question(rng) for _ in range(count)]
    else:
        sets = {
            name: [eval_item(row, path, i) for i, row in enumerate(read_rows(data / path))]
            for name, path in TEST_SETS.items()
        }
        questions = [str(row["question"]) for row in read_rows(data / "gsm8k" / "train.jsonl")]
        texts = [questions[i % len(questions)] for i in range(count)]
    for i in range(0, count, 1000):
        texts[i] = rng.choice(sets[rng.choice(list(sets))]).question
    return sets, texts


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_ngrams(text: str) -> list[str]:
    """13-grams as they are usually taken: lower case, no punctuation, white space."""
    words = text.lower().translate(_NO_PUNCTUATION).split()
    return [" ".join(words[i : i + N]) for i in range(len(words) - N + 1)]


def rate(run: Callable[[], object], count: int, repeats: int, label: str) -> float:
    """The best of `repeats` rates, in items a second (the machine is shared: the best run is the least disturbed)."""
    best = 0.0
    for _ in tqdm(range(repeats), desc=label, leave=False):
        start = time.perf_counter()
        run()
        best = max(best, count / (time.perf_counter() - start))
    return best


def edited(texts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Texts with up to half of their words exchanged, mostly few."""
    words = " ".join(texts[:1000]).split()
    copies = []
    for text in rng.choices(texts, k=count):
        parts = text.split()
        for _ in range(rng.choice((0, 1, 2, len(parts) // 2, len(parts) // 2))):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        copies.append(" ".join(parts))
    return copies


def finds(data: Path, index: OverlapIndex, rng: random.Random) -> list[dict[str, object]]:
    """What each `min_share` finds: GSM8K's test questions with words exchanged, and hits in real training sets."""
    questions = [str(row["question"]) for row in read_rows(data / TEST_SETS["gsm8k"])]
    words = " ".join(questions).split()
    texts: dict[str, list[str]] = {}
    for changes in (1, 2):
        copies = [question.split() for question in questions]
        for copy in copies:
            for place in rng.sample(range(len(copy)), changes):
                copy[place] = rng.choice(words)
        texts[f"GSM8K test, {changes} exchanged"] = [" ".join(copy) for copy in copies]
    for name, paths in TRAINING_SETS.items():
        texts[name] = [row_text(row) for path in paths for row in read_rows(data / path)]
    rows: list[dict[str, object]] = []
    for name, found in texts.items():
        for share in SHARES:
            hits = sum(hit is not None for hit in index.find(found, min_share=share))
            rows.append({"name": f"{name}, min_share {share:g}", "value": hits, "unit": "hits", "items": len(found)})
    return rows


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All measurements as rows (name, value, unit)."""
    rng = random.Random(arguments.seed)
    rows: list[dict[str, object]] = []

    def note(name: str, value: float, unit: str, items: int) -> None:
        rows.append({"name": name, "value": round(value, 3), "unit": unit, "items": items})

    sets, texts = load(arguments.data, arguments.rows, rng)
    start = time.perf_counter()
    index = OverlapIndex.build(sets)
    items = sum(entry.rows for entry in index.sets)
    note("index build", time.perf_counter() - start, "s", items)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        index.save(path)
        note("index file", path.stat().st_size / 1e6, "MB", items)
        note("index load", 1 / rate(lambda: OverlapIndex.load(path), 1, arguments.repeats, "load"), "s", items)
        tracemalloc.start()
        index = OverlapIndex.load(path)
        note("index memory", tracemalloc.get_traced_memory()[0] / 1e6, "MB", items)
        tracemalloc.stop()
    ours = rate(lambda: index.find(texts), len(texts), arguments.repeats, "index")
    note("look-up, index", ours, "rows/s", len(texts))
    note("look-up, index", ours * 60 / 1e6, "million rows/min", len(texts))
    known = {ngram for found in sets.values() for item in found for ngram in plain_ngrams(item.question)}
    plain = rate(
        lambda: [not known.isdisjoint(plain_ngrams(text)) for text in texts], len(texts), arguments.repeats, "plain set"
    )
    note("look-up, plain set of strings", plain, "rows/s", len(texts))
    note("look-up, index / plain set", ours / plain, "ratio", len(texts))
    if arguments.data is not None:
        rows += finds(arguments.data, index, rng)
    copies = edited(texts, arguments.duplicates, rng)
    methods: tuple[Method, ...] = ("exact", "minhash", "simhash")
    for method in methods:
        start = time.perf_counter()
        find_duplicates(copies, method)
        note(f"duplicates, {method}", time.perf_counter() - start, "s", len(copies))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="folder with gsm8k/, mcqa/ ... (default: generated questions)")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to look up (default %(default)s)")
    parser.add_argument("--duplicates", type=int, default=100_000, help="texts with duplicates (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data: no such folder: {arguments.data}")
    rows = measure(arguments)
    for row in rows:
        print(f"{row['name']:<44} {row['value']:>12} {row['unit']:<18} ({row['items']} items)")
    if not arguments.no_save:
        under = provenance(arguments.seed, ("numpy", "datasketch"))
        strings = {"strings": "real" if arguments.data else "generated"}
        path = RESULTS / "overlap.csv"
        save_rows(path, [row | strings | under for row in rows], ("name", "unit", "strings"))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
