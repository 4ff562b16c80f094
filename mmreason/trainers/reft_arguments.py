"""Options of ReFT: those of PPO, the warm-up before it, and how answers are chosen afterwards. Imports no torch."""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmreason.trainers._options import _opt
from mmreason.trainers.arguments import RewardArguments
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.trainers.sft_arguments import SFTOptions
from mmreason.trainers.stages import stage_options


@dataclass
class ReFTRewards(RewardArguments):
    """What is rewarded in the second stage."""

    reward_funcs: list[str | dict[str, Any]] | None = _opt(  # type: ignore[assignment]
        None, "(ours) As in GRPO. None: 1 for a right answer, partial_reward for a wrong one of the right kind, 0 else."
    )


@dataclass
class ReFTConfig(PPOConfig):
    """Reinforced fine-tuning (arXiv 2401.08967): a supervised warm-up, then PPO on the same questions."""

    output_dir: str = _opt("outputs/reft", "Folder of both stages: sft/ and ppo/.")
    cot: Literal["natural", "program"] = _opt(
        "natural", "(ours) Chains of thought are words, or Python whose output, from the sandbox, is the answer."
    )
    sft: dict[str, Any] | None = _opt(
        None, "(ours) The warm-up's options, under the names of recipes/sft.py: {num_train_epochs: 2, …}."
    )
    partial_reward: float = _opt(0.1, "(ours) Reward of a wrong answer of the right kind; 1 is that of a right one.")
    rerank: str | dict[str, Any] | None = _opt(
        "critic",
        "(ours) What chooses among eval_num_generations answers: critic (its value of the whole answer), or a reward "
        "function such as {name: reward_model, path: …}. None: no reranking.",
    )
    kl_coef: float = _opt(0.05, "β; the paper has 0.05 for natural and 0.01 for program chains of thought.")
    vf_coef: float = _opt(5.0, "Weight of the value loss, the paper's α.")

    @property
    def sft_dir(self) -> Path:
        return Path(self.output_dir) / "sft"

    @property
    def ppo_dir(self) -> Path:
        return Path(self.output_dir) / "ppo"

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"cot": self.cot, "sft": self.sft}

    def warm_up(self) -> SFTOptions:
        """The options of stage 1. Raises ConfigError for a key or a value of `sft` that recipes/sft.py refuses."""
        (made,) = stage_options("sft", self.sft, (SFTOptions,), self)
        made.output_dir, made.overwrite_output_dir = str(self.sft_dir), self.overwrite_output_dir
        made.check()
        return made

    def default_rewards(self) -> list[dict[str, Any]]:
        """1 for a right answer, `partial_reward` for a wrong one that can be read, 0 else (eq. 3)."""
        name = "program" if self.cot == "program" else "partial_credit"
        return [{"name": name, "parseable": self.partial_reward}]
