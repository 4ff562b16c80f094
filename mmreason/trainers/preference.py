"""Preference training: transformers' loop on pairs, each loss of `mmreason.losses.preference` on text and pictures.

TRL's DPO trainer builds its rows, its forward pass and its losses in one piece, and its CPO and ORPO trainers see no
pictures; so the loop is the one that TRL's trainers stand on, and TRL is what the tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from mmreason.data.collate import collate_rows
from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.rollout.evaluate import Evaluation, GreedyAnswer
from mmreason.rollout.hf import HFEngine
from mmreason.rollout.scoring import floating_dtype
from mmreason.rollout.types import Sampling
from mmreason.trainers.adapters import AdapterTraining
from mmreason.trainers.batch_source import BatchSource, Place, SourceTrainer
from mmreason.trainers.distributed import prepare_for_images, prepare_reference, resolve_bf16
from mmreason.trainers.evaluation import measure
from mmreason.trainers.preference_arguments import OURS, PreferenceOptions
from mmreason.trainers.preference_data import Pair, PairRows
from mmreason.trainers.preference_objective import Measured, Scores, StepSize, implicit_rewards, objective
from mmreason.trainers.preference_reference import ReferenceStore
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.prompt_order import PromptOrder
from mmreason.trainers.sft_features import open_features
from mmreason.trainers.sft_loss import token_losses

START: Place = {"taken": 0}
_KEPT = ("reference_logps", "loss_weights", "counts")
"""Numbers of a micro-batch that DeepSpeed must not turn into the model's dtype."""


def hf_config(options: PreferenceOptions) -> TrainingArguments:
    """The options as transformers' arguments; under `accelerate launch` this also opens the process group.

    `max_steps` may still have to be set: `count_steps`.
    """
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
        ignore_data_skip=True,  # data go on from their place, without being read again
    )


def count_steps(options: PreferenceOptions, rows: int, processes: int) -> int:
    """Optimizer steps of a run: `max_steps`, or as many as `num_train_epochs` passes over the rows take."""
    if options.max_steps > 0:
        return options.max_steps
    together = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
    return max(1, math.ceil(options.num_train_epochs * rows / together))


class PairSource:
    """Micro-batches of pairs, shuffled anew each epoch. A place counts the pairs taken by all processes together.

    Within a step pairs go together by length, so that padding costs little; KTO's stay as drawn, because its baseline
    is a micro-batch's.

    Args: collate: pairs -> tensors. size: pairs of a micro-batch on one device. micro_batches: of a step, per device.
    """

    def __init__(
        self,
        rows: PairRows,
        order: PromptOrder,
        collate: Callable[[Sequence[Pair]], dict[str, Any]],
        size: int,
        micro_batches: int,
    ) -> None:
        self.rows, self.order, self.collate = rows, order, collate
        self.size, self.micro_batches = size, micro_batches

    def batches(self, place: Place, rank: int, world_size: int) -> Iterator[tuple[dict[str, Any], Place]]:
        """See `BatchSource`."""
        taken, together = place["taken"], self.size * world_size
        while True:
            numbers = [self.order[taken + i] for i in range(together * self.micro_batches)]
            if self.rows.labels is None:
                numbers.sort(key=lambda number: (self.rows.lengths[number], number))
            for start in range(0, len(numbers), together):
                mine = numbers[start + rank * self.size : start + (rank + 1) * self.size]
                taken += together
                yield self.collate([self.rows[number] for number in mine]), {"taken": taken}


class PairCollator:
    """P pairs -> tensors of `mmreason.data.collate.collate_rows` for 2P rows, all first sides before all second ones.

    Besides counts (P,) and, where there are any, labels (P,) as `pair_labels`, and reference_logps (2, P).
    """

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.pad_token_id, self.dtype = pad_token_id, floating_dtype(model)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        rows = [pair.first for pair in pairs] + [pair.second for pair in pairs]
        batch: dict[str, Any] = collate_rows(rows, self.pad_token_id, visual_dtype=self.dtype)
        batch["counts"] = torch.ones(len(pairs))
        labels = [pair.label for pair in pairs if pair.label is not None]
        if labels:
            batch["pair_labels"] = torch.tensor(labels)
        known = [pair.reference for pair in pairs if pair.reference is not None]
        if len(known) == len(pairs):
            batch["reference_logps"] = torch.tensor(known, dtype=torch.float32).T.contiguous()
        return batch


class PreferenceTrainer(AdapterTraining, SourceTrainer):
    """Trains `model` on pairs, or on completions with labels.

    Args:
        model: any causal LM, vision-language model or PEFT model. config: `hf_config(options)`, with max_steps.
        rows: what is learned from; None where `source` makes its own pairs. processor: or tokenizer.
        checkpoint: to go on from. reference: a second model, not yet prepared.
        adapter_off: the reference is the model without its adapter.
        stores: where precomputed reference log-probabilities are kept, of the training rows and held-out sets.
        image_counts: of each training row, where `rows` doesn't say.
    """

    not_metrics = ("epoch", "num_input_tokens_seen")

    def __init__(
        self,
        model: Any,
        options: PreferenceOptions,
        config: TrainingArguments,
        rows: PairRows | None,
        processor: Any,
        checkpoint: Path | None = None,
        *,
        reference: Any = None,
        adapter_off: bool = False,
        stores: Sequence[ReferenceStore] = (),
        image_counts: Sequence[int] = (),
    ) -> None:
        self.options, self.tokenizer = options, getattr(processor, "tokenizer", processor)
        self.adapter_off, self.stores = adapter_off, list(stores)
        for one in (model, reference):
            if options.disable_dropout and one is not None:
                _switch_dropout_off(one)
        if config.gradient_checkpointing and hasattr(model, "peft_config"):
            model.enable_input_require_grads()
        super().__init__(model=model, args=config, processing_class=processor)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's pairs, not by the accumulation
        counts = image_counts if rows is None else rows.image_counts
        prepare_for_images(self.model, self.accelerator, counts)
        self.reference = None if reference is None else prepare_reference(reference, self.accelerator)
        self.collate = PairCollator(self.model, self.tokenizer.pad_token_id)
        self.features = open_features(
            options,  # type: ignore[arg-type]
            self.model,
            processor,
            counts,
            autocast=config.bf16 or config.fp16,
        )
        if rows is not None:
            if self.features is not None:
                rows.use_features(self.features)
            order = PromptOrder(len(rows), options.seed, shuffle=True)
            size, micro_batches = options.per_device_train_batch_size, options.gradient_accumulation_steps
            self.start(PairSource(rows, order, self.collate, size, micro_batches), checkpoint, START)
        self.measured = Measured()
        self.also_record: Callable[[], Mapping[str, float]] = dict

    def start(self, source: BatchSource, checkpoint: Path | None, place: Place) -> None:
        """Take micro-batches from this source."""
        self.begin(self.options, checkpoint, source, place)

    # ---- loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed turns all numbers into the model's dtype, of which the loss must not be."""
        kept = {name: inputs[name] for name in _KEPT if name in inputs}
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        device = prepared["input_ids"].device
        return prepared | {name: value.to(device) for name, value in kept.items()}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """(2,) pairs, and supervised tokens of their first sides, of a whole step: all micro-batches, all processes."""
        totals = torch.zeros(2, dtype=torch.float64)
        for batch in batch_samples:
            counts = batch["counts"].double().cpu()
            tokens = (batch["loss_weights"][: len(counts), 1:] != 0).sum(1).double().cpu()
            totals += torch.stack([counts.sum(), (tokens * counts).sum()])
        return self.parallel.sum(totals.float().to(device))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This process's part of the step's objective; gradients are averaged over processes."""
        scores = self.score(model, inputs)
        pairs, tokens = num_items_in_batch.clamp(min=1)
        loss, terms = objective(self.options, scores, StepSize(pairs, tokens), self.parallel)
        self.measured.add(self.options, scores, terms)
        loss = loss * self.parallel.size
        return (loss, None) if return_outputs else loss

    def score(self, model: Any, inputs: Mapping[str, Any]) -> Scores:
        """Log-probabilities of both sides under the policy, with gradient, and under the reference."""
        batch = dict(inputs)
        counts, labels = batch.pop("counts"), batch.pop("pair_labels", None)
        known = batch.pop("reference_logps", None)
        # First the reference: switching an adapter off and on between forward and backward could lose gradients.
        reference = known if known is not None else self._reference_logps(model, batch)
        logps, tokens = row_logps(model, batch)
        return Scores(logps, reference, tokens, labels, counts)

    @torch.no_grad()
    def _reference_logps(self, model: Any, batch: Mapping[str, Any], *, initial: bool = False) -> Tensor | None:
        """(2, P) under the reference, without dropout; None where no loss needs one.

        Args: initial: the model itself still is the reference.
        """
        if not self.options.needs_reference or not (initial or self.adapter_off or self.reference is not None):
            return None
        used = model if self.reference is None else self.reference
        off = self.accelerator.unwrap_model(model).disable_adapter() if self.adapter_off else nullcontext()
        training = used.training
        used.eval()
        with off:
            logps, _ = row_logps(used, batch)
        used.train(training)
        return logps

    def more_metrics(self) -> dict[str, float]:
        """Rewards, margins, log-probabilities and each loss since the last line, under TRL's names. Collective."""
        return self.measured.collect(self.parallel) | dict(self.also_record())

    # ---- around the steps

    def before_training(self) -> None:
        """Where they are wanted and not there yet, take the reference's log-probabilities. Collective."""
        may_compute = self.adapter_off or self.reference is not None or self.state.global_step == 0
        for store in self.stores:
            store.fill(
                lambda part, rows=store.rows: self._reference_of(rows, part),  # type: ignore[misc]
                is_main=self.accelerator.is_main_process,
                may_compute=may_compute,
            )
        if self.stores:
            self.reference = None  # its memory is free from here on

    def _reference_of(self, rows: PairRows, part: range) -> np.ndarray[Any, Any]:
        """(len(part), 2) log-probabilities of some pairs under the reference. Collective."""
        size = self.options.precompute_ref_batch_size or self.options.per_device_train_batch_size
        found = torch.zeros(len(part), 2, dtype=torch.float64, device=self.accelerator.device)
        for mine, batch in self._passes(rows, part, size):
            inputs = {name: value for name, value in batch.items() if name not in ("counts", "pair_labels")}
            with self.compute_loss_context_manager():
                logps = self._reference_logps(self.model_wrapped, inputs, initial=True)
            assert logps is not None
            places = [number - part.start for number in mine]
            found[places] = logps.T.double()[: len(mine)]
        return self.parallel.sum(found).float().cpu().numpy()

    def _passes(self, rows: PairRows, part: range, size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(this process's pairs, their batch): equally many on all processes, with batches that count nothing."""
        together = size * self.parallel.size
        for start in range(part.start, part.stop, together):
            own = start + self.parallel.rank * size
            mine = list(range(own, min(own + size, part.stop)))
            batch = self._prepare_inputs(self.collate([rows[number] for number in mine or [part.start]]))
            if not mine:
                batch["counts"] = torch.zeros_like(batch["counts"])
            yield mine, batch

    # ---- measurements

    def held_out(self, sets: Mapping[str, PairRows]) -> dict[str, float]:
        """`measure_pairs` of each set, under the name that it has in metrics.jsonl. Collective."""
        return {f"eval/{name}/{key}": v for name, rows in sets.items() for key, v in self.measure_pairs(rows).items()}

    @torch.no_grad()
    def measure_pairs(self, rows: PairRows) -> dict[str, float]:
        """Loss, preference accuracy, rewards and margins of held-out pairs under the current weights. Collective."""
        model, measured = self.model_wrapped, Measured()
        training = model.training
        model.eval()
        one = torch.ones((), device=self.accelerator.device)
        size = self.options.per_device_train_batch_size
        for _, batch in self._passes(rows, range(len(rows)), size):
            with self.compute_loss_context_manager():
                scores = self.score(model, batch)
            terms: dict[str, Tensor] = {}
            if self.options.unpaired == (scores.labels is not None):  # KTO's loss isn't one of pairs
                _, terms = objective(self.options, scores, StepSize(one, one), self.parallel)
            if "nll" in terms or "sft" in terms:  # a likelihood is told per token
                per_token = -(scores.logps[0] / scores.tokens[0])
                terms |= {name: per_token for name in ("nll", "sft") if name in terms}
            measured.add(self.options, scores, terms)
        model.train(training)
        return measured.collect(self.parallel)

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

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Greedy and maj@k accuracy of the current model on a held-out set (collective)."""
        options = self.options
        if self.features is not None and held_out.visuals is not None:
            held_out.visuals.use_features(self.features, keep_images=False)
        sampling = Sampling(max_tokens=options.max_completion_length)
        return measure(self.engine(), held_out, self.tokenizer, sampling, self.parallel, k=k, seed=options.seed)

    def close(self) -> None:
        """Write what is new to the feature store, and leave the process group."""
        if self.features is not None:
            self.features.close()
        self.accelerator.end_training()


def row_logps(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides of P pairs, one forward pass of 2P rows.

    This is the place for one pass over each prompt and one encoding of its pictures: both sides of a pair begin alike.

    Args: batch: of `PairCollator`, tensors of the 2P rows only.
    Returns: ((2, P) float32 summed over the tokens that count, nats; (2, P) how many these are).
    """
    losses = token_losses(model, batch)
    rows = batch["input_ids"].shape[0]
    sums = losses.nll.new_zeros(rows).index_add(0, losses.row_numbers, -losses.nll * losses.weights)
    tokens = losses.nll.new_zeros(rows).index_add(0, losses.row_numbers, (losses.weights != 0).to(losses.nll.dtype))
    return sums.view(2, -1), tokens.clamp(min=1).view(2, -1)


def _switch_dropout_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


__all__ = [
    "PairCollator",
    "PairSource",
    "PreferenceTrainer",
    "count_steps",
    "hf_config",
    "implicit_rewards",
    "row_logps",
]
