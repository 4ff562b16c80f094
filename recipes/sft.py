"""Supervised fine-tuning, with or without pictures: learn to answer as the examples do, the loss on the answers only.

    accelerate launch recipes/sft.py                                    # warms up the tiny decoder of the demo
    accelerate launch recipes/sft.py --config recipes/configs/sft/qwen2.5-0.5b.yaml      # GSM8K's own solutions
    accelerate launch recipes/sft.py --config recipes/configs/sft/llava-instruct.yaml    # pictures, packed
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/sft.py --config YAML --learning_rate 1e-5

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmreason._adapters import adapter_block, check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments
from mmreason.trainers.sft_arguments import SFTOptions

EMBEDDED = Path(__file__).parent / "configs" / "sft" / "embedded.yaml"
NAMES_A_MODEL = ("--config", "--model_name_or_path", "--model-name-or-path", "--decoder")
OPTIONS = (ModelArguments, DataArguments, SFTOptions)
# Of SFTOptions, what decides which rows stand in which step, and how an optimizer's state is laid out.
FIXED = (
    "datasets", "replay", "mixture_temperature", "mixture_stop", "curriculum", "loss_on", "max_length", "truncation",
    "packing", "packing_window", "layer_lr_decay", "module_learning_rates", "unfreeze_at", "seed",
    "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    run_sft(*parse_config(OPTIONS, argv, "sft.py", __doc__)).close()


def run_sft(model_args: ModelArguments, data: DataArguments, args: SFTOptions) -> Any:
    """The whole stage: the trainer, not yet closed. Once it has ended, `final` in the output folder holds the model."""
    # 1. Fail early: options, output folder and checkpoint are checked before data and model are loaded.
    args.check()
    check_adapter(model_args, args)
    config, checkpoint, say = set_up(model_args, data, args)

    # 2. Examples: conversations become token ids with loss weights; nothing is cut or left out silently.
    from mmreason.trainers.model_parts import compose_for_run
    from mmreason.trainers.sft_data import check_data, load_rows, order_of, render_rows

    members, curriculum, loss_on = check_data(data, args)
    make_data(data, args, say)
    train, held_out = load_rows(data, members, args.seed, say)
    compose_for_run(model_args, args.output_dir, config.distributed_state, args.seed)
    if model_args.model_name_or_path is None:
        with config.distributed_state.main_process_first():
            model_args.model_name_or_path = make_tiny_model(train, args, config.process_index == 0)

    from mmreason.models.loading import load_policy_model, load_processor

    processor = load_processor(model_args)
    rows, measured = render_rows(train, held_out, processor, data, args, loss_on, say)

    # 3. Model: any causal LM or vision-language model, whole, with parts frozen, or with an adapter.
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.peft import add_adapter
    from mmreason.trainers.sft import SFTTrainer

    model = add_adapter(load_policy_model(model_args), model_args)
    if model_args.freeze_modules:
        freeze_modules(model, model_args.freeze_modules)

    # 4. TRL's loop over micro-batches of ours, padded or packed (mmreason/trainers/sft.py).
    order = order_of(train, rows, members, curriculum, args)
    trainer = SFTTrainer(model, args, config, rows, processor, checkpoint, order)

    # 5. Loss and accuracy on held-out rows while it goes on; the final model, and a report of it all.
    finished = train_and_measure(trainer, measured, say)
    if finished:
        tell_results(trainer, processor, say)
    return trainer


def set_up(model_args: ModelArguments, data: DataArguments, args: SFTOptions) -> tuple[Any, Path | None, Any]:
    """(TRL's configuration, the checkpoint from which this run goes on or None, print), the output folder claimed."""
    from mmreason.trainers.hf_loop import find_checkpoint
    from mmreason.trainers.model_parts import check_parts
    from mmreason.trainers.sft import trl_config
    from mmreason.trainers.state import open_output_dir

    check_parts(model_args)
    as_given = deepcopy((model_args, data, args))
    config = trl_config(args)
    is_main = config.process_index == 0
    identity = run_identity(model_args, data, args)
    open_output_dir(args.output_dir, identity, args.overwrite_output_dir, is_main, as_given)
    config.distributed_state.wait_for_everyone()
    return config, find_checkpoint(args.output_dir, args.resume), print if is_main else lambda *_, **__: None


def run_identity(model: ModelArguments, data: DataArguments, args: SFTOptions) -> dict[str, Any]:
    """What may not change when a run is continued. Learning rate, number of steps, logging … may."""
    return {
        "model_name_or_path": model.model_name_or_path,
        "parts": {"decoder": model.decoder, "vision": model.vision, "projector": model.projector},
        "tiny_size": args.tiny_size if model.model_name_or_path is None and model.decoder is None else None,
        "freeze_modules": model.freeze_modules,
        "adapter": adapter_block(model),
        "dataset_name": data.dataset_name,
        "word_problems": data.word_problems if data.dataset_name is None else None,
        "shapes": data.shapes if data.dataset_name is None else None,
        "dataset_train_split": data.dataset_train_split,
        "max_train_samples": data.max_train_samples,
    } | {name: getattr(args, name) for name in FIXED}


def make_data(data: DataArguments, args: SFTOptions, say: Any) -> None:
    """Where no set is named, one that is made by the code."""
    if data.dataset_name is not None or args.datasets is not None:
        return
    if data.shapes is not None:
        from data_builders import shapes

        say("No dataset was named: using pictures generated by data_builders/shapes.py.")
        data.dataset_name = str(shapes.cached(**data.shapes, say=say))
    else:
        from data_builders import word_problems

        say("No dataset was named: using word problems generated by data_builders/word_problems.py.")
        data.dataset_name = str(word_problems.cached(**(data.word_problems or {}), say=say))


def make_tiny_model(train: Any, args: SFTOptions, is_main: bool) -> str:
    """A random decoder of the size asked for, with a tokenizer that knows the words of the training examples."""
    from mmreason.data.supervised import message_texts
    from mmreason.models.tiny import save_tiny

    folder = Path(args.output_dir) / "tiny_model"
    if is_main:  # again after a kill, too: the same texts and seed give the same files
        texts = (text for column in ("prompt", "completion") for row in train[column] for text in message_texts(row))
        save_tiny(folder, args.tiny_size, texts=texts, seed=args.seed)
    return str(folder)


def train_and_measure(trainer: Any, measured: Any, say: Any) -> bool:
    """Train, from the start or a checkpoint; False for a run that was stopped, which says how it goes on."""
    from mmreason.trainers.evaluation import Evaluations

    if trainer.checkpoint is not None:
        say(f"Continuing from {trainer.checkpoint}.")
    evaluations = Evaluations(trainer, measured.problems, 0, trainer.options.output_dir)
    trainer.while_training = lambda last: evaluations.while_training(last) | trainer.held_out_losses(measured.rows)
    if not trainer.fit():
        say(f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, saved.", end=" ")
        say("Run the same command to continue.")
        return False
    if trainer.stopping.ended:
        say(trainer.stopping.told())
    evaluations.run("after")
    say(evaluations.table())
    for name, loss in trainer.held_out_losses(measured.rows).items():
        say(f"{name}: {loss:.4f}")
    return True


def tell_results(trainer: Any, processor: Any, say: Any, before_report: Any = None) -> None:
    """Save the final model; one that sees keeps its processor, so that later stages can show it pictures.

    Args: before_report: measures more of the saved model for the report.
    """
    from mmreason.trainers.reporting import write_run_report

    final = Path(trainer.options.output_dir) / "final"
    trainer.save_final(final, processor)
    if before_report is not None:
        before_report()
    say(f"Model: {final}   metrics: {trainer.options.output_dir}")
    write_run_report(trainer.options.output_dir, trainer.accelerator)


if __name__ == "__main__":
    run_as_script(main)
