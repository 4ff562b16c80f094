"""The canary while a run trains: a path on which pictures are lost stops the run; the loss would fall all the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from tqdm.auto import tqdm

from mmreason.data.visual import VisualPrompt, image_counts
from mmreason.rollout.canary import observe
from mmreason.rollout.canary_report import CanaryReport, judge_paths
from mmreason.rollout.canary_rows import CanaryRows
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.reporting import decode
from mmreason.trainers.scorer import Scorer
from mmreason.types import ConfigError, MMReasonError


class CanaryError(MMReasonError):
    """Pictures don't reach the model somewhere in training or rollout, or not the same ones in both."""


def canary_rows(args: PolicyConfig, datasets: Iterable[Any], processor: Any) -> CanaryRows | None:
    """The rows that `args.canary_steps` asks for, of the first dataset that has images; None where it asks for none.

    Raises: ConfigError where no row has an image.
    """
    if args.canary_steps is None:
        return None
    for dataset in datasets:
        if any(image_counts(dataset)):
            return CanaryRows(
                dataset,
                processor,
                samples=args.canary_samples,
                seed=args.seed,
                chat_template_kwargs=args.chat_template_kwargs,
            )
    raise ConfigError(f"canary_steps={args.canary_steps}: no problem has an image, so there is nothing to look for")


class Watched(Protocol):
    """What `TrainingCanary` needs of a trainer. state.step: optimizer steps done."""

    args: PolicyConfig
    accelerator: Any
    parallel: Any
    state: Any
    policy: Any
    tokenizer: Any
    compute_dtype: Any
    engine: Any
    scorer: Scorer

    def save(self) -> Any:
        """Write a checkpoint."""


class TrainingCanary:
    """Tries the trainer's own scoring and its own engine on the same rows again and again."""

    def __init__(self, trainer: Watched, rows: CanaryRows) -> None:
        self.trainer, self.rows = trainer, rows
        self._told: list[str] = []

    def is_due(self) -> bool:
        """Before the first step and after every `canary_steps`; also where a run goes on from such a step."""
        every = self.trainer.args.canary_steps
        return every is not None and self.trainer.state.step % every == 0

    def check(self) -> dict[str, float]:
        """Numbers for metrics.jsonl. Collective; changes nothing that later steps compute.

        Raises: CanaryError where a path fails, once a checkpoint is saved (at step 0 there is nothing to save).
        """
        report = self._report()
        step = self.trainer.state.step
        if report.status == "fail":
            saved = f"Saved: {self.trainer.save()}. " if step else ""
            raise CanaryError(
                f"canary at step {step}:\n{report.table()}\n{saved}The run has stopped: it would not learn what "
                "its images show. `mmreason canary` tries a checkpoint on its own; canary_steps: null trains unchecked"
            )
        told = [path.status + path.title for path in report.paths]
        if self.trainer.accelerator.is_main_process and told != self._told:  # once, and when it changes
            tqdm.write("\n".join([f"canary at step {step}:", *report.verdicts(), *report.notes]))
        self._told = told
        return report.metrics()

    def _report(self) -> CanaryReport:
        trainer = self.trainer
        trainer.engine.sync()
        training = trainer.policy.training
        trainer.policy.eval()
        try:
            records = observe(
                self.rows,
                self._logps,
                {trainer.engine.name: trainer.engine},
                max_tokens=trainer.args.max_completion_length,
                batch_size=trainer.args.per_device_train_batch_size,
                rank=trainer.parallel.rank,
                world_size=trainer.parallel.size,
                gather_objects=trainer.parallel.gather_objects,
            )
        finally:
            trainer.policy.train(training)
        dtype = str(trainer.compute_dtype).removeprefix("torch.")
        return judge_paths(
            self.rows, records, dtype=dtype, gold=True, decode=lambda ids: decode(trainer.tokenizer, ids)
        )

    def _logps(self, prompts: list[list[int]], completions: list[list[int]], visuals: list[VisualPrompt]) -> Tensor:
        return self.trainer.scorer.score(
            self.trainer.policy, prompts, completions, [*visuals], temperature=1.0, with_entropy=False
        )[0]
