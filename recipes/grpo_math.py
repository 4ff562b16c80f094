"""GRPO on maths problems: sample answers, check them, make the right ones likelier.

    accelerate launch recipes/grpo_math.py                                  # a tiny example, made by the code
    accelerate launch recipes/grpo_math.py --config recipes/configs/grpo_math/cpu.yaml      # GSM8K, CPU, vLLM
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/grpo_math.py --config YAML --beta 0.01

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmreason.config import parse_config, run_as_script
from mmreason.trainers.arguments import DataArguments, ModelArguments, PolicyConfig, RewardArguments
from mmreason.types import ConfigError

HOW_TO_GO_ON = {False: "Run the same command to continue.", True: "save_only_model: it can't be continued."}
EMBEDDED = Path(__file__).parent / "configs" / "grpo_math" / "embedded.yaml"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(("--config", "--model_name_or_path", "--model-name-or-path")) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    options = parse_config(
        (ModelArguments, DataArguments, RewardArguments, PolicyConfig), argv, "grpo_math.py", __doc__
    )
    as_given = deepcopy(options)
    model_args, data, reward_args, args = options

    # 1. Fail early: rewards, vLLM, output folder and checkpoint are checked before a model is loaded.
    from mmreason.rollout.vllm import require_vllm
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.state import find_checkpoint, open_output_dir

    rewards = checked_rewards(reward_args)
    if args.use_vllm:
        require_vllm()
    accelerator = build_accelerator(args)
    say, is_main = accelerator.print, accelerator.is_main_process
    identity = run_identity(model_args, data, args)
    open_output_dir(args.output_dir, identity, args.overwrite_output_dir, is_main, as_given)
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(args.output_dir, args.resume)

    # 2. Problems: rows become prompts; rows that can't be used are named before GPU time is spent.
    from mmreason.models.loading import add_lora, load_policy_model, load_tokenizer

    if model_args.model_name_or_path is None:
        say("No model was named: using a tiny random decoder made by the code. It shows the loop, not reasoning.")
        model_args.model_name_or_path = make_tiny_model(args, accelerator)
    tokenizer = load_tokenizer(model_args)
    train, held_out = load_problems(data, args, tokenizer, say)
    prompts = tokenized(train, tokenizer, args)
    held_out_prompts = tokenized(held_out, tokenizer, args) if held_out is not None else []

    # 3. Model: any causal LM, any vision-language model (used on text here), whole or with an adapter.
    model = load_policy_model(model_args, accelerator)
    reference = load_policy_model(model_args, accelerator) if args.beta > 0 and not model_args.use_peft else None
    if model_args.use_peft:
        model = add_lora(model, model_args)

    # 4. The loop: rollout → reward → advantage → update (mmreason/trainers/policy.py).
    from mmreason.trainers.policy import PolicyTrainer

    trainer = PolicyTrainer(
        model,
        args,
        reward_funcs=rewards,
        reward_weights=reward_args.reward_weights,
        train_dataset=train,
        prompt_ids=prompts,
        tokenizer=tokenizer,
        accelerator=accelerator,
        checkpoint=model_args.model_name_or_path,
        ref_model=reference,
    )
    go_on_from(checkpoint, trainer)

    # 5. Accuracy on held-out problems before and after, with the verifier that gave the reward.
    train_and_measure(trainer, held_out, held_out_prompts, data, args)
    trainer.close()


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


def train_and_measure(trainer: Any, held_out: Any, prompts: list[list[int]], data: DataArguments, args: Any) -> None:
    """Measure, train, measure again; a run that was stopped says how it goes on."""
    from mmreason.trainers.evaluation import Evaluations

    say = trainer.accelerator.print
    evaluations = Evaluations(trainer, held_out, prompts, data.eval_num_generations, args.output_dir)
    evaluations.run("before")
    state = trainer.train()
    if state.step < trainer.total_steps:
        say(f"Stopped at step {state.step} of {trainer.total_steps}, saved.", HOW_TO_GO_ON[args.save_only_model])
        return
    evaluations.run("after")
    say(evaluations.table())
    say(f"Model: {trainer.checkpoints.latest()}   samples and metrics: {args.output_dir}")


def checked_rewards(args: RewardArguments) -> list[Any]:
    from mmreason.rewards import load_rewards

    rewards = load_rewards(args.reward_funcs)
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise ConfigError(f"reward_weights has {len(args.reward_weights)} numbers for {len(rewards)} reward_funcs")
    return rewards


def run_identity(model: ModelArguments, data: DataArguments, args: PolicyConfig) -> dict[str, Any]:
    """What may not change when a run is continued. Learning rate, number of steps, logging … may."""
    return {
        "model_name_or_path": model.model_name_or_path,
        "use_peft": model.use_peft,
        "lora_r": model.lora_r if model.use_peft else None,
        "dataset_name": data.dataset_name,
        "dataset_train_split": data.dataset_train_split,
        "max_train_samples": data.max_train_samples,
        "seed": args.seed,
        "num_generations": args.num_generations,
        "generation_batch_size": args.generation_batch_size,
        "num_iterations": args.num_iterations,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }


def make_tiny_model(args: PolicyConfig, accelerator: Any) -> str:
    from mmreason.models.tiny import save_tiny

    folder = Path(args.output_dir) / "tiny_model"
    if accelerator.is_main_process:
        save_tiny(folder, seed=args.seed)
    accelerator.wait_for_everyone()
    return str(folder)


def load_problems(data: DataArguments, args: PolicyConfig, tokenizer: Any, say: Any) -> tuple[Any, Any]:
    """(training rows, held-out rows or None). The held-out rows share no question with the training rows."""
    from mmreason.data import check_prompts, load_examples, split_holdout

    def load(split: str, max_rows: int | None) -> Any:
        loaded = load_examples(
            data.dataset_name or "",
            split=split,
            format=data.dataset_format,
            column_map=data.column_map,
            system_prompt=data.system_prompt,
            prompt_template=data.prompt_template,
            chat=data.chat,
            on_bad_row=data.on_bad_row,
            max_rows=max_rows,
        )
        say(loaded.summary())
        return loaded.dataset

    if data.dataset_name is None:
        from data_builders.arithmetic import as_dataset, generate

        say("No dataset was named: using sums generated by data_builders/arithmetic.py.")
        train = as_dataset(generate(data.max_train_samples or 512, seed=args.seed, level=1))
        held_out = as_dataset(generate(data.eval_samples, args.seed, 1, "test")) if data.eval_samples else None
    else:
        train, held_out = load(data.dataset_train_split, data.max_train_samples), None
        if data.eval_samples and data.dataset_test_split is not None:
            held_out = load(data.dataset_test_split, data.eval_samples)
        elif data.eval_samples:
            train, held_out = split_holdout(train, min(data.eval_samples, len(train) // 2), args.seed)

    def check(rows: Any) -> tuple[Any, dict[str, int]]:
        limit, kwargs = data.max_prompt_length, args.chat_template_kwargs
        return check_prompts(rows, tokenizer, limit, on_bad_row=data.on_bad_row, chat_template_kwargs=kwargs)

    (train, dropped), (held_out, lost) = check(train), check(held_out) if held_out is not None else (None, {})
    say(f"{len(train)} training problems, {len(held_out or [])} held out")
    if dropped or lost:
        say(f"dropped from the training problems: {dropped or 'none'}, from the held-out ones: {lost or 'none'}")
    return train, held_out


def tokenized(rows: Any, tokenizer: Any, args: PolicyConfig) -> list[list[int]]:
    from mmreason.data import render_prompt

    return [render_prompt(prompt, tokenizer, args.chat_template_kwargs) for prompt in rows["prompt"]]


if __name__ == "__main__":
    run_as_script(main)
