"""Pretraining: texts (clm, mlm, span, ul2, infill), captions (align), pictures and texts in one space (contrastive).

    accelerate launch recipes/pretrain.py                               # a tiny decoder learns generated texts
    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/ul2.yaml                # denoisers, T5-like
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/pretrain.py --config YAML --learning_rate 1e-4

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.pretrain_arguments import CorpusArguments, FreshModelArguments, PretrainOptions

EMBEDDED = Path(__file__).parent / "configs" / "pretrain"
OPTIONS = (ModelArguments, FreshModelArguments, CorpusArguments, PretrainOptions)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    model, fresh, corpus, args = options = parse_config(OPTIONS, with_defaults(argv), "pretrain.py", __doc__)
    args.check(model, fresh, corpus)

    # 1. Fail early: output folder and checkpoint are checked before data and model are loaded.
    from mmreason.trainers.hf_loop import find_checkpoint
    from mmreason.trainers.model_parts import check_parts
    from mmreason.trainers.pretrain import hf_config
    from mmreason.trainers.pretrain_captions import alignment_options
    from mmreason.trainers.sft import trl_config
    from mmreason.trainers.state import open_output_dir

    as_given = deepcopy(options)
    pictured = args.objective == "align" or corpus.interleaved
    if pictured:
        check_parts(model)
    config = trl_config(alignment_options(args)) if pictured else hf_config(args)
    is_main = config.process_index == 0
    say = print if is_main else lambda *_, **__: None
    open_output_dir(args.output_dir, run_identity(*options), args.overwrite_output_dir, is_main, as_given)
    config.distributed_state.wait_for_everyone()
    checkpoint = find_checkpoint(args.output_dir, args.resume)

    # 2. Data, model and loop of the objective.
    build = on_pictures if pictured else on_pairs if args.objective == "contrastive" else on_texts
    trainer, measure, processor = build(options, config, checkpoint, say)

    # 3. Train, measured on held-out data while it goes on, and save the final model.
    if checkpoint is not None:
        say(f"Continuing from {checkpoint}.")
    trainer.while_training = measure
    if trainer.fit():
        tell_results(trainer, processor, measure, say)
    else:
        say(f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, saved.", end=" ")
        say("Run the same command to continue.")
    trainer.accelerator.end_training()


def with_defaults(argv: list[str]) -> list[str]:
    """Without a configuration, a model or data the command shows an objective on what the code makes itself."""
    if any(flag.replace("-", "_").startswith(("__config", "__model_", "__dataset_name", "__decoder")) for flag in argv):
        return argv
    stage = next((flag.partition("=")[2] for flag in argv if flag.startswith("--objective=")), "")
    if "--objective" in argv[:-1]:
        stage = argv[argv.index("--objective") + 1]
    own = EMBEDDED / f"{stage}-embedded.yaml"
    return ["--config", str(own if stage and own.is_file() else EMBEDDED / "embedded.yaml"), *argv]


def run_identity(
    model: ModelArguments, fresh: FreshModelArguments, corpus: CorpusArguments, args: PretrainOptions
) -> dict[str, Any]:
    """What may not change when a run is continued."""
    names = ("objective", "max_length", "packing", "packing_window", "seed", "per_device_train_batch_size")
    return {
        **{name: getattr(args, name) for name in (*names, "gradient_accumulation_steps")},
        **{name: getattr(corpus, name) for name in ("dataset_name", "dataset_train_split", "streaming", "interleaved")},
        **{name: getattr(fresh, name) for name in ("model_type", "config_overrides", "train_tokenizer")},
        "rope_scaling": fresh.rope_scaling,
        "model": [model.model_name_or_path, model.decoder, fresh.tiny_size if fresh.model_type is None else None],
        "made": (corpus.word_problems or corpus.shapes) if corpus.dataset_name is None else None,
    }


def on_texts(options: Any, config: Any, checkpoint: Path | None, say: Any) -> tuple[Any, Any, Any]:
    """Documents are tokenized, cut and corrupted; a model of the objective's kind learns from them."""
    from mmreason.data.objectives import names_of, objective_tokens
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.peft import add_adapter
    from mmreason.trainers.pretrain import BinBatches, PretrainTrainer
    from mmreason.trainers.pretrain_data import corpus_of, objective_of, steps_of, text_data
    from mmreason.trainers.pretrain_models import is_encoder_decoder, model_of_run, tokenizer_of_run

    model, fresh, corpus, args = options
    name_texts(corpus, say)
    with config.distributed_state.main_process_first():
        source = corpus_of(corpus, corpus.dataset_train_split)
        special = names_of(args.objective, args.infill_format)
        processor = tokenizer_of_run(model, fresh, args, source.texts, special, say)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = objective_tokens(tokenizer, args.objective, args.infill_format)
    if tokens.added:
        say(f"{len(tokens.added)} tokens are new to the tokenizer: {', '.join(tokens.added[:3])} …")
    both = is_encoder_decoder(model, fresh, args.objective)
    objective = objective_of(args, tokenizer, tokens, both)
    data = text_data(corpus, args, tokenizer, objective, config.distributed_state.main_process_first, say)
    config.max_steps = steps_of(args, data.sequence, config.world_size)

    learner = add_adapter(model_of_run(model, fresh, args, processor, both, say), model)
    if model.freeze_modules:
        freeze_modules(learner, model.freeze_modules)
    packed = objective.layout == "packed" and args.packing
    batches = BinBatches(data.sequence, args.per_device_train_batch_size, tokenizer.pad_token_id, packed=packed)
    trainer = PretrainTrainer(learner, args, config, batches, objective.layout, processor, checkpoint)
    return trainer, (lambda *_: trainer.measured(data.held_out, data.held_out_bytes)), processor


def name_texts(corpus: CorpusArguments, say: Any) -> None:
    """Where no corpus is named: the texts of generated problems."""
    if corpus.dataset_name is not None:
        return
    from data_builders import shapes, word_problems

    name = "word_problems" if corpus.shapes is None else "shapes"
    say(f"No dataset was named: using the texts of problems generated by data_builders/{name}.py.")
    made = word_problems if corpus.shapes is None else shapes
    corpus.dataset_name = str(made.cached(**(corpus.shapes or corpus.word_problems or {}), say=say))


def on_pictures(options: Any, config: Any, checkpoint: Path | None, say: Any) -> tuple[Any, Any, Any]:
    """A projector learns to show pictures to a decoder (captions, then optionally the tower as well); or a model that
    sees already learns documents with pictures in them."""
    from mmreason.trainers.pretrain_captions import visual_run

    model, _, corpus, args = options
    name_pictures(corpus, say)
    return visual_run(model, corpus, args, config, checkpoint, say)


def on_pairs(options: Any, config: Any, checkpoint: Path | None, say: Any) -> tuple[Any, Any, Any]:
    """A vision tower learns to tell which text belongs to which picture (CLIP); the tower is what is kept."""
    from mmreason.trainers.pretrain_contrastive import pairs_run

    model, fresh, corpus, args = options
    name_pictures(corpus, say)
    return pairs_run(model, fresh, corpus, args, config, checkpoint, say)


def name_pictures(corpus: CorpusArguments, say: Any) -> None:
    """Where no set is named: generated pictures of colored shapes with their descriptions."""
    if corpus.dataset_name is None:
        from data_builders.shapes import cached

        say("No dataset was named: using pictures generated by data_builders/shapes.py and their descriptions.")
        corpus.dataset_name = str(cached(**({"tasks": ["describe"]} | (corpus.shapes or {})), say=say))


def tell_results(trainer: Any, processor: Any, measure: Any, say: Any) -> None:
    """Save the final model with its tokenizer or processor, and say how well it predicts what was held out."""
    from mmreason.trainers.reporting import write_run_report

    final = Path(trainer.options.output_dir) / "final"
    trainer.save_final(final, processor)
    found = trainer.latest or measure()
    say("Held out: " + (", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in found.items()) or "-"))
    say(f"Model: {final}   metrics: {trainer.options.output_dir}")
    write_run_report(trainer.options.output_dir, trainer.accelerator)


if __name__ == "__main__":
    run_as_script(main)
