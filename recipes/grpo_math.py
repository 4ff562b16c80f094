"""GRPO on maths problems: sample answers, check them, make the right ones likelier.

    accelerate launch recipes/grpo_math.py                                              # a tiny example, made by the code
    accelerate launch recipes/grpo_math.py --config recipes/configs/grpo_math/cpu.yaml  # GSM8K on the CPU, vLLM rollouts
    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/grpo_math.py --config YAML --learning_rate 2e-6

Every option has a line in --help. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmreason.config import parse_config, save_config
from mmreason.trainers.arguments import DataArguments, ModelArguments, PolicyConfig, RewardArguments
from mmreason.types import ConfigError, MMReasonError

EMBEDDED = Path(__file__).parent / "configs" / "grpo_math" / "embedded.yaml"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not any(flag.startswith(("--config", "--model_name_or_path", "--model-name-or-path")) for flag in argv):
        argv = ["--config", str(EMBEDDED), *argv]
    options = parse_config((ModelArguments, DataArguments, RewardArguments, PolicyConfig), argv, "grpo_math.py", __doc__)
    model_args, data, reward_args, args = options

    # 1. Fail early: rewards, output folder and vLLM are checked before a model is loaded.
    from mmreason.rewards import load_rewards
    from mmreason.rollout.vllm import require_vllm
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.state import open_output_dir

    rewards = load_rewards(reward_args.reward_funcs)
    if reward_args.reward_weights is not None and len(reward_args.reward_weights) != len(rewards):
        raise ConfigError(f"reward_weights has {len(reward_args.reward_weights)} numbers for {len(rewards)} reward_funcs")
    if args.use_vllm:
        require_vllm()
    accelerator = build_accelerator(args)
    say = accelerator.print
    open_output_dir(args.output_dir, run_identity(model_args, data, args), args.overwrite_output_dir, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_config(options, Path(args.output_dir) / "config.yaml")

    # 2. Model and tokenizer: any causal LM, any vision-language model (used on text here).
    from mmreason.models.loading import add_lora, load_policy_model, load_tokenizer

    if model_args.model_name_or_path is None:
        say("No model was named: using a tiny, randomly initialised decoder made by the code. It shows the loop, not reasoning.")
        model_args.model_name_or_path = make_tiny_model(args, accelerator)
    tokenizer = load_tokenizer(model_args)
    model = load_policy_model(model_args)
    reference = load_policy_model(model_args) if args.beta > 0 and not model_args.use_peft else None
    if model_args.use_peft:
        model = add_lora(model, model_args)

    # 3. Problems: rows become prompts; rows that can't be used are named before GPU time is spent.
    train, held_out = load_problems(data, args, tokenizer, say)
    prompts = tokenized(train, tokenizer, args)

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
    checkpoint = find_checkpoint(trainer, args.resume)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        say(f"Continuing from {checkpoint} at step {trainer.state.step} of {trainer.total_steps}.")

    # 5. Accuracy on held-out problems before and after, with the verifier that gave the reward.
    from mmreason.trainers.evaluation import Evaluations

    held_out_ids = tokenized(held_out, tokenizer, args) if held_out is not None else []
    evaluations = Evaluations(trainer, held_out, held_out_ids, data.eval_num_generations, args.output_dir)
    evaluations.run("before")
    state = trainer.train()
    if state.step < trainer.total_steps:
        say(f"Stopped at step {state.step} of {trainer.total_steps}, saved. Run the same command to continue.")
    else:
        evaluations.run("after")
        say(evaluations.table())
        say(f"Model: {trainer.checkpoints.latest()}   samples and metrics: {args.output_dir}")
    trainer.close()


def run_identity(model: ModelArguments, data: DataArguments, args: PolicyConfig) -> dict[str, Any]:
    """What may not change when a run is continued. Learning rate, number of steps, logging … may."""
    return {
        "model_name_or_path": model.model_name_or_path,
        "use_peft": model.use_peft,
        "dataset_name": data.dataset_name,
        "dataset_train_split": data.dataset_train_split,
        "seed": args.seed,
        "num_generations": args.num_generations,
        "generation_batch_size": args.generation_batch_size,
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
    checks = {"on_bad_row": data.on_bad_row, "chat_template_kwargs": args.chat_template_kwargs}
    train, dropped = check_prompts(train, tokenizer, data.max_prompt_length, **checks)
    if held_out is not None:
        held_out, _ = check_prompts(held_out, tokenizer, data.max_prompt_length, **checks)
    say(f"{len(train)} training problems, {len(held_out or [])} held out" + (f"; dropped {dropped}" if dropped else ""))
    return train, held_out


def tokenized(rows: Any, tokenizer: Any, args: PolicyConfig) -> list[list[int]]:
    from mmreason.data import render_prompt

    return [render_prompt(prompt, tokenizer, args.chat_template_kwargs) for prompt in rows["prompt"]]


def find_checkpoint(trainer: Any, resume: str) -> Path | None:
    if resume == "never":
        return None
    if resume == "auto":
        return trainer.checkpoints.latest()
    if not Path(resume).is_dir():
        raise ConfigError(f"--resume {resume}: no such checkpoint folder; 'auto' takes the newest in output_dir")
    return Path(resume)


if __name__ == "__main__":
    try:
        main()
    except MMReasonError as error:
        sys.exit(f"error: {error}")
