"""The benchmark of the perplexity curve: what it runs, what it reads from a run, what it calls falling."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import read_rows, save_rows
from benchmarks.pretrain_curve import command, curve_rows, falls, plot


def write(folder: Path, perplexities: list[float]) -> None:
    lines = [{"step": 10 * i, "eval/perplexity": p, "eval/bits_per_byte": p / 9} for i, p in enumerate(perplexities)]
    lines += [{"step": 10, "loss": 4.5, "learning_rate": 1e-3, "aux_loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_becomes_rows_and_a_plot(tmp_path: Path) -> None:
    write(tmp_path, [90.0, 40.0, 30.0])
    save_rows(tmp_path / "curve.csv", curve_rows(tmp_path, seed=3), ("step",))
    rows = read_rows(tmp_path / "curve.csv")
    assert [row["step"] for row in rows] == ["0", "10", "20"] and rows[1]["loss"] == "4.5" and rows[0]["seed"] == "3"
    assert [row["held_out_perplexity"] for row in rows] == ["90.0", "40.0", "30.0"] and "aux_loss" not in rows[1]
    assert falls(rows)
    plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_what_does_not_fall(tmp_path: Path) -> None:
    for perplexities in ([90.0, 40.0], [90.0, 40.0, 41.0], [90.0, 40.0, 40.0]):
        write(tmp_path, perplexities)
        assert not falls([{k: str(v) for k, v in row.items()} for row in curve_rows(tmp_path, seed=1)])


def test_the_run_is_the_shipped_yaml() -> None:
    from mmreason.config import parse_config
    from recipes.pretrain import OPTIONS

    model, fresh, corpus, options = parse_config(OPTIONS, command("books/*.txt", 50, 7)[2:])
    options.check(model, fresh, corpus)
    assert (corpus.dataset_name, options.max_steps, options.seed) == ("books/*.txt", 50, 7)
