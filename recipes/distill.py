"""Distillation: a student learns from one teacher or several, from their texts, distributions or layers.

    accelerate launch recipes/distill.py                      # a tiny decoder learns its own right answers, embedded
    accelerate launch recipes/distill.py --config YAML --mode on_policy --lmbda 0.5
    accelerate launch recipes/distill.py --config YAML --teacher_logits stored --top_k 64      # the teacher runs once
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/distill.py --config YAML

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmreason._adapters import adapter_block, check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments
from mmreason.trainers.distill_arguments import ROWS, DistillOptions
from recipes.sft import make_data, make_tiny_model, tell_results, train_and_measure
from recipes.sft import run_identity as sft_identity

EMBEDDED = Path(__file__).parent / "configs" / "distill" / "embedded.yaml"
NAMES_A_MODEL = (
    "--config", "--model_name_or_path", "--model-name-or-path", "--decoder", "--teacher_model_name_or_path",
    "--teachers",
)  # fmt: skip
OPTIONS = (ModelArguments, DataArguments, DistillOptions)
# What decides the objective, and whose tokens stand in which step.
FIXED = (
    "mode", "teacher_model_name_or_path", "teachers", "teacher_weighting", "teacher_logits", "top_k", "divergence",
    "beta", "temperature", "alpha", "layers", "hard_share", "sample_by_gap", "lmbda", "sampling_temperature",
    "teacher_samples", "teacher_temperature", "max_completion_length", "teacher_alignment",
    "rationale_weight", "prefix_language", "proxy",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    trainer = run_distillation(*parse_config(OPTIONS, argv, "distill.py", __doc__))
    if trainer is not None:
        trainer.close()


def run_distillation(model_args: ModelArguments, data: DataArguments, args: DistillOptions) -> Any:
    """The whole stage: the trainer, not yet closed. Once it has ended, the output folder's `final` is the student.

    None where the proxy's training was stopped.
    """
    # 1. Fail early: options, output folder and checkpoint are checked before data and models are loaded.
    args.check()
    check_adapter(model_args, args)
    if args.mode == "proxy" and not train_proxy(data, args):
        return None
    config, checkpoint, say = set_up(model_args, data, args)

    # 2. Rows: the teacher's own texts or any others; conversations become token ids with loss weights.
    from mmreason.models.loading import load_processor
    from mmreason.trainers.distill_data import by_gap, load_data, load_teachers, scale_rationales, stores_of
    from mmreason.trainers.model_parts import compose_for_run
    from mmreason.trainers.sft_data import check_data, order_of, render_rows

    members, curriculum, loss_on = check_data(data, args)
    make_data(data, args, say)
    train, held_out = load_data(args, data, members, config, say)
    compose_for_run(model_args, args.output_dir, config.distributed_state, args.seed)
    if model_args.model_name_or_path is None:
        with config.distributed_state.main_process_first():
            is_main = config.process_index == 0
            named = any(one.path != ROWS for one in args.all_teachers())
            made = make_tiny_student(args, is_main) if named else make_tiny_model(train, args, is_main)
            model_args.model_name_or_path = made
    processor = load_processor(model_args)
    rows, measured = render_rows(train, held_out, processor, data, args, loss_on, say)
    scale_rationales(args, rows)

    # 3. Teachers: their vocabulary is the student's; one that sees reads pictures with its own processor.
    teachers = load_teachers(args, processor, train, rows, loss_on, data, say)
    stores = stores_of(args, teachers, rows, processor)

    # 4. Student: any causal LM or vision-language model, whole, with parts frozen, or with an adapter.
    from mmreason.trainers.distill import DistillTrainer

    model = load_student(model_args)

    # 5. The loop: both models on the same tokens, divergence of their distributions (mmreason/trainers/distill.py).
    trainer = DistillTrainer(
        model,
        args,
        config,
        rows,
        processor,
        checkpoint,
        by_gap(args, len(rows)) or order_of(train, rows, members, curriculum, args),
        teachers=teachers,
        stores=stores,
        weights=args.weights_of,
    )

    # 6. Loss and accuracy on held-out rows while it goes on; the final student, and a report of it all.
    if train_and_measure(trainer, measured, say):
        before_report = (lambda: write_the_bill(trainer, model_args, held_out, data, say)) if args.bill else None
        tell_results(trainer, processor, say, before_report)
    return trainer


def load_student(model_args: ModelArguments) -> Any:
    """The model as the options have it: with its adapter, its frozen parts."""
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.loading import load_policy_model
    from mmreason.models.peft import add_adapter

    model = add_adapter(load_policy_model(model_args), model_args)
    if model_args.freeze_modules:
        freeze_modules(model, model_args.freeze_modules)
    return model


def train_proxy(data: DataArguments, args: DistillOptions) -> bool:
    """Let the proxy learn the rows, unless it has; then it is the teacher. False where that was stopped."""
    from mmreason.trainers.stages import stage_is_done
    from recipes.reft import end_stage
    from recipes.sft import run_sft

    model_args, sft_args = args.proxy_stage()
    folder, identity = Path(sft_args.output_dir), sft_identity(model_args, data, sft_args) | {"block": args.proxy}
    if not stage_is_done(folder, identity, sft_args.overwrite_output_dir) and not end_stage(
        run_sft(deepcopy(model_args), deepcopy(data), sft_args), folder, identity
    ):
        return False
    args.proxy_made()
    return True


def write_the_bill(trainer: Any, model_args: ModelArguments, held_out: Any, data: DataArguments, say: Any) -> None:
    """Sizes, speed and accuracy of the teachers, of the student as it began, and as it ended."""
    from mmreason.trainers.distill_bill import write_bill
    from mmreason.trainers.distributed import is_spread

    if is_spread(trainer.accelerator) or adapter_block(model_args) is not None:
        say("No bill: it is measured on whole models, without DeepSpeed, FSDP and adapters.")
        return
    teachers = [
        (f"teacher {one.path}", one.model_arguments())
        for one in trainer.options.all_teachers()
        if one.path != ROWS and one.quantization is None
    ]
    after = str(Path(trainer.options.output_dir) / "final")
    students = [("student before", model_args), ("student after", replace(model_args, model_name_or_path=after))]
    evaluation = Path(trainer.options.output_dir) / "evaluation.json"
    done = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {}
    sets = done.get("after", {}).get("sets", {})
    known = {"student after": {name: found["greedy"] for name, found in sets.items()}} if sets else None
    write_bill(trainer, [*teachers, *students], held_out, data, say, known=known)


def make_tiny_student(args: DistillOptions, is_main: bool) -> str:
    """A random decoder of the size asked for, with the first teacher's tokenizer."""
    from transformers import AutoTokenizer

    from mmreason.models.tiny import save_tiny

    folder = Path(args.output_dir) / "tiny_student"
    if is_main:  # again after a kill, too: the same seed gives the same files
        first = next(one for one in args.all_teachers() if one.path != ROWS)
        tokenizer = AutoTokenizer.from_pretrained(first.path)
        save_tiny(folder, args.tiny_size, seed=args.seed, tokenizer=tokenizer)
    return str(folder)


def set_up(model_args: ModelArguments, data: DataArguments, args: DistillOptions) -> tuple[Any, Path | None, Any]:
    """(TRL's configuration, the checkpoint from which this run goes on or None, print), the output folder claimed."""
    from mmreason.trainers.distill_arguments import OURS
    from mmreason.trainers.hf_loop import find_checkpoint
    from mmreason.trainers.model_parts import check_parts
    from mmreason.trainers.sft import trl_config
    from mmreason.trainers.state import open_output_dir

    check_parts(model_args)
    as_given = deepcopy((model_args, data, args))
    config = trl_config(args, OURS)
    is_main = config.process_index == 0
    identity = sft_identity(model_args, data, args) | {name: getattr(args, name) for name in FIXED}
    open_output_dir(args.output_dir, identity, args.overwrite_output_dir, is_main, as_given)
    config.distributed_state.wait_for_everyone()
    return config, find_checkpoint(args.output_dir, args.resume), print if is_main else lambda *_, **__: None


if __name__ == "__main__":
    run_as_script(main)
