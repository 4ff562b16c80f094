"""Reward models, with or without pictures: learn which answers are better, which are right, and which of their steps.

    accelerate launch recipes/reward_model.py                           # ranks solutions of generated word problems
    accelerate launch recipes/reward_model.py --config recipes/configs/reward_model/hh-rlhf.yaml     # pairs
    accelerate launch recipes/reward_model.py --config YAML --ranking_loss plackett_luce --learning_rate 1e-5

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmreason._adapters import adapter_block, check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.reward_arguments import RewardData, RewardOptions
from mmreason.types import ConfigError

EMBEDDED = Path(__file__).parent / "configs" / "reward_model" / "embedded.yaml"
NAMES_A_MODEL = ("--config", "--model_name_or_path", "--model-name-or-path", "--decoder")
OPTIONS = (ModelArguments, RewardData, RewardOptions)
# Of the options, what decides which rows stand in which step, what is learned of them, and an optimizer's state.
FIXED = (
    "head", "ranking_loss", "center_rewards_coefficient", "use_margin", "max_length", "truncation", "seed",
    "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    run_reward_model(*parse_config(OPTIONS, argv, "reward_model.py", __doc__)).close()


def run_reward_model(model_args: ModelArguments, data: RewardData, args: RewardOptions) -> Any:
    """The whole stage: the trainer, not yet closed. Once it has ended, `final` in the output folder holds the model."""
    # 1. Fail early: options, output folder and checkpoint are checked before data and model are loaded.
    args.check()
    data.check()
    check_adapter(model_args, args)
    if model_args.model_name_or_path is None and model_args.decoder is None:
        raise ConfigError("no model: name one with model_name_or_path, or decoder and vision")
    config, checkpoint, say = set_up(model_args, data, args)

    # 2. Rows: every prompt with every answer becomes token ids; nothing is cut or left out silently.
    from mmreason.models.loading import load_processor
    from mmreason.trainers.model_parts import compose_for_run
    from mmreason.trainers.reward_data import head_of, load_reward_rows, prepare_reward, told

    make_data(data, say)
    train, held_out = load_reward_rows(data, args.seed, say)
    head = head_of(train, args.head, data.dataset_name)
    compose_for_run(model_args, args.output_dir, config.distributed_state, args.seed)
    processor = load_processor(model_args)
    sets = {}
    for name, examples in {"training": train, **held_out}.items():
        sets[name], dropped = prepare_reward(examples, processor, head, args, data.on_bad_row)
        say(told(name, sets[name], dropped))
    rows = sets.pop("training")

    # 3. Model: any decoder or vision-language model with a fresh head, or a reward model that goes on.
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.reward import model_to_train
    from mmreason.trainers.reward import RewardTrainer

    model = model_to_train(model_args, head)
    if model_args.freeze_modules:
        freeze_modules(model, model_args.freeze_modules)

    # 4. transformers' loop, measured on the held-out rows before, while it goes on, and after.
    trainer = RewardTrainer(model, args, config, rows, processor, checkpoint)
    if train_and_measure(trainer, sets, say):
        tell_results(trainer, processor, say)
    return trainer


def set_up(model_args: ModelArguments, data: RewardData, args: RewardOptions) -> tuple[Any, Path | None, Any]:
    """(transformers' arguments, the checkpoint from which this run goes on or None, print); the folder claimed."""
    from mmreason.trainers.hf_loop import find_checkpoint
    from mmreason.trainers.model_parts import check_parts
    from mmreason.trainers.reward import hf_config
    from mmreason.trainers.state import open_output_dir

    check_parts(model_args)
    as_given = deepcopy((model_args, data, args))
    config = hf_config(args)
    is_main = config.process_index == 0
    identity = run_identity(model_args, data, args)
    open_output_dir(args.output_dir, identity, args.overwrite_output_dir, is_main, as_given)
    config.distributed_state.wait_for_everyone()
    return config, find_checkpoint(args.output_dir, args.resume), print if is_main else lambda *_, **__: None


def run_identity(model: ModelArguments, data: RewardData, args: RewardOptions) -> dict[str, Any]:
    """What may not change when a run is continued. Learning rate, number of steps, logging … may."""
    return {
        "model_name_or_path": model.model_name_or_path,
        "parts": {"decoder": model.decoder, "vision": model.vision, "projector": model.projector},
        "freeze_modules": model.freeze_modules,
        "adapter": adapter_block(model),
        "dataset_name": data.dataset_name,
        "word_problems": data.word_problems if data.dataset_name is None else None,
        "dataset_train_split": data.dataset_train_split,
        "max_train_samples": data.max_train_samples,
    } | {name: getattr(args, name) for name in FIXED}


def make_data(data: RewardData, say: Any) -> None:
    """Where no set is named, one that is made by the code."""
    if data.dataset_name is None:
        from data_builders._preferences import word_rankings

        say("No dataset was named: ranking right and wrong solutions of generated word problems.")
        data.dataset_name = str(word_rankings.cached(**(data.word_problems or {}), say=say))


def train_and_measure(trainer: Any, sets: Any, say: Any) -> bool:
    """Train, from the start or a checkpoint; False for a run that was stopped, which says how it goes on."""
    from mmreason.trainers.reward_evaluation import RewardEvaluations

    if trainer.checkpoint is not None:
        say(f"Continuing from {trainer.checkpoint}.")
    evaluations = RewardEvaluations(trainer, sets, trainer.options.output_dir)
    trainer.while_training = evaluations.while_training
    if not trainer.fit():
        say(f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, saved.", end=" ")
        say("Run the same command to continue.")
        return False
    say(evaluations.table())
    return True


def tell_results(trainer: Any, processor: Any, say: Any) -> None:
    """Save the final model with its processor, as the reward `reward_model` loads it."""
    from mmreason.trainers.reporting import write_run_report

    final = Path(trainer.options.output_dir) / "final"
    trainer.save_final(final, processor)
    say(f"Reward model: {final}   metrics: {trainer.options.output_dir}")
    say(f"As a reward: reward_funcs: [{{name: reward_model, path: {final}}}]")
    write_run_report(trainer.options.output_dir, trainer.accelerator)


if __name__ == "__main__":
    run_as_script(main)
