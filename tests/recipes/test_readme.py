"""The README: its first screen, the tree and the lists it shows, its numbers, its example. Commands: tests/docs."""

from __future__ import annotations

import csv
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.engine_parity import PICTURES
from tests.commands import blocks, commands
from tests.recipes.launch import ROOT, environment
from tests.timing import allowed

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
CURVE = "benchmarks/results/demo_learning.png"


def test_the_first_screen() -> None:
    """A sentence, two commands, the learning curve, the GPU command: in this order, before the first heading."""
    head = TEXT[: TEXT.index("\n## ")]
    first, gpu = (block for block in blocks(README) if block.body in head)
    assert [line.split("  #")[0].strip() for line in first.body.splitlines()] == ["make demo", "make test"]
    assert re.fullmatch(r"# mmreason\n\n[^\n]+\n\n```bash\n", head[: head.index(first.body)])
    assert "recipes/accelerate/one_gpu.yaml" in gpu.body and len(gpu.body.splitlines()) == 1
    if (ROOT / CURVE).exists():
        assert head.index(first.body) < head.index(f"({CURVE})") < head.index(gpu.body)


SCRIPTS = sorted(path for folder in ("recipes", "data_builders") for path in (ROOT / folder).glob("[!_]*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_help_in_half_a_second(path: Path) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(path), "--help"], env=environment(), capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < allowed(0.5), seconds


def test_the_tree_is_the_one_on_disk() -> None:
    (tree,) = (block.body for block in blocks(README) if block.body.startswith("mmreason/"))
    folder, listed = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            listed.add(name)
        elif re.match(r"  \S+\s{2,}", line):
            listed.add(f"{folder}{name}")
    assert all((ROOT / name).exists() for name in listed), listed
    packages = {f"mmreason/{path.parent.name}/" for path in (ROOT / "mmreason").glob("*/__init__.py")}
    assert packages <= listed, f"the README's tree lacks {sorted(packages - listed)}"


def test_every_recipe_is_shown() -> None:
    shown = " ".join(command.text for command in commands(README))
    assert all(f"recipes/{path.name}" in shown for path in (ROOT / "recipes").glob("[!_]*.py"))


def test_the_list_of_rewards_is_complete() -> None:
    from mmreason.rewards.registry import REWARDS

    (sentence,) = re.findall(r"^Built in: (.*?);", TEXT, re.S | re.M)
    assert re.findall(r"`(\w+)`", sentence) == list(REWARDS)


def rows(name: str) -> list[dict[str, Any]]:
    with (ROOT / "benchmarks" / "results" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measured() -> dict[str, str]:
    """Numbers of the README and of docs/compare.md as the CSVs have them."""
    steps = [row for row in rows("grpo_step.csv") if row["what"] == "step"]
    seconds = {who: [float(r["seconds"]) for r in steps if r["trainer"] == who] for who in ("ours", "trl")}
    ratios = [float(row["ratio"]) for row in rows("grpo_step.csv") if row["what"] == "rollout"]
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for row in rows("engine_parity.csv"):
        gaps[row["setup"] in PICTURES].append(float(row["max_logp_difference"]))
    return {
        "our step": f"{statistics.median(seconds['ours']):.2f} s",
        "TRL's step": f"{statistics.median(seconds['trl']):.2f} s",
        "vLLM": f"{statistics.median(ratios):.2f}",
        "log-prob, text": f"{max(gaps[False]):.1e}".replace("e-0", "e-"),
        "log-prob, pictures": f"{max(gaps[True]):.1e}".replace("e-0", "e-"),
    }


@pytest.mark.parametrize("page", ["README.md", "docs/compare.md"])
def test_numbers_are_those_of_the_csvs(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for what, number in measured().items():
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), f"{page}: {what} is {number} in the CSV"


def test_the_demo_learns_what_the_readme_says() -> None:
    found = {row["run"]: row for row in rows("demo_learning.csv")}
    seeds = [found[f"seed-{seed}"] for seed in (1, 2, 3)]

    def percent(rows: list[dict[str, Any]], column: str) -> str:
        return ", ".join(dict.fromkeys(f"{100 * float(row[column]):.1f}" for row in rows))

    def arrow(before: str, after: str) -> str:
        return f"{percent(seeds, before)} % → {percent(seeds, after)} %"

    assert arrow("greedy_before", "greedy_after") in TEXT and arrow("unseen_before", "unseen_after") in TEXT
    assert f"{percent([found['seed-1-vllm']], 'greedy_after')} % with vLLM rollouts" in TEXT
    assert found["seed-1-again"]["same_curve"] == "yes"
    assert all(row["intervals_overlap"] == "no" and float(row["gain_points"]) >= 10 for row in found.values())


def test_the_demo_learns_to_see_as_readme_and_docs_say() -> None:
    found = [row for row in rows("demo_vision.csv") if row["run"] in ("seed-1", "seed-2", "seed-3")]
    assert len(found) == 3

    def percent(column: str) -> str:
        return ", ".join(f"{100 * float(row[column]):.1f}" for row in found)

    claim = f"{percent('greedy_before')} % → {percent('greedy_after')} %"
    page = (ROOT / "docs" / "shapes.md").read_text(encoding="utf-8")
    assert claim in TEXT and f"blank images {percent('blank_accuracy')} %" in TEXT
    for row in found:
        cells = [
            row["run"].replace("-", " "),
            *(f"{100 * float(row[f'greedy_{when}']):.1f} %" for when in ("before", "after")),
        ]
        assert f"| {' | '.join(cells)} |" in page
    assert all(row["intervals_overlap"] == "no" and float(row["gain_points"]) >= 10 for row in found)
    assert all(float(row["blank_low"]) <= float(row["chance"]) for row in found)
    assert all(float(row["wall_seconds"]) <= 1200 for row in found), "twenty minutes are claimed"


def test_the_verifier_is_as_fast_as_the_csv_says() -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    rate = {row["name"]: float(row["value"]) for row in rows("answers.csv")}
    pool, alone = rate["hard pool, 2 workers"], rate["hard math-verify, 1 process"]
    assert f"| {pool:.0f} and {alone:.0f} answers/s |" in text
    assert f"| {round(rate['easy verify_many'], -2):,.0f} answers/s |" in text


def test_the_reward_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmreason.rewards import load_rewards
    from mmreason.rewards.run import compute_rewards

    (code,) = (block for block in blocks(README) if block.language == "python")
    (settings,) = (yaml.safe_load(block.body) for block in blocks(README) if block.language == "yaml")
    (tmp_path / str(code.file_name)).write_text(code.body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    texts = ["so it is 4", "x" * 300 + " 5"]
    batch = compute_rewards(
        load_rewards(settings["reward_funcs"]), settings["reward_weights"], prompts=["a", "b"],
        completions=[[{"role": "assistant", "content": text}] for text in texts], completion_ids=[[1], [2]],
        columns={"answer": ["4", "4"]},
    )  # fmt: skip
    assert batch.total.tolist() == pytest.approx([1.2, 0.2 * (2 - 302 / 200)])
