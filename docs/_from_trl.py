"""The page "From TRL": the fields of the installed TRL's dataclasses beside ours, with a note for each difference.

The lists are computed; only the notes are written here. A field of TRL that is neither ours nor explained, a default
that differs without a reason, and a note that no longer applies are errors, so the page can't fall behind either side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

TRL_CLASSES: dict[str, tuple[str, ...]] = {
    "grpo_math": ("ScriptArguments", "ModelConfig", "GRPOConfig"),
    "sft": ("ScriptArguments", "ModelConfig", "SFTConfig"),
}
"""Recipe -> the dataclasses that a script of TRL's for the same purpose reads."""

OTHER_DEFAULT: dict[str, dict[str, str]] = {
    "grpo_math": {
        "dataset_test_split": "None holds `eval_samples` problems out of the training split; a named split must exist.",
        "output_dir": "A place of its own for each recipe.",
        "optim": "The same update by PyTorch's plain kernels; `adamw_torch_fused` can be chosen.",
        "report_to": "No tracker in both; ours is a list.",
        "save_total_limit": "The three newest checkpoints are kept; None keeps all.",
        "vllm_model_impl": "vLLM's own model where it has one, else its Transformers backend.",
        "num_completions_to_print": "`log_completions` prints this many; all of them are in `rollouts/`.",
    },
    "sft": {
        "dataset_test_split": "None holds `eval_samples` problems out of the training split; a named split must exist.",
        "output_dir": "A place of its own for each recipe.",
        "report_to": "No tracker in both; ours is a list.",
        "save_total_limit": "The three newest checkpoints are kept; None keeps all.",
    },
}
"""Recipe -> field that both have -> why our default is another."""

_BOTH_MEAN = {
    "bf16": "None means: where the GPU has it. TRL turns it on unless `fp16` is set, on a CPU too.",
    "dataset_name": "Also a file or a folder; a configuration is written behind a colon: `openai/gsm8k:main`.",
    "optim": "`adamw_torch`, `adamw_torch_fused` or `sgd`.",
    "report_to": "A list: `[tensorboard]`, not `tensorboard` or `all`.",
}
OTHER_MEANING: dict[str, dict[str, str]] = {
    "grpo_math": _BOTH_MEAN
    | {
        "eval_steps": "Steps between greedy answers to the held-out problems; what is measured is accuracy, not loss.",
        "importance_sampling_level": "Also `sequence_token` (GSPO-token) and `sequence_sum` (RLOO's).",
        "lr_scheduler_type": "Schedules that depend on more than the step (`reduce_lr_on_plateau`) are refused.",
        "scale_rewards": "A word; TRL also takes true and false.",
        "temperature": "Must be above 0: identical samples give no advantage.",
        "vllm_max_model_length": "None means the longest prompt plus `max_completion_length`, not the model's limit.",
    },
    "sft": _BOTH_MEAN
    | {
        "eval_steps": "Steps between measurements: loss of held-out rows, greedy answers to those with an answer.",
        "max_length": "A longer row is what `truncation` says, by default a bad row; TRL cuts it off.",
        "metric_for_best_model": "What early stopping goes by: `loss`, `accuracy`, or a name of `metrics.jsonl`.",
        "packing": "With pictures, too. Needs no FlashAttention to keep rows apart, on any device.",
    },
}
"""Recipe -> field that both have -> what it takes or means here that is not so there."""

# Below: field names in one string -> what to do instead, or why it isn't there.
_NOT_OFFERED = "Not offered."
_BOTH_LACK = {
    "dataset_config": "Written behind the name: `dataset_name: openai/gsm8k:main`.",
    "dataset_streaming": "All rows are read and checked before training starts.",
    "model_init_kwargs": "`model_revision`, `dtype`, `attn_implementation`, `trust_remote_code`.",
    "ignore_bias_buffers": "A work-around for old models under DDP.",
    "lora_target_parameters lora_task_type": "Adapters go on modules (`lora_target_modules`) of decoders.",
    "load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage": "`adapter: "
    "{kind: qlora}`, with `double_quant` and `compute_dtype`.",
    "fp16 fp16_full_eval bf16_full_eval tf32": "`bf16` for autocast, `dtype` for the weights.",
    "torch_compile torch_compile_backend torch_compile_mode liger_kernel_config": _NOT_OFFERED,
    "torch_empty_cache_steps auto_find_batch_size": "Not offered. Lower `per_device_train_batch_size` and raise "
    "`gradient_accumulation_steps` by the same factor: the batch of an update stays the same.",
    "optim_args optim_target_modules": "Only for optimizers that are not offered.",
    "label_smoothing_factor": _NOT_OFFERED,
    "accelerator_config parallelism_config deepspeed fsdp fsdp_config ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout local_rank": "How processes work together is said "
    "to `accelerate launch`, by a file in `recipes/accelerate/`.",
    "debug skip_memory_metrics do_train do_eval do_predict": "Of transformers' `Trainer`; unused by TRL's scripts.",
    "log_level log_level_replica disable_tqdm": _NOT_OFFERED,
    "project trackio_space_id trackio_bucket_id trackio_static_space_id": "Trackers get `run_name`.",
    "load_best_model_at_end greater_is_better": "Not offered: the last checkpoint is the result; `save_total_limit` "
    "says how many earlier ones are kept.",
    "save_strategy save_on_each_node": "`save_steps`; Ctrl-C, SIGTERM and SIGUSR1 save too.",
    "enable_jit_checkpoint": "Always so: SIGTERM finishes the step and saves.",
    "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint": "`resume`, by default `auto`: "
    "the same command goes on where it stopped, with the same data order.",
    "full_determinism data_seed": "`seed` alone decides the data order and what is sampled.",
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision": "Not offered. A "
    "checkpoint is a folder in Hugging Face's format and can be uploaded as it is.",
}
_LOADER = (
    "dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order"
)
_LOGGING = "logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen"
_WHEN_EVALUATING = "eval_strategy eval_delay eval_on_start"
_EVALUATING = (
    "per_device_eval_batch_size prediction_loss_only eval_do_concat_batches eval_use_gather_object "
    "eval_accumulation_steps include_for_metrics batch_eval_metrics"
)
_GRPO_LACKS = {
    "remove_unused_columns label_names": "All columns of the data are kept; they reach the rewards by name.",
    f"{_LOADER} dataloader_num_workers": "There is no data loader: prompts are tokenized once, before training.",
    "router_aux_loss_coef": "The load-balancing loss of mixture-of-experts models is not offered.",
    "use_liger_kernel neftune_noise_alpha": _NOT_OFFERED,
    "metric_for_best_model": "The last checkpoint is the result.",
    "train_sampling_strategy length_column_name": "`shuffle_dataset`; no sorting by length.",
    "use_cache": "On while sampling, off while scoring.",
    "average_tokens_across_devices": "Always so: the loss counts tokens over all processes.",
    _LOGGING: "`metrics.jsonl` has every step, with `num_tokens`; a NaN is kept as null. `logging_steps` is for the "
    "terminal and the trackers.",
    _WHEN_EVALUATING: "Held-out problems are answered before and after training, and every `eval_steps` if given.",
    _EVALUATING: "What is measured is accuracy, by the engine that also samples for training.",
    "cast_lm_head_to_fp32": "Not offered; log-probabilities are computed in float32 from the logits.",
    "num_generations_eval": "`eval_num_generations`.",
    "ds3_gather_for_generation": "Always so under ZeRO-3.",
    "pad_to_multiple_of": _NOT_OFFERED,
    "cache_implementation": "`generation_kwargs: {cache_implementation: static}`.",
    "vllm_structured_outputs_regex": _NOT_OFFERED,
    "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged": "Not "
    "offered; `hf_generation_batch_size` sets how many rows are sampled at once without vLLM.",
    "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps": "The reference stays as it was at the start.",
    "entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target": "No "
    "entropy term; the entropy is in `metrics.jsonl`.",
    "max_tool_calling_iterations": "Completions are single turns.",
    "log_multimodal log_unique_prompts log_completions_hub_repo": "Every completion is in `rollouts/`, one row each.",
    "vllm_importance_sampling_cap": "TRL's old name of `vllm_importance_sampling_clip_max`.",
}
_SFT_LACKS = {
    "remove_unused_columns label_names": "Rows are tokenized before the trainer sees them.",
    "dataset_text_field": "Rows have a prompt and a completion; `column_map` names the columns.",
    "dataset_kwargs dataset_num_proc": "Rows are tokenized in one process, and each is checked.",
    _LOADER: "TRL's defaults.",
    "shuffle_dataset train_sampling_strategy length_column_name": "Rows are shuffled each epoch, and sorted by length "
    "within a step only; `curriculum`.",
    "eos_token pad_token": "The tokenizer's own.",
    "truncation_mode": "`truncation`: a row that is too long is an error, dropped, or cut at its oldest turns.",
    "packing_strategy eval_packing": "Best-fit decreasing; held-out rows are measured unpadded where `packing` is on.",
    "pad_to_multiple_of": _NOT_OFFERED,
    "completion_only_loss assistant_only_loss": "`loss_on`: the completion, all turns, or chosen parts with weights.",
    "loss_type": "Always TRL's default, `nll`.",
    "activation_offloading": _NOT_OFFERED,
    "use_cache average_tokens_across_devices": "TRL's defaults.",
    _LOGGING: "`metrics.jsonl` has a line every `logging_steps`.",
    _WHEN_EVALUATING: "Held-out rows are measured after training, and every `eval_steps` if given.",
    _EVALUATING: "What is measured: the loss of held-out rows, and accuracy by greedy answers where they have one.",
    "save_only_model": "A checkpoint can always be continued.",
}

ABSENT: dict[str, dict[str, str]] = {"grpo_math": _BOTH_LACK | _GRPO_LACKS, "sft": _BOTH_LACK | _SFT_LACKS}
"""Recipe -> names of TRL's fields that we don't have -> what to do instead, or why."""


def defaults(classes: Sequence[type]) -> dict[str, Any]:
    """Field -> default, over several dataclasses."""
    found: dict[str, Any] = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls) if field.init):
        made = field.default_factory
        found[field.name] = field.default if made is dataclasses.MISSING else made()
    return found


def trl_fields(recipe: str) -> dict[str, Any]:
    """Field -> default of TRL's side."""
    import trl

    return defaults([getattr(trl, name) for name in TRL_CLASSES[recipe]])


def notes_of_absent(recipe: str) -> dict[str, str]:
    """TRL's field -> note."""
    found: dict[str, str] = {}
    for names, note in ABSENT[recipe].items():
        for name in names.split():
            if name in found:
                raise ValueError(f"{name} has two notes")
            found[name] = note
    return found


def check(recipe: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise ValueError for a field of TRL's without a note where it needs one, and for a note without its field."""
    absent = notes_of_absent(recipe)
    problems = [f"{name} is neither ours nor explained" for name in theirs if name not in ours and name not in absent]
    differ = {name for name in theirs if name in ours and ours[name] != theirs[name]}
    problems += [f"{name} has another default and no reason" for name in differ - OTHER_DEFAULT[recipe].keys()]
    problems += [f"{name}: its default is no longer another" for name in OTHER_DEFAULT[recipe].keys() - differ]
    both = theirs.keys() & ours.keys()
    problems += [f"{name} is no longer in both" for name in OTHER_MEANING[recipe].keys() - both]
    problems += [f"{name} is noted as absent, but is ours" for name in absent if name in ours]
    problems += [f"{name} is noted as absent, but TRL has no such field" for name in absent if name not in theirs]
    if problems:
        raise ValueError(f"docs/_from_trl.py, {recipe}: " + "; ".join(sorted(problems)))


def from_trl(recipe: str, classes: Sequence[type]) -> str:
    """The four lists of the page as Markdown."""
    theirs, ours = trl_fields(recipe), defaults(classes)
    check(recipe, theirs, ours)
    same = [name for name in theirs if name in ours and ours[name] == theirs[name]]
    reasons, meanings = OTHER_DEFAULT[recipe], OTHER_MEANING[recipe]
    parts = [
        f"### Same name, same default\n\n{', '.join(f'`{name}`' for name in same)}.",
        "### Same name, another default\n\n| field | TRL | here | why |\n|---|---|---|---|\n"
        + "\n".join(
            f"| `{name}` | {_code(theirs[name])} | {_code(ours[name])} | {reasons[name]} |" for name in reasons
        ),
        "### Same name, other values or another meaning\n\n| field | here |\n|---|---|\n"
        + "\n".join(f"| `{name}` | {note} |" for name, note in meanings.items()),
        "### Not here\n\n| TRL's field | instead, or why |\n|---|---|\n" + "\n".join(_absent_rows(recipe)),
        "### Only here\n\n| option | default | what it does |\n|---|---|---|\n" + "\n".join(_own_rows(classes, theirs)),
    ]
    return "\n\n".join(parts)


def _absent_rows(recipe: str) -> list[str]:
    return [
        f"| {', '.join(f'`{name}`' for name in names.split())} | {note} |" for names, note in ABSENT[recipe].items()
    ]


def _own_rows(classes: Sequence[type], theirs: dict[str, Any]) -> list[str]:
    own = defaults(classes)
    fields = [f for cls in classes for f in dataclasses.fields(cls) if f.init and f.name not in theirs]
    helps = {f.name: str(f.metadata.get("help", "")).removeprefix("(ours) ").replace("|", "\\|") for f in fields}
    return [f"| `{name}` | {_code(own[name])} | {text} |" for name, text in helps.items()]


def _code(value: Any) -> str:
    return f"`{value}`" if value != "" else "empty"
