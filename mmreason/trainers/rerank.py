"""Of k sampled answers the one that scores highest, by the critic or by a reward (ReFT, arXiv 2401.08967 sec. 4.3)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from mmreason.answers import verify_many
from mmreason.rewards import load_rewards
from mmreason.rewards.registry import RewardFunc
from mmreason.rewards.run import OnError, compute_rewards
from mmreason.rollout.evaluate import Accuracy, draw_answers, vote_seed, wilson_interval
from mmreason.trainers.batch import Samples
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.reporting import decode
from mmreason.trainers.state import write_json
from mmreason.types import ConfigError

FILE = "rerank.json"
"""In the output folder: what `rerank_held_out` measured."""


def rerank_held_out(trainer: Any, sets: Mapping[str, HeldOut], k: int, by: str | Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of the answer chosen among k, and the share of problems with a right one among them. Collective.

    The samples are those of the majority vote: the same weights, seed and settings. A reward that fails or hangs stops
    the run or masks rows as the trainer's `on_reward_error` and `reward_timeout` have it; a masked answer comes last.

    Args:
        trainer: a PolicyTrainer at its last step. sets: held-out problems by name.
        by: "critic": its value before an answer's last token, what it expects of the whole answer; or a reward.
    """
    trainer.engine.sync()
    name = by if isinstance(by, str) else str(by.get("as") or by.get("name"))
    reward = None if by == "critic" else load_rewards([by])[0]
    found: dict[str, Any] = {}
    for key, held_out in sets.items():
        chosen, best = _choose(trainer, held_out, k, reward)
        found[key] = {"k": k, "by": name, "reranked": _shown(chosen), "pass_at_k": _shown(best)}
        trainer.accelerator.print(f"{key}: reranked@{k} by {name} {chosen}   right one among {k}: {best}")
    if trainer.accelerator.is_main_process and found:
        write_json(Path(trainer.args.output_dir) / FILE, found)
    return found


def _choose(trainer: Any, held_out: HeldOut, k: int, reward: RewardFunc | None) -> tuple[Accuracy, Accuracy]:
    """By the reward, or by the critic where there is none."""
    world, rank = trainer.parallel.size, trainer.parallel.rank
    n = len(held_out.prompt_ids)
    mine = [i * world + rank for i in range(-(-n // world))]  # every process has as many; the last may repeat row 0
    rows = [i if i < n else 0 for i in mine]
    seen = held_out.visuals
    examples = [held_out.dataset[i] for i in rows]
    asked = [(held_out.prompt_ids[i], i) for i in rows]
    seed = vote_seed(trainer._seed(-1))
    by_row = dict(zip(rows, examples, strict=True))
    groups = draw_answers(trainer.engine, asked, by_row, seen, k, trainer.sampling, seed)
    drawn = [completion for group in groups for completion in group]
    texts = [decode(trainer.tokenizer, completion.token_ids) for completion in drawn]
    samples = Samples.of([i for i in rows for _ in range(k)], held_out.prompt_ids, drawn, False)
    if reward is None:
        scores = critic_scores(trainer, samples, seen)
    else:
        scores = reward_scores(
            reward,
            samples,
            texts,
            [example for example in examples for _ in range(k)],
            on_error=trainer.args.on_reward_error,
            timeout=trainer.args.reward_timeout,
        )
    told = texts if trainer.read_answers is None else trainer.read_answers(texts)
    golds = [example["answer"] for example in examples for _ in range(k)]
    metas = [example.get("meta") or {} for example in examples for _ in range(k)]
    judged = verify_many(told, golds, [m.get("kind") for m in metas], [m.get("choices") for m in metas])
    right = [j.correct for j in judged]
    records = []
    for position, i in enumerate(mine):
        if i < n:
            group = range(position * k, (position + 1) * k)
            records.append((right[max(group, key=scores.__getitem__)], any(right[j] for j in group)))
    records = trainer.parallel.gather_objects(records)
    return Accuracy(sum(r[0] for r in records), n), Accuracy(sum(r[1] for r in records), n)


def critic_scores(trainer: Any, samples: Samples, visuals: Any = None) -> list[float]:
    """Of each completion, V of all but its last token: what the critic expects where only the end is to come.

    Args: visuals: the pictures of the rows that `samples.rows` counts, where they aren't the training set's.
    """
    if trainer.ppo is None:
        raise ConfigError("rerank: critic needs PPO's critic; name a reward function instead")
    kept, trainer.scorer.visuals = trainer.scorer.visuals, visuals
    try:
        trainer.ppo.score(samples)
    finally:
        trainer.scorer.visuals = kept
    return [values[max(len(ids) - 1, 0)] for values, ids in zip(samples.values, samples.completion_ids, strict=True)]


def reward_scores(
    reward: RewardFunc,
    samples: Samples,
    texts: Sequence[str],
    examples: Sequence[Mapping[str, Any]],
    *,
    on_error: OnError = "stop",
    timeout: float | None = None,
) -> list[float]:
    """Of each completion, what a reward function gives it; a completion that it skips, or that is masked, comes last.

    Args: on_error, timeout: see `compute_rewards`.
    """
    columns = {name: [example.get(name) for example in examples] for name in examples[0]} if examples else {}
    prompts = columns.pop("prompt", [None] * len(texts))
    completions: list[Any] = [
        [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    batch = compute_rewards(
        [reward],
        None,
        prompts=prompts,
        completions=completions,
        completion_ids=samples.completion_ids,
        columns=columns,
        trainer_state=None,
        on_error=on_error,
        timeout=timeout,
    )
    for name, failures in batch.masked.items():
        row, why = failures[0]
        tqdm.write(
            f"WARNING: reward {name!r} failed on {len(failures)} of {len(texts)} answers, which come last "
            f"(row {row}: {why})",
            file=sys.stderr,
        )
    return torch.tensor(batch.total).nan_to_num(nan=float("-inf")).tolist()


def _shown(share: Accuracy) -> dict[str, Any]:
    low, high = wilson_interval(share.correct, share.n)
    return {"correct": share.correct, "n": share.n, "value": share.value, "low": low, "high": high}
