"""Supervised fine-tuning: TRL's SFTTrainer on rows that are tokenized already, with a loss that nothing shifts.

TRL and transformers have the loop, optimizer, schedule and checkpoints. What is ours: which rows stand in a micro-batch
(padded, without padding, packed), the loss over a whole step, metrics.jsonl, measurements on held-out rows, and errors
that name the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from transformers import TrainerState
from trl import SFTConfig
from trl import SFTTrainer as TRLSFTTrainer

from mmreason.data.collate import collate_rows
from mmreason.data.mixture import RowOrder, ShuffledOrder
from mmreason.data.order import Bin, StepOrder
from mmreason.data.supervised import SupervisedRow
from mmreason.models.packed_attention import check_rows_apart, use_packed_attention
from mmreason.models.positions import row_positions_of
from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.rollout.evaluate import Evaluation, GreedyAnswer
from mmreason.rollout.hf import HFEngine
from mmreason.rollout.scoring import floating_dtype
from mmreason.rollout.types import Sampling
from mmreason.trainers.adapters import AdapterTraining
from mmreason.trainers.distributed import prepare_for_images, resolve_bf16
from mmreason.trainers.evaluation import measure
from mmreason.trainers.hf_loop import HFLoop
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.sft_arguments import OURS, SFTOptions
from mmreason.trainers.sft_features import CheckedRows, StoredRows, open_features
from mmreason.trainers.sft_layers import Unfreezing, layer_factors, module_factors, split_groups
from mmreason.trainers.sft_loss import SourceLosses, token_losses
from mmreason.trainers.sft_stopping import EarlyStopping
from mmreason.types import ConfigError

_MIXED_WINDOW = 1024  # rows packed together where their order means something


def trl_config(options: SFTOptions, ours: Sequence[str] = OURS) -> SFTConfig:
    """The options as TRL's configuration; under `accelerate launch` this also opens the process group.

    Args: ours: options that it doesn't know.
    """
    settings = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in ours} | {
        "report_to": options.report_to or "none",
        "bf16": resolve_bf16(options.bf16, options.use_cpu),
        "use_cpu": options.use_cpu or not torch.accelerator.is_available(),
    }
    return SFTConfig(
        **settings,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="steps",
        eval_strategy="no",
        remove_unused_columns=False,  # a micro-batch is ours, whatever the model's signature says
    )


class StepRows(torch.utils.data.Dataset[list[tuple[SupervisedRow, int]]]):
    """A bin's rows, each with its source's number; a filler's weights are 0. See `mmreason.data.order.StepOrder`."""

    def __init__(self, rows: CheckedRows, sources: Sequence[str]) -> None:
        self.rows, self.numbers = rows, {name: i for i, name in enumerate(sources)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, one: Bin) -> list[tuple[SupervisedRow, int]]:
        return [self._row(index) for index in one]

    def _row(self, index: int) -> tuple[SupervisedRow, int]:
        row = self.rows[max(index, ~index)]
        if index < 0:
            row = replace(row, weights=[0.0] * len(row.ids))
        return row, self.numbers[row.source]


class SFTTrainer(AdapterTraining, HFLoop, TRLSFTTrainer):
    """Fine-tunes `model` on supervised rows.

    Args:
        model: any causal LM, vision-language model or PEFT model. config: `trl_config(options)`.
        rows: what is learned from. processor: or tokenizer; it is saved with the model.
        checkpoint: to go on from. order: of the rows; None: shuffled anew each epoch.

    `while_training` is called every `eval_steps` steps only: the recipe measures more before and after.

    Raises: ConfigError where the model can't read packed rows, or a pattern of layer options fits nothing.
    """

    not_metrics = ("num_tokens",)  # TRL begins to count anew after a resume
    measures_at_ends = False

    def __init__(
        self,
        model: Any,
        options: SFTOptions,
        config: SFTConfig,
        rows: CheckedRows,
        processor: Any,
        checkpoint: Path | None = None,
        order: RowOrder | None = None,
    ) -> None:
        self.options = options
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.padding_free_rows = options.packing or options.padding_free
        if self.padding_free_rows:
            use_packed_attention(model)
        sources = sorted(set(rows.sources))
        stand_in = Dataset.from_dict(
            {"row": range(len(rows))}
        )  # what TRL looks at; the loader gets the rows themselves
        waits = options.unfreeze_at is not None
        config.ddp_find_unused_parameters = True if waits else config.ddp_find_unused_parameters
        super().__init__(
            model=model,
            args=config,
            train_dataset=stand_in,
            processing_class=processor,
            data_collator=self.make_collator(model),
        )
        prepare_for_images(self.model, self.accelerator, rows.image_counts)
        autocast = config.bf16 or config.fp16
        self.features = open_features(options, self.model, processor, rows.image_counts, autocast=autocast)
        self.train_dataset = self.make_dataset(self._stored(rows), sources)
        self.order = order or ShuffledOrder(len(rows), options.seed)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's weight, not by the accumulation
        self.begin(options, checkpoint)
        self.source_losses = SourceLosses(sources)
        self.unfreezing = Unfreezing(self.model, options.unfreeze_at or {}) if waits else None
        if waits and self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise ConfigError("unfreeze_at: weights that are spread over processes can't begin to learn later; use DDP")
        self.stopping = EarlyStopping(options, self.state.global_step)
        self._sampler = self._step_order(rows)

    # ---- the loop

    def make_collator(self, model: Any) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
        """What makes a micro-batch of bins."""
        return Collator(model, self.tokenizer.pad_token_id, self.padding_free_rows)

    def make_dataset(self, rows: CheckedRows, sources: Sequence[str]) -> torch.utils.data.Dataset[Any]:
        """What makes a bin's rows of their numbers."""
        return StepRows(rows, sources)

    def _step_order(self, rows: CheckedRows) -> StepOrder:
        options, args = self.options, self.args
        windowed = options.datasets is not None or options.curriculum is not None
        return StepOrder(
            self.order,
            rows.lengths,
            bins_per_micro_batch=args.per_device_train_batch_size,
            micro_batches=args.gradient_accumulation_steps * args.world_size,
            devices=args.world_size,
            capacity=options.max_length if options.packing else None,
            window=(options.packing_window or (_MIXED_WINDOW if windowed else None)) if options.packing else None,
            padded=not self.padding_free_rows,
            seed=args.seed,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> StepOrder:
        return self._sampler

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed turns all numbers into the model's dtype, of which the loss must not be."""
        weights = inputs["loss_weights"]
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared | {"loss_weights": weights.to(prepared["loss_weights"].device)}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Σ weight of a whole step: all micro-batches, all processes."""
        total = torch.zeros((), dtype=torch.float64)
        for batch in batch_samples:
            total += batch["loss_weights"].double().sum().cpu()
        return self.parallel.sum(total.float().to(device))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This process's part of Σ weight · nll / Σ weight over the step; gradients are averaged over processes."""
        sources = inputs.pop("row_sources")
        losses = token_losses(model, inputs, with_aux=self.aux_loss_enabled)
        self.source_losses.add(losses, sources)
        loss = losses.total() / num_items_in_batch.clamp(min=torch.finfo(torch.float32).tiny) * self.parallel.size
        if losses.aux is not None:
            loss = loss + self.router_aux_loss_coef * losses.aux / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss

    def more_metrics(self) -> dict[str, float]:
        """The loss of each source since the last line. Collective."""
        return self.source_losses.collect(self.parallel)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        options, named = self.options, self.model if model is None else model
        if made and (options.layer_lr_decay != 1 or options.module_learning_rates):
            factors = layer_factors(named, options.layer_lr_decay)
            factors |= module_factors(named, options.module_learning_rates or {}, options.learning_rate)
            split_groups(optimizer, named, factors)
        return optimizer

    # ---- around the steps

    def before_training(self) -> None:
        if self.padding_free_rows:
            check_rows_apart(self.model_wrapped, autocast=self.args.bf16 or self.args.fp16)
        step = self.state.global_step
        if self.unfreezing is not None:
            self.unfreezing.set(step)
        # Accelerate doesn't reach the sampler of a loader that skips what a checkpoint has seen, on several processes.
        per_epoch = -(-len(self.get_train_dataloader()) // self.args.gradient_accumulation_steps)
        self._sampler.set_epoch(step // per_epoch)

    def after_step(self, step: int, measured: Mapping[str, float]) -> None:
        if measured:
            self.stopping.see(step, measured)
        if self.unfreezing is not None:
            self.unfreezing.set(step)

    def has_ended(self) -> bool:
        return self.stopping.ended

    def is_finished(self, state: TrainerState) -> bool:
        if self.args.max_steps > 0:
            return super().is_finished(state)
        return (state.epoch or 0.0) >= self.args.num_train_epochs

    # ---- measurements

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Greedy and maj@k accuracy of the current model on a held-out set (collective)."""
        options = self.options
        if self.features is not None and held_out.visuals is not None:
            held_out.visuals.use_features(self.features, keep_images=False)
        sampling = Sampling(max_tokens=options.max_completion_length)
        return measure(self.engine(), held_out, self.tokenizer, sampling, self.parallel, k=k, seed=options.seed)

    def engine(self) -> HFEngine:
        """Samples from the current weights."""
        options = self.options
        return HFEngine(
            self.model_wrapped,
            self.accelerator,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_ids=end_token_ids(self.model, self.tokenizer),
            banned_token_ids=placeholder_token_ids(self.model),
            batch_size=options.hf_generation_batch_size,
            gradient_checkpointing_kwargs=options.gradient_checkpointing_kwargs,
        )

    def _stored(self, rows: CheckedRows) -> CheckedRows:
        return rows if self.features is None else StoredRows(rows, self.features)

    def close(self) -> None:
        """Write what is new to the feature store, and leave the process group."""
        if self.features is not None:
            self.features.close()
        self.accelerator.end_training()

    def held_out_losses(self, sets: Mapping[str, CheckedRows]) -> dict[str, float]:
        """`held_out_loss` of each set, under the name that it has in metrics.jsonl (collective)."""
        return {f"eval/{name}/loss": self.held_out_loss(rows) for name, rows in sets.items()}

    @torch.no_grad()
    def held_out_loss(self, rows: CheckedRows) -> float:
        """Σ weight · nll / Σ weight of held-out rows under the current weights (collective)."""
        model, training = self.model_wrapped, self.model.training
        model.eval()
        order = StepOrder(
            ShuffledOrder(len(rows), 0, shuffle=False),
            rows.lengths,
            bins_per_micro_batch=self.args.per_device_train_batch_size,
            micro_batches=self.parallel.size,
            devices=self.parallel.size,
            padded=not self.padding_free_rows,
        )
        data = StepRows(self._stored(rows), sorted(set(rows.sources)))
        collate = Collator(self.model, self.tokenizer.pad_token_id, self.padding_free_rows)
        bins, size = list(order), order.per_micro_batch
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for start in range(self.parallel.rank * size, len(bins), self.parallel.size * size):
            batch = collate([data[one] for one in bins[start : start + size]])
            del batch["row_sources"]
            with self.compute_loss_context_manager():
                losses = token_losses(model, self._prepare_inputs(batch))
            sums += torch.stack([losses.total(), losses.weights.sum()]).double()
        model.train(training)
        total, weight = self.parallel.sum(sums).tolist()
        return float(total / weight)


class Collator:
    """Bins of a micro-batch -> its tensors (see `mmreason.data.collate.collate_rows`), and `row_sources` (R,)."""

    def __init__(self, model: Any, pad_token_id: int, padding_free: bool) -> None:
        self.pad_token_id, self.padding_free = pad_token_id, padding_free
        self.row_positions = row_positions_of(model) if padding_free else None
        self.dtype = floating_dtype(model)

    def __call__(self, bins: Sequence[list[tuple[SupervisedRow, int]]]) -> dict[str, Tensor]:
        rows = [one for bin_ in bins for one in bin_]
        batch = collate_rows(
            [row for row, _ in rows],
            self.pad_token_id,
            padding_free=self.padding_free,
            row_positions=self.row_positions,
            visual_dtype=self.dtype,
        )
        return batch | {"row_sources": torch.tensor([source for _, source in rows])}
