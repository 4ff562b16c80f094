"""GRPO on maths problems, with or without pictures: sample answers, check them, make the right ones likelier.

    accelerate launch recipes/grpo_math.py                        # a tiny decoder, word problems made by the code
    accelerate launch recipes/grpo_math.py --config recipes/configs/grpo_math/cpu.yaml      # GSM8K, CPU, vLLM
    accelerate launch recipes/grpo_math.py --config recipes/configs/grpo_math/shapes.yaml   # pictures made by the code
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/grpo_math.py --config YAML --beta 0.01

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmreason._adapters import adapter_block, check_adapter
from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments, PolicyConfig, RewardArguments
from mmreason.types import ConfigError

HOW_TO_GO_ON = {False: "Run the same command to continue.", True: "save_only_model: it can't be continued."}
EMBEDDED = Path(__file__).parent / "configs" / "grpo_math" / "embedded.yaml"
WARM_START = Path(__file__).parent / "warm_start"
NAMES_A_MODEL = ("--config", "--model_name_or_path", "--model-name-or-path", "--decoder")
OPTIONS = (ModelArguments, DataArguments, RewardArguments, PolicyConfig)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(NAMES_A_MODEL) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    model_args, data, reward_args, args = options = parse_config(OPTIONS, argv, "grpo_math.py", __doc__)

    # 1. Fail early: adapter, rewards, vLLM, output folder and checkpoint are checked before a model is loaded.
    check_adapter(model_args, args)
    rewards = checked_rewards(reward_args)
    accelerator, checkpoint = set_up(*options)

    # 2. Problems: rows become prompts; rows that can't be used are named before GPU time is spent.
    from mmreason.models.loading import load_processor
    from mmreason.trainers.model_parts import compose_for_run, load_policy_and_reference

    compose_for_run(model_args, args.output_dir, accelerator, args.seed)
    if model_args.model_name_or_path is None:
        accelerator.print("No model was named: using the tiny decoder of recipes/warm_start.")
        model_args.model_name_or_path = str(WARM_START)
    processor = load_processor(model_args)
    train, prompt_ids, held_out = load_problems(data, args, processor, accelerator.print)

    # 3. Model: any causal LM or vision-language model, whole, with parts frozen, or with an adapter.
    model, reference = load_policy_and_reference(model_args, accelerator, needs_reference=args.beta > 0)

    # 4. The loop: rollout → reward → advantage → update (mmreason/trainers/policy.py).
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
    )
    go_on_from(checkpoint, trainer)

    # 5. Accuracy on held-out problems before and after, with the verifier that gave the reward; a report of it all.
    finished = train_and_measure(trainer, held_out, data.eval_num_generations)
    if finished:
        tell_results(trainer)
    trainer.close()


def checked_rewards(args: RewardArguments) -> list[Any]:
    from mmreason.rewards import load_rewards

    rewards = load_rewards(args.reward_funcs)
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise ConfigError(f"reward_weights has {len(args.reward_weights)} numbers for {len(rewards)} reward_funcs")
    return rewards


def set_up(
    model_args: ModelArguments, data: DataArguments, reward_args: RewardArguments, args: PolicyConfig, **more: Any
) -> tuple[Any, Path | None]:
    """(accelerator, the checkpoint from which this run goes on or None), with the output folder claimed.

    Args: more: of the run's identity, for recipes that have more of it.
    """
    from mmreason.rollout.vllm import require_vllm
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.model_parts import check_parts
    from mmreason.trainers.state import find_checkpoint, open_output_dir

    check_parts(model_args)
    if args.use_vllm:
        require_vllm()
    as_given = deepcopy((model_args, data, reward_args, args))
    accelerator = build_accelerator(args)  # resolves the batch options for its number of processes
    identity, is_main = run_identity(model_args, data, args) | more, accelerator.is_main_process
    open_output_dir(args.output_dir, identity, args.overwrite_output_dir, is_main, as_given)
    accelerator.wait_for_everyone()
    return accelerator, find_checkpoint(args.output_dir, args.resume)


def run_identity(model: ModelArguments, data: DataArguments, args: PolicyConfig) -> dict[str, Any]:
    """What may not change when a run is continued. Learning rate, number of steps, logging … may."""
    return {
        "model_name_or_path": model.model_name_or_path,
        "parts": {"decoder": model.decoder, "vision": model.vision, "projector": model.projector},
        "freeze_modules": model.freeze_modules,
        "adapter": adapter_block(model),
        "dataset_name": data.dataset_name,
        "word_problems": data.word_problems if data.dataset_name is None else None,
        "shapes": data.shapes if data.dataset_name is None else None,
        "dataset_train_split": data.dataset_train_split,
        "max_train_samples": data.max_train_samples,
        "seed": args.seed,
        "num_generations": args.num_generations,
        "generation_batch_size": args.generation_batch_size,
        "num_iterations": args.num_iterations,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        # None as long as they are off: these parts of a run remember something that a checkpoint has to hold.
        "max_staleness": args.max_staleness or None,
        "dynamic_sampling": args.dynamic_sampling or None,
        "prompt_selection": args.prompt_selection or None,
        "values": args.spo or {} if args.advantage_estimator == "spo" else None,
    }


def load_problems(
    data: DataArguments, args: PolicyConfig, processor: Any, say: Any, require_answer: bool = True
) -> tuple[Any, list[list[int]], dict[str, Any]]:
    """(training rows, their prompts' token ids, held-out sets by name).

    Args: require_answer: False where no reward compares with one, so that rows without are as good as any.
    """
    from mmreason.trainers.problems import check_problems, hold_out, load_split

    if data.dataset_name is None and data.shapes is not None:
        from data_builders import shapes

        say("No dataset was named: using pictures generated by data_builders/shapes.py.")
        data.dataset_name = str(shapes.cached(**data.shapes, say=say))
    elif data.dataset_name is None:
        from data_builders import word_problems

        say("No dataset was named: using word problems generated by data_builders/word_problems.py.")
        data.dataset_name = str(word_problems.cached(**(data.word_problems or {}), say=say))
    train = load_split(data, data.dataset_train_split, data.max_train_samples, say, require_answer=require_answer)
    train, held_out = hold_out(data, train, args.seed, say, require_answer=True)
    return check_problems(train, held_out, processor, data, args.chat_template_kwargs, say)


def go_on_from(checkpoint: Path | None, trainer: Any) -> None:
    if checkpoint is not None:
        trainer.resume(checkpoint)
        trainer.checkpoints.abandon_after(trainer.state.step)
        trainer.accelerator.print(
            f"Continuing from {checkpoint} at step {trainer.state.step} of {trainer.total_steps}."
        )
    if trainer.state.step >= trainer.total_steps:
        trainer.accelerator.print(
            "Nothing to train: this run is finished. A larger --max_steps goes on, --overwrite_output_dir starts over."
        )


def train_and_measure(trainer: Any, held_out: dict[str, Any], k: int) -> bool:
    """Measure, train, measure again. False for a run that was stopped, which says how it goes on."""
    from mmreason.trainers.evaluation import Evaluations

    args, say = trainer.args, trainer.accelerator.print
    evaluations = Evaluations(trainer, held_out, k, args.output_dir)
    evaluations.run("before")
    state = trainer.train(evaluations.while_training)
    if state.step < trainer.total_steps:
        say(f"Stopped at step {state.step} of {trainer.total_steps}, saved.", HOW_TO_GO_ON[args.save_only_model])
        return False
    evaluations.run("after")
    say(evaluations.table())
    return True


def tell_results(trainer: Any) -> None:
    from mmreason.trainers.reporting import write_run_report

    output_dir = trainer.args.output_dir
    trainer.accelerator.print(f"Model: {trainer.checkpoints.latest()}   samples and metrics: {output_dir}")
    write_run_report(output_dir, trainer.accelerator)


if __name__ == "__main__":
    run_as_script(main)
