"""Supervised fine-tuning: TRL's SFTTrainer on rows that are tokenized already, with a loss that nothing shifts.

TRL and transformers have the loop, optimizer, schedule and checkpoints. What is ours: which rows stand in a micro-batch
(padded, without padding, packed), the loss over a whole step, metrics.jsonl, measurements on held-out rows, and errors
that name the checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerCallback, TrainerState
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
from mmreason.trainers.distributed import DataParallel, prepare_for_images, resolve_bf16
from mmreason.trainers.evaluation import measure
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.records import RunRecords
from mmreason.trainers.sft_arguments import OURS, SFTOptions
from mmreason.trainers.sft_features import CheckedRows, StoredRows, open_features
from mmreason.trainers.sft_layers import Unfreezing, layer_factors, module_factors, split_groups
from mmreason.trainers.sft_loss import SourceLosses, token_losses
from mmreason.trainers.sft_stopping import EarlyStopping
from mmreason.trainers.state import CheckpointError, stop_on_signal
from mmreason.types import ConfigError

_NOT_METRICS = ("num_tokens",)  # TRL begins to count anew after a resume
_MIXED_WINDOW = 1024  # rows packed together where their order means something


def trl_config(options: SFTOptions) -> SFTConfig:
    """The options as TRL's configuration; under `accelerate launch` this also opens the process group."""
    settings = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in OURS} | {
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


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """Finished checkpoints of an SFT run, oldest first. transformers writes trainer_state.json last."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if _steps_done(p) is not None), key=lambda p: int(p.name.split("-")[1]))


def _steps_done(checkpoint: Path) -> int | None:
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        return None


def unwritten_checkpoint(output_dir: str | Path, step: int, error: Exception) -> CheckpointError:
    """The error of a checkpoint that could not be written, and how to go on."""
    mine = whole_checkpoints(output_dir)
    return CheckpointError(
        f"{output_dir}/checkpoint-{step}: the checkpoint could not be written ({error}). "
        + (f"The last whole one is {mine[-1]}. " if mine else "There is no earlier one. ")
        + "Free some space or choose another --output_dir, then run the same command to continue."
    )


def find_checkpoint(output_dir: str, resume: str) -> Path | None:
    """The checkpoint that `--resume` (auto, never or a path) means; None to begin at step 0.

    Raises: ConfigError: "never" where there are checkpoints, or a path that is no whole checkpoint.
    """
    mine = whole_checkpoints(output_dir)
    if resume == "never" and mine:
        raise ConfigError(
            f"--resume never, but output_dir {output_dir} holds {mine[-1].name} of an earlier run. Choose another "
            "--output_dir, or start over with --overwrite_output_dir"
        )
    if resume in ("auto", "never"):
        return mine[-1] if mine else None
    if _steps_done(Path(resume)) is None:
        there = f"; {output_dir} holds {', '.join(p.name for p in mine)}" if mine else ""
        raise ConfigError(f"--resume {resume}: no whole checkpoint; 'auto' takes the newest in output_dir{there}")
    return Path(resume)


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


class SFTTrainer(AdapterTraining, TRLSFTTrainer):
    """Fine-tunes `model` on supervised rows.

    Args:
        model: any causal LM, vision-language model or PEFT model. config: `trl_config(options)`.
        rows: what is learned from. processor: or tokenizer; it is saved with the model.
        checkpoint: to go on from. order: of the rows; None: shuffled anew each epoch.

    Attributes:
        while_training: called every `eval_steps` steps, with whether this is the last; what it returns is recorded.

    Raises: ConfigError where the model can't read packed rows, or a pattern of layer options fits nothing.
    """

    state: TrainerState

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
        self.options, self.checkpoint = options, checkpoint
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
            data_collator=Collator(model, self.tokenizer.pad_token_id, self.padding_free_rows),
        )
        prepare_for_images(self.model, self.accelerator, rows.image_counts)
        autocast = config.bf16 or config.fp16
        self.features = open_features(options, self.model, processor, rows.image_counts, autocast=autocast)
        self.train_dataset = StepRows(self._stored(rows), sources)
        self.order = order or ShuffledOrder(len(rows), options.seed)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's weight, not by the accumulation
        self.state.global_step = 0 if checkpoint is None else _steps_done(checkpoint) or 0
        self.parallel = DataParallel(self.accelerator)
        self.records = RunRecords(options.output_dir, self.accelerator.is_main_process)
        self.source_losses = SourceLosses(sources)
        self.unfreezing = Unfreezing(self.model, options.unfreeze_at or {}) if waits else None
        if waits and self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise ConfigError("unfreeze_at: weights that are spread over processes can't begin to learn later; use DDP")
        self.stopping = EarlyStopping(options, self.state.global_step)
        self.while_training: Callable[[bool], Mapping[str, float]] | None = None
        self._sampler = self._step_order(rows)

    # ---- the loop

    def fit(self) -> bool:
        """Train to the end; a signal ends it after the current step, saved.

        Returns: whether all steps are done, or early stopping ended it.
        """
        checkpoint = self.checkpoint
        self.records.rewind(self.state.global_step, 0)
        if checkpoint is not None and self._is_finished(checkpoint):
            return True
        with stop_on_signal() as asked:
            self.add_callback(_Around(self, asked))
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self.stopping.ended or int(self.state.global_step) >= int(self.state.max_steps)

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.source_losses.collect(self.parallel), start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        options, named = self.options, self.model if model is None else model
        if made and (options.layer_lr_decay != 1 or options.module_learning_rates):
            factors = layer_factors(named, options.layer_lr_decay)
            factors |= module_factors(named, options.module_learning_rates or {}, options.learning_rate)
            split_groups(optimizer, named, factors)
        return optimizer

    # ---- checkpoints

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether nothing is left to do after a checkpoint; then its weights and state are taken over.

        transformers itself would take one more step.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.args.max_steps > 0:
            finished = state.global_step >= self.args.max_steps
        else:
            finished = (state.epoch or 0.0) >= self.args.num_train_epochs
        if finished or self.stopping.ended:
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
        return finished or self.stopping.ended

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise unwritten_checkpoint(self.options.output_dir, self.state.global_step, error) from error

    # ---- measurements

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Greedy and maj@k accuracy of the current model on a held-out set (collective)."""
        options = self.options
        if self.features is not None and held_out.visuals is not None:
            held_out.visuals.use_features(self.features, keep_images=False)
        engine = HFEngine(
            self.model_wrapped,
            self.accelerator,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_ids=end_token_ids(self.model, self.tokenizer),
            banned_token_ids=placeholder_token_ids(self.model),
            batch_size=options.hf_generation_batch_size,
            gradient_checkpointing_kwargs=options.gradient_checkpointing_kwargs,
        )
        sampling = Sampling(max_tokens=options.max_completion_length)
        return measure(engine, held_out, self.tokenizer, sampling, self.parallel, k=k, seed=options.seed)

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
        bins, size = list(order), order.per_micro_batch
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for start in range(self.parallel.rank * size, len(bins), self.parallel.size * size):
            batch = self.data_collator([data[one] for one in bins[start : start + size]])
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


class _Around(TrainerCallback):
    """metrics.jsonl, measurements while training, modules that wait, and the stop after a signal."""

    def __init__(self, trainer: SFTTrainer, asked_to_stop: Callable[[], bool]) -> None:
        self.trainer, self.asked_to_stop = trainer, asked_to_stop

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        if trainer.padding_free_rows:
            check_rows_apart(trainer.model_wrapped, autocast=args.bf16 or args.fp16)
        if trainer.unfreezing is not None:
            trainer.unfreezing.set(state.global_step)
        # Accelerate doesn't reach the sampler of a loader that skips what a checkpoint has seen, on several processes.
        per_epoch = -(-len(trainer.get_train_dataloader()) // args.gradient_accumulation_steps)
        trainer._sampler.set_epoch(state.global_step // per_epoch)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "train_runtime" not in logs:  # that is the summary after the last step
            values = {k: float(v) for k, v in logs.items() if k not in _NOT_METRICS}
            self.trainer.records.metrics(state.global_step, values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        interval, last = trainer.options.eval_steps, state.global_step >= state.max_steps
        if trainer.while_training and interval and state.global_step % interval == 0:
            measured = dict(trainer.while_training(last))
            trainer.records.metrics(state.global_step, measured)
            trainer.stopping.see(state.global_step, measured)
        if trainer.unfreezing is not None:
            trainer.unfreezing.set(state.global_step)
        if trainer.stopping.ended or trainer.parallel.any(self.asked_to_stop()):
            control.should_save = control.should_training_stop = True
