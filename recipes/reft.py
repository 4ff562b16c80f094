"""ReFT (arXiv 2401.08967): fine-tune on worked solutions, then find one's own, with PPO on the same questions.

    accelerate launch recipes/reft.py                                  # a tiny decoder, word problems made by the code
    accelerate launch recipes/reft.py --config recipes/configs/reft/program.yaml           # solutions are programs
    accelerate launch recipes/reft.py --config recipes/configs/reft/gsm8k-0.5b.yaml        # GSM8K, one GPU
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/reft.py --config YAML --kl_coef 0.02

Every option has a line in --help; the warm-up's stand in the block `sft`. Running the same command again continues an
interrupted run, in either stage.
"""

from __future__ import annotations

import gc
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmreason._adapters import check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments
from mmreason.trainers.reft_arguments import ReFTConfig, ReFTRewards
from mmreason.trainers.stages import check_last, mark_done, stage_is_done
from recipes.grpo_math import NAMES_A_MODEL, WARM_START, checked_rewards, tell_results, train_and_measure
from recipes.ppo import build_trainer

EMBEDDED = Path(__file__).parent / "configs" / "reft" / "embedded.yaml"
OPTIONS = (ModelArguments, DataArguments, ReFTRewards, ReFTConfig)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    model_args, data, reward_args, args = parse_config(OPTIONS, argv, "reft.py", __doc__)

    # 1. Fail early: both stages' options are checked before the first one begins.
    sft_args = args.warm_up()
    check_last(args, model_args, first_is_tuned=True)
    if args.rerank not in (None, "critic"):
        checked_rewards(replace(reward_args, reward_funcs=[args.rerank], reward_weights=None))
    if reward_args.reward_funcs is None:
        reward_args.reward_funcs = args.default_rewards()
    checked_rewards(reward_args)
    check_adapter(model_args, args)
    name_data(data, args)
    if model_args.model_name_or_path is None and model_args.decoder is None:
        model_args.model_name_or_path = str(WARM_START)

    # 2. Warm-up: the worked solutions, for a few epochs (recipes/sft.py). It learns what a solution looks like.
    if not warm_up(model_args, data, sft_args, args.sft):
        return

    # 3. PPO on the same questions: its own solutions, rewarded where their answers are right (recipes/ppo.py).
    warmed = replace(
        model_args, model_name_or_path=str(args.sft_dir / "final"), decoder=None, vision=None, projector=None
    )
    args.output_dir = str(args.ppo_dir)
    trainer, held_out = build_trainer(warmed, data, reward_args, args)
    if args.cot == "program":
        from mmreason.rewards.program import program_answers

        trainer.read_answers = program_answers
    finished = train_and_measure(trainer, held_out, data.eval_num_generations)

    # 4. Of k sampled answers, the majority's and the one that scores highest.
    if finished:
        from mmreason.trainers.rerank import rerank_held_out

        if args.rerank is not None and data.eval_num_generations > 1:
            rerank_held_out(trainer, held_out, data.eval_num_generations, args.rerank)
        tell_results(trainer)
    trainer.close()


def name_data(data: DataArguments, args: ReFTConfig) -> None:
    """Where no set is named, word problems made by the code, with the solutions that are asked for."""
    if data.dataset_name is None and data.shapes is None:
        from data_builders import word_problems, word_programs

        builder = word_programs if args.cot == "program" else word_problems
        data.dataset_name = str(builder.cached(**(data.word_problems or {})))


def warm_up(model_args: ModelArguments, data: DataArguments, sft_args: Any, block: dict[str, Any] | None) -> bool:
    """Stage 1, unless it has ended already; False where it was stopped.

    Args: block: the options that were given for it.
    """
    from recipes.sft import run_identity, run_sft

    identity = run_identity(model_args, data, sft_args) | {"block": block}
    if stage_is_done(Path(sft_args.output_dir), identity, sft_args.overwrite_output_dir):
        return True
    return end_stage(run_sft(deepcopy(model_args), deepcopy(data), sft_args), Path(sft_args.output_dir), identity)


def end_stage(trainer: Any, folder: Path, identity: dict[str, Any]) -> bool:
    """Let go of a stage's model, but not of the process group, in which the next stage goes on.

    Returns: whether the stage has ended, so that its model lies in `final`; one that was stopped is closed.
    """
    from accelerate.state import AcceleratorState, GradientState

    if not trainer.finished:
        trainer.close()
        return False
    if trainer.accelerator.is_main_process:
        mark_done(folder, identity)
    trainer.accelerator.wait_for_everyone()
    if getattr(trainer, "features", None) is not None:
        trainer.features.close()
    del trainer
    gc.collect()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return True


if __name__ == "__main__":
    run_as_script(main)
