"""RLHF (arXiv 2203.02155) in one command: fine-tune, learn what people prefer, then PPO against that reward model.

    accelerate launch recipes/rlhf.py                                  # a tiny decoder, rankings made by the code
    accelerate launch recipes/rlhf.py --config recipes/configs/rlhf/hh-rlhf.yaml           # hh-rlhf, one GPU
    accelerate launch recipes/rlhf.py --config YAML --reward_model "{path: outputs/reward_model/final}"

Every option has a line in --help; those of the earlier stages stand in the blocks `sft` and `reward_model`. Running the
same command again continues an interrupted run, in any stage.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmreason._adapters import check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments
from mmreason.trainers.rlhf_arguments import RLHFConfig, RLHFRewards
from mmreason.trainers.stages import check_last, stage_is_done
from mmreason.types import ConfigError
from recipes.grpo_math import NAMES_A_MODEL, WARM_START, checked_rewards, tell_results, train_and_measure
from recipes.ppo import build_trainer
from recipes.reft import end_stage, warm_up

EMBEDDED = Path(__file__).parent / "configs" / "rlhf" / "embedded.yaml"
OPTIONS = (ModelArguments, DataArguments, RLHFRewards, RLHFConfig)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    model_args, data, reward_args, args = parse_config(OPTIONS, argv, "rlhf.py", __doc__)

    # 1. Fail early: the options of all stages are checked before the first one begins.
    sft_args, reward_path = args.sft_options(), args.reward_path()
    reward_stage = None if reward_path is not None else args.reward_options()
    reward_args.reward_funcs = reward_args.reward_funcs or []
    check_rewards(reward_args, reward_path)
    check_adapter(model_args, args)
    check_last(args, model_args, first_is_tuned=sft_args is not None)
    if model_args.model_name_or_path is None and model_args.decoder is None:
        model_args.model_name_or_path = str(WARM_START)

    # 2. SFT: what an answer looks like (recipes/sft.py). The two stages after it begin with this model.
    start = model_args
    if sft_args is not None:
        if not warm_up(model_args, data, sft_args, args.sft):
            return
        tuned = str(args.stage_dir("sft") / "final")
        start = replace(model_args, model_name_or_path=tuned, decoder=None, vision=None, projector=None)

    # 3. The reward model: which of several answers is preferred (recipes/reward_model.py).
    if reward_stage is not None:
        reward_data, reward_options = reward_stage
        if not learn_rewards(start, reward_data, reward_options, args.reward_model):
            return
        reward_path = str(args.stage_dir("reward_model") / "final")

    # 4. PPO: answers that the reward model likes, at a price for leaving the first stage's model (recipes/ppo.py).
    args.output_dir = str(args.stage_dir("ppo"))
    rewards = with_reward_model(reward_args, reward_path)
    trainer, held_out = build_trainer(start, data, rewards, args, require_answer=False)
    if train_and_measure(trainer, held_out, data.eval_num_generations):
        tell_results(trainer)
    trainer.close()


def with_reward_model(reward_args: RLHFRewards, path: str | None) -> RLHFRewards:
    """The last stage's rewards, the reward model's behind those that were named; without a path these alone."""
    added = [] if path is None else [{"name": "reward_model", "path": path}]
    return replace(reward_args, reward_funcs=[*(reward_args.reward_funcs or []), *added])


def check_rewards(reward_args: RLHFRewards, path: str | None) -> None:
    """Load what was named, and the reward model where it is there already; count the weights."""
    if path is not None:
        checked_rewards(with_reward_model(reward_args, path))
        return
    named, weights = reward_args.reward_funcs or [], reward_args.reward_weights
    checked_rewards(replace(reward_args, reward_weights=None))
    if weights is not None and len(weights) != len(named) + 1:
        raise ConfigError(
            f"reward_weights has {len(weights)} numbers for {len(named)} reward_funcs and the reward model, whose "
            "weight is the last"
        )


def learn_rewards(model_args: ModelArguments, data: Any, options: Any, block: dict[str, Any] | None) -> bool:
    """Stage 2, unless it has ended already; False where it was stopped.

    Args: block: the options that were given for it.
    """
    from recipes.reward_model import run_identity, run_reward_model

    identity = run_identity(model_args, data, options) | {"block": block}
    if stage_is_done(Path(options.output_dir), identity, options.overwrite_output_dir):
        return True
    trainer = run_reward_model(deepcopy(model_args), deepcopy(data), options)
    return end_stage(trainer, Path(options.output_dir), identity)


if __name__ == "__main__":
    run_as_script(main)
