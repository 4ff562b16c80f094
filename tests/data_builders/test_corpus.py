"""The corpus builder on real text with planted copies and personal data, through datatrove's three executors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="the extra `corpus` is not installed")

from data_builders.corpus import Corpus, CorpusOptions, main, run
from tests.data_builders.corpus_texts import QUESTION, Planted, plant
from tests.data_builders.test_corpus_pii import EMAILS, PHONES

ROOT = Path(__file__).resolve().parents[2]
GOPHER = {"gopher": {"max_non_alpha_words_ratio": None, "max_ellipsis_lines_ratio": None}}


@pytest.fixture(scope="module")
def planted(shared_data: Path) -> Planted:
    return plant(shared_data)


@pytest.fixture(scope="module")
def source(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    path = folder / "pages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in planted.rows), encoding="utf-8")
    (folder / "questions.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "26"}) + "\n", encoding="utf-8")
    return path


def settings(source: Path, out: Path, **changed: Any) -> CorpusOptions:
    given: dict[str, Any] = {
        "source": [f"pages={source}"], "out": out, "decontaminate": [f"eggs={source.parent / 'questions.jsonl'}"],
        "rules": ["gopher"], "rule_options": GOPHER, "tasks_per_shard": 16, "workers": 1, "license": "odc-by",
    }  # fmt: skip
    return CorpusOptions(**(given | changed))


def words(source: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "data_builders.corpus", "--source", f"pages={source}", "--out", str(out),
        "--decontaminate", f"eggs={source.parent / 'questions.jsonl'}", "--rules", "gopher",
        "--rule_options", json.dumps(GOPHER), "--tasks_per_shard", "16", "--license", "odc-by", *more,
    ]  # fmt: skip


def rows(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def own_ids(found: Sequence[dict[str, Any]]) -> set[str]:
    return {json.loads(row["meta"])["id"] for row in found}


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("built") / "corpus"
    return out, run(Corpus(settings(source, out, keep_drops=True)), say=lambda _: None)


def test_all_planted_copies_are_found(built: tuple[Path, dict[str, Any]], planted: Planted) -> None:
    from data_builders._corpus.dedup import MinhashSignature, minhash_config

    signature = MinhashSignature(built[0], minhash_config(5, 14, 8, 0), ["en"])
    texts = {row["id"]: row["text"] for row in planted.rows}

    def similarity(one: str, two: str) -> float:
        a, b = (set(signature.get_shingles(texts[name]).ravel().tolist()) for name in (one, two))
        return len(a & b) / len(a | b)

    kept, places = own_ids(rows(built[0])), list(texts)
    assert len(planted.exact) == len(planted.near) == 10
    for copy, original in planted.exact.items():
        assert {copy, original} & kept == {min(copy, original, key=places.index)}, copy
    for copy, original in planted.near.items():
        assert 0.95 <= similarity(copy, original) < 1
        assert {copy, original} & kept == {min(copy, original, key=places.index)}, copy
    copied = {*planted.exact, *planted.exact.values(), *planted.near, *planted.near.values()}
    assert kept - copied == set(texts) - copied - set(planted.dropped)  # and nothing else is dropped


def test_each_planted_address_and_number_is_masked(built: tuple[Path, dict[str, Any]], planted: Planted) -> None:
    text = "\n".join(row["text"] for row in rows(built[0]))
    found = re.findall(r"You may reach (.*) today\.", text)
    assert len(found) == len(planted.told) == len(EMAILS) + len(PHONES)
    assert not [line for line in found if not re.search(r"<EMAIL>|<PHONE>", line) or re.search(r"\d|corp|@", line)]
    extra = built[1]["counts"]["extra"]
    assert extra["masked_email"] >= len(EMAILS) and extra["masked_phone"] >= len(PHONES)


def test_counts_tell_each_reason_and_drops_are_kept(built: tuple[Path, dict[str, Any]], planted: Planted) -> None:
    import gzip

    out, manifest = built
    counts = manifest["counts"]
    assert counts["tasks"]["done"] == counts["tasks"]["planned"] == len(planted.rows)
    assert counts["rows"]["kept"] == len(rows(out)) == len(planted.rows) - sum(counts["dropped"].values())
    dropped = counts["dropped"]
    assert dropped["exact_duplicate"] == 10
    assert dropped["minhash_duplicate"] + dropped.get("simhash_duplicate", 0) == 10
    for name, reason in planted.dropped.items():
        assert dropped[reason] == 1
        (path,) = (out / "dropped" / reason).glob("*.jsonl.gz")
        (held,) = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        assert held["metadata"]["id"] == name
    files = list((out / "dropped" / "exact_duplicate").glob("*"))
    assert sum(len(gzip.decompress(path.read_bytes()).splitlines()) for path in files) == 10
    assert manifest["decontamination"]["hits"] == {"eggs": 1}
    assert manifest["told"]["minhash_found"]["0.95"] > 0.9999997
    (noted,) = manifest["sources"]
    assert noted["license"] == "odc-by" and noted["rows"] == len(planted.rows)


def test_rows_load_in_datasets_and_the_card_says_what_they_are(built: tuple[Path, dict[str, Any]]) -> None:
    import datasets

    out, manifest = built
    found = datasets.load_dataset(str(out), cache_dir=str(out.parent / "cache"))
    assert found["train"].num_rows == manifest["counts"]["rows"]["kept"]
    assert found["train"].column_names == ["text", "id", "source", "meta"]
    assert len(set(found["train"]["id"])) == found["train"].num_rows
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "license: odc-by" in card and "exact_duplicate: 10" in card and "synthetic" not in card
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "gopher_short_doc" in report and "cocaine" in report


def test_the_finished_folder_is_left_alone_and_heals(
    built: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    import shutil

    from mmreason.types import ConfigError

    out = tmp_path / "corpus"
    shutil.copytree(built[0], out)
    shard = sorted(out.glob("*.parquet"))[1]
    data = shard.read_bytes()
    shard.unlink()
    assert run(Corpus(settings(source, out, keep_drops=True)), say=lambda _: None)["files"] == built[1]["files"]
    assert shard.read_bytes() == data
    with pytest.raises(ConfigError, match=r"another config's manifest.*config.minhash_rows \(8 there, 9 here\)"):
        run(Corpus(settings(source, out, minhash_rows=9)), say=lambda _: None)
    with pytest.raises(ConfigError, match=r"limit \(null there, 5 here\)"):
        run(Corpus(settings(source, out, limit=5)), say=lambda _: None)


@pytest.mark.slow
def test_two_processes_write_what_one_does(built: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        words(source, tmp_path / "two", "--workers", "2"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "two") == rows(built[0])
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"] == built[1]["counts"] and manifest["files"] == built[1]["files"]
    assert re.search(r"clean: \d/\d tasks in .*documents, .*/s", done.stderr)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_writes_the_same(
    built: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = words(source, out, "--workers", "2")
    begun = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    marks = out / ".build" / "stages" / "clean" / "completions"
    try:
        while not (marks.is_dir() and list(marks.iterdir())) and begun.poll() is None:
            time.sleep(0.02)
    finally:
        begun.send_signal(signal.SIGKILL)
        begun.wait()
    assert not (out / "manifest.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(out) == rows(built[0])


@pytest.mark.soak
def test_runs_killed_at_twenty_moments_write_the_same(
    built: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = words(source, out, "--workers", "2")
    for moment in range(20):
        begun = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            begun.wait(timeout=2 + 0.7 * moment)
        begun.send_signal(signal.SIGKILL)
        begun.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(out) == rows(built[0])


# --------------------------------------------------------------------------------------------------------------------
# A small set for what doesn't need many documents


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = [
        f"Number {n} of the stories tells how the boy number {n} went to the river with {n} stones." for n in range(12)
    ]
    (folder / "a.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{line} " * 3, "kind": "ab"[n % 2]}) + "\n"
            for n, line in enumerate([*lines, lines[0]])
        ),
        encoding="utf-8",
    )
    return folder


def small_options(small: Path, out: Path, **changed: Any) -> CorpusOptions:
    given: dict[str, Any] = {
        "source": [f"a={small / 'a.jsonl'}"], "out": out, "decontaminate": [], "rules": [], "tasks_per_shard": 5,
        "workers": 1, "minhash": False, "simhash": False, "languages": [], "license": "mit",
    }  # fmt: skip
    return CorpusOptions(**(given | changed))


def test_web_pages_become_text(small: Path) -> None:
    from tests.data_builders.test_corpus_files import TEXTS, warc

    name = small / "b.warc.gz"
    pages = [f"{text} The page goes on for a while, so that there is something to take out of it." for text in TEXTS]
    TEXTS[:], before = pages, list(TEXTS)
    try:
        name.write_bytes(warc(name, "response"))
    finally:
        TEXTS[:] = before
    options = small_options(small, small / "out", source=[f"web={name}"], pii=[], exact=False)
    manifest = run(Corpus(options), say=lambda _: None)
    assert manifest["counts"]["dropped"] == {}
    assert [row["text"].split() for row in rows(small / "out")] == [page.split() for page in pages]
    assert json.loads(rows(small / "out")[0]["meta"])["url"] == "http://x/0"


def test_shares_limits_tokens_and_bad_documents(small: Path, tiny_checkpoint: str) -> None:
    from transformers import AutoTokenizer

    from mmreason.data.documents import encode_texts, open_documents
    from mmreason.data.texts import Corpus as Texts

    with (small / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"no": "text"}\n')
    options = small_options(
        small, small / "out", domain="kind", domain_weights={"a": 1, "b": 2}, balance_by="documents",
        tokenizer=tiny_checkpoint, store_tokens=True, on_bad_row="drop",
    )  # fmt: skip
    manifest = run(Corpus(options), say=lambda _: None)
    assert manifest["counts"]["dropped"] == {"exact_duplicate": 1, "missing_text": 1, "over_share": 3}
    found = rows(small / "out")
    kinds = [json.loads(row["meta"])["domain"] for row in found]
    assert (kinds.count("a"), kinds.count("b")) == (3, 6)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    expected = [ids.tolist() for _, ids in encode_texts(Texts(str(small / "out")).read(), tokenizer)]
    stored = [open_documents(folder) for folder in sorted((small / "out" / "tokens").iterdir())]
    assert [docs.ids[a:b].tolist() for docs in stored for a, b in docs.spans] == expected
    assert [json.loads(row["meta"])["tokens"] for row in found] == list(map(len, expected))
    assert manifest["counts"]["extra"]["tokens"] == sum(map(len, expected))
    limited = run(Corpus(small_options(small, small / "seven", limit=7, on_bad_row="drop")), say=lambda _: None)
    assert limited["counts"]["rows"]["kept"] == 7 and [row["id"] for row in rows(small / "seven")] == [
        f"a/a.jsonl#{n}" for n in range(7)
    ]


def test_too_few_accepted_ends_the_run_and_shows_why(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--source",
        str(small / "a.jsonl"),
        "--out",
        str(small / "out"),
        "--rules",
        "gopher",
        "--decontaminate",
        "[]",
    ]
    words += ["--workers", "1", "--min_accept_rate", "0.5", "--min_accept_after", "10", "--languages", "en"]
    assert main([*words, "--rule_options.gopher.min_doc_words", "400"]) == 4
    said = capsys.readouterr().err
    assert "0.0% of the documents are left after cleaning" in said and "gopher_short_doc (13), e.g. a/a.jsonl#0" in said
    manifest = json.loads((small / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert not manifest["complete"] and manifest["stopped"].startswith("0.0%")


def test_a_weighted_domain_without_documents_is_named(small: Path) -> None:
    from mmreason.types import ConfigError

    options = small_options(small, small / "out", domain="kind", domain_weights={"a": 1, "bb": 2})
    with pytest.raises(ConfigError, match=r"domain_weights\.bb: no document.*There are: a, b"):
        run(Corpus(options), say=lambda _: None)
    assert not list((small / "out").glob("*.parquet"))


def test_a_dry_run_checks_and_writes_nothing(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--source", str(small / "a.jsonl"), "--out", str(small / "out"), "--decontaminate", "[]", "--dry_run"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "13 documents in 1 files; nothing written" in said and "stage minhash_buckets: 14 tasks" in said
    assert "names no licence" in said and "similarity 0.95 with probability 1.000000" in said
    assert not (small / "out").exists()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_cleanly(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from data_builders._corpus import steps
    from mmreason.types import MMReasonError

    written = steps.write_whole
    calls = []

    def full(path: Path, data: Any) -> None:
        if path.suffix == ".parquet":
            calls.append(path)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(path, data)

    monkeypatch.setattr(steps, "write_whole", full)
    options = small_options(small, small / "out")
    with pytest.raises(MMReasonError, match=r"stage write: No space left.*same command goes on"):
        run(Corpus(options), say=lambda _: None)
    assert run(Corpus(options), say=lambda _: None)["counts"]["rows"]["kept"] == 12
    assert len(calls) == 4  # the first shard was not written again


def test_shards_are_what_datasets_writes(tmp_path: Path) -> None:
    """The same features and rows as of `to_dataset`, though it isn't imported for them."""
    from datasets import load_dataset

    from data_builders._corpus.steps import COLUMNS, documents_parquet
    from mmreason.data.schema import to_dataset

    rows = [
        {"text": "one\n汉字", "id": "a#0", "source": "s", "meta": {"domain": "x", "n": 3, "deep": [{"ü": None}]}},
        {"text": "two", "id": "a#1", "source": "s", "meta": {}},
    ]
    (tmp_path / "shard.parquet").write_bytes(documents_parquet(rows))
    found = load_dataset("parquet", data_files=str(tmp_path / "shard.parquet"), split="train", cache_dir=str(tmp_path))
    expected = to_dataset(rows, COLUMNS)  # type: ignore[arg-type]
    assert found.features == expected.features and found.to_list() == expected.to_list() == rows


# --------------------------------------------------------------------------------------------------------------------
# Slurm and Ray


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake `sbatch` that keeps each script with its arguments and answers as Slurm does; returns its folder."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    fake = folder / "sbatch"
    fake.write_text(
        "#!/bin/bash\n"
        f"n=$(ls {folder}/*.script 2>/dev/null | wc -l); n=$((n + 101))\n"
        f'cp "${{@: -1}}" {folder}/$n.script; echo "${{@:1:$#-1}}" > {folder}/$n.arguments\n'
        'echo "Submitted batch job $n"\n',
        encoding="utf-8",
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def run_jobs(out: Path) -> Iterator[str]:
    """Run what the scripts start, `launch_pickled_pipeline PATH` for each number of the array, in this process."""
    import dill

    jobs = json.loads((out / ".build" / "slurm_jobs.json").read_text(encoding="utf-8"))
    for stage in jobs:
        script = (out / ".build" / "stages" / stage / "launch_script.slurm").read_text(encoding="utf-8")
        (last,) = re.findall(r"#SBATCH --array=0-(\d+)%", script)
        (pickled,) = re.findall(r"srun .*launch_pickled_pipeline (\S+)", script)
        for number in range(int(last) + 1):
            os.environ["SLURM_ARRAY_TASK_ID"] = str(number)
            with Path(pickled).open("rb") as file, redirect_stderr(StringIO()):
                dill.load(file).run()
        yield stage


@pytest.mark.slow
def test_slurm_scripts_and_what_they_run(small: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts ask for what was told, wait for one another, and their pipelines give the rows of a local run."""
    out = small / "slurm_out"
    told: list[str] = []
    slurm = {
        "partition": "cpu",
        "time": "01:00:00",
        "mem_per_cpu_gb": 3,
        "qos": "low",
        "sbatch_args": {"account": "lab"},
    }
    options = small_options(small, out, executor="slurm", slurm=slurm, workers=2)
    assert run(Corpus(options), say=told.append) == {}
    stages = ["clean", "exact_signatures", "exact_find", "write", "finish"]
    scripts = {int(path.stem): path.read_text(encoding="utf-8") for path in sbatch.glob("*.script")}
    arguments = {int(path.stem): path.read_text(encoding="utf-8") for path in sbatch.glob("*.arguments")}
    jobs = json.loads((out / ".build" / "slurm_jobs.json").read_text(encoding="utf-8"))
    assert list(jobs) == stages and len(scripts) == 2 * len(stages)  # each with a job that sums its statistics up
    before = None
    for stage, job in jobs.items():
        script = scripts[int(job)]
        tasks = 3 if stage in ("clean", "exact_signatures", "write") else 1
        for line in (
            "--partition=cpu", "--time=01:00:00", "--mem-per-cpu=3G", "--qos=low", "--account=lab",
            f"--job-name=corpus_{stage}", f"--array=0-{tasks - 1}%{min(2, tasks)}",
        ):  # fmt: skip
            assert f"#SBATCH {line}\n" in script, line
        assert script == (out / ".build" / "stages" / stage / "launch_script.slurm").read_text(encoding="utf-8")
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
        assert f"export PATH={Path(sys.executable).parent}:" in script and f"export PYTHONPATH={ROOT}" in script
        assert (f"--dependency=afterok:{before}" in arguments[int(job)]) == (before is not None)
        before = job
        assert any(line.startswith(f"{stage}: job {job}") for line in told)
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    (sbatch / "scontrol").write_text("#!/bin/bash\necho localhost\n", encoding="utf-8")
    (sbatch / "scontrol").chmod(0o755)
    assert list(run_jobs(out)) == stages
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    local = run(Corpus(small_options(small, small / "local_out")), say=lambda _: None)
    assert rows(out) == rows(small / "local_out")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"] and manifest["files"] == local["files"] and manifest["counts"] == local["counts"]
    assert run(Corpus(options), say=told.append) == manifest  # nothing is left to be submitted
    assert told[-1] == "all stages are done"


@pytest.mark.slow
def test_too_few_accepted_ends_slurms_jobs(small: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmreason.types import MMReasonError

    out = small / "slurm_out"
    options = small_options(
        small, out, executor="slurm", slurm={"partition": "cpu", "time": "1", "srun_args": {}}, languages=["en"],
        rules=["gopher"], rule_options={"gopher": {"min_doc_words": 400}}, min_accept_rate=0.5, min_accept_after=10,
    )  # fmt: skip
    assert run(Corpus(options), say=lambda _: None) == {}
    script = (out / ".build" / "stages" / "write" / "launch_script.slurm").read_text(encoding="utf-8")
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in script
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    (sbatch / "scontrol").write_text("#!/bin/bash\necho localhost\n", encoding="utf-8")
    (sbatch / "scontrol").chmod(0o755)
    jobs = run_jobs(out)
    assert next(jobs) == "clean"
    with pytest.raises(MMReasonError, match=r"0\.0% of the documents are left after cleaning"):
        next(jobs)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert not manifest["complete"] and manifest["stopped"].startswith("0.0%")


@pytest.mark.slow
def test_ray_runs_the_same(small: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    out = small / "ray_out"
    code = (
        "import ray; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, "
        "object_store_memory=80_000_000, _memory=2_000_000_000)\n"
        "import sys; from data_builders.corpus import main; sys.exit(main(sys.argv[1:]))\n"
    )
    command = [
        sys.executable, "-c", code, "--source", f"a={small / 'a.jsonl'}", "--out", str(out), "--decontaminate", "[]",
        "--rules", "[]", "--tasks_per_shard", "5", "--workers", "2", "--no_minhash", "--no_simhash",
        "--languages", "[]", "--license", "mit", "--executor", "ray", "--ray.mem_per_cpu_gb", "0.5",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run(Corpus(small_options(small, small / "local_out")), say=lambda _: None)
    assert rows(out) == rows(small / "local_out")


@pytest.mark.slow
def test_pretraining_takes_a_step_on_the_shards(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from tests.recipes.launch import metrics
    from tests.recipes.launch import run as launch

    done = launch(
        [
            sys.executable, "recipes/pretrain.py", "--config", "recipes/configs/pretrain/embedded.yaml",
            "--dataset_name", str(built[0]), "--dataset_test_split", "null", "--word_problems", "null",
            "--output_dir", str(tmp_path / "run"), "--max_steps", "1",
            "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--tiny_size", "xs",
            "--warmup_steps", "0", "--use_cpu", "--logging_steps", "1", "--max_length", "64", "--packing_window", "8",
            "--train_tokenizer", "{vocab_size: 400}", "--eval_samples", "2",
        ]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{built[1]['counts']['rows']['kept']} documents" in done.stdout
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1]
