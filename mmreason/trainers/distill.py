"""Distillation: supervised fine-tuning whose labels are a teacher's distributions.

The loop, the micro-batches, the measurements and the checkpoints are those of `mmreason.trainers.sft`; what is added is
what the teachers say about the same tokens, and, for on-policy distillation, whose tokens those are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor

from mmreason.data.mixture import RowOrder
from mmreason.losses.distill import in_chunks, soften, span_divergence, top_k_logps
from mmreason.losses.lm import token_logps
from mmreason.rollout.types import Sampling
from mmreason.trainers.distill_arguments import DistillOptions, Schedule
from mmreason.trainers.distill_endpoint import RowsTeacher
from mmreason.trainers.distill_gap import GapOrder, measure_gaps, read_gaps, row_sums, write_gaps
from mmreason.trainers.distill_heads import Head, head_stands_alone, place_hidden
from mmreason.trainers.distill_layers import ATTRIBUTE, WhiteBox
from mmreason.trainers.distill_loss import (
    Comparison,
    PlaceValues,
    TransferMonitor,
    confidence_weights,
    farthest,
    label_logps,
)
from mmreason.trainers.distill_rows import DistillCollator, DistillRow, DistillRows, check_renderings, sample_rows
from mmreason.trainers.distill_store import RowLogps, TeacherStore
from mmreason.trainers.distill_teacher import LocalTeacher, TeacherView, vocabulary_size
from mmreason.trainers.distributed import is_spread
from mmreason.trainers.sft import Collator, SFTTrainer
from mmreason.trainers.sft_loss import Places, TokenLosses, place_logits, supervised_places
from mmreason.types import ConfigError, MMReasonError


class DistillTrainer(SFTTrainer):
    """Teaches `model` what the teachers say.

    Args:
        teachers: beside the student; on the host until training begins. stores: for `teacher_logits: stored`, one per
            entry of `weights`: where its log-probabilities lie, or are to be put.
        weights: of row source -> one weight per teacher.
        The others: see `SFTTrainer`.

    Raises: ConfigError: as `SFTTrainer`; a layer map or teacher that doesn't fit.
    """

    options: DistillOptions

    def __init__(
        self,
        model: Any,
        options: DistillOptions,
        config: Any,
        rows: Any,
        processor: Any,
        checkpoint: Path | None = None,
        order: RowOrder | None = None,
        *,
        teachers: Sequence[LocalTeacher | RowsTeacher] = (),
        stores: Sequence[TeacherStore] = (),
        weights: Callable[[str], Sequence[float]] = lambda _: (1.0,),
    ) -> None:
        self.stores, self.sayers = list(stores), list(teachers)
        self.teachers = [one for one in teachers if isinstance(one, LocalTeacher)]
        layers = options.layer_options()
        self.white_box = None
        if layers is not None:
            rendering = self.teachers[0].rows is None
            self.white_box = WhiteBox(layers, model, self.teachers[0].model, same_rendering=rendering)
        for teacher in self.teachers:
            if teacher.rows is not None and options.teacher_alignment == "tokens":
                check_renderings(rows, teacher.rows, teacher.name)
        alike = [] if options.teacher_alignment == "spans" else [teacher.model for teacher in self.teachers]
        self.vocab = vocabulary_size([model, *alike])
        self.all_rows = rows
        super().__init__(model, options, config, rows, processor, checkpoint, order)
        sources = sorted(set(rows.sources))
        speak = bool(self.teachers or self.stores)  # of a teacher that has written its texts nothing more is asked
        each = [list(weights(source)) if speak else [] for source in sources]
        self.weights = torch.tensor(each, dtype=torch.float32).view(len(sources), -1 if speak else 0)
        if speak and not self.weights.any():
            raise ConfigError(
                f"teachers: none has a weight above 0 for any row; the rows' sources are {', '.join(sources)}"
            )
        self.monitor = TransferMonitor(sources, compares_tokens=options.teacher_alignment == "tokens")
        self.temperature = Schedule.parse(options.temperature, "temperature")
        self.alpha = Schedule.parse(options.alpha, "alpha")
        self.lmbda = Schedule.parse(options.lmbda, "lmbda")
        self.similarity: dict[str, float] = {}
        self._terms: dict[str, list[Tensor]] = {}
        self._head_alone: bool | None = None

    # ---- rows

    def make_collator(self, model: Any) -> Any:
        pad, free = self.tokenizer.pad_token_id, self.padding_free_rows
        # A teacher's own rendering is padded: its row lengths are not the ones that bins were packed by.
        own = [None if one.rows is None else self._teacher_collator(one) for one in self.teachers]
        collate = DistillCollator(Collator(model, pad, free), [None] * len(self.stores) if self.stores else own)
        self.collate = collate
        return _Bins if self.options.mode == "on_policy" else collate

    def make_dataset(self, rows: Any, sources: Sequence[str]) -> Any:
        if self.stores:
            return DistillRows(rows, sources, [None] * len(self.stores), self.stores)
        in_spans = self.options.teacher_alignment == "spans"
        tokenizers = [self.tokenizer, *(one.tokenizer for one in self.teachers)] if in_spans else []
        nothing: list[TeacherStore | None] = [None] * len(self.teachers)
        return DistillRows(rows, sources, [one.rows for one in self.teachers], nothing, tokenizers)

    def _teacher_collator(self, teacher: LocalTeacher) -> Collator:
        tokenizer = self.tokenizer if teacher.tokenizer is None else teacher.tokenizer
        return Collator(teacher.model, tokenizer.pad_token_id, False)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Of an on-policy step the prompts alone are taken from the rows; the student answers them first."""
        if self.options.mode != "on_policy":
            found: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
            return found
        bins: list[list[list[DistillRow]]] = [one.bins for one in islice(epoch_iterator, num_batches)]
        if self._is_on_policy():
            bins = self._answered(bins)
        batches = [self.collate(one) for one in bins]
        return batches, self._get_num_items_in_batch(batches, device)

    def _is_on_policy(self) -> bool:
        """Whether this step learns from the student's answers: a coin that all processes throw alike."""
        step = self.state.global_step
        coin = torch.rand((), generator=torch.Generator().manual_seed(self.args.seed * 1_000_003 + step))
        return bool(coin < self.lmbda.at(step, self.state.max_steps))

    def _answered(self, bins: list[list[list[DistillRow]]]) -> list[list[list[DistillRow]]]:
        rows = [row for micro_batch in bins for one in micro_batch for row in one]
        options = self.options
        sampling = Sampling(max_tokens=options.max_completion_length, temperature=options.sampling_temperature)
        seed = self.args.seed * 1_000_003 + 2 * self.state.global_step + 1
        answered = iter(sample_rows(rows, self.engine(), sampling, seed))
        return [[[next(answered) for _ in one] for one in micro_batch] for micro_batch in bins]

    # ---- loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed turns all numbers into the model's dtype, of which log-probabilities must not be."""
        told, names = inputs.pop("teachers", []), inputs.pop("row_ids", [])
        prepared = super()._prepare_inputs(inputs)
        device = prepared["input_ids"].device
        moved = [None if one is None else send_to_device(one, device) for one in told]
        return prepared | {"teachers": moved, "row_ids": names}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This process's part of Σ weight · ((1-α) nll + α T² divergence + layers) / Σ weight over the step."""
        told, names, sources = inputs.pop("teachers"), inputs.pop("row_ids"), inputs.pop("row_sources")
        step, steps = self.state.global_step, int(self.state.max_steps)
        temperature, alpha = self.temperature.at(step, steps), self.alpha.at(step, steps)
        views = [self._view(place, inputs, one) for place, one in enumerate(told)]
        places, states, head, output = self._student(model, inputs)
        weights = self._without_bad_rows(places, views, names, sources)
        values, per_teacher = self._values(places, states, head, views, told, sources, temperature)
        # A place that no teacher speaks for is learned from its own token.
        spoken = per_teacher.sum(1) > 0
        if self.options.hard_share != 1:
            weights = weights * ~spoken + farthest(values.divergence, weights * spoken, self.options.hard_share)
        share = alpha * spoken
        losses = soften(values.nll, values.divergence, alpha=share, temperature=temperature)
        total = (torch.where(weights != 0, losses, 0.0) * weights).sum()
        if self.white_box is not None:
            both = (inputs, inputs if told[0] is None else told[0])
            total = total + weights.sum() * self._layer_terms(model, output, views[0], places, both)
        self._record(values, places, weights, sources)
        loss = total / num_items_in_batch.clamp(min=torch.finfo(torch.float32).tiny) * self.parallel.size
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * output["aux_loss"] / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss

    def _values(
        self,
        places: Places,
        states: Tensor,
        head: Head | None,
        views: Sequence[TeacherView],
        told: Sequence[Any],
        sources: Tensor,
        temperature: float,
    ) -> tuple[PlaceValues, Tensor]:
        """(nll and divergence at the places, (S, J) the weights that the teachers have there)."""
        per_teacher = self._teacher_weights(places, sources, views)
        comparison = self._comparison(temperature)
        if self.options.teacher_alignment == "spans":
            values = comparison.values(states, head, places.tokens, [], per_teacher[:, :0])
            return self._in_spans(values, per_teacher, views, told)
        return comparison.values(states, head, places.tokens, views, per_teacher), per_teacher

    def gaps_of(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """(R, 2) Σ weight · divergence and Σ weight of the rows of a micro-batch. Collective, as a forward pass is."""
        inputs = self._prepare_inputs(batch)
        told, names, sources = inputs.pop("teachers"), inputs.pop("row_ids"), inputs.pop("row_sources")
        with self.compute_loss_context_manager():
            views = [self._view(place, inputs, one) for place, one in enumerate(told)]
            places, states, head, _ = self._student(model, inputs)
            weights = self._without_bad_rows(places, views, names, sources)
            values, _ = self._values(places, states, head, views, told, sources, self.temperature.at(0, 1))
        return row_sums(values.divergence, weights, places.row_numbers, len(sources))

    @property
    def _chunked(self) -> bool:
        """Whether heads are applied chunk by chunk: not where every process must call them equally often."""
        return self.options.logits_chunk_size is not None and not is_spread(self.accelerator)

    def _comparison(self, temperature: float) -> Comparison:
        options = self.options
        return Comparison(
            options.divergence,
            options.beta,
            temperature,
            self.vocab,
            top_k=options.top_k if not self.stores else None,
            chunk=options.logits_chunk_size,
        )

    def _student(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Places, Tensor, Head | None, Any]:
        more: dict[str, Any] = {} if self.white_box is None else dict(self.white_box.forward_options)
        if self.aux_loss_enabled:
            more["output_router_logits"] = True
        places = supervised_places(inputs)
        finds_unused = self.args.ddp_find_unused_parameters and self.parallel.size > 1  # DDP would miss the head
        if self._chunked and not finds_unused:
            if self._head_alone is None:
                self._head_alone = head_stands_alone(model, inputs, places)
            if self._head_alone:
                states, head, output = place_hidden(model, inputs, places, **more)
                return places, states, head, output
        logits, output = place_logits(model, inputs, places, **more)
        return places, logits, None, output

    def _view(self, place: int, inputs: Mapping[str, Any], told: Any) -> TeacherView:
        """What teacher number `place` says. told: of the collator."""
        if self.stores:
            return TeacherView(ids=told["ids"], logps=told["logps"], label_logps=told["label_logps"])
        more = {} if self.white_box is None else self.white_box.forward_options
        batch = inputs if told is None else {name: value for name, value in told.items() if name != "spans"}
        with self.compute_loss_context_manager():
            return self.teachers[place].look(batch, chunked=self._chunked, **more)

    def _in_spans(
        self, values: PlaceValues, per_teacher: Tensor, views: Sequence[TeacherView], told: Sequence[Any]
    ) -> tuple[PlaceValues, Tensor]:
        """The divergence of each place's span in that of the place; no weight where a place is in none."""
        far = torch.zeros_like(values.nll)
        columns = []
        for weight, view, one in zip(per_teacher.unbind(1), views, told, strict=True):
            if "spans" not in one:  # nothing is learned in this micro-batch
                columns.append(torch.zeros_like(weight))
                continue
            mine, theirs = one["spans"]
            assert view.places is not None
            logps = label_logps(view, view.places.tokens, None, self.options.logits_chunk_size)
            count = int(max(mine.max(), theirs.max())) + 1
            each = span_divergence(
                -values.nll, mine, logps, theirs, count, self.options.divergence, beta=self.options.beta
            )
            columns.append(weight * (mine >= 0))
            far = far + columns[-1] * torch.where(mine >= 0, each[mine.clamp(min=0)], 0.0)
        return replace(values, divergence=far), torch.stack(columns, dim=1)

    def _without_bad_rows(
        self, places: Places, views: Sequence[TeacherView], names: Sequence[str], sources: Tensor
    ) -> Tensor:
        """The places' weights, 0 for rows of which a teacher that counts said NaN; those are named, and counted."""
        found = [places.row_numbers[:0]]
        for number, view in enumerate(views):
            rows = (view.places or places).row_numbers[view.bad_places()]
            if len(rows):
                view.without_nan()
                counts = self.weights.to(rows.device)[sources.to(rows.device)][rows, number] > 0
                found.append(rows[counts])
        numbers = torch.cat(found).unique()
        if not len(numbers):
            return places.weights
        told = ", ".join(str(names[number]) for number in numbers.tolist()[:5])
        message = f"a teacher gave NaN for {len(numbers)} rows of step {self.state.global_step + 1}: {told}"
        if self.options.on_teacher_nan == "error" or self.white_box is not None:  # whose layers can't be left out
            raise MMReasonError(f"{message}. Leave such rows out of the data")
        print(f"WARNING: {message}; they are left out", flush=True)
        self.monitor.skipped += len(numbers)
        return places.weights.masked_fill(torch.isin(places.row_numbers, numbers), 0.0)

    def _teacher_weights(self, places: Places, sources: Tensor, views: Sequence[TeacherView]) -> Tensor:
        """(S, J) of each teacher at each place."""
        device = places.weights.device
        by_row = self.weights.to(device)[sources.to(device)]
        if self.options.teacher_weighting == "confidence" and len(views) > 1:
            sums = by_row.new_zeros(len(by_row), len(views))
            counts = torch.zeros_like(sums)
            vocab = None if self.options.teacher_alignment == "spans" else self.vocab
            for place, view in enumerate(views):
                own, known = view.places or places, view.known()
                weight = own.weights if known is None else own.weights * known
                found = label_logps(view, own.tokens, vocab, self.options.logits_chunk_size)
                sums[:, place].index_add_(0, own.row_numbers, -found * weight)
                counts[:, place].index_add_(0, own.row_numbers, weight)
            by_row = confidence_weights(by_row, sums / counts.clamp(min=1e-30))
        by_place = by_row[places.row_numbers]
        silent = [view.known() for view in views]  # an endpoint leaves the end of a turn out
        columns = [one if known is None else one * known for one, known in zip(by_place.unbind(1), silent, strict=True)]
        return torch.stack(columns, dim=1) if columns else by_place

    def _layer_terms(
        self,
        model: Any,
        output: Any,
        view: TeacherView,
        places: Places,
        batches: tuple[Mapping[str, Any], Mapping[str, Any]],
    ) -> Tensor:
        """Σ of the terms inside the model, per supervised token."""
        assert self.white_box is not None and view.places is not None
        outputs, both = (output, view.output), (places, view.places)
        progress = self.state.global_step / max(1, int(self.state.max_steps))
        own = self.accelerator.unwrap_model(model)
        terms = self.white_box.terms(own, outputs, both, batches, progress)
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.detach())
        interval = self.args.logging_steps
        if self.state.global_step % interval == interval - 1 or self.state.global_step == 0:
            self.similarity = self.white_box.similarity(outputs, both)
        return torch.stack(list(terms.values())).sum()

    def _record(self, values: PlaceValues, places: Places, weights: Tensor, sources: Tensor) -> None:
        numbers = sources.to(places.row_numbers.device)[places.row_numbers]
        if self.weights.shape[1]:
            self.monitor.add(values, weights, numbers)
        correct = values.correct.bool()
        self.source_losses.add(TokenLosses(values.nll, places.weights, correct, places.row_numbers), sources)

    def more_metrics(self) -> dict[str, float]:
        """Losses by source; how near the student is; each term inside the model. Collective."""
        told = super().more_metrics() | self.monitor.collect(self.parallel)
        for name, values in sorted(self._terms.items()):
            told[f"distill/{name}"] = (self.parallel.sum(torch.stack(values).mean()) / self.parallel.size).item()
        self._terms = {}
        return told | self.similarity

    # ---- around the steps

    def before_training(self) -> None:
        """Put the teachers on their devices; let them say all they have to say, if that is to be kept. Collective."""
        super().before_training()
        for teacher in self.teachers:
            teacher.prepare(self.accelerator)
        for place, store in enumerate(self.stores):
            at_hand = self.sayers[place] if place < len(self.sayers) else None
            store.fill(
                None if at_hand is None else lambda part, one=at_hand: self._said(one, part),  # type: ignore[misc]
                is_main=self.accelerator.is_main_process,
                broadcast=lambda value: broadcast_object_list([value])[0],
            )
        if self.stores:
            self.teachers, self.sayers = [], []  # their memory is free from here on
        if isinstance(self.order, GapOrder) and self.order.gaps is None:
            self._weigh_rows(self.order)
        if self.white_box is not None and self.checkpoint is not None:
            self.white_box.load(self.accelerator.unwrap_model(self.model), self.checkpoint)

    def _weigh_rows(self, order: GapOrder) -> None:
        """Measure how far apart both models are on each row, once in a run. Collective."""
        folder, is_main = self.options.output_dir, self.accelerator.is_main_process
        gaps = broadcast_object_list([read_gaps(folder, order.rows) if is_main else None])[0]
        if gaps is None:
            if self.state.global_step:
                raise ConfigError(
                    f"{folder}: the gaps that rows were drawn by are gone, and the student is no longer what it was "
                    "when they were measured; start over with --overwrite_output_dir"
                )
            gaps = measure_gaps(self, order.rows)
            if is_main:
                write_gaps(folder, gaps)
        order.gaps = gaps

    @torch.no_grad()
    def _said(self, teacher: LocalTeacher | RowsTeacher, part: range) -> list[RowLogps]:
        """A teacher's likeliest tokens for some training rows, on the main process. Collective."""
        if isinstance(teacher, RowsTeacher):
            return teacher.said(part)
        size, world = self.args.per_device_train_batch_size, self.parallel.size
        own = None if teacher.rows is None else self._teacher_collator(teacher)
        collate = own or Collator(self.model, self.tokenizer.pad_token_id, False)
        rows = self.all_rows if teacher.rows is None else teacher.rows
        made: list[tuple[int, RowLogps]] = []
        for start in range(part.start, part.stop, size * world):
            first = start + self.parallel.rank * size
            mine = list(range(first, min(first + size, part.stop)))
            batch = dict(collate([[(rows[number], 0) for number in mine or [part.start]]]))
            del batch["row_sources"]
            batch = super()._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                view = teacher.look(batch, chunked=self._chunked)
            made += zip(mine, self._kept(view, len(mine)), strict=True)
        everything = self.parallel.gather_objects(made)
        return [row for _, row in sorted(everything, key=lambda one: one[0])]

    def _kept(self, view: TeacherView, rows: int) -> list[RowLogps]:
        """The k likeliest of a micro-batch's places, by row."""
        assert view.places is not None and view.states is not None
        places, head, k = view.places, view.head, min(self.options.stored_k, self.vocab)
        temperature = self.temperature.at(0, 1)

        def compute(states: Tensor, tokens: Tensor) -> Tensor:
            logits = (states if head is None else head(states))[:, : self.vocab]
            ids, logps = top_k_logps(logits, k, temperature=temperature)
            label, _ = token_logps(logits, tokens)
            return torch.cat([ids.double(), logps.double(), label.double()[:, None]], dim=1)

        size = self.options.logits_chunk_size or len(places.tokens)
        found = in_chunks(compute, view.states, places.tokens, size=size).cpu()
        kept = []
        for row in range(rows):
            own = found[(places.row.cpu() == row) & (places.weights.cpu() != 0)].numpy()
            kept.append(
                RowLogps(own[:, :k].astype("int32"), own[:, k : 2 * k].astype("float32"), own[:, -1].astype("float32"))
            )
        return kept

    def before_checkpoint(self, folder: Path) -> None:
        super().before_checkpoint(folder)
        if self.white_box is not None:
            self.white_box.save(self.accelerator.unwrap_model(self.model), folder)

    def save_final(self, folder: Path, processor: Any) -> None:
        """The student without what was added to learn from the teacher's layers."""
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, ATTRIBUTE):
            delattr(model, ATTRIBUTE)
        super().save_final(folder, processor)


class _Bins:
    """Bins as they are, until it is known whose answers the step learns from."""

    def __init__(self, bins: Sequence[list[Any]]) -> None:
        self.bins = list(bins)
