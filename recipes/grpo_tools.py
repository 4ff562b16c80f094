"""GRPO in an environment: the policy calls tools (or acts in one of your own), reads what comes back, and goes on.

    accelerate launch recipes/grpo_tools.py                                      # a tiny decoder and a calculator
    accelerate launch recipes/grpo_tools.py --config recipes/configs/grpo_tools/search.yaml   # two look-ups, one GPU
    accelerate launch recipes/grpo_tools.py --config YAML --tools calculator python --max_tool_calls 4
    accelerate launch recipes/grpo_tools.py --config YAML --environment my_game.py:Game --reward_funcs environment

What a tool or environment writes is context, and never learned from. Every option has a line in --help. Running the
same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmreason._adapters import check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments, RewardArguments
from mmreason.trainers.environment_arguments import EnvironmentConfig
from mmreason.types import ConfigError
from recipes.grpo_math import NAMES_A_MODEL, checked_rewards, go_on_from, set_up, tell_results, train_and_measure

EMBEDDED = Path(__file__).parent / "configs" / "grpo_tools" / "embedded.yaml"
WARM_START = Path(__file__).parent / "warm_start_tools"
OPTIONS = (ModelArguments, DataArguments, RewardArguments, EnvironmentConfig)
# Of EnvironmentConfig, what a run may not change when it is continued.
FIXED = ("tool_tasks", "environment", "tools", "call_format", "tell_of_tools", "max_turns", "max_tool_calls")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    model_args, data, reward_args, args = parse_config(OPTIONS, argv, "grpo_tools.py", __doc__)

    # 1. Fail early: adapter, rewards, tools, output folder and checkpoint are checked before a model is loaded.
    check_adapter(model_args, args)
    rewards = checked_rewards(reward_args)
    environment = build_environment(args)
    fixed = {name: getattr(args, name) for name in FIXED}
    accelerator, checkpoint = set_up(model_args, data, reward_args, args, **fixed)

    # 2. Problems: their prompts tell of the tools; rows that can't be used are named before GPU time is spent.
    from mmreason.models.loading import load_processor
    from mmreason.trainers.model_parts import compose_for_run, load_policy_and_reference

    compose_for_run(model_args, args.output_dir, accelerator, args.seed)
    if model_args.model_name_or_path is None:
        accelerator.print("No model was named: using the tiny decoder of recipes/warm_start_tools.")
        model_args.model_name_or_path = str(WARM_START)
    processor = load_processor(model_args)
    train, prompt_ids, held_out = load_problems(data, args, environment, processor, accelerator.print)

    # 3. Model: any causal LM or vision-language model, whole, with parts frozen, or with an adapter.
    model, reference = load_policy_and_reference(model_args, accelerator, needs_reference=args.beta > 0)

    # 4. The loop (mmreason/trainers/policy.py), whose completions are episodes (mmreason/rollout/multi_turn.py).
    from mmreason.trainers.policy import PolicyTrainer

    trainer = PolicyTrainer(
        model,
        args,
        reward_funcs=rewards,
        reward_weights=reward_args.reward_weights,
        train_dataset=train,
        prompt_ids=prompt_ids,
        tokenizer=processor,
        accelerator=accelerator,
        checkpoint=model_args.model_name_or_path,
        held_out=held_out,
        ref_model=reference,
        environment=environment,
    )
    go_on_from(checkpoint, trainer)

    # 5. Accuracy on held-out problems before and after, in the same environment; a report of it all.
    if train_and_measure(trainer, held_out, data.eval_num_generations):
        tell_results(trainer)
    trainer.close()


def build_environment(args: EnvironmentConfig) -> Any:
    """The environment that the options name, with its limits."""
    from mmreason.rollout.environment import load_environment
    from mmreason.rollout.multi_turn import EnvironmentSettings
    from mmreason.rollout.tool_env import tool_factory

    if args.environment is not None:
        factory = load_environment(args.environment)
    else:
        factory = tool_factory(
            args.tools,
            call_format=args.call_format,
            timeout_s=args.tool_timeout,
            max_chars=args.max_tool_chars,
            max_tool_calls=args.max_tool_calls,
            max_tool_seconds=args.max_tool_seconds,
            tell=args.tell_of_tools,
        )
    return EnvironmentSettings(factory, args.max_turns, args.environment_timeout, args.on_environment_error)


def load_problems(
    data: DataArguments, args: EnvironmentConfig, environment: Any, processor: Any, say: Any
) -> tuple[Any, list[list[int]], dict[str, Any]]:
    """(training rows, their prompts' token ids, held-out sets by name)."""
    from mmreason.rollout.environment import prepare_prompts
    from mmreason.rollout.turns import tells_of_tools
    from mmreason.trainers.problems import check_problems, hold_out, load_split

    if data.dataset_name is None:
        from data_builders import tool_tasks

        say("No dataset was named: using questions generated by data_builders/tool_tasks.py.")
        data.dataset_name = str(tool_tasks.cached(**(args.tool_tasks or {}), say=say))
    factory = environment.factory
    # Rows of an environment of one's own may have no answer: its rewards judge them.
    reading: dict[str, Any] = {"require_answer": args.environment is None}
    train = load_split(data, data.dataset_train_split, data.max_train_samples, say, **reading)
    train, held_out = hold_out(data, train, args.seed, say, **reading)
    train = prepare_prompts(train, factory, environment.limit_s)
    held_out = {name: prepare_prompts(rows, factory, environment.limit_s) for name, rows in held_out.items()}
    if any(answer is None for rows in held_out.values() for answer in rows["answer"]):
        raise ConfigError("held-out rows have no answer, so accuracy can't be measured: set eval_samples: 0")
    if factory.tools and not tells_of_tools(processor, factory.tools, args.chat_template_kwargs):
        say("The chat template doesn't tell the model of its tools; it has to know them, or be told by the prompts.")
    return check_problems(train, held_out, processor, data, args.chat_template_kwargs, say)


if __name__ == "__main__":
    run_as_script(main)
