"""Training of reward models: transformers' loop over rankings, answers or steps, with and without pictures.

TRL's RewardTrainer takes tokenizers, pairs and transformers' text classifiers alone, so this stands on the Trainer
below it. On pairs its loss is TRL's (tests/trainers/test_reward.py holds it to that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments

from mmreason.data.collate import collate_rows
from mmreason.data.mixture import ShuffledOrder
from mmreason.data.order import Bin, StepOrder
from mmreason.losses.ranking import (
    ABSENT,
    centring_penalty,
    compared,
    outcome_loss,
    pair_loss,
    plackett_luce_loss,
    process_loss,
)
from mmreason.models.reward import Head
from mmreason.rollout.scoring import floating_dtype
from mmreason.trainers.adapters import AdapterTraining
from mmreason.trainers.distributed import DataParallel, prepare_for_images, resolve_bf16
from mmreason.trainers.hf_loop import HFLoop
from mmreason.trainers.reward_arguments import OURS, RewardOptions
from mmreason.trainers.reward_data import RewardRow, RewardRows

_NOT_INPUTS = ("labels", "loss_weights", "row_numbers")
TARGETS = ("row_weights", "ranks", "members", "margins", "labels", "there")
"""What a micro-batch holds beside the model's inputs."""


def hf_config(options: RewardOptions) -> TrainingArguments:
    """The options as transformers' arguments; under `accelerate launch` this also opens the process group."""
    settings = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in OURS} | {
        "report_to": options.report_to or "none",
        "bf16": resolve_bf16(options.bf16, options.use_cpu),
        "use_cpu": options.use_cpu or not torch.accelerator.is_available(),
    }
    return TrainingArguments(
        **settings,
        save_strategy="steps",
        eval_strategy="no",
        remove_unused_columns=False,  # a micro-batch is ours, whatever the model's signature says
    )


class RewardCollator:
    """Rows of a micro-batch -> its tensors.

    Returns of a call, for R sequences of N rows:
        input_ids, attention_mask: (R, T), and what the processor made of the images. places: (R, S) positions.
        row_weights: (N,).
        Of rankings: ranks (N, K), ABSENT where a row has fewer; members (N, K), which sequence each is; margins (N,).
        Else, with R = N: labels (N, S); there (N, S) bool, False where a row has fewer places.
    """

    def __init__(self, head: Head, pad_token_id: int, visual_dtype: torch.dtype) -> None:
        self.head, self.pad_token_id, self.visual_dtype = head, pad_token_id, visual_dtype

    def __call__(self, rows: Sequence[RewardRow]) -> dict[str, Tensor]:
        sequences = [sequence for row in rows for sequence in row.sequences]
        batch = collate_rows(sequences, self.pad_token_id, visual_dtype=self.visual_dtype)
        batch = {name: value for name, value in batch.items() if name not in _NOT_INPUTS}
        batch["row_weights"] = torch.tensor([row.weight for row in rows])
        if self.head != "preference":
            batch["places"] = _padded([row.places for row in rows], 0, torch.long)
            batch["labels"] = _padded([row.labels for row in rows], 0.0, torch.float32)
            batch["there"] = _padded([[1] * len(row.places) for row in rows], 0, torch.bool)
            return batch
        batch["places"] = torch.tensor([[len(sequence.ids) - 1] for sequence in sequences])
        batch["ranks"] = _padded([row.ranks for row in rows], ABSENT, torch.long)
        counts = [len(row.ranks) for row in rows]
        starts = [sum(counts[:i]) for i in range(len(rows))]
        members = [range(start, start + count) for start, count in zip(starts, counts, strict=True)]
        batch["members"] = _padded(members, 0, torch.long)
        batch["margins"] = torch.tensor([row.margin for row in rows], dtype=torch.float32)
        return batch


def _padded(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(list(row), dtype=dtype)
    return out


class StepRows(torch.utils.data.Dataset[RewardRow]):
    """Rows as `mmreason.data.order.StepOrder` asks for them: one a bin, ~index for a filler."""

    def __init__(self, rows: RewardRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, one: Bin) -> RewardRow:
        return self.rows[one[0]]


class RewardTrainer(AdapterTraining, HFLoop):
    """Trains a reward model.

    The loss is the mean over the rows of a step (of a process head: over its steps' labels), whatever the accumulation
    and the number of processes.

    Args:
        model: a `mmreason.models.reward.RewardModel`, or PEFT's wrapper of one. config: `hf_config(options)`.
        rows: for the model's head. processor: or tokenizer; it is saved with the model. checkpoint: to go on from.
    """

    not_metrics = ("num_input_tokens_seen",)

    def __init__(
        self,
        model: Any,
        options: RewardOptions,
        config: TrainingArguments,
        rows: RewardRows,
        processor: Any,
        checkpoint: Path | None = None,
    ) -> None:
        self.head: Head = rows.head
        self.tokenizer = getattr(processor, "tokenizer", processor)
        adapted = hasattr(model, "peft_config")
        if options.disable_dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        if options.gradient_checkpointing and adapted:
            model.enable_input_require_grads()  # else a checkpointed block has nothing to flow back to
        super().__init__(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict({"row": range(len(rows))}),  # what transformers looks at
            processing_class=processor,
            data_collator=RewardCollator(rows.head, self.tokenizer.pad_token_id, floating_dtype(model)),
        )
        prepare_for_images(self.model, self.accelerator, rows.image_counts)
        self.train_dataset = StepRows(rows)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's rows, not by the accumulation
        self.begin(options, checkpoint)
        self.sums = RewardSums()
        self._sampler = StepOrder(
            ShuffledOrder(len(rows), options.seed),
            rows.lengths,
            bins_per_micro_batch=config.per_device_train_batch_size,
            micro_batches=config.gradient_accumulation_steps * config.world_size,
            devices=config.world_size,
            seed=config.seed,
        )

    # ---- the loop

    def _get_train_sampler(self, train_dataset: Any = None) -> StepOrder:
        return self._sampler

    def before_training(self) -> None:
        # Accelerate doesn't reach the sampler of a loader that skips what a checkpoint has seen, on several processes.
        per_epoch = -(-len(self.get_train_dataloader()) // self.args.gradient_accumulation_steps)
        self._sampler.set_epoch(self.state.global_step // per_epoch)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed turns all numbers into the model's dtype, of which labels and margins must not be."""
        targets = {name: inputs[name] for name in TARGETS if name in inputs}
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared | {name: value.to(prepared["input_ids"].device) for name, value in targets.items()}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """What the loss of a whole step is divided by: all micro-batches, all processes."""
        total = sum(self._items(batch) for batch in batch_samples)
        return self.parallel.sum(torch.tensor(float(total), device=device))

    def _items(self, batch: Mapping[str, Tensor]) -> float:
        weights = batch["row_weights"]
        return float((weights * batch["there"].sum(1)).sum() if self.head == "process" else weights.sum())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This process's part of the step's mean; gradients are averaged over processes."""
        targets = {name: inputs.pop(name) for name in TARGETS if name in inputs}
        values = model(**inputs).logits
        lost = self._losses(values, targets)
        loss = (lost * targets["row_weights"]).sum() / num_items_in_batch.clamp(min=1) * self.parallel.size
        return (loss, None) if return_outputs else loss

    def _losses(self, values: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """(N,) losses of a micro-batch's rows. Args: values: (R, S) what the head says of R sequences."""
        counted = targets["row_weights"] != 0
        if self.head != "preference":
            labels, there = targets["labels"], targets["there"]
            self.sums.add_labels(values.detach()[counted], labels[counted], there[counted])
            return outcome_loss(values[:, 0], labels[:, 0]) if self.head == "outcome" else process_loss(
                values, labels, there
            )  # fmt: skip
        rewards, ranks, margins = values[:, 0][targets["members"]], targets["ranks"], targets["margins"]
        self.sums.add_ranks(rewards.detach()[counted], ranks[counted])
        lost = (pair_loss if self.options.ranking_loss == "pairs" else plackett_luce_loss)(rewards, ranks, margins)
        weight = self.options.center_rewards_coefficient
        return lost if weight is None else lost + weight * centring_penalty(rewards, ranks)

    def more_metrics(self) -> dict[str, float]:
        """TRL's `accuracy`, `margin` and `mean_reward` of what was learned from since the last line. Collective."""
        return self.sums.collect(self.parallel)

    def is_finished(self, state: TrainerState) -> bool:
        if self.args.max_steps > 0:
            return super().is_finished(state)
        return (state.epoch or 0.0) >= self.args.num_train_epochs

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Beside an adapter its reward model's configuration, which says what its head means."""
        super()._save(output_dir, state_dict)
        bare = self.accelerator.unwrap_model(self.model)
        if hasattr(bare, "peft_config"):
            bare.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)

    # ---- measurements

    @torch.no_grad()
    def scores(self, rows: RewardRows) -> list[list[float]]:
        """Of each row in order: rewards of its sequences, or log-odds at its places. Collective."""
        model, training = self.model_wrapped, self.model.training
        model.eval()
        size, world = self.args.per_device_train_batch_size, self.parallel.size
        lengths = rows.lengths
        order = sorted(range(len(rows)), key=lambda index: (lengths[index], index))
        found: list[tuple[int, list[float]]] = []
        for start in range(self.parallel.rank * size, -(-len(order) // (size * world)) * size * world, size * world):
            # Every process runs the model equally often, as sharded weights demand; what is repeated doesn't count.
            own = order[start : start + size] or order[:1]
            batch = self._prepare_inputs(self.data_collator([rows[index] for index in own]))
            targets = {name: batch.pop(name) for name in TARGETS if name in batch}
            with self.compute_loss_context_manager():
                values = model(**batch).logits.float()
            if start < len(order):
                found += zip(own, self._by_row(values, targets), strict=True)
        model.train(training)
        together = dict(self.parallel.gather_objects(found))
        return [together[index] for index in range(len(rows))]

    def _by_row(self, values: Tensor, targets: Mapping[str, Tensor]) -> list[list[float]]:
        if self.head != "preference":
            return [row[there].tolist() for row, there in zip(values, targets["there"], strict=True)]
        rewards = values[:, 0][targets["members"]]
        return [row[ranks != ABSENT].tolist() for row, ranks in zip(rewards, targets["ranks"], strict=True)]

    def close(self) -> None:
        """Leave the process group."""
        self.accelerator.end_training()


class RewardSums:
    """What is told of the rows that were learned from, since it was last asked for."""

    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)

    def add_ranks(self, rewards: Tensor, ranks: Tensor) -> None:
        """Args: rewards, ranks: (N, K)."""
        better, there = compared(ranks), ranks != ABSENT
        ahead = (rewards[:, :, None] - rewards[:, None, :])[better].double()
        self._add((ahead > 0).sum(), ahead.numel(), ahead.sum(), rewards[there].double().sum(), there.sum())

    def add_labels(self, values: Tensor, labels: Tensor, there: Tensor) -> None:
        """Args: values, labels, there: (N, S)."""
        right = ((values > 0) == (labels > 0.5))[there]
        self._add(right.sum(), right.numel(), 0.0, values[there].double().sum(), there.sum())

    def _add(self, *parts: Any) -> None:
        self._sums = self._sums + torch.tensor([float(part) for part in parts], dtype=torch.float64)

    def collect(self, parallel: DataParallel) -> dict[str, float]:
        """Means over all processes; forgets what was added. Collective."""
        device = parallel.accelerator.device
        right, cases, margin, reward, rewards = parallel.sum(self._sums.to(device)).tolist()
        self._sums = torch.zeros_like(self._sums)
        out = {"accuracy": right / cases, "mean_reward": reward / rewards} if cases else {}
        return out | ({"margin": margin / cases} if cases and margin else {})
