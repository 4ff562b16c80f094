"""Contrastive pretraining of a vision tower on pictures and texts, through open_clip's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from mmreason.data.captions import caption_texts, distinct_captions, iter_pictures
from mmreason.data.mixture import ShuffledOrder
from mmreason.models.contrastive import ContrastiveModel
from mmreason.models.loading import load_policy_model
from mmreason.models.processing import build_image_processor
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.batch_source import Place, SourceTrainer
from mmreason.trainers.pretrain_arguments import CorpusArguments, FreshModelArguments, PretrainOptions
from mmreason.trainers.pretrain_captions import held_out_captions
from mmreason.trainers.pretrain_data import Say
from mmreason.trainers.pretrain_models import tokenizer_of_run
from mmreason.types import ConfigError


class Pairs:
    """Pictures with their texts as tensors.

    Args: rows: of `load_captions`. vision_config: of the tower. max_length: of a text in tokens, its end included.
    Raises: ConfigError naming the first text that is longer.
    """

    def __init__(self, rows: Any, tokenizer: Any, vision_config: Any, max_length: int) -> None:
        self.rows, self.pad, self.length = rows, tokenizer.pad_token_id, max_length
        self.images = build_image_processor(vision_config)
        found = tokenizer(caption_texts(rows), add_special_tokens=False, verbose=False)["input_ids"]
        self.ids = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in found]
        longest = max(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        if len(self.ids[longest]) > max_length:
            raise ConfigError(
                f"row {rows[longest]['id']}: its text has {len(self.ids[longest])} tokens, max_length is {max_length}: "
                "raise it, texts are never cut"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, places: Sequence[int]) -> dict[str, Tensor]:
        """pixel_values (B, 3 · towers, H, W) and input_ids (B, max_length) of some pairs."""
        pixels = self.images(list(iter_pictures(self.rows, places)))["pixel_values"]
        ids = torch.full((len(places), self.length), self.pad)  # open_clip's mask has the full length
        for row, place in zip(ids, places, strict=True):
            row[: len(self.ids[place])] = self.ids[place]
        return {"pixel_values": pixels, "input_ids": ids}


class PairBatches:
    """Micro-batches of pairs in an order that doesn't depend on the number of processes."""

    def __init__(self, pairs: Pairs, size: int, seed: int) -> None:
        self.pairs, self.size, self.order = pairs, size, ShuffledOrder(len(pairs), seed)

    def batches(self, place: Place, rank: int, world_size: int) -> Iterator[tuple[dict[str, Any], Place]]:
        """See `BatchSource`; a place is a number of pairs."""
        position = place["position"]
        while True:
            mine = self.order.take(position + rank * self.size, self.size)
            position += self.size * world_size
            yield self.pairs.batch(mine), {"position": position}


class ContrastiveTrainer(SourceTrainer):
    """Trains a `ContrastiveModel`: each pair against all others of the same micro-batch on all processes.

    Accumulated micro-batches don't see each other: a larger number of others takes a larger micro-batch, or more
    processes.
    """

    def __init__(
        self,
        model: Any,
        options: PretrainOptions,
        config: TrainingArguments,
        source: PairBatches,
        checkpoint: Path | None = None,
    ) -> None:
        from open_clip.loss import ClipLoss

        if options.per_device_train_batch_size < 2:
            raise ConfigError("per_device_train_batch_size=1: a pair needs others to be told from")
        super().__init__(model=model, args=config)
        self.model_accepts_loss_kwargs = False  # transformers divides the loss by the accumulation
        self.begin(options, checkpoint, source, {"position": 0})
        self.pairs = len(source.pairs)
        self.loss = ClipLoss(
            local_loss=options.local_loss,
            gather_with_grad=True,
            cache_labels=True,
            rank=self.parallel.rank,
            world_size=self.parallel.size,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        return None

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """No decay on gains, biases and the scale, as in open_clip."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy of the right text for each picture and of the right picture for each text, their mean."""
        pictures, texts, scale = model(**inputs)
        loss = self.loss(pictures, texts, scale)
        return (loss, None) if return_outputs else loss

    def more_metrics(self) -> dict[str, float]:
        scale = self.accelerator.unwrap_model(self.model_wrapped).logit_scale.detach().exp()
        return {"logit_scale": float(scale), "data_epoch": float(self.place["position"] // self.pairs)}

    @torch.no_grad()
    def measured(self, pairs: Pairs) -> dict[str, float]:
        """Retrieval among held-out pairs, whose texts differ from each other: the share of pictures whose own text is
        the nearest of all, and of texts whose own picture is; and the share that drawing lots would have."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        training, size = model.training, self.options.per_device_eval_batch_size
        model.eval()
        parts = []
        for start in range(0, len(pairs), size):
            batch = self._prepare_inputs(pairs.batch(range(start, min(start + size, len(pairs)))))
            with self.compute_loss_context_manager():
                parts.append([side.float() for side in model(**batch)[:2]])
        model.train(training)
        pictures, texts = (torch.cat(side) for side in zip(*parts, strict=True))
        products, own = pictures @ texts.T, torch.arange(len(pairs), device=pictures.device)
        return {
            "eval/image_to_text_r1": float((products.argmax(dim=1) == own).float().mean()),
            "eval/text_to_image_r1": float((products.argmax(dim=0) == own).float().mean()),
            "eval/chance_r1": 1 / len(pairs),
        }

    def save_final(self, folder: Path, processor: Any) -> None:
        """See `HFLoop.save_final`; beside it the tower as a composed model takes it."""
        super().save_final(folder, processor)
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(self.model).save_towers(folder)


def pairs_run(
    model: ModelArguments,
    fresh: FreshModelArguments,
    corpus: CorpusArguments,
    options: PretrainOptions,
    config: TrainingArguments,
    checkpoint: Path | None,
    say: Say,
) -> tuple[ContrastiveTrainer, Callable[..., dict[str, float]], Any]:
    """(trainer, measurement on held-out pairs, tokenizer) as the options say.

    Args: config: `hf_config(options)`; its max_steps is set here.
    Raises: ConfigError for towers that can't be; DataError for rows without a usable picture or text.
    """
    rows, held = held_out_captions(corpus, options, say)
    with config.distributed_state.main_process_first():
        processor = tokenizer_of_run(model, fresh, options, lambda: caption_texts(rows), (), say)
    tokenizer = getattr(processor, "tokenizer", processor)
    towers = ContrastiveModel(
        model.vision,
        options.text_tower,
        tokenizer,
        max_length=options.max_length,
        embed_dim=options.embed_dim,
        decoder=None if model.model_name_or_path is None else load_policy_model(model),
        seed=options.seed,
    )
    pairs = Pairs(rows, tokenizer, towers.vision_config, options.max_length)
    measured = Pairs(distinct_captions(held, corpus.eval_samples), tokenizer, towers.vision_config, options.max_length)
    say(f"{len(pairs):,} pairs; held out: {len(measured):,} pairs, no two with the same text")
    config.max_steps = options.steps(len(pairs), config.world_size)
    source = PairBatches(pairs, options.per_device_train_batch_size, options.seed)
    trainer = ContrastiveTrainer(towers, options, config, source, checkpoint)
    return trainer, lambda *_: trainer.measured(measured), processor
