"""Preference training, with or without pictures: DPO and its family, from pairs, labels or a judge.

    accelerate launch recipes/preference.py                                 # the right steps over wrong ones, embedded
    accelerate launch recipes/preference.py --config YAML --loss simpo      # or dpo, ipo, kto, orpo, [dpo, bco, sft]
    accelerate launch recipes/preference.py --config recipes/configs/preference/mpo-vlm.yaml          # with pictures
    accelerate launch recipes/preference.py --config recipes/configs/preference/online-judge.yaml     # asks a judge

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
from mmreason.trainers.preference_arguments import OnlineOptions, PreferenceOptions

EMBEDDED = Path(__file__).parent / "configs" / "preference" / "embedded.yaml"
WARM_START = Path(__file__).parent / "warm_start"
NAMES_A_MODEL = ("--config", "--model_name_or_path", "--model-name-or-path", "--decoder")
OPTIONS = (ModelArguments, DataArguments, PreferenceOptions)
# What decides the objective, which pairs stand in which step, and how an optimizer's state is laid out.
FIXED = (
    "losses", "weights", "beta", "label_smoothing", "simpo_gamma", "desirable_weight", "undesirable_weight",
    "ref_model_name_or_path", "precompute_ref_log_probs", "max_length", "seed",
    "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
# Of `online`, what decides which answers are sampled and which of them is preferred.
FIXED_ONLINE = ("how", "criteria", "num_generations", "prompts_per_round", "temperature", "top_p")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    model_args, data, args = options = parse_config(OPTIONS, argv, "preference.py", __doc__)

    # 1. Fail early: options, output folder and checkpoint are checked before data and model are loaded.
    args.check()
    check_adapter(model_args, args)
    config, checkpoint, say = set_up(*options)

    # 2. Rows: both sides of a pair become token ids; a pair that says nothing is named, not learned from.
    from mmreason.models.loading import load_policy_model, load_processor
    from mmreason.trainers.model_parts import compose_for_run

    make_data(data, args, say)
    compose_for_run(model_args, args.output_dir, config.distributed_state, args.seed)
    if model_args.model_name_or_path is None:
        say("No model was named: using the tiny decoder of recipes/warm_start.")
        model_args.model_name_or_path = str(WARM_START)
    processor = load_processor(model_args)
    rows = load_all(data, args, processor, say)

    # 3. Model and reference: a second model, the adapter switched off, or log-probabilities taken beforehand.
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.peft import add_adapter
    from mmreason.trainers.preference_reference import load_reference, stores_of

    stores = stores_of(model_args, args, rows.pairs)
    missing = not all(store.is_complete(is_main=config.process_index == 0) for store in stores)
    reference, adapter_off = load_reference(model_args, args, processor, needed=missing or not stores)
    model = add_adapter(load_policy_model(model_args), model_args)
    if model_args.freeze_modules:
        freeze_modules(model, model_args.freeze_modules)

    # 4. The loop: one forward pass of both sides, log-ratios to the reference, loss (mmreason/trainers/preference.py).
    from mmreason.trainers.preference import PreferenceTrainer, count_steps

    config.max_steps = count_steps(args, rows.count, config.world_size)
    trainer = PreferenceTrainer(
        model,
        args,
        config,
        rows.train_pairs,
        processor,
        checkpoint,
        reference=reference,
        adapter_off=adapter_off,
        stores=stores,
        image_counts=rows.image_counts,
    )
    if args.online is not None:
        ask_a_judge(trainer, rows, processor, checkpoint, say)

    # 5. Preference accuracy and margins on held-out pairs, greedy accuracy on their questions; the final model.
    if train_and_measure(trainer, rows, data.eval_num_generations, say):
        tell_results(trainer, processor, say)
    trainer.close()


def set_up(model_args: ModelArguments, data: DataArguments, args: PreferenceOptions) -> tuple[Any, Path | None, Any]:
    """(transformers' configuration, the checkpoint from which this run goes on or None, print), the folder claimed."""
    from mmreason.trainers.hf_loop import find_checkpoint
    from mmreason.trainers.model_parts import check_parts
    from mmreason.trainers.preference import hf_config
    from mmreason.trainers.preference_reference import check_reference
    from mmreason.trainers.state import open_output_dir

    check_parts(model_args)
    check_reference(model_args, args)
    as_given = deepcopy((model_args, data, args))
    config = hf_config(args)
    is_main = config.process_index == 0
    identity = run_identity(model_args, data, args)
    open_output_dir(args.output_dir, identity, args.overwrite_output_dir, is_main, as_given)
    config.distributed_state.wait_for_everyone()
    return config, find_checkpoint(args.output_dir, args.resume), print if is_main else lambda *_, **__: None


def run_identity(model: ModelArguments, data: DataArguments, args: PreferenceOptions) -> dict[str, Any]:
    """What may not change when a run is continued. Learning rate, number of steps, the judge's address … may."""
    return {
        "model_name_or_path": model.model_name_or_path,
        "parts": {"decoder": model.decoder, "vision": model.vision, "projector": model.projector},
        "freeze_modules": model.freeze_modules,
        "adapter": adapter_block(model),
        "dataset_name": data.dataset_name,
        "word_problems": data.word_problems if data.dataset_name is None else None,
        "dataset_train_split": data.dataset_train_split,
        "max_train_samples": data.max_train_samples,
        "online": None if args.online is None else online_identity(OnlineOptions.parse(args.online)),
    } | {name: getattr(args, name) for name in FIXED}


def online_identity(online: OnlineOptions) -> dict[str, Any]:
    """`FIXED_ONLINE` and the judge's model: where it answers, for how much money and how patiently may change."""
    return {"judge": online.judge["model"]} | {name: getattr(online, name) for name in FIXED_ONLINE}


def make_data(data: DataArguments, args: PreferenceOptions, say: Any) -> None:
    """Where no set is named, one that is made by the code."""
    if data.dataset_name is not None:
        return
    if args.online is not None:
        from data_builders import word_problems

        say("No dataset was named: using word problems generated by data_builders/word_problems.py.")
        data.dataset_name = str(word_problems.cached(**(data.word_problems or {}), say=say))
    else:
        from data_builders._preferences import word_pairs

        say("No dataset was named: using pairs of generated word problems, the right steps over wrong ones.")
        data.dataset_name = str(word_pairs.cached(**(data.word_problems or {}), say=say))


def load_all(data: DataArguments, args: PreferenceOptions, processor: Any, say: Any) -> Any:
    """Training and held-out rows, checked: see `mmreason.trainers.preference_data.RunRows`."""
    from mmreason.trainers.preference_data import load_rows, prompt_rows, render_rows

    train, held_out = load_rows(data, args, say)
    prepare = prompt_rows if args.online is not None else render_rows
    return prepare(train, held_out, processor, data, args, say)


def ask_a_judge(trainer: Any, rows: Any, processor: Any, checkpoint: Path | None, say: Any) -> None:
    """Have the trainer learn from the policy's own answers, of which a judge picks the best and the worst."""
    from mmreason.trainers.preference import START
    from mmreason.trainers.preference_online import FOLDER, JudgeGrader, OnlineSource, online_rounds

    args = trainer.options
    online = OnlineOptions.parse(args.online)
    folder = Path(args.output_dir) / FOLDER
    grader = JudgeGrader(online, folder) if trainer.accelerator.is_main_process else None
    rounds = online_rounds(trainer, rows, online, folder, grader, say)
    size, micro_batches = args.per_device_train_batch_size, args.gradient_accumulation_steps
    trainer.start(OnlineSource(rounds, trainer.collate, size, micro_batches), checkpoint, START)
    trainer.also_record = lambda: rounds.metrics


def train_and_measure(trainer: Any, rows: Any, k: int, say: Any) -> bool:
    """Measure, train, measure again. False for a run that was stopped, which says how it goes on."""
    from mmreason.trainers.evaluation import Evaluations

    if trainer.checkpoint is not None:
        say(f"Continuing from {trainer.checkpoint}.")
    evaluations = Evaluations(trainer, rows.problems, k, trainer.options.output_dir)

    def measure(last: bool) -> dict[str, float]:
        found = trainer.held_out(rows.held_out)
        if trainer.state.global_step == 0 and not last:
            evaluations.run("before")
            return found
        return found | evaluations.while_training(last)

    trainer.while_training = measure
    if not trainer.fit():
        say(f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, saved.", end=" ")
        say("Run the same command to continue.")
        return False
    say(evaluations.table())
    shown = ("loss/", "rewards/accuracies", "rewards/margins")
    for name, value in (trainer.latest or {}).items():
        if any(part in name for part in shown):
            say(f"{name}: {value:.4f}")
    return True


def tell_results(trainer: Any, processor: Any, say: Any) -> None:
    """Save the final model; one that sees keeps its processor, so that later stages can show it pictures."""
    from mmreason.trainers.reporting import write_run_report

    final = Path(trainer.options.output_dir) / "final"
    trainer.save_final(final, processor)
    say(f"Model: {final}   metrics: {trainer.options.output_dir}")
    write_run_report(trainer.options.output_dir, trainer.accelerator)


if __name__ == "__main__":
    run_as_script(main)
