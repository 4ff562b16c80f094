"""Pretraining on documents: transformers' Trainer on a sequence of bins, with an exact loss and an exact resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from mmreason.data.bins import collate_bins
from mmreason.data.documents import Bin, BinSequence, Cursor
from mmreason.data.objectives import Layout
from mmreason.losses.lm import token_logps
from mmreason.models.packed_attention import check_rows_apart, use_packed_attention
from mmreason.trainers.batch_source import BatchSource, Place, SourceTrainer
from mmreason.trainers.distributed import resolve_bf16
from mmreason.trainers.pretrain_arguments import OURS, PretrainOptions
from mmreason.types import IGNORE_INDEX, ConfigError, DataError


def hf_config(options: PretrainOptions) -> TrainingArguments:
    """The options as transformers' arguments; under `accelerate launch` this also opens the process group.

    Data have no length here, so `max_steps` may still have to be set.
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


class BinBatches:
    """Micro-batches of bins. Each round, every process takes the next `size` bins, process by process.

    Args: packed: see `collate_bins`.
    """

    def __init__(self, sequence: BinSequence, size: int, pad_token_id: int, *, packed: bool) -> None:
        self.sequence, self.size, self.pad_token_id, self.packed = sequence, size, pad_token_id, packed

    def batches(self, place: Place, rank: int, world_size: int) -> Iterator[tuple[dict[str, Any], Place]]:
        """See `BatchSource`; a place is a `Cursor`."""
        bins = self.sequence.bins(Cursor(**place))
        while True:
            together = list(islice(bins, self.size * world_size))
            last = together[-1][0]
            mine = [found for _, found in together[rank * self.size : (rank + 1) * self.size]]
            batch = collate_bins(mine, self.pad_token_id, self.sequence.objective.layout, packed=self.packed)
            yield batch, Cursor(last.epoch, last.start, last.taken + 1).to_json()


class PretrainTrainer(SourceTrainer):
    """Trains a model on micro-batches that `source` gives.

    The loss is the mean over all targets of the step, whatever the accumulation and the number of processes, for models
    of every kind; a mixture-of-experts' router loss is added as its configuration weighs it, averaged over the
    micro-batches.

    Args:
        model: of the objective's kind, possibly with a PEFT adapter. config: `hf_config(options)`, with max_steps.
        source: micro-batches. layout: of the objective. processor: or tokenizer; it is saved with the model.
        checkpoint: to go on from.
    """

    def __init__(
        self,
        model: Any,
        options: PretrainOptions,
        config: TrainingArguments,
        source: BatchSource,
        layout: Layout,
        processor: Any,
        checkpoint: Path | None = None,
    ) -> None:
        self.layout = layout
        self.packed = layout == "packed" and options.packing
        if self.packed:
            use_packed_attention(model)
        if layout == "prefix":
            _check_prefix_attention(model)
        super().__init__(model=model, args=config, processing_class=processor)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's targets, not by the accumulation
        self.begin(options, checkpoint, source, Cursor().to_json())
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.router_weight = _router_weight(model)
        self._router: list[Tensor] = []

    # ---- loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """Targets of a whole step: all micro-batches, all processes."""
        targets = sum(int((self._targets(batch["labels"]) != IGNORE_INDEX).sum()) for batch in batch_samples)
        return self.parallel.sum(torch.tensor(float(targets), device=device))

    def _targets(self, labels: Tensor) -> Tensor:
        """(B, T - 1) or (B, T): a decoder predicts its own next token."""
        return labels[:, 1:] if self.layout in ("packed", "prefix") else labels

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This process's part of Σ nll / targets of the step; gradients are averaged over processes."""
        nll, outputs = self._nll(model, inputs)
        loss = nll.sum() / num_items_in_batch.clamp(min=1) * self.parallel.size
        aux = getattr(outputs, "aux_loss", None)
        if self.router_weight and isinstance(aux, Tensor):
            self._router.append(aux.detach())
            loss = loss + self.router_weight * aux / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _nll(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """(targets,) negative log-likelihoods in nats, and the model's output."""
        given = dict(inputs)
        labels = given.pop("labels")
        if self.layout == "seq2seq":
            inner = self.accelerator.unwrap_model(model)
            given["decoder_input_ids"] = inner.prepare_decoder_input_ids_from_labels(labels=labels)
        outputs = model(**given, use_cache=False) if self.layout != "masked" else model(**given)
        targets = self._targets(labels)
        logits = outputs.logits[:, : targets.shape[1]]
        wanted = targets != IGNORE_INDEX
        # Where a micro-batch has no target the graph is kept: other processes wait for this one's gradients.
        logps, _ = token_logps(logits[wanted], targets[wanted].to(logits.device))
        return -logps if wanted.any() else logits.sum() * 0.0, outputs

    def more_metrics(self) -> dict[str, float]:
        """The epoch of the data, and the router's load-balancing loss since the last line. Collective."""
        out = {"data_epoch": float(self.place.get("epoch", 0))}
        if self.router_weight:
            kept = torch.stack(self._router).mean() if self._router else torch.zeros((), device=self.args.device)
            out["aux_loss"] = float(self.parallel.gather(kept[None].float()).mean())
            self._router = []
        return out

    # ---- measurements

    @torch.no_grad()
    def held_out(self, bins: Sequence[Bin]) -> dict[str, float]:
        """Loss (nats per target) and perplexity of held-out rows under the current weights, exact. Collective.

        Raises: DataError where nothing in them is predicted.
        """
        model = self.model_wrapped
        training, size, world = model.training, self.options.per_device_eval_batch_size, self.parallel.size
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        pad = self.tokenizer.pad_token_id
        for start in range(0, len(bins), size * world):
            own = start + self.parallel.rank * size
            # Every process runs the model equally often, as sharded weights demand; what is repeated doesn't count.
            group = bins[own : own + size] or bins[:1]
            batch = self._prepare_inputs(collate_bins(group, pad, self.layout, packed=self.packed))
            with self.compute_loss_context_manager():
                nll, _ = self._nll(model, batch)
            if own < len(bins):
                count = (self._targets(batch["labels"]) != IGNORE_INDEX).sum()
                sums += torch.stack([nll.double().sum(), count.double()])
        model.train(training)
        total, targets = self.parallel.sum(sums).tolist()
        if not targets:
            raise DataError("the held-out documents hold nothing to be predicted", reason="empty")
        return {"loss": total / targets, "perplexity": math.exp(min(total / targets, 700)), "targets": targets}

    def measured(self, bins: Sequence[Bin], size: int = 0) -> dict[str, float]:
        """`held_out` as lines of metrics.jsonl have it; with `size`, the texts' UTF-8 bytes, also bits per byte.

        Bits per byte can be compared between tokenizers.
        """
        if not bins:
            return {}
        found = self.held_out(bins)
        targets = found.pop("targets")
        bits = {"bits_per_byte": found["loss"] * targets / math.log(2) / size} if size else {}
        return {f"eval/{name}": value for name, value in (found | bits).items()}

    def save_final(self, folder: Path, processor: Any) -> None:
        """See `HFLoop.save_final`."""
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        config = base.config.get_text_config()
        if router_is_kept(config):  # of use while training only
            config.output_router_logits = False
        super().save_final(folder, processor)

    def before_training(self) -> None:
        """Try whether the model keeps packed rows apart. Collective. Raises ConfigError."""
        if self.packed:
            check_rows_apart(self.model_wrapped, autocast=self.args.bf16 or self.args.fp16)


def _check_prefix_attention(model: Any) -> None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    used = base.config.get_text_config()._attn_implementation
    if used != "sdpa":
        raise ConfigError(
            f"attn_implementation={used}: a prefix that sees both ways needs a mask of its own, which sdpa takes; set "
            "attn_implementation: sdpa, or choose an objective without (infill_format: fim)"
        )


def _router_weight(model: Any) -> float:
    """How a mixture-of-experts' load-balancing loss is weighed; 0.0 for a model without one, or that hides it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0) if router_is_kept(config) else 0.0


def router_is_kept(config: Any) -> bool:
    """Does a model of this configuration give its router's logits, of which its load-balancing loss is made?"""
    return bool(getattr(config, "output_router_logits", False))
