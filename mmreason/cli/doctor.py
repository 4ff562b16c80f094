"""`mmreason doctor DATASET --model M`: every fault of a set with its row, before a training finds it at step 900.

Exit status: 0 no error (there may be warnings), 1 errors were found, 2 something the user can put right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmreason._files import write_whole
from mmreason.config import parse_config
from mmreason.types import ConfigError

if TYPE_CHECKING:
    from mmreason.data.doctor import Diagnosis, DoctorOptions
    from mmreason.trainers.arguments import ModelArguments

HEALTHY, FAULTY = 0, 1

DESCRIPTION = """\
Looks at every row of a dataset: faults by row, lengths, doubles, overlap with test sets, quality. With --model also at
what the rows become for it: tokens, truncation, padding, chat template, memory. Exit status: 0 no error, 1 errors were
found, 2 wrong input."""


def _help(text: str, group: str = "What is looked at") -> dict[str, str]:
    return {"help": text, "group": group}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What `mmreason doctor` is told."""

    dataset: str = field(metadata=_help("Hub id, file or folder; may stand first, without --dataset."))
    model: str | None = field(default=None, metadata=_help("Folder or hub id of the model that is to learn from it."))
    recipe_config: Path | None = field(
        default=None, metadata=_help("YAML of a recipe: its model, format, lengths and batch are taken over.")
    )
    split: str = field(default="train", metadata=_help("Split; slices such as train[:1000] work."))
    dataset_format: str = field(default="auto", metadata=_help("A format's name, or auto: by the columns."))
    column_map: dict[str, str] | None = field(
        default=None, metadata=_help("Our column -> the dataset's, e.g. {prompt: question, answer: solution}.")
    )
    stage: Literal["auto", "sft", "rl", "preference", "kto", "pretrain"] = field(
        default="auto", metadata=_help("What the rows are for, which decides what each must have. auto: by the rows.")
    )
    max_rows: int | None = field(default=None, metadata=_help("Look at the first so many rows."))
    image_root: str | None = field(
        default=None, metadata=_help("Folder that image paths start from. None: the data's.")
    )
    image_urls: bool = field(default=False, metadata=_help("Fetch images given as http(s) URLs."))
    prompt_template: str | None = field(default="none", metadata=_help("As in training: boxed, none, or a text."))
    completion_template: str | None = field(default=None, metadata=_help("As in training: boxed, gsm8k, or a text."))
    system_prompt: str | None = field(default=None, metadata=_help("As in training."))
    eval_sets: dict[str, str] = field(
        default_factory=dict, metadata=_help("Test sets that may not stand in it: {gsm8k: FILE, mmlu: FOLDER}.", "Sets")
    )
    eval_split: str = field(default="test", metadata=_help("Their split, where they are folders or hub ids.", "Sets"))
    min_share: float = field(default=0.9, metadata=_help("Share of an item's words that is a hit.", "Sets"))
    duplicates: Literal["exact", "minhash", "simhash"] = field(
        default="exact", metadata=_help("exact: equal words; the others find near ones, too.", "Sets")
    )
    quality: bool = field(default=True, metadata=_help("Score the rows' quality by rules.", "Quality"))
    judge: dict[str, Any] | None = field(
        default=None,
        metadata=_help("A judge's server: {base_url: …, model: …} and other options of mmreason ask.", "Quality"),
    )
    judge_rows: int = field(default=100, metadata=_help("Rows that it rates, drawn at random.", "Quality"))
    seed: int = field(default=0, metadata=_help("Of that draw.", "Quality"))
    max_length: int | None = field(default=None, metadata=_help("Longer rows are faults.", "Training"))
    max_prompt_length: int | None = field(default=None, metadata=_help("Longer prompts are faults (RL).", "Training"))
    truncation: Literal["error", "drop", "cut_oldest_turns"] = field(
        default="error", metadata=_help("As in training; only with error a longer row is a fault.", "Training")
    )
    loss_on: str | dict[str, Any] | None = field(default=None, metadata=_help("As in training.", "Training"))
    chat_template_kwargs: dict[str, Any] | None = field(default=None, metadata=_help("As in training.", "Training"))
    chat_template_path: str | None = field(default=None, metadata=_help("As in training.", "Training"))
    model_revision: str = field(default="main", metadata=_help("Branch, tag or commit on the hub.", "Training"))
    trust_remote_code: bool = field(default=False, metadata=_help("Run code that comes with the model.", "Training"))
    zero_stage: int = field(default=0, metadata=_help("DeepSpeed's ZeRO stage, for the memory estimate.", "Training"))
    processes: int = field(default=1, metadata=_help("Devices of the run, for the memory estimate.", "Training"))
    out: Path | None = field(default=None, metadata=_help("HTML file for the report.", "Output"))
    json: Path | None = field(default=None, metadata=_help("JSON file for everything, every row of it.", "Output"))
    show: int = field(default=5, metadata=_help("Rows of each kind of fault on the terminal; 0: all.", "Output"))

    def __post_init__(self) -> None:
        for name in ("judge_rows", "processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.show < 0:
            raise ConfigError(f"show={self.show} must be at least 0")
        if not 0 <= self.zero_stage <= 3:
            raise ConfigError(f"zero_stage={self.zero_stage} must be from 0 to 3")


def parse_arguments(arguments: Sequence[str]) -> DoctorConfig:
    """The command line as settings. Raises: ConfigError; SystemExit after --help."""
    words = list(arguments) or ["--help"]
    if not words[0].startswith("-"):
        words = ["--dataset", *words]
    return parse_config(DoctorConfig, words, "mmreason doctor DATASET", DESCRIPTION)


def run_doctor(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        The exit status, see the top of this module.

    Raises:
        MMReasonError: what the user can put right.
    """
    from mmreason.clients.settings import parse_endpoint

    config = parse_arguments(arguments)
    endpoint = None if config.judge is None else parse_endpoint(config.judge, "judge")
    recipe = None if config.recipe_config is None else read_recipe(config.recipe_config)
    from mmreason.data.doctor import examine

    model, processor = model_arguments(config, recipe), None
    if model.model_name_or_path is not None:
        from mmreason.models.loading import load_processor

        processor = load_processor(model)
    found = examine(config.dataset, doctor_options(config, recipe), processor, _say)
    if processor is not None and found.facts["tokens"]["rows"]:
        found.facts["memory"] = memory_facts(config, recipe, model, found)
    if endpoint is not None:
        found.facts["judge"] = ask_judge(config, endpoint, found)
    write_out(config, found)
    print(summary(found, config.show))
    return FAULTY if found.errors else HEALTHY


# --------------------------------------------------------------------------------------------------------------------
# Settings


@dataclass(frozen=True)
class Recipe:
    """What a recipe's YAML says: all options by name, the model's among them as the recipe has them."""

    options: dict[str, Any]
    model: ModelArguments


def read_recipe(path: Path) -> Recipe:
    """A recipe's YAML with the recipe's defaults. Its folder says which recipe's, or its options do.

    Raises: ConfigError as the recipe itself.
    """
    import yaml

    from mmreason.trainers.arguments import DataArguments, ModelArguments, PolicyConfig, RewardArguments
    from mmreason.trainers.sft_arguments import SFTOptions

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--recipe_config {path} can't be read: {error}") from error
    folder, keys = path.resolve().parent.name, given if isinstance(given, dict) else {}
    if folder == "pretrain" or "objective" in keys:
        return _read_pretraining(path)
    rl = folder.startswith("grpo") or any(f.name in keys for f in fields(RewardArguments))
    own = (RewardArguments, PolicyConfig) if rl else (SFTOptions,)
    model, *rest = parse_config((ModelArguments, DataArguments, *own), ["--config", str(path)], "--recipe_config")
    options = {name: value for part in (model, *rest) for name, value in vars(part).items()}
    return Recipe(options | {"stage": "rl" if rl else "sft"}, model)


def _read_pretraining(path: Path) -> Recipe:
    from mmreason.trainers.arguments import ModelArguments
    from mmreason.trainers.pretrain_arguments import ON_TEXT, CorpusArguments, FreshModelArguments, PretrainOptions

    parts = (ModelArguments, FreshModelArguments, CorpusArguments, PretrainOptions)
    model, *rest = parse_config(parts, ["--config", str(path)], "--recipe_config")
    options = {name: value for part in (model, *rest) for name, value in vars(part).items()}
    if options["objective"] not in ON_TEXT:
        raise ConfigError(
            f"--recipe_config {path}: objective {options['objective']} learns from captions, which the doctor doesn't "
            "know; leave --recipe_config out to look at texts and images alone"
        )
    # A longer document is cut into several rows, so its length is no fault.
    options |= {"stage": "pretrain", "truncation": "cut_oldest_turns", "dataset_format": "text"}
    return Recipe(options | {"column_map": {"text": options["text_column"]}}, model)


def doctor_options(config: DoctorConfig, read: Recipe | None) -> DoctorOptions:
    """What `examine` is told: the recipe's options, and the command's own before them."""
    from mmreason.data.doctor import DoctorOptions

    recipe = {} if read is None else read.options
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    default = {f.name: f.default for f in fields(config)}
    named = {"format": "dataset_format"}
    taken = {}
    for f in fields(DoctorOptions):
        name = named.get(f.name, f.name)
        if name in own and (own[name] != default.get(name) or name not in recipe):
            taken[f.name] = own[name]
        elif name in recipe:
            taken[f.name] = recipe[name]
    if recipe:
        taken["batch_rows"] = recipe["per_device_train_batch_size"]
        taken["batch_steps"] = recipe["gradient_accumulation_steps"] * config.processes
    return DoctorOptions(**taken)


def model_arguments(config: DoctorConfig, recipe: Recipe | None) -> ModelArguments:
    """The model that is named, and the recipe's other options of it."""
    from dataclasses import replace

    from mmreason.trainers.arguments import ModelArguments

    arguments = ModelArguments() if recipe is None else recipe.model
    given: dict[str, Any] = {
        "model_name_or_path": config.model,
        "model_revision": config.model_revision if config.model_revision != "main" else None,
        "trust_remote_code": config.trust_remote_code or None,
        "chat_template_path": config.chat_template_path,
    }
    return replace(arguments, **{name: value for name, value in given.items() if value is not None})


# --------------------------------------------------------------------------------------------------------------------
# What needs more than the rows


def memory_facts(
    config: DoctorConfig, recipe: Recipe | None, arguments: ModelArguments, found: Diagnosis
) -> dict[str, int]:
    """Bytes of each part on one device (see mmreason.data.doctor_memory), with the recipe's settings or usual ones."""
    from transformers import AutoConfig

    import mmreason.models  # noqa: F401  (registers our model)
    from mmreason._adapters import adapter_settings
    from mmreason.data.doctor_memory import TrainingShape, estimate_memory, measure_model, meta_model

    options = {} if recipe is None else recipe.options
    model = meta_model(
        AutoConfig.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
        )
    )
    size = measure_model(model)
    tokens = found.facts["tokens"]
    limit = config.max_length or options.get("max_length")
    longest = limit if limit and options.get("packing") else min(tokens["longest"], limit or tokens["longest"])
    longest += options["max_completion_length"] if options.get("stage") == "rl" else 0
    adapter = adapter_settings(arguments)
    run = TrainingShape(
        tokens=longest * options.get("per_device_train_batch_size", 8),
        longest=longest,
        dtype=arguments.dtype if arguments.dtype != "auto" else str(model.dtype).removeprefix("torch."),
        bf16=bool(options.get("bf16")),
        optim=options.get("optim", "adamw_torch_fused"),
        trainable=count_trainable(model, arguments),
        gradient_checkpointing=options.get("gradient_checkpointing", True),
        attention="eager" if arguments.attn_implementation == "eager" else "fused",
        supervised_share=tokens["supervised"] / tokens["tokens"] if tokens["supervised"] else 1.0,
        zero_stage=config.zero_stage,
        processes=config.processes,
        deepspeed=config.zero_stage > 0,
        quantised=adapter is not None and adapter.kind == "qlora",
    )
    return estimate_memory(size, run)


def count_trainable(model: Any, arguments: ModelArguments) -> int:
    """Parameters that are trained: those of the adapter, or those that aren't frozen."""
    from mmreason._adapters import adapter_settings
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.peft import peft_config

    adapter = adapter_settings(arguments)
    if adapter is not None and adapter.path is None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config(model, adapter))
    elif arguments.freeze_modules:
        freeze_modules(model, arguments.freeze_modules)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def ask_judge(config: DoctorConfig, endpoint: Any, found: Diagnosis) -> dict[str, Any]:
    """What a judge says of a sample of the rows."""
    import asyncio

    from mmreason.clients.endpoint import Endpoint
    from mmreason.data.quality_judge import judge_rows

    async def ask() -> dict[str, Any]:
        async with Endpoint(endpoint) as completer:
            return await judge_rows(found.read.examples, completer, rows=config.judge_rows, seed=config.seed)

    _say(f"asking the judge {endpoint.model} about {min(config.judge_rows, len(found.read.examples))} rows")
    return asyncio.run(ask())


# --------------------------------------------------------------------------------------------------------------------
# Output


def write_out(config: DoctorConfig, found: Diagnosis) -> None:
    """The files. Raises: MMReasonError where one can't be written."""
    if config.json is not None:
        facts = found.to_json() | {"scores": [row.to_json() for row in found.quality]}
        try:
            write_whole(config.json, json.dumps(facts, indent=1, ensure_ascii=True) + "\n")
        except OSError as error:
            raise ConfigError(f"--json {config.json} can't be written: {error.strerror or error}") from error
    if config.out is not None:
        from mmreason.report.doctor import write_doctor_report

        _say(f"wrote {write_doctor_report(found.to_json(), config.out)}")


def summary(found: Diagnosis, show: int) -> str:
    """What was found, for the terminal. Args: show: rows of each kind of fault; 0: all."""
    from mmreason.report.doctor import sections
    from mmreason.report.tokens import printable

    facts = found.to_json()
    lines = [
        f"{facts['source']}: {facts['rows']:,} rows, format {facts['format']}, stage {facts['stage']}: "
        f"{facts['errors']:,} errors, {facts['warnings']:,} warnings"
    ]
    for kind in facts["faults"]:
        lines.append(f"\n{kind['severity']}: {kind['code']}: {len(kind['rows']):,} rows: {kind['meaning']}")
        shown = kind["rows"] if show == 0 else kind["rows"][:show]
        lines += [f"  {row['row']} ({row['where']}): {row['detail']}".replace("\n", "\\n") for row in shown]
        if len(shown) < len(kind["rows"]):
            lines.append(f"  … and {len(kind['rows']) - len(shown):,} more (--show 0, --json or --out for all)")
    titles = {
        "tokens": "Tokens", "truncation": "Truncation", "padding": "Padding", "memory": "Memory on one device",
        "scores": "Quality, by rules", "length_bias": "Does length pay?", "judge": "Quality, by the judge",
    }  # fmt: skip
    values = sections(facts)
    for name, title in titles.items():
        if values[name]:
            width = max(map(len, values[name]))
            lines.append(f"\n{title}")
            lines += [f"  {key:<{width}}  {value}" for key, value in values[name].items()]
    return printable("\n".join(lines))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
