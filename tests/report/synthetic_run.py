"""Run folders as the recipes leave them, made from a seed: the same columns, a plausible course, any size."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VERDICTS = ("correct", "wrong", "unparseable", "timeout")
WORDS = [
    "Ana",
    "Ben",
    "has",
    "apples",
    "and",
    "buys",
    "gives",
    "then",
    "so",
    "left",
    "in",
    "all",
    "The",
    "answer",
    "is",
]
VOCABULARY = (
    [" " + w for w in WORDS] + [f" {n}" for n in range(60)] + [" +", " -", " =", "\n", ".", " 答案", "是", "<|end|>"]
)
HOSTILE = (
    "<script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=1">',
    "</script><script>window.pwned=1</script>",
    "<!--<script>",
    "\u2028\u2029 ]]> \u202e desrever \x07 \\u003cb>",
)


@dataclass(frozen=True)
class Shape:
    """steps; groups of `generations` completions of `tokens` tokens in each; held-out problems of each set."""

    steps: int = 12
    groups: int = 3
    generations: int = 4
    tokens: int = 12
    problems: int = 20
    sets: tuple[str, ...] = ("held_out", "unseen_templates")
    seed: int = 0

    @property
    def completions(self) -> int:
        return self.steps * self.groups * self.generations


def make_run(folder: Path, shape: Shape | None = None, **changes: Any) -> Shape:
    """Write a whole run; `changes` are fields of Shape. Returns the shape."""
    shape = replace(shape or Shape(), **changes)
    rng = np.random.default_rng(shape.seed)
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    (folder / "evaluations").mkdir(exist_ok=True)
    rows = []
    for step in range(1, shape.steps + 1):
        table = rollout_table(step, shape, rng)
        pq.write_table(table, folder / "rollouts" / f"rollout-{step:06d}.parquet", compression="zstd")
        rows.append(metrics_row(step, shape, table, rng))
        rows[-1]["num_tokens"] += rows[-2]["num_tokens"] if step > 1 else 0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_evaluations(folder, shape, rng)
    write_settings(folder, shape)
    return shape


def skill(step: int, shape: Shape) -> float:
    """Probability of a right answer: an S-shaped rise."""
    return 0.15 + 0.75 / (1 + math.exp(-8 * (step / shape.steps - 0.45)))


def rollout_table(step: int, shape: Shape, rng: np.random.Generator) -> pa.Table:
    n = shape.groups * shape.generations
    right = skill(step, shape)
    verdicts = rng.choice(VERDICTS, n, p=[right, (1 - right) * 0.7, (1 - right) * 0.28, (1 - right) * 0.02])
    rewards = (verdicts == "correct") + 0.1 * (verdicts == "wrong")
    grouped = rewards.reshape(shape.groups, -1)
    spread = grouped.std(axis=1, keepdims=True)
    advantages = ((grouped - grouped.mean(axis=1, keepdims=True)) / (spread + 1e-4)).reshape(-1)
    low = max(1, shape.tokens // 2)
    lengths = np.clip(
        (low + shape.tokens * 0.5 * step / shape.steps + rng.normal(0, 2, n)).astype(int), 1, shape.tokens
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, len(VOCABULARY) - 1, offsets[-1])
    ids[offsets[1:] - 1] = len(VOCABULARY) - 1
    logps = np.log(rng.beta(1 + 4 * right, 0.6, offsets[-1]) + 1e-9)
    tokens = np.array(VOCABULARY, dtype=object)[ids]
    texts = ["".join(tokens[offsets[i] : offsets[i + 1] - 1]) for i in range(n)]
    group = np.repeat(np.arange(shape.groups), shape.generations)
    operands = rng.integers(2, 30, (shape.groups, 2))
    prompts = [f"Ana has {a} apples and buys {b} more. How many are there in all?" for a, b in operands]
    lists = pa.array(offsets, pa.int32())
    return pa.table(
        {
            "rollout": np.full(n, step),
            "step": np.full(n, step - 1),
            "group": group,
            "id": [f"word_problems/{step}/{g}" for g in group],
            "prompt": [prompts[g] for g in group],
            "completion": texts,
            "answer": [str(operands[g].sum()) for g in group],
            "prompt_length": np.full(n, 30),
            "completion_length": lengths,
            "truncated": lengths == shape.tokens,
            "reward": rewards,
            "advantage": advantages,
            "completion_ids": pa.ListArray.from_arrays(lists, pa.array(ids)),
            "completion_tokens": pa.ListArray.from_arrays(lists, pa.array(tokens.tolist())),
            "sampling_logps": pa.ListArray.from_arrays(lists, pa.array(logps)),
            "rewards/accuracy_reward": rewards,
            "verdict": verdicts.tolist(),
            "extracted": [None if v == "unparseable" else str(v) for v in verdicts],
        }
    )


def metrics_row(step: int, shape: Shape, table: pa.Table, rng: np.random.Generator) -> dict[str, Any]:
    rewards, lengths = np.array(table["reward"]), np.array(table["completion_length"])
    verdicts = table["verdict"].to_pylist()
    reward, seconds = float(rewards.mean()), 1.5 + rng.random() * 0.2
    row: dict[str, Any] = {
        "step": step,
        "time/sync": 0.01,
        "time/rollout": seconds * 0.6,
        "time/reward": 0.02,
        "time/reward/accuracy_reward": 0.015,
        "time/score": 0.1,
        "time/update": seconds * 0.3,
        "time/step": seconds,
        "reward": reward,
        "reward_std": float(rewards.std()),
        "frac_reward_zero_std": float(rng.random() * 0.3),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((lengths == shape.tokens).mean()),
        "rewards/accuracy_reward/mean": reward,
        "clip_ratio/low_mean": float(rng.random() * 0.01),
        "clip_ratio/high_mean": float(rng.random() * 0.02),
        "entropy": 1.2 - 0.9 * step / shape.steps + rng.normal(0, 0.03),
        "kl": 0.02 * step / shape.steps + abs(rng.normal(0, 0.002)),
        "sampling/importance_sampling_ratio/mean": 1 + rng.normal(0, 1e-3),
        "loss": None if step == 3 else rng.normal(0, 0.01),
        "grad_norm": abs(rng.normal(0.5, 0.1)) + (5 if step == shape.steps // 2 else 0),
        "learning_rate": 5e-5 * min(1, step / 5),
        "num_tokens": float(lengths.sum()),
        "epoch": step / 100,
    }
    row |= {f"verdict/{v}": verdicts.count(v) / len(verdicts) for v in sorted(set(verdicts))}
    if step % max(1, shape.steps // 4) == 0:
        row |= {f"eval/{name}/greedy": skill(step, shape) - 0.05 * i for i, name in enumerate(shape.sets)}
        row |= {f"eval/{name}/mean_length": float(lengths.mean()) for name in shape.sets}
    return row


def accuracy(correct: int, n: int) -> dict[str, float]:
    value = correct / n
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return {"correct": correct, "n": n, "value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def write_evaluations(folder: Path, shape: Shape, rng: np.random.Generator) -> None:
    n = shape.problems
    entries: dict[str, Any] = {}
    moments = {"before": 0, f"step {shape.steps // 2}": shape.steps // 2, "after": shape.steps}
    ease = {name: rng.random(n) for name in shape.sets}
    for moment, step in moments.items():
        sets: dict[str, Any] = {}
        for i, name in enumerate(shape.sets):
            right = ease[name] + rng.normal(0, 0.1, n) < skill(step, shape) - 0.08 * i
            verdicts = ["correct" if r else "wrong" if k % 4 else "unparseable" for k, r in enumerate(right)]
            length = int(shape.tokens * (0.5 + 0.4 * step / shape.steps))
            steps = [" ".join(rng.choice(WORDS, max(2, length // 2))) for _ in range(n)]
            table = {
                "row": list(range(n)),
                "id": [f"word_problems/{name}/{k}" for k in range(n)],
                "prompt": [
                    f"Ben has {k + 2} cards and gives {k % 7} of them away. How many are left?" for k in range(n)
                ],
                "completion": [
                    f"{text}\nThe answer is {k if r else k + 1}."
                    for k, (r, text) in enumerate(zip(right, steps, strict=True))
                ],
                "answer": [str(k) for k in range(n)],
                "verdict": verdicts,
                "extracted": [None if v == "unparseable" else str(k) for k, v in enumerate(verdicts)],
                "length": [length] * n,
            }
            pq.write_table(pa.table(table), folder / "evaluations" / f"step-{step:06d}-{name}.parquet")
            correct = int(right.sum())
            sets[name] = {
                "greedy": accuracy(correct, n),
                "greedy_strict": accuracy(max(0, correct - 1), n),
                "majority": accuracy(min(n, correct + 1), n) if moment in ("before", "after") else None,
                "k": 4,
                "verdicts": {v: verdicts.count(v) for v in sorted(set(verdicts))},
                "mean_length": float(length),
            }
        entries[moment] = {"step": step, "sets": sets}
    (folder / "evaluation.json").write_text(json.dumps(entries), encoding="utf-8")


def write_settings(folder: Path, shape: Shape) -> None:
    lines = {
        "model_name_or_path": "models/tiny",
        "dataset_name": "word_problems",
        "output_dir": "outputs/demo",
        "max_steps": shape.steps,
        "num_generations": shape.generations,
        "max_completion_length": shape.tokens,
        "learning_rate": 5e-5,
        "beta": 0.0,
        "loss_type": "dapo",
        "use_vllm": False,
        "vllm_server_base_url": None,
        "reward_weights": None,
        "seed": shape.seed,
    }
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
    (folder / "config.yaml").write_text(text + "reward_funcs:\n- name: accuracy\n", encoding="utf-8")
    record = {
        "identity": {"seed": shape.seed, "num_generations": shape.generations},
        "versions": {"mmreason": "0.1.0", "torch": "2.13.0"},
        "machine": {"cpu": "x86_64, 2 cores", "gpu": "none"},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def edit_rollout(path: Path, **columns: list[Any] | None) -> None:
    """Replace columns of a rollout file; None takes one out."""
    table = pq.read_table(path)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def make_hostile(folder: Path) -> None:
    """Let the model of the last rollout write markup, as text and as tokens; the held-out answers too."""
    path = sorted((folder / "rollouts").glob("*.parquet"))[-1]
    rows = pq.read_table(path).num_rows
    said = [HOSTILE[i % len(HOSTILE)] for i in range(rows)]
    tokens = [list(text) for text in said]
    edit_rollout(
        path,
        completion=said,
        completion_tokens=tokens,
        sampling_logps=[[-0.5] * len(t) for t in tokens],
        completion_length=[len(t) for t in tokens],
        prompt=[HOSTILE[0]] * rows,
        id=[HOSTILE[1]] * rows,
        extracted=said,
        verdict=["correct", HOSTILE[0], *["wrong"] * (rows - 2)],
        **{HOSTILE[0]: said},
    )
    for sheet in (folder / "evaluations").glob("*.parquet"):
        n = pq.read_table(sheet).num_rows
        said = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
        edit_rollout(sheet, completion=said, prompt=said, answer=said, extracted=said, id=said)
