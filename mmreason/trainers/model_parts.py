"""The model of a run as its options name it: a checkpoint, or parts that are composed into one first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError

FOLDER = "composed"
"""Where a run keeps the model that it composed, in its output folder."""


def check_parts(args: ModelArguments, *, makes_decoder: bool = False) -> None:
    """Refuse options of parts that don't go together. Raises ConfigError.

    Args: makes_decoder: whether the stage makes a tiny decoder where none is named (`make_tiny_decoder`).
    """
    if args.decoder is None:
        if makes_decoder and args.vision is not None and args.model_name_or_path is None:
            return
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


def make_tiny_decoder(args: ModelArguments, rows: Any, size: str, output_dir: str, accelerator: Any, seed: int) -> None:
    """Where no model is named, write a random tiny decoder whose tokenizer knows the words of some rows.

    It becomes the run's model, or, where `vision` is named, the decoder that `compose_for_run` puts it before.

    Args: rows: with the columns prompt and completion. size: a key of `mmreason.models.tiny.TINY_SIZES`.
    """
    if args.model_name_or_path is not None or args.decoder is not None:
        return
    from mmreason.data.supervised import message_texts
    from mmreason.models.tiny import save_tiny

    folder = Path(output_dir) / "tiny_model"
    with accelerator.main_process_first():
        if accelerator.is_main_process:  # again after a kill, too: the same texts and seed give the same files
            texts = (text for column in ("prompt", "completion") for row in rows[column] for text in message_texts(row))
            save_tiny(folder, size, texts=texts, seed=seed)
    if args.vision is None:
        args.model_name_or_path = str(folder)
    else:
        args.decoder = str(folder)


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
