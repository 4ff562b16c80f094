"""`mmreason compose --out FOLDER --decoder … --vision …`: a checkpoint of parts, for every recipe and for vLLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmreason.config import parse_config

DESCRIPTION = """\
Any vision encoder, projected into any decoder. Recipes take the folder as model_name_or_path, vLLM serves it as it is,
transformers' Auto classes load it once mmreason.models is imported."""


def _help(text: str) -> dict[str, str]:
    return {"help": text, "group": "Parts"}


@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """The parts."""

    out: Path = field(metadata=_help("Folder for the checkpoint; must not exist."))
    decoder: str = field(metadata=_help("Hub id or folder of any causal language model."))
    vision: dict[str, Any] = field(
        metadata=_help(
            "A tower {source: timm|open_clip|hf, name, weights, image_size, feature_layer, select, config}, or "
            "{towers: [...]}; with max_tiles and resize: stretch|pad|crop."
        )
    )
    projector: dict[str, Any] = field(
        default_factory=lambda: {"kind": "mlp"},
        metadata=_help("{kind: linear|mlp|pixel_shuffle|avg_pool|perceiver|qformer, …}, see docs/models.md."),
    )
    image_token: str | None = field(
        default=None, metadata=_help("Text of the image token. None: the tokenizer's own, or <|image|>.")
    )
    chat_template_path: str | None = field(
        default=None,
        metadata=_help("A Jinja chat template file, in place of the tokenizer's; extended to place images."),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata=_help("Dtype of the weights.")
    )
    revision: str = field(default="main", metadata=_help("Branch, tag or commit of the decoder on the hub."))
    trust_remote_code: bool = field(
        default=False, metadata=_help("Run code that comes with the decoder. Off unless you trust its author.")
    )
    seed: int = field(default=0, metadata=_help("Of the projector's weights."))


def run_compose(arguments: Sequence[str]) -> int:
    """The command; returns 0. Raises: ConfigError naming the part that doesn't fit; SystemExit after --help."""
    (config,) = parse_config((ComposeConfig,), list(arguments) or ["--help"], "mmreason compose", DESCRIPTION)
    from mmreason.models.compose import compose_checkpoint
    from mmreason.models.loading import read_chat_template

    parts = {name: value for name, value in asdict(config).items() if name not in ("out", "chat_template_path")}
    if config.chat_template_path is not None:
        parts["chat_template"] = read_chat_template(config.chat_template_path)
    print(describe(compose_checkpoint(config.out, parts)))
    return 0


def describe(folder: str) -> str:
    """What a composed checkpoint consists of: parameters of each part, tokens of a view."""
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    counts = dict.fromkeys(("vision_tower", "projector", "language_model"), 0)
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                counts[name.split(".")[0]] += math.prod(tensors.get_slice(name).get_shape())
    lines = [f"  {name:<15} {count / 1e6:10.2f} M parameters" for name, count in counts.items()]
    vision = config.vision_config
    rows, columns = vision.grid
    lines.append(
        f"  a view: {vision.image_size} px, {rows} x {columns} patches, {config.tokens_per_view} tokens; up to "
        f"{1 + vision.max_tiles if vision.max_tiles > 1 else 1} views of a picture"
    )
    return "\n".join([f"{folder}:", *lines])
