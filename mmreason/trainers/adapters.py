"""What adapters need of transformers' Trainer beside gradients: AdaLoRA's steps, and states that PEFT doesn't save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmreason.models.peft_adalora import follow_ranks
from mmreason.models.peft_state import load_training_state, save_training_state

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class AdapterTraining(_Trainer):  # type: ignore[misc,valid-type]
    """Put it before transformers' Trainer or a class of it: `class MyTrainer(AdapterTraining, Trainer)`.

    A run with prefix or P-tuning, whose networks PEFT doesn't save, and one with AdaLoRA then continue exactly.
    """

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        follow_ranks(self.model, optimizer or self.optimizer, num_training_steps, lambda: self.state.global_step)
        return super().create_scheduler(num_training_steps, optimizer)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        save_training_state(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not load_training_state(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
