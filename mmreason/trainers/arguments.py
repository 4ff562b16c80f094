"""Options of the RL loop.

Names and defaults are TRL's (`GRPOConfig`, `ModelConfig`, `ScriptArguments`) wherever TRL has the option, so a YAML
written for TRL's GRPO trainer moves over; what is ours is marked so. Imports no torch: `--help` stays fast.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mmreason.trainers._options import _opt as _opt
from mmreason.trainers.guard_options import guard_options
from mmreason.trainers.objective_arguments import ObjectiveOptions
from mmreason.types import ConfigError


@dataclass
class ModelArguments:
    """The policy."""

    model_name_or_path: str | None = _opt(
        None, "Hub id or folder of any causal LM or image-text-to-text model. None: the demo's tiny decoder."
    )
    decoder: str | None = _opt(
        None, "(ours) Hub id or folder of a causal LM that vision and projector are put before, in place of a model."
    )
    vision: dict[str, Any] | None = _opt(
        None, "(ours) {source: timm|open_clip|hf, name, weights, image_size, …}; see mmreason compose --help."
    )
    projector: dict[str, Any] | None = _opt(
        None, "(ours) {kind: linear|mlp|pixel_shuffle|avg_pool|perceiver|qformer, …}. None: a two-layer MLP."
    )
    freeze_modules: list[str] | None = _opt(
        None, "(ours) Modules that are not trained, by name or pattern: [vision_tower, language_model]."
    )
    model_revision: str = _opt("main", "Branch, tag or commit of the model on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _opt(
        "float32", "Dtype of the weights. With bf16 autocast keep float32 weights; 'auto' takes the checkpoint's."
    )
    attn_implementation: str | None = _opt(
        None, "sdpa, flash_attention_2, flash_attention_3, flex_attention or eager. None: transformers chooses."
    )
    trust_remote_code: bool = _opt(False, "Run code that comes with the checkpoint. Off unless you trust its author.")
    chat_template_path: str | None = _opt(
        None, "A Jinja chat template file, or a tokenizer folder or hub id to take the chat template from."
    )
    adapter: dict[str, Any] | None = _opt(
        None,
        "(ours) {kind: lora|rslora|dora|qlora|adalora|ia3|oft|vera|bottleneck|prefix|prompt|p_tuning|p_tuning_v2, "
        "modules: [decoder, projector, vision_tower], …}, see docs/adapters.md; or {path: FOLDER of a saved one}.",
    )
    use_peft: bool = _opt(False, "Train a LoRA adapter instead of all weights; short for adapter: {kind: lora, …}.")
    lora_r: int = _opt(16, "LoRA rank.")
    lora_alpha: int = _opt(32, "LoRA scale: the update is multiplied by alpha / r (alpha / sqrt(r) with use_rslora).")
    lora_dropout: float = _opt(0.05, "Dropout in front of the adapter. 0 keeps rollouts and scoring exactly alike.")
    lora_target_modules: list[str] | None = _opt(
        None, "Module names that get an adapter, or [all-linear]. None: PEFT's choice for the architecture."
    )
    lora_modules_to_save: list[str] | None = _opt(None, "Modules trained in full beside the adapter.")
    use_rslora: bool = _opt(False, "Rank-stabilised LoRA (arXiv 2312.03732).")
    use_dora: bool = _opt(False, "Weight-decomposed LoRA (arXiv 2402.09353).")


@dataclass
class DataArguments:
    """Training and held-out problems."""

    dataset_name: str | None = _opt(
        None, "Hub id (owner/name or owner/name:config), a file or a folder. None: word problems made by the code."
    )
    word_problems: dict[str, Any] | None = _opt(
        None, "(ours) Arguments of data_builders.word_problems where no dataset is named, e.g. {level: 3, n: 4000}."
    )
    shapes: dict[str, Any] | None = _opt(
        None, "(ours) Where no dataset is named: pictures of data_builders.shapes, with its arguments, e.g. {level: 1}."
    )
    dataset_train_split: str = _opt("train", "Training split; slices such as train[:1000] work.")
    dataset_test_split: str | None = _opt(
        None, "Held-out split. None: eval_samples rows are held out of the training split."
    )
    extra_test_splits: list[str] | None = _opt(None, "(ours) Further held-out splits, each measured on its own.")
    dataset_format: str = _opt("auto", "(ours) gsm8k, math, svamp, aqua, asdiv, generic … or auto: by the columns.")
    column_map: dict[str, str] | None = _opt(
        None, "(ours) Our column -> the dataset's, e.g. {prompt: Body, answer: Answer}."
    )
    prompt_template: str | None = _opt(
        "boxed",
        "(ours) A named template (none, boxed, gsm8k, r1-zero …) or a text with {question}. None: boxed or base-boxed.",
    )
    completion_template: str | None = _opt(
        None,
        "(ours) How reasoning and answer of a reference become one text: plain, boxed, gsm8k, think, r1-zero, or a "
        "text with {reasoning} and {answer}. None: apart, for chat templates that know reasoning_content.",
    )
    system_prompt: str | None = _opt(None, "(ours) System message put before each prompt.")
    chat: bool = _opt(
        True, "(ours) Render prompts with the chat template. False: the template's plain text (base models, R1-Zero)."
    )
    on_bad_row: Literal["error", "drop"] = _opt(
        "error", "(ours) What to do with a row that has no answer or one that can't be checked."
    )
    image_root: str | None = _opt(
        None, "(ours) Folder that relative image paths start from and no image may lie outside of. None: the dataset's."
    )
    image_urls: bool = _opt(False, "(ours) Fetch images that are given as http(s) URLs, from public addresses only.")
    max_train_samples: int | None = _opt(None, "(ours) Use only the first N training rows.")
    max_prompt_length: int | None = _opt(
        512, "(ours) A longer prompt, image tokens included, is a bad row, never cut silently. None: no limit."
    )
    eval_samples: int = _opt(
        200, "(ours) Problems of each held-out set, measured before and after training. 0: no evaluation."
    )
    eval_num_generations: int = _opt(4, "(ours) k of maj@k; 0 or 1: greedy accuracy only.")


@dataclass
class RewardArguments:
    """What is rewarded."""

    reward_funcs: list[str | dict[str, Any]] = _opt(
        ["accuracy"], "(ours) Names of rewards, {name: …, option: value} entries, or dotted paths to your own function."
    )
    reward_weights: list[float] | None = _opt(None, "One weight per reward function. None: 1.0 each.")


@dataclass
class TrainingOptions:
    """What every recipe that trains has; a recipe's own options extend these and set its own defaults."""

    output_dir: str = _opt("outputs/run", "Checkpoints, metrics, samples and the final model.")
    run_name: str | None = _opt(None, "Name shown by the trackers. None: the name of output_dir.")
    overwrite_output_dir: bool = _opt(False, "Start over in an output_dir that holds a run: its files are deleted.")
    resume: str = _opt("auto", "(ours) auto: continue the run found in output_dir; never; or the path of a checkpoint.")
    seed: int = _opt(42, "Seed of data order, sampling and initialisation.")

    # batch
    per_device_train_batch_size: int = _opt(8, "Rows (in RL: completions) per forward/backward on one device.")
    gradient_accumulation_steps: int = _opt(1, "Forward/backward passes per optimizer step.")
    num_train_epochs: float = _opt(3.0, "Passes over the rows (in RL: the prompts), where max_steps is not given.")
    max_steps: int = _opt(-1, "Optimizer steps; -1: from num_train_epochs.")

    # generation
    max_completion_length: int = _opt(256, "Token limit of a completion.")
    chat_template_kwargs: dict[str, Any] | None = _opt(
        None, "(ours for SFT) Passed to the chat template, e.g. {enable_thinking: false}."
    )
    hf_generation_batch_size: int | None = _opt(None, "(ours) Rows per generate call without vLLM. None: all at once.")

    # optimizer
    learning_rate: float = _opt(2e-5, "Peak learning rate.")
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = _opt("adamw_torch", "Optimizer.")
    weight_decay: float = _opt(0.0, "Decoupled weight decay; not on biases and norms.")
    adam_beta1: float = _opt(0.9, "AdamW β1.")
    adam_beta2: float = _opt(0.999, "AdamW β2.")
    adam_epsilon: float = _opt(1e-8, "AdamW ε.")
    max_grad_norm: float = _opt(1.0, "Clip the global gradient norm; 0: off.")
    lr_scheduler_type: str = _opt("linear", "linear, cosine, constant, constant_with_warmup, polynomial …")
    lr_scheduler_kwargs: dict[str, Any] | None = _opt(None, "More settings of the schedule.")
    warmup_steps: float = _opt(0, "Warm-up steps; below 1: a share of all steps.")

    # precision and memory
    bf16: bool | None = _opt(None, "bfloat16 autocast. None: on where the GPU has it.")
    gradient_checkpointing: bool = _opt(True, "Recompute activations in the backward pass.")
    gradient_checkpointing_kwargs: dict[str, Any] | None = _opt(None, "Passed to gradient_checkpointing_enable.")
    use_cpu: bool = _opt(False, "Stay on the CPU where there is a GPU.")

    # bookkeeping
    logging_steps: int = _opt(
        10, "Steps between lines on the terminal and the trackers; RL's metrics.jsonl gets every step."
    )
    save_steps: int = _opt(500, "Steps between checkpoints.")
    save_total_limit: int | None = _opt(3, "Checkpoints kept. None: all.")
    report_to: list[str] = _opt([], "Trackers: tensorboard, wandb, mlflow … (needs the package).")

    def check_training(self) -> None:
        """Refuse batch sizes and step counts that can't work.

        Raises:
            ConfigError: naming the field.
        """
        for name in (
            "per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "logging_steps"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ConfigError(f"max_steps={self.max_steps} must be positive, or -1 to count epochs")


@dataclass
class PolicyConfig(ObjectiveOptions, TrainingOptions):
    """The loop: rollout, reward, advantage, update."""

    output_dir: str = _opt("outputs/grpo_math", "Checkpoints, rollouts, metrics and the final model.")

    # batch
    steps_per_generation: int | None = _opt(
        None, "Micro-batches that one rollout feeds. None: gradient_accumulation_steps."
    )
    generation_batch_size: int | None = _opt(
        None, "Completions per rollout over all devices, instead of steps_per_generation."
    )
    num_iterations: int = _opt(1, "Times each rollout is used, μ.")
    shuffle_dataset: bool = _opt(True, "Shuffle the prompts each epoch.")

    # sampling
    max_completion_length: int = _opt(512, "Token limit of a completion.")
    temperature: float = _opt(1.0, "Sampling temperature; scoring divides the logits by it too.")
    top_p: float = _opt(1.0, "Nucleus sampling; 1 leaves the distribution whole.")
    top_k: int = _opt(0, "Sample from the k likeliest tokens; 0: all.")
    min_p: float | None = _opt(None, "Least probability relative to the likeliest token.")
    repetition_penalty: float = _opt(1.0, "Above 1 discourages tokens that were used before.")
    generation_kwargs: dict[str, Any] | None = _opt(
        None, "More settings for the sampler (vLLM SamplingParams or transformers GenerationConfig)."
    )

    # vLLM
    use_vllm: bool = _opt(False, "Sample with vLLM.")
    vllm_mode: Literal["colocate", "server"] = _opt(
        "colocate", "colocate: an engine in each training process. server: `trl vllm-serve` on other GPUs."
    )
    vllm_model_impl: str = _opt("auto", "vLLM's model implementation: auto, vllm or transformers.")
    vllm_enable_sleep_mode: bool = _opt(False, "Free the engine's GPU memory during the update (colocate).")
    vllm_gpu_memory_utilization: float = _opt(0.3, "Share of GPU memory for the colocated engine.")
    vllm_max_model_length: int | None = _opt(None, "Engine context. None: longest prompt + max_completion_length.")
    vllm_tensor_parallel_size: int = _opt(1, "Devices that share one colocated engine.")
    vllm_server_base_url: str | None = _opt(None, "URL of the server, instead of host and port.")
    vllm_server_host: str = _opt("0.0.0.0", "Host of the server.")
    vllm_server_port: int = _opt(8000, "Port of the server.")
    vllm_server_timeout: float = _opt(240.0, "Seconds to wait for the server to come up.")
    vllm_group_port: int = _opt(51216, "Port of the weight-update group.")
    vllm_importance_sampling_correction: bool = _opt(
        True, "Correct for the gap between the engine's and the trainer's log-probabilities."
    )
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = _opt(
        "sequence_mask", "Clamp or drop, per token or per sequence."
    )
    vllm_importance_sampling_clip_max: float | None = _opt(3.0, "Upper bound of the importance ratio.")
    vllm_importance_sampling_clip_min: float | None = _opt(None, "Lower bound of the importance ratio.")

    max_staleness: int = _opt(
        0,
        "(ours) Draw rollouts beside the update, with weights at most so many rollouts old; 0: in turns. Needs vLLM, "
        "which has weights of its own. See docs/rollouts.md.",
    )

    # rewards
    on_reward_error: Literal["stop", "mask"] = _opt(
        "stop",
        "(ours) A reward function that raises, returns no number, or takes too long: stop, naming the row; or mask: "
        "that row gets no reward from it, and is counted in rewards/NAME/errors.",
    )
    reward_timeout: float | None = _opt(
        None, "(ours) Seconds that one call of a reward function may take, see docs/rewards.md. None: no limit."
    )

    # images
    feature_store: str | None = _opt(
        None, "(ours) Folder where a frozen vision tower's features are kept, so that each image is encoded once."
    )
    feature_store_gib: float = _opt(32.0, "(ours) Bound of its size on disk.")

    # sharing
    share_prompts: bool = _opt(
        True,
        "(ours) Read a prompt and its images once for all its completions in a micro-batch. Where that is not exact it "
        "is off, and the reason said. See docs/sharing.md.",
    )
    verify_sharing: int | None = _opt(
        None,
        "(ours) Steps between comparisons of shared with separate log-probabilities; more than rounding stops the run. "
        "None: only a short trial before the first use.",
    )

    router_replay: bool = _opt(
        False,
        "(ours) Mixtures of experts: all updates of a rollout take the experts that the policy chose when it was drawn "
        "(arXiv 2507.18071). Needs several updates per rollout.",
    )

    # optimizer
    learning_rate: float = _opt(1e-6, "Peak learning rate.")

    # bookkeeping
    eval_steps: int | float | None = _opt(
        None,
        "Steps between greedy evaluations on the held-out problems while training; below 1: a share of all steps. "
        "None: only before and after.",
    )
    canary_steps: int | None = _opt(
        None,
        "(ours) Steps between checks that images reach the model in scoring and sampling; a failure stops the run. "
        "The first check is before the first step. None: no check.",
    )
    canary_samples: int = _opt(16, "(ours) Problems with images for that check, held-out ones where there are any.")
    guards: dict[str, Any] | None = _opt(
        None,
        "(ours) What the run warns of or stops for: {kl: {action: stop, above: 0.5}, entropy: off, …}, see "
        "docs/guards.md. None: warnings at generous bounds, and a stop after 5 gradients in a row that are not finite.",
    )
    save_steps: int = _opt(500, "Steps between checkpoints; 0: only at the end.")
    save_only_model: bool = _opt(False, "Checkpoints without optimizer state: smaller, can't be resumed.")
    log_completions: bool = _opt(False, "Print a few completions at each logging step.")
    num_completions_to_print: int = _opt(2, "How many.")

    def resolve(self, world_size: int) -> None:
        """Fill in what depends on the number of processes and refuse what can't work.

        Raises:
            ConfigError: naming the fields and a value that would work.
        """
        self._check_values()
        if self.max_staleness and self.vllm_mode == "server" and world_size > 1:
            raise ConfigError(
                f"max_staleness={self.max_staleness}: with vllm_mode server one training process can draw ahead, not "
                f"{world_size}: their requests are gathered by collectives, which the update uses at the same time. "
                "Take vllm_mode: colocate, or max_staleness: 0"
            )
        per_step = self.per_device_train_batch_size * world_size
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ConfigError("give generation_batch_size or steps_per_generation, not both")
        if self.generation_batch_size is not None:
            if self.generation_batch_size % per_step:
                raise ConfigError(
                    f"generation_batch_size={self.generation_batch_size} must be a multiple of "
                    f"per_device_train_batch_size × processes = {per_step}"
                )
            self.steps_per_generation = self.generation_batch_size // per_step
        elif self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        self.generation_batch_size = per_step * self.steps_per_generation
        if self.generation_batch_size % self.num_generations:
            total = self.generation_batch_size
            fitting = [d for d in range(2, total + 1) if total % d == 0]
            advice = (
                f"set num_generations to one of {fitting}, or change the batch" if fitting else "make the batch larger"
            )
            raise ConfigError(
                f"num_generations={self.num_generations} doesn't divide the batch of {total} completions "
                f"(per_device_train_batch_size={self.per_device_train_batch_size} × {world_size} processes × "
                f"steps_per_generation={self.steps_per_generation}): {advice}"
            )
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation} must be a multiple of gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: a rollout feeds whole optimizer steps"
            )

        if self.router_replay and self.aligned:
            raise ConfigError(
                "router_replay needs several updates per rollout, as num_iterations or steps_per_generation make them: "
                "in the first one the policy's experts are those of the rollout anyway"
            )

    def _check_values(self) -> None:
        guard_options(self.guards)
        if self.reward_timeout is not None and not self.reward_timeout > 0:
            raise ConfigError(f"reward_timeout={self.reward_timeout} must be above 0 seconds, or null for no limit")
        self.check_objective()
        self.check_training()
        if self.num_iterations < 1:
            raise ConfigError(f"num_iterations={self.num_iterations} must be at least 1")
        if self.temperature <= 0:
            raise ConfigError(f"temperature={self.temperature} must be above 0: identical samples give no advantage")
        every = self.eval_steps
        if every is not None and (every <= 0 or (every > 1 and every != int(every))):
            raise ConfigError(
                f"eval_steps={every} must be a whole number of steps, a share of all steps below 1, or null"
            )
        self._check_staleness()
        if self.canary_steps is not None and self.canary_steps < 1:
            raise ConfigError(f"canary_steps={self.canary_steps} must be at least 1, or null for no check")
        if self.canary_samples < 1:
            raise ConfigError(f"canary_samples={self.canary_samples} must be at least 1")
        if self.verify_sharing is not None and self.verify_sharing < 1:
            raise ConfigError(f"verify_sharing={self.verify_sharing} must be at least 1, or null for no comparison")
        if self.verify_sharing is not None and not self.share_prompts:
            raise ConfigError(
                f"verify_sharing={self.verify_sharing} compares shared with separate log-probabilities, and "
                "share_prompts: false shares none: leave one of them out"
            )
        if not self.feature_store_gib > 0:
            raise ConfigError(f"feature_store_gib={self.feature_store_gib} must be above 0")
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if high is not None and not high > 0:
            raise ConfigError(
                f"vllm_importance_sampling_clip_max={high} must be above 0, since it bounds a ratio of "
                "probabilities; null is no bound"
            )
        if low is not None and high is not None and low >= high:
            raise ConfigError(
                f"vllm_importance_sampling_clip_min={low} must be below vllm_importance_sampling_clip_max={high}"
            )

    def _check_staleness(self) -> None:
        if self.max_staleness < 0:
            raise ConfigError(f"max_staleness={self.max_staleness} must be at least 0")
        if not self.max_staleness:
            return
        obstacles = {
            "use_vllm: generate samples from the very weights that are updated": not self.use_vllm,
            "vllm_importance_sampling_correction, which leads from the old weights to the new ones": (
                not self.vllm_importance_sampling_correction
            ),
            "vllm_enable_sleep_mode: false, since the engine works beside the update": self.vllm_enable_sleep_mode,
            "vllm_tensor_parallel_size: 1": self.vllm_tensor_parallel_size > 1,
            "dynamic_sampling: false, which doesn't know what it will ask until rewards are there": (
                self.dynamic_sampling
            ),
        }
        for needed, missing in obstacles.items():
            if missing:
                raise ConfigError(f"max_staleness={self.max_staleness} needs {needed}")

    def evaluates_after(self, step: int, total_steps: int) -> bool:
        """Whether `eval_steps` asks for an evaluation once this many steps are done."""
        if self.eval_steps is None:
            return False
        every = math.ceil(self.eval_steps * total_steps) if self.eval_steps < 1 else int(self.eval_steps)
        return step % every == 0

    @property
    def micro_batches_per_rollout(self) -> int:
        """`steps_per_generation`, once `resolve` has filled it in."""
        if self.steps_per_generation is None:
            raise ConfigError("call PolicyConfig.resolve(world_size) first")
        return self.steps_per_generation

    @property
    def groups_per_rollout(self) -> int:
        """Prompts of one rollout over all devices, once `resolve` has filled in its size."""
        if self.generation_batch_size is None:
            raise ConfigError("call PolicyConfig.resolve(world_size) first")
        return self.generation_batch_size // self.num_generations

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that one rollout feeds."""
        return self.micro_batches_per_rollout // self.gradient_accumulation_steps * self.num_iterations

    @property
    def aligned(self) -> bool:
        """One optimizer step per rollout: the weights that sampled are the ones being updated, so π_old = π."""
        return self.updates_per_rollout == 1
