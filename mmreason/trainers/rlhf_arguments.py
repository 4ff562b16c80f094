"""Options of RLHF: those of PPO, and a block for each of the two stages before it. Imports no torch."""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.trainers._options import _opt
from mmreason.trainers.arguments import RewardArguments
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.trainers.reward_arguments import RewardData, RewardOptions
from mmreason.trainers.sft_arguments import SFTOptions
from mmreason.trainers.stages import stage_options
from mmreason.types import ConfigError


@dataclass
class RLHFRewards(RewardArguments):
    """What is rewarded in the last stage."""

    reward_funcs: list[str | dict[str, Any]] | None = _opt(  # type: ignore[assignment]
        None, "(ours) As in GRPO, and the reward model is added as the last. None: the reward model alone."
    )


@dataclass
class RLHFConfig(PPOConfig):
    """Reinforcement learning from human feedback (arXiv 2203.02155): SFT, a reward model, then PPO against it."""

    output_dir: str = _opt("outputs/rlhf", "Folder of the stages: sft/, reward_model/ and ppo/.")
    sft: dict[str, Any] | None = _opt(
        None, "(ours) Options of the first stage, under the names of recipes/sft.py. None: the model as it is."
    )
    reward_model: dict[str, Any] | None = _opt(
        None,
        "(ours) Options of the second stage, under the names of recipes/reward_model.py, its dataset_name among them; "
        "or {path: FOLDER} of one that is trained already.",
    )

    def stage_dir(self, stage: str) -> Path:
        """Args: stage: sft, reward_model or ppo."""
        return Path(self.output_dir) / stage

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"sft": self.sft, "reward_model": self.reward_model}

    def sft_options(self) -> SFTOptions | None:
        """The first stage's, None where there is none. Raises ConfigError for what recipes/sft.py refuses."""
        if self.sft is None:
            return None
        (made,) = stage_options("sft", self.sft, (SFTOptions,), self)
        self._place(made, "sft")
        return made

    def reward_path(self) -> str | None:
        """Where a reward model lies that is trained already. Raises ConfigError where it is given more than a path."""
        block = self.reward_model or {}
        if "path" in block and len(block) > 1:
            raise ConfigError("reward_model: give the path of a trained one, or how to train one, not both")
        return block.get("path")

    def reward_options(self) -> tuple[RewardData, RewardOptions]:
        """The second stage's. Raises ConfigError for what recipes/reward_model.py refuses."""
        data, made = stage_options("reward_model", self.reward_model, (RewardData, RewardOptions), self)
        self._place(made, "reward_model")
        data.check()
        return data, made

    def _place(self, made: SFTOptions | RewardOptions, stage: str) -> None:
        made.output_dir, made.overwrite_output_dir = str(self.stage_dir(stage)), self.overwrite_output_dir
        made.check()
