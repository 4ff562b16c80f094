"""`mmreason canary --model M --dataset D`: do pictures reach the model, in training and in rollouts, and do they help?

Exit status: 0 pass (warnings too, unless --strict), 1 a path fails, 2 something the user can put right.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmreason._files import write_whole
from mmreason.config import parse_config
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from mmreason.rollout.canary_report import CanaryReport
    from mmreason.rollout.canary_rows import CanaryRows
    from mmreason.rollout.types import Engine
    from mmreason.trainers.arguments import DataArguments, ModelArguments

PASSED, FAILED = 0, 1
POOL = 512
"""Rows among which those with pictures are drawn, at least; eight times `samples` where that is more."""

DESCRIPTION = """\
Shows the model rows of a dataset with their true, blank, shuffled and noisy images: through the trainer's scoring, and
through the engines that it samples with. Says for each of these paths whether images reach the model, and whether the
true ones help. Exit status: 0 pass, 1 a path fails (with --strict a warning, too), 2 wrong input."""


def _help(text: str, group: str = "What is tried") -> dict[str, str]:
    return {"help": text, "group": group}


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """What `mmreason canary` is told."""

    model: str = field(metadata=_help("Folder or hub id of a vision-language model."))
    dataset: str = field(metadata=_help("Hub id (owner/name or owner/name:config), a file or a folder, with images."))
    split: str = field(default="train", metadata=_help("Split; slices such as train[1000:] work."))
    samples: int = field(default=64, metadata=_help("Rows with images that are drawn from the split's first 512."))
    engine: Literal["hf", "vllm", "both"] = field(default="hf", metadata=_help("Rollout engines that are tried."))
    completion: Literal["gold", "sampled"] = field(
        default="gold",
        metadata=_help("What training scores: the row's completion (else its answer), or a sample of the model's."),
    )
    max_tokens: int = field(default=64, metadata=_help("Tokens of a greedy answer at most."))
    batch_size: int = field(default=8, metadata=_help("Rows of a forward pass, and of a generate call without vLLM."))
    seed: int = field(default=0, metadata=_help("Of the rows, the shuffling, the noise and the samples."))
    strict: bool = field(default=False, metadata=_help("Exit status 1 for a warning, too."))
    out: Path | None = field(default=None, metadata=_help("JSON file for all numbers."))
    model_revision: str = field(default="main", metadata=_help("Branch, tag or commit on the hub.", "Model"))
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata=_help("In which it computes; float32 shows the smallest reactions.", "Model")
    )
    attn_implementation: str | None = field(
        default=None, metadata=_help("sdpa, eager, flash_attention_2 …; null: transformers chooses.", "Model")
    )
    trust_remote_code: bool = field(default=False, metadata=_help("Run code that comes with the model.", "Model"))
    chat_template_path: str | None = field(
        default=None, metadata=_help("A chat template file, or where to take the template from.", "Model")
    )
    use_cpu: bool = field(default=False, metadata=_help("Stay on the CPU where there is a GPU.", "Model"))
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata=_help("Share of GPU memory for vLLM; the model takes its own beside it.", "Model")
    )
    dataset_format: str = field(default="auto", metadata=_help("A format's name, or auto: by the columns.", "Rows"))
    column_map: dict[str, str] | None = field(
        default=None, metadata=_help("Our column -> the dataset's, e.g. {prompt: question, images: image}.", "Rows")
    )
    prompt_template: str | None = field(
        default="boxed", metadata=_help("A named template (none, boxed …) or a text with {question}.", "Rows")
    )
    system_prompt: str | None = field(default=None, metadata=_help("System message before each prompt.", "Rows"))
    on_bad_row: Literal["error", "drop"] = field(
        default="error", metadata=_help("What to do with a row that can't be used.", "Rows")
    )
    image_root: str | None = field(
        default=None, metadata=_help("Folder from which relative image paths start. None: the dataset's.", "Rows")
    )
    image_urls: bool = field(default=False, metadata=_help("Fetch images given as http(s) URLs.", "Rows"))

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def model_arguments(self) -> ModelArguments:
        from mmreason.trainers.arguments import ModelArguments

        return ModelArguments(
            model_name_or_path=self.model,
            model_revision=self.model_revision,
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            chat_template_path=self.chat_template_path,
        )

    def data_arguments(self) -> DataArguments:
        from mmreason.trainers.arguments import DataArguments

        return DataArguments(
            dataset_name=self.dataset,
            dataset_format=self.dataset_format,
            column_map=self.column_map,
            prompt_template=self.prompt_template,
            system_prompt=self.system_prompt,
            on_bad_row=self.on_bad_row,
            image_root=self.image_root,
            image_urls=self.image_urls,
        )


def parse_arguments(arguments: Sequence[str]) -> CanaryConfig:
    """The command line as settings. Raises: ConfigError; SystemExit after --help."""
    return parse_config(CanaryConfig, list(arguments) or ["--help"], "mmreason canary", DESCRIPTION)


def run_canary(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        The exit status, see the top of this module.

    Raises:
        MMReasonError: what the user can put right.
    """
    config = parse_arguments(arguments)
    if config.engine != "hf":
        from mmreason.rollout.vllm import require_vllm

        require_vllm()
    rows = load_rows(config)
    report = measure(config, rows)
    print(report.table())
    if config.out is not None:
        write_out(config, rows, report)
    worst = ("fail", "warn") if config.strict else ("fail",)
    return FAILED if report.status in worst else PASSED


def load_rows(config: CanaryConfig) -> CanaryRows:
    """The rows that will be shown. Raises ConfigError for a text-only model, DataError for rows without images."""
    from mmreason.data.schema import RL_COLUMNS
    from mmreason.data.visual import can_see
    from mmreason.models.loading import load_processor
    from mmreason.rollout.canary_rows import CanaryRows
    from mmreason.trainers.problems import load_split

    processor = load_processor(config.model_arguments())
    if not can_see(processor):
        raise ConfigError(f"--model {config.model} reads text only: there is no image that could reach it")
    dataset = load_split(
        config.data_arguments(),
        config.split,
        max(POOL, 8 * config.samples),
        _say,
        columns=(*RL_COLUMNS, "images", "completion"),
    )
    return CanaryRows(dataset, processor, samples=config.samples, seed=config.seed)


def measure(config: CanaryConfig, rows: CanaryRows) -> CanaryReport:
    """Load the model, try all paths and judge them."""
    import torch
    from accelerate import Accelerator

    from mmreason.models.loading import load_policy_model
    from mmreason.rollout.canary import observe
    from mmreason.rollout.canary_report import judge_paths
    from mmreason.rollout.engines import placeholder_token_ids
    from mmreason.rollout.scoring import completion_logps

    accelerator = Accelerator(cpu=config.use_cpu or not torch.accelerator.is_available())
    model = load_policy_model(config.model_arguments()).to(accelerator.device).eval()
    banned = placeholder_token_ids(model)
    engines = build_engines(config, rows, model, accelerator, banned)
    tokenizer = rows.processor.tokenizer
    try:
        for engine in engines.values():
            engine.sync()
        records = observe(
            rows,
            lambda prompts, completions, visuals: completion_logps(
                model, prompts, completions, visuals=visuals, banned_token_ids=banned
            )[0],
            engines,
            max_tokens=config.max_tokens,
            batch_size=config.batch_size,
            completion=config.completion,
            seed=config.seed,
        )
    finally:
        for engine in engines.values():
            engine.close()
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    return judge_paths(rows, records, dtype=config.dtype, gold=config.completion == "gold", decode=decode)


def build_engines(
    config: CanaryConfig, rows: CanaryRows, model: Any, accelerator: Any, banned: list[int]
) -> dict[str, Engine]:
    """The engines that are asked for, by name, as a training run builds them."""
    import torch

    from mmreason.rollout.engines import build_engine, end_token_ids
    from mmreason.trainers.arguments import PolicyConfig

    built = {}
    for use_vllm in {"hf": (False,), "vllm": (True,), "both": (False, True)}[config.engine]:
        args = PolicyConfig(
            use_vllm=use_vllm,
            hf_generation_batch_size=config.batch_size,
            max_completion_length=config.max_tokens,
            vllm_gpu_memory_utilization=config.vllm_gpu_memory_utilization,
        )
        engine = build_engine(
            args,
            model,
            accelerator,
            rows.processor.tokenizer,
            checkpoint=config.model,
            dtype=getattr(torch, config.dtype),
            eos_token_ids=end_token_ids(model, rows.processor.tokenizer),
            banned_token_ids=banned,
            max_prompt_tokens=rows.longest_prompt() if use_vllm else 0,
            max_images=rows.max_images,
        )
        built[engine.name] = engine
    return built


def write_out(config: CanaryConfig, rows: CanaryRows, report: CanaryReport) -> None:
    """Write settings, rows and numbers. Raises ConfigError where that can't be."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    content = {"settings": settings, "rows": [example["id"] for example in rows.examples], **report.to_json()}
    assert config.out is not None
    try:
        write_whole(config.out, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {config.out} can't be written: {error.strerror or error}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr)
