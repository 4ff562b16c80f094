"""Pictures with texts as a run's options name them, and alignment: supervised fine-tuning on captions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmreason.data.captions import load_captions
from mmreason.data.documents import is_held_out
from mmreason.data.holdout import split_holdout
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.model_parts import compose_for_run
from mmreason.trainers.pretrain_arguments import CorpusArguments, PretrainOptions
from mmreason.trainers.pretrain_data import Say, corpus_of
from mmreason.trainers.sft_arguments import SFTOptions


def held_out_captions(
    corpus: CorpusArguments, options: PretrainOptions, say: Say, prompt: str | None = None
) -> tuple[Any, Any]:
    """(training rows, held-out rows) of `mmreason.data.captions.load_captions`.

    Held out is the test split, or `validation_split_percentage` of the rows, none of whose questions stays behind.
    Raises: DataError as `load_captions`.
    """
    reading = {
        "image_column": corpus.image_column,
        "prompt": prompt,
        "image_root": corpus.image_root,
        "image_urls": corpus.image_urls,
    }
    rows, dropped = load_captions(corpus_of(corpus, corpus.dataset_train_split), **reading)  # type: ignore[arg-type]
    say(f"{len(rows):,} pictures with texts" + (f"; dropped: {dropped}" if dropped else ""))
    if corpus.dataset_test_split is not None:
        held, _ = load_captions(corpus_of(corpus, corpus.dataset_test_split), **reading)  # type: ignore[arg-type]
        return rows, held
    share = min(max(2, round(len(rows) * corpus.validation_split_percentage / 100)), len(rows) // 2)
    return split_holdout(rows, share, options.seed)


_FROZEN = ("vision_tower", "language_model")
"""What doesn't learn where nothing else is said: of a composed model all but its projector."""


def alignment_options(options: PretrainOptions) -> SFTOptions:
    """The options of supervised fine-tuning under which captions are learned."""
    shared = {f.name for f in fields(SFTOptions)} & {f.name for f in fields(PretrainOptions)}
    made = SFTOptions(**{name: getattr(options, name) for name in shared if name != "packing_window"})
    made.check()
    return made


def visual_run(
    model: ModelArguments,
    corpus: CorpusArguments,
    options: PretrainOptions,
    config: Any,
    checkpoint: Path | None,
    say: Say,
) -> tuple[Any, Callable[..., dict[str, float]], Any]:
    """(trainer, measurement of held-out rows, processor) of alignment, or of documents with pictures in them.

    Both are supervised fine-tuning: of captions as answers to pictures, of which a composed model learns its projector;
    or of all text of a document.

    Args: config: `mmreason.trainers.sft.trl_config(alignment_options(options))`.
    Raises: ConfigError where no model that sees is named; DataError where rows can't be used.
    """
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.loading import load_policy_model, load_processor
    from mmreason.models.peft import add_adapter
    from mmreason.trainers.sft import SFTTrainer

    align = options.objective == "align"
    captions = held_out_captions(corpus, options, say, options.caption_prompt) if align else None
    compose_for_run(model, options.output_dir, config.distributed_state, options.seed)
    processor = load_processor(model)
    if captions is not None:
        learned, measured = _caption_rows(*captions, processor, corpus, options)
    else:
        learned, measured = _document_rows(processor, corpus, options)
    say(f"{len(learned):,} rows to learn, {int(learned.lengths.sum()):,} tokens; {len(measured):,} held out")
    learner = add_adapter(load_policy_model(model), model)
    waits = set(options.unfreeze_at or {})
    frozen = model.freeze_modules
    if frozen is None and align:
        frozen = [name for name in _FROZEN if name not in waits]
    if frozen:
        say(f"{freeze_modules(learner, frozen):,} parameters learn; frozen: {', '.join(frozen)}")
    trainer = SFTTrainer(learner, alignment_options(options), config, learned, processor, checkpoint)

    def measure(*_: Any) -> dict[str, float]:
        if not len(measured):
            return {}
        loss = trainer.held_out_loss(measured)
        return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}

    return trainer, measure, processor


def _caption_rows(train: Any, held: Any, processor: Any, corpus: CorpusArguments, options: PretrainOptions) -> Any:
    from mmreason.data.supervised import prepare_supervised

    held = held.select(range(min(len(held), corpus.eval_samples)))
    return [
        prepare_supervised(rows, processor, max_length=options.max_length, on_bad_row=corpus.on_bad_row)[0]
        for rows in (train, held)
    ]


def _document_rows(processor: Any, corpus: CorpusArguments, options: PretrainOptions) -> Any:
    """(rows to learn, held-out rows): of a test split, or every n-th document of the training split."""
    from mmreason.data.interleaved import prepare_interleaved

    reading = {
        "image_column": corpus.image_column,
        "image_root": corpus.image_root,
        "image_urls": corpus.image_urls,
    }
    train = corpus_of(corpus, corpus.dataset_train_split)
    if corpus.dataset_test_split is not None:
        test = corpus_of(corpus, corpus.dataset_test_split)
        return [prepare_interleaved(one, processor, options.max_length, **reading)[0] for one in (train, test)]  # type: ignore[arg-type]
    share, seed = corpus.validation_split_percentage, options.seed
    sides = [
        lambda number: not is_held_out(number, share, seed),
        lambda number: is_held_out(number, share, seed),
    ]
    return [
        prepare_interleaved(train, processor, options.max_length, wanted=side, **reading)[0]  # type: ignore[arg-type]
        for side in sides
    ]
