"""PPO: as GRPO, but a critic says what was to be expected, token by token, so that one answer per prompt will do.

    accelerate launch recipes/ppo.py                                   # a tiny decoder, word problems made by the code
    accelerate launch recipes/ppo.py --config recipes/configs/ppo/qwen2.5-0.5b.yaml        # GSM8K, one GPU
    accelerate launch recipes/ppo.py --config recipes/configs/ppo/embedded.yaml --value_model separate
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/ppo.py --config YAML --kl_coef 0.02

Rewards are functions of mmreason/rewards, trained reward models among them. Every option has a line in --help. Running
the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from copy import copy
from pathlib import Path
from typing import Any

from mmreason._adapters import check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments, RewardArguments
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.types import ConfigError
from recipes.grpo_math import (
    NAMES_A_MODEL,
    WARM_START,
    checked_rewards,
    go_on_from,
    load_problems,
    set_up,
    tell_results,
    train_and_measure,
)

EMBEDDED = Path(__file__).parent / "configs" / "ppo" / "embedded.yaml"
OPTIONS = (ModelArguments, DataArguments, RewardArguments, PPOConfig)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    model_args, data, reward_args, args = parse_config(OPTIONS, argv, "ppo.py", __doc__)
    trainer, held_out = build_trainer(model_args, data, reward_args, args)

    # 5. Accuracy on held-out problems before and after, with the verifier that gave the reward; a report of it all.
    if train_and_measure(trainer, held_out, data.eval_num_generations):
        tell_results(trainer)
    trainer.close()


def build_trainer(
    model_args: ModelArguments,
    data: DataArguments,
    reward_args: RewardArguments,
    args: PPOConfig,
    *,
    require_answer: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """(the trainer, at the step from which the run goes on, its held-out sets).

    Args: require_answer: False lets training rows without an answer pass, for rewards that need none.
    """
    # 1. Fail early: adapter, rewards, output folder and checkpoint are checked before a model is loaded.
    check_adapter(model_args, args)
    rewards = checked_rewards(reward_args)
    accelerator, checkpoint = set_up(model_args, data, reward_args, args, **args.identity())

    # 2. Problems: rows become prompts; rows that can't be used are named before GPU time is spent.
    from mmreason.models.loading import load_processor
    from mmreason.trainers.model_parts import compose_for_run

    compose_for_run(model_args, args.output_dir, accelerator, args.seed)
    if model_args.model_name_or_path is None:
        accelerator.print("No model was named: using the tiny decoder of recipes/warm_start.")
        model_args.model_name_or_path = str(WARM_START)
    processor = load_processor(model_args)
    rows, prompt_ids, held_out = load_problems(data, args, processor, accelerator.print, require_answer)

    # 3. Models: the policy, its reference, and a critic, which is a head on the policy or a model of its own.
    model, reference, value_model = load_models(model_args, args, accelerator)

    # 4. The loop: rollout → reward per token → GAE → policy and value losses (mmreason/trainers/policy.py, critic.py).
    from mmreason.trainers.policy import PolicyTrainer

    trainer = PolicyTrainer(
        model,
        args,
        reward_funcs=rewards,
        reward_weights=reward_args.reward_weights,
        train_dataset=rows,
        prompt_ids=prompt_ids,
        tokenizer=processor,
        accelerator=accelerator,
        checkpoint=model_args.model_name_or_path,
        held_out=held_out,
        ref_model=reference,
        value_model=value_model,
    )
    go_on_from(checkpoint, trainer)
    return trainer, held_out


def load_models(model_args: ModelArguments, args: PPOConfig, accelerator: Any) -> tuple[Any, Any, Any]:
    """(policy, reference or None, separate value model or None). An adapter that is switched off is the reference."""
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.loading import load_policy_model
    from mmreason.trainers.model_parts import load_policy_and_reference

    value_model = None
    if args.value_model == "separate":
        own = copy(model_args)
        own.model_name_or_path = args.value_model_path or model_args.model_name_or_path
        value_model = load_policy_model(own, accelerator)
        if model_args.freeze_modules:
            freeze_modules(value_model, model_args.freeze_modules)
    model, reference = load_policy_and_reference(model_args, accelerator, needs_reference=args.kl_coef > 0)
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    if value_model is not None and type(value_model) is not type(whole):
        raise ConfigError(
            f"value_model_path={args.value_model_path!r} is a {type(value_model).__name__}, the policy a "
            f"{type(whole).__name__}: the critic reads the policy's inputs, so both are of one class"
        )
    return model, reference, value_model


if __name__ == "__main__":
    run_as_script(main)
