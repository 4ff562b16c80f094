"""The teachers of a distillation run: loaded and checked, and what one says about a micro-batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmreason.losses.distill import NO_TOKEN
from mmreason.trainers.distill_arguments import TeacherOptions
from mmreason.trainers.distill_heads import Head, head_stands_alone, place_hidden
from mmreason.trainers.distributed import prepare_reference
from mmreason.trainers.preference_reference import _weights_key
from mmreason.trainers.sft_loss import Places, place_logits, supervised_places
from mmreason.types import ConfigError


@dataclass
class TeacherView:
    """What a teacher says at the S places of a micro-batch: whole, or by its k likeliest tokens.

    states: (S, H) what `head` makes logits of; or the logits themselves, where head is None.
    ids, logps: (S, k) in place of states. label_logps: (S,) of the rows' own tokens, where they are known already.
    output: all that the model gave, for losses inside it. places: in the teacher's own rendering.
    """

    states: Tensor | None = None
    head: Head | None = None
    ids: Tensor | None = None
    logps: Tensor | None = None
    label_logps: Tensor | None = None
    output: Any = None
    places: Places | None = None

    def tensors(self) -> list[Tensor]:
        """What goes with the places, chunk by chunk."""
        return [self.states] if self.states is not None else [self.ids, self.logps]  # type: ignore[list-item]

    def known(self) -> Tensor | None:
        """(S,) where it says anything; None: everywhere."""
        return None if self.ids is None else self.ids[:, 0] != NO_TOKEN

    def without_nan(self) -> None:
        """Put something finite where it gave NaN: such places count nothing, and their gradients must not be NaN."""
        if self.states is not None:
            self.states = torch.nan_to_num(self.states, nan=0.0, posinf=0.0, neginf=0.0)
        elif self.logps is not None:
            self.logps = torch.nan_to_num(self.logps, nan=-30.0)

    def bad_places(self) -> Tensor:
        """(S,) where it gave NaN or infinity."""
        if self.states is not None:
            return ~torch.isfinite(self.states).all(-1)
        assert self.ids is not None and self.logps is not None
        return (torch.isnan(self.logps) & (self.ids != NO_TOKEN)).any(-1)


@dataclass
class LocalTeacher:
    """A model beside the student.

    rows: the training rows as its own processor renders them; None where the student's suit.
    tokenizer: its own, where rows are.
    """

    options: TeacherOptions
    model: Any
    rows: Any = None
    tokenizer: Any = None
    head_alone: bool | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.options.path

    def prepare(self, accelerator: Any) -> None:
        """Onto the device, frozen; over processes where the student is. Collective."""
        self.model = prepare_reference(self.model, accelerator)

    @torch.no_grad()
    def look(self, batch: Mapping[str, Any], *, chunked: bool, **more: Any) -> TeacherView:
        """One forward pass without gradient. Collective where its weights are spread over processes.

        Args: batch: in its own rendering. chunked: leave the head to the caller, where that is exact.
            more: of the model's forward, such as output_hidden_states.
        """
        places = supervised_places(batch)
        if chunked and self.head_alone is None:
            self.head_alone = head_stands_alone(self.model, batch, places)
        if chunked and self.head_alone:
            states, head, out = place_hidden(self.model, batch, places, **more)
            return TeacherView(states, head, output=out, places=places)
        logits, out = place_logits(self.model, batch, places, **more)
        return TeacherView(logits, output=out, places=places)


def load_teacher(options: TeacherOptions, student: Any) -> tuple[Any, Any]:
    """(the model in eval mode, its processor or tokenizer), once its vocabulary is known to be the student's.

    Args: student: the student's processor or tokenizer; None where another vocabulary will do.
    Raises: ConfigError: another vocabulary.
    """
    from mmreason.models.loading import load_processor

    processor = load_processor(options.model_arguments())
    if student is not None:
        check_vocabularies(student, processor, options.path)
    return load_teacher_model(options), processor


def load_teacher_model(options: TeacherOptions) -> Any:
    """The model alone, in eval mode, quantised where that is asked."""
    from mmreason.models.loading import load_policy_model

    if options.quantization is None:
        return load_policy_model(options.model_arguments()).eval()
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    eight = options.quantization == "8bit"
    config = BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight)
    return AutoModelForCausalLM.from_pretrained(
        options.path, revision=options.revision, quantization_config=config
    ).eval()


def check_vocabularies(student: Any, teacher: Any, name: str) -> None:
    """Raises: ConfigError where a token of the student has another id in the teacher: names one, and what to do."""
    mine, other = (getattr(one, "tokenizer", one).get_vocab() for one in (student, teacher))
    differing = [token for token, index in mine.items() if other.get(token) != index]
    if not differing:
        return
    token = min(differing)
    raise ConfigError(
        f"the teacher {name} has another vocabulary than the student ({len(other)} tokens, {len(mine)} here; {token!r} "
        f"is {other.get(token, 'unknown')} there, {mine[token]} here): their distributions can't be compared token by "
        "token. Use mode: hard, which learns from the teacher's texts, teacher_alignment: spans, or a student with the "
        "teacher's tokenizer (mmreason student)"
    )


def vocabulary_size(models: Sequence[Any]) -> int:
    """How many tokens all of them have logits for: rows behind the tokenizer's are padding, whose number may differ."""
    return min(model.config.get_text_config().vocab_size for model in models)


def teacher_digest(options: TeacherOptions) -> dict[str, Any]:
    """What tells one teacher from another: its name and how it is loaded, its config, the ends of its weight files."""
    config = Path(options.path) / "config.json"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return {
        "path": options.path,
        "revision": options.revision,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "config": hashlib.sha256(text.encode()).hexdigest()[:16],
        "weights": _weights_key(options.path),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """Of all tokens and their ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
