"""Documents as a run's options name them: what is learned from, what is held out, how many steps an epoch has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmreason.data.documents import (
    Bin,
    BinSequence,
    Documents,
    StreamedDocuments,
    hold_out_documents,
    open_documents,
    store_documents,
)
from mmreason.data.objectives import Objective, ObjectiveSettings, ObjectiveTokens, build_objective, word_starts
from mmreason.data.texts import Corpus
from mmreason.trainers.pretrain_arguments import CorpusArguments, PretrainOptions
from mmreason.types import ConfigError

Say = Callable[[str], None]


@dataclass(frozen=True)
class TextData:
    """What a run learns from, and what it is measured on.

    sequence: the bins, for ever. held_out: bins. held_out_bytes: UTF-8 bytes of the held-out texts, for objective clm.
    """

    sequence: BinSequence
    held_out: list[Bin]
    held_out_bytes: int


def corpus_of(arguments: CorpusArguments, split: str) -> Corpus:
    """The corpus that the options name. Raises DataError where there is none."""
    return Corpus(
        arguments.dataset_name or "",
        split,
        arguments.text_column,
        arguments.txt_unit,
        arguments.on_bad_row,
        arguments.streaming,
        arguments.max_train_samples if split == arguments.dataset_train_split else None,
    )


def objective_of(options: PretrainOptions, tokenizer: Any, tokens: ObjectiveTokens, encoder_decoder: bool) -> Objective:
    """The run's objective, bound to its tokenizer. Raises ConfigError where it doesn't fit the model."""
    settings = ObjectiveSettings(
        mlm_probability=options.mlm_probability,
        mask_replace_prob=options.mask_replace_prob,
        random_replace_prob=options.random_replace_prob,
        noise_density=options.noise_density,
        mean_noise_span_length=options.mean_noise_span_length,
        ul2_weights=options.ul2_weights,
        infill_format=options.infill_format,
        fim_rate=options.fim_rate,
        fim_spm_rate=options.fim_spm_rate,
        bidirectional_prefix=options.bidirectional_prefix,
    )
    return build_objective(
        options.objective,
        tokens,
        settings,
        max_length=options.max_length,
        encoder_decoder=encoder_decoder,
        vocab_size=len(tokenizer),
        special_ids=frozenset(tokenizer.all_special_ids),
        word_starts=word_starts(tokenizer).numpy() if options.whole_word_mask else None,
    )


def text_data(
    arguments: CorpusArguments,
    options: PretrainOptions,
    tokenizer: Any,
    objective: Objective,
    main_first: Callable[[], AbstractContextManager[Any]],
    say: Say,
) -> TextData:
    """Tokenize the corpus (or, streaming, as it comes) and hold documents out.

    Args: main_first: a context that the main process is through before the others begin: it writes the token files.
    Raises: DataError as `Corpus.read`.
    """
    seed, percentage = options.seed, arguments.validation_split_percentage
    if arguments.dataset_test_split is not None:
        percentage = 0.0
    train: Documents
    held: Documents | None
    corpus = corpus_of(arguments, arguments.dataset_train_split)
    if arguments.streaming:
        train = StreamedDocuments(corpus, tokenizer, percentage, seed)
        held = StreamedDocuments(corpus, tokenizer, percentage, seed, held_out=True) if percentage else None
        say(f"{corpus.name}: read as it comes.")
    else:
        stored = _stored(corpus, tokenizer, Path(options.output_dir) / "tokens" / "train", main_first, seed)
        train, held = hold_out_documents(stored, percentage, seed)
        dropped = f"; dropped: {dict(corpus.dropped)}" if corpus.dropped else ""
        say(f"{len(stored):,} documents, {stored.tokens:,} tokens{dropped}")
    if arguments.dataset_test_split is not None:
        test = corpus_of(arguments, arguments.dataset_test_split)
        held = _stored(test, tokenizer, Path(options.output_dir) / "tokens" / "test", main_first, None)
    size, window = options.max_length, options.packing_window
    bins = _bins(held, objective, size, options.packing, seed, arguments.eval_samples) if held is not None else []
    say(f"held out: {sum(len(piece.ids) for one in bins for piece in one):,} tokens in {len(bins)} rows")
    sequence = BinSequence(train, objective, size, pack=options.packing, window=window, seed=seed)
    return TextData(sequence, bins, _size(bins, tokenizer) if options.objective == "clm" else 0)


def _stored(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    main_first: Callable[[], AbstractContextManager[Any]],
    seed: int | None,
) -> Any:
    with main_first():
        store_documents(corpus, tokenizer, folder)
    return open_documents(folder, seed)


def _bins(documents: Documents, objective: Objective, size: int, pack: bool, seed: int, limit: int) -> list[Bin]:
    """The first bins of held-out documents, the same ones whenever they are measured."""
    if limit < 1:
        return []
    sequence = BinSequence(documents, objective, size, pack=pack, window=limit, seed=seed)
    return [one for _, one in islice(sequence.bins(epochs=1), limit)]


def _size(bins: list[Bin], tokenizer: Any) -> int:
    """UTF-8 bytes of what is predicted: the first token of a row is only read."""
    texts = (tokenizer.decode(piece.ids[1:], skip_special_tokens=True) for one in bins for piece in one)
    return sum(len(text.encode()) for text in texts)


def steps_of(options: PretrainOptions, sequence: BinSequence, processes: int) -> int:
    """Optimizer steps of `num_train_epochs`; `max_steps` where it is given.

    Raises: ConfigError where not one step comes out of it.
    """
    if options.max_steps > 0:
        return options.max_steps
    per_step = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
    epochs = options.num_train_epochs
    counts = list(_bins_by_epoch(sequence, math.ceil(epochs)))
    bins = sum(counts[: int(epochs)]) + (counts[int(epochs)] * (epochs % 1) if epochs % 1 else 0)
    steps = math.ceil(bins / per_step)
    if steps < 1:
        raise ConfigError(f"num_train_epochs={epochs} makes no optimizer step; raise it, or set max_steps")
    return steps


def _bins_by_epoch(sequence: BinSequence, epochs: int) -> Iterator[int]:
    counts = [0] * epochs
    for cursor, _ in sequence.bins(epochs=epochs):
        counts[cursor.epoch] += 1
    yield from counts
