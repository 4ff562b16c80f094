"""The model of a run as its options name it: a checkpoint, or parts that are composed into one first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError

FOLDER = "composed"
"""Where a run keeps the model that it composed, in its output folder."""


def check_parts(args: ModelArguments) -> None:
    """Refuse options of parts that don't go together. Raises ConfigError."""
    if args.decoder is None:
        given = [name for name in ("vision", "projector") if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"{' and '.join(given)} need decoder: the language model that they are put before")
        return
    if args.model_name_or_path is not None:
        raise ConfigError(
            f"model_name_or_path={args.model_name_or_path!r} and decoder={args.decoder!r}: give a whole model or parts"
        )
    if args.vision is None:
        raise ConfigError("decoder needs vision: the tower that is put before it (else use model_name_or_path)")


def compose_for_run(args: ModelArguments, output_dir: str, accelerator: Any, seed: int) -> None:
    """Where the options name parts, write the model of them into the output folder and have it as model_name_or_path.

    The main process composes, the others find the folder; a run that is continued finds its own.
    """
    if args.decoder is None:
        return
    from mmreason.models.compose import compose_checkpoint
    from mmreason.models.loading import read_chat_template, whole_models

    template = args.chat_template_path
    parts = {
        "vision": args.vision,
        "projector": args.projector,
        "decoder": args.decoder,
        "revision": args.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "dtype": args.dtype,
        "seed": seed,
        "chat_template": None if template is None else read_chat_template(template),
    }
    with accelerator.main_process_first(), whole_models():
        args.model_name_or_path = compose_checkpoint(Path(output_dir) / FOLDER, parts)
