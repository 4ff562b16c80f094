"""What a training run tells: metrics under TRL's names, the completions of each rollout, a line per logging step."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmreason.losses.advantages import GroupAdvantages
from mmreason.report import write_report
from mmreason.rewards.run import RewardBatch
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.environments import environment_metrics
from mmreason.trainers.records import RunRecords
from mmreason.trainers.state import RunState
from mmreason.trainers.token_texts import TokenTexts
from mmreason.types import MMReasonError

_SHOWN = ("reward", "reward_std", "loss", "entropy", "kl", "completions/mean_length", "grad_norm", "time/step")


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Token ids as text, without special tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def write_run_report(output_dir: str, accelerator: Any) -> None:
    """Write report.html about a run that has ended and say where it lies; one that fails doesn't fail the run."""
    if not accelerator.is_main_process:
        return
    try:
        path = write_report([Path(output_dir)])
    except (MMReasonError, OSError) as error:
        print(
            f"The report could not be written ({error}). The run is complete: mmreason report {output_dir} tries again."
        )
    else:
        print(f"Report: {path}")


class Reporter:
    """Passes what rollout and update measured to metrics.jsonl, parquet files, trackers and terminal."""

    def __init__(
        self,
        args: PolicyConfig,
        state: RunState,
        parallel: DataParallel,
        records: RunRecords,
        dataset: Any,
        tokenizer: Any,
        total_steps: int,
    ) -> None:
        self.args, self.state, self.parallel, self.records = args, state, parallel, records
        self.accelerator = parallel.accelerator
        self.dataset, self.tokenizer, self.total_steps = dataset, tokenizer, total_steps
        self.token_texts = TokenTexts(tokenizer)
        self._latest_rows: list[dict[str, Any]] = []

    def progress_bar(self) -> Any:
        return tqdm(
            total=self.total_steps,
            initial=self.state.step,
            desc="GRPO",
            unit="step",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30.0,  # a log file wants lines, not frames
        )

    def rollout(
        self,
        samples: Samples,
        texts: list[str],
        rewards: RewardBatch,
        per_func: Tensor,
        advantages: GroupAdvantages,
        metrics: dict[str, float],
    ) -> None:
        """Add the rollout's metrics to `metrics` and write its completions (collective).

        Args:
            samples, texts, rewards: of this process. per_func: (N, R) of all processes.
        """
        device = self.accelerator.device
        lengths = self.parallel.gather(torch.tensor([len(c) for c in samples.completion_ids], device=device)).float()
        cut = self.parallel.gather(torch.tensor(samples.truncated, device=device)).bool()
        self.state.samples += len(lengths)
        self.state.tokens += int(lengths.sum())
        scored = advantages.rewards[~torch.isnan(advantages.rewards)]
        metrics |= {
            "reward": scored.mean().item() if len(scored) else math.nan,
            "reward_std": scored.std().item() if len(scored) > 1 else 0.0,
            "frac_reward_zero_std": advantages.zero_std.float().mean().item(),
            "completions/mean_length": lengths.mean().item(),
            "completions/min_length": lengths.min().item(),
            "completions/max_length": lengths.max().item(),
            "completions/clipped_ratio": cut.float().mean().item(),
        }
        for i, name in enumerate(rewards.names):
            metrics[f"rewards/{name}/mean"] = torch.nanmean(per_func[:, i]).item()
        self._latest_rows = self.parallel.gather_objects(self._rows(samples, texts, rewards))
        verdicts = [row["verdict"] for row in self._latest_rows if row.get("verdict") is not None]
        for verdict in sorted(set(verdicts)):
            metrics[f"verdict/{verdict}"] = verdicts.count(verdict) / len(verdicts)
        metrics |= environment_metrics(self._latest_rows)
        self.records.rollout(self.state.rollouts, self._latest_rows)

    def _rows(self, samples: Samples, texts: list[str], rewards: RewardBatch) -> list[dict[str, Any]]:
        rows = []
        offset = self.parallel.rank * len(samples)
        sources = {row: self.dataset[row] for row in dict.fromkeys(samples.rows)}
        for i, text in enumerate(texts):
            source = sources[samples.rows[i]]
            row: dict[str, Any] = {
                "rollout": self.state.rollouts,
                "step": self.state.step,
                "group": (offset + i) // self.args.num_generations,
                "id": source.get("id"),
                "prompt": decode(self.tokenizer, samples.prompt_ids[i]),
                "completion": text,
                "answer": source.get("answer"),
                "prompt_length": len(samples.prompt_ids[i]),
                "completion_length": len(samples.completion_ids[i]),
                "truncated": samples.truncated[i],
                "reward": float(rewards.total[i]),
                "advantage": samples.advantages[i],
                "completion_ids": samples.completion_ids[i],
                "completion_tokens": self.token_texts(samples.completion_ids[i]),
                "sampling_logps": samples.sampling_logps[i],
            }
            if "images" in source:
                row["images"] = len(source["images"] or ())
            row |= {f"rewards/{name}": float(rewards.per_func[i, j]) for j, name in enumerate(rewards.names)}
            row |= {name: values[i] for name, values in rewards.extra.items()}
            rows.append(row)
        return rows

    def step(self, metrics: dict[str, float], bar: Any) -> None:
        """Record one optimizer step; every `logging_steps`, and after an evaluation, tell trackers and terminal too."""
        args, state = self.args, self.state
        prompts_seen = state.rollouts * (args.generation_batch_size or 0) / args.num_generations
        metrics |= {"epoch": prompts_seen / len(self.dataset), "num_tokens": float(state.tokens)}
        self.records.metrics(state.step, metrics)
        bar.update(1)
        if "reward" in metrics:
            shown = {"reward": f"{metrics['reward']:.3f}", "length": f"{metrics['completions/mean_length']:.0f}"}
            bar.set_postfix(shown, refresh=False)
        evaluated = any(name.startswith("eval/") for name in metrics)
        if state.step % args.logging_steps and state.step != self.total_steps and not evaluated:
            return
        if args.report_to:
            self.accelerator.log(metrics, step=state.step)
        if not self.accelerator.is_main_process:
            return
        line = "  ".join(f"{name.split('/')[-1]} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
        bar.write(f"step {state.step}/{self.total_steps}  {line}")
        if args.log_completions:
            for row in self._latest_rows[: args.num_completions_to_print]:
                bar.write(f"  [{row['reward']:.2f}] {row['prompt'][-160:]!r} -> {row['completion'][:240]!r}")
