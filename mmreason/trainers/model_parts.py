"""The model of a run as its options name it: a checkpoint, or parts that are composed into one first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmreason._adapters import adapter_block
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


def load_policy_and_reference(args: ModelArguments, accelerator: Any, *, needs_reference: bool) -> tuple[Any, Any]:
    """(the policy: whole, with parts frozen, or with an adapter; a second model as its reference, or None).

    Args: needs_reference: there is a KL. An adapter that is switched off is the reference without a second model.
    """
    from mmreason.models.freezing import freeze_modules
    from mmreason.models.loading import load_policy_model
    from mmreason.models.peft import add_adapter

    model = load_policy_model(args, accelerator)
    second = needs_reference and adapter_block(args) is None
    reference = load_policy_model(args, accelerator) if second else None
    model = add_adapter(model, args)
    if args.freeze_modules:
        freeze_modules(model, args.freeze_modules)
    return model, reference


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
