"""How fast is the corpus builder beside plain datatrove? Documents a second on one core, and how that grows with size.

    python benchmarks/corpus.py                                # web-like pages made by code
    python benchmarks/corpus.py --data ../shared/data          # real web pages, repeated with other words

The peer is a script as datatrove's own examples have it: the same blocks with the same settings (reading, masking,
language, Gopher's repetition and quality rules, exact and MinHash deduplication, parquet), wired by hand for one
process. The builder also inspects the sources, counts reasons, and writes manifest, card and report. Both run in
processes of their own at the same time, so that what slows the machine slows both; processor seconds count, and the
ratio is the median over such pairs.
Writes benchmarks/results/corpus.csv and corpus.png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, child_environment, provenance, read_rows, save_rows

_TEXT = (
    "the of and to in that is was for on are with as be at by this from have or had not but what all were when we "
    "there can an your which their said if do will each about how up out them then she many some so these would other "
    "into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water long little very after words called just where most know house river stone garden"
)
_WORDS = _TEXT.split()


def made_page(rng: random.Random) -> str:
    """A page of some ten paragraphs that Gopher's rules let pass."""
    paragraphs = []
    for _ in range(rng.randint(4, 16)):
        sentences = [" ".join(rng.choices(_WORDS, k=rng.randint(6, 18))).capitalize() + "." for _ in range(5)]
        paragraphs.append(" ".join(sentences))
    return "\n".join(paragraphs)


def make_pages(path: Path, count: int, data: Path | None, seed: int) -> None:
    """`count` documents; one in ten is a copy, one in ten a near copy, one in ten names an address."""
    rng = random.Random(seed)
    real: list[str] = []
    if data is not None:
        lines = (data / "text" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
        real = [json.loads(line)["text"] for line in lines]
    texts: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number % 10 == 7:
                text = rng.choice(texts)
            elif number % 10 == 8:
                text = rng.choice(texts) + " Finis."
            elif real:
                words = real[number % len(real)].split(" ")
                text = " ".join(rng.choice(_WORDS) if number >= len(real) and rng.random() < 0.3 else w for w in words)
            else:
                text = made_page(rng)
            if number % 10 == 9:
                text += f"\nWrite to user{number}@example.com or call (415) 555-{number % 10000:04d}."
            texts.append(text)
            file.write(json.dumps({"text": text, "id": str(number)}) + "\n")


def run_plain(source: Path, out: Path) -> None:
    """The script without the builder."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter, ParquetWriter

    from data_builders._corpus.dedup import HASH, even, minhash_config
    from data_builders._corpus.rules import LanguageRule, MaskPii

    exact, minhash = ExactDedupConfig(content_getter=even, hash_config=HASH), minhash_config(5, 14, 8, 0)
    clean = str(out / "clean")
    exact_filter = lambda: ExactDedupFilter(str(out / "copies"), exact)  # noqa: E731
    (out / "copies").mkdir(parents=True)
    stages: list[tuple[list[Any], int]] = [
        (
            [
                JsonlReader(str(source.parent), glob_pattern=source.name),
                MaskPii(["email", "id", "card", "ip", "phone"]),
                LanguageRule(["en"], 0.65, None),  # type: ignore[arg-type]
                GopherRepetitionFilter(language="en"),
                GopherQualityFilter(language="en"),
                JsonlWriter(clean, output_filename="${rank}.jsonl.zst", compression="zstd"),
            ],
            1,
        ),
        ([JsonlReader(clean), ExactDedupSignature(str(out / "exact"), exact)], 1),
        ([ExactFindDedups(str(out / "exact"), str(out / "copies"), exact)], 1),
        ([JsonlReader(clean), exact_filter(), MinhashDedupSignature(str(out / "minhash"), minhash, language="en")], 1),
        ([MinhashDedupBuckets(str(out / "minhash"), str(out / "pairs"), config=minhash, lines_to_buffer=1024)], 14),
        ([MinhashDedupCluster(str(out / "pairs"), str(out / "removed"), config=minhash)], 1),
        (
            [
                JsonlReader(clean),
                exact_filter(),
                MinhashDedupFilter(str(out / "removed")),
                ParquetWriter(str(out / "rows"), adapter=as_row),
            ],
            1,
        ),
    ]
    for number, (steps, tasks) in enumerate(stages):
        LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(out / f"logs{number}")).run()


def as_row(_: Any, doc: Any) -> dict[str, str]:
    """A row of the plain script: meta as JSON, since a parquet column wants the same fields in each."""
    return {"text": doc.text, "id": doc.id, "meta": json.dumps(doc.metadata)}


def run_ours(source: Path, out: Path) -> None:
    """The builder with the same blocks."""
    from data_builders.corpus import Corpus, CorpusOptions, run

    run(
        Corpus(
            CorpusOptions(
                source=[f"pages={source}"],
                out=out,
                decontaminate=[],
                rules=["repetition", "gopher"],
                harmful_min=0,
                simhash=False,
                workers=1,
                license="cc0-1.0",
            )
        )
    )


def kept_rows(out: Path) -> int:
    """Rows in the parquet files of a run."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in [*out.glob("*.parquet"), *out.glob("rows/*.parquet")])


def measure_pair(ways: Sequence[str], source: Path, seed: int) -> dict[str, dict[str, Any]]:
    """By way: seconds, processor seconds and rows of runs that work at the same time, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(number) for number in range(len(ways))]
        started = time.perf_counter()
        names = {}
        for way, out in zip(ways, outs, strict=True):
            command = [sys.executable, __file__, "--worker", way, str(source), str(out), "--seed", str(seed)]
            process = subprocess.Popen(
                command, env=child_environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            names[process.pid] = (way, out)
        found: dict[str, dict[str, Any]] = {}
        while names:
            pid, status, used = os.wait3(0)  # with what the processes used that it started itself
            way, out = names.pop(pid)
            if status != 0:
                raise SystemExit(f"{way} ended with status {os.waitstatus_to_exitcode(status)} on {source}")
            cpu = used.ru_utime + used.ru_stime
            found[way] = {"seconds": time.perf_counter() - started, "cpu_seconds": cpu, "rows": kept_rows(out)}
        return found


def plot(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Processor seconds against documents, both ways."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    for way, colour in (("plain datatrove", "0.45"), ("mmreason build corpus", "tab:blue")):
        own = sorted((int(row["documents"]), float(row["documents_per_cpu_s"])) for row in rows if row["way"] == way)
        axis.plot([n for n, _ in own], [n / rate for n, rate in own], "o-", color=colour, label=way)
    axis.set_xscale("log")
    axis.set_yscale("log")
    sizes = sorted({int(row["documents"]) for row in rows})
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_minor_formatter("")
    axis.set_xlabel("documents")
    axis.set_ylabel("processor seconds")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder with text/c4_demo.jsonl")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000, 8000], help="documents")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=3, metavar=("WAY", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, source, out = arguments.worker
        (run_plain if way == "plain datatrove" else run_ours)(Path(source), Path(out))
        return
    measured = []
    ways = ("plain datatrove", "mmreason build corpus")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "pages.jsonl"
            make_pages(source, size, arguments.data, arguments.seed)
            pairs = [
                measure_pair(ways if repeat % 2 == 0 else ways[::-1], source, arguments.seed)
                for repeat in range(arguments.repeats)
            ]
        runs = {way: [pair[way] for pair in pairs] for way in ways}
        rates = {way: size / statistics.median(one["cpu_seconds"] for one in runs[way]) for way in ways}
        quicker = [pair[ways[0]]["cpu_seconds"] / pair[ways[1]]["cpu_seconds"] for pair in pairs]
        ratios = {ways[0]: 1.0, ways[1]: statistics.median(quicker)}
        for way in ways:
            measured.append(
                {
                    "texts": "made" if arguments.data is None else "c4_demo",
                    "documents": size,
                    "way": way,
                    "rows": runs[way][0]["rows"],
                    "documents_per_cpu_s": round(rates[way], 2),
                    "documents_per_s": round(size / statistics.median(one["seconds"] for one in runs[way]), 2),
                    "ratio": round(ratios[way], 3),
                    "repeats": arguments.repeats,
                    **provenance(arguments.seed, ["datatrove", "spacy", "py3langid"]),
                }
            )
            print(
                {key: measured[-1][key] for key in ("documents", "way", "rows", "documents_per_cpu_s", "ratio")},
                flush=True,
            )
        save_rows(RESULTS / "corpus.csv", measured, ("texts", "documents", "way"))
        plot(read_rows(RESULTS / "corpus.csv"), RESULTS / "corpus.png")


if __name__ == "__main__":
    main()
