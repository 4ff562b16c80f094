"""Options of preference training, under the names and with the defaults of TRL's `DPOConfig`, `KTOConfig`, `CPOConfig`.

Imports no torch: `--help` stays fast. What is ours is marked so.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmreason._functions import did_you_mean
from mmreason.trainers.arguments import TrainingOptions, _opt
from mmreason.types import ConfigError

# Ours, or seen to here; everything else of PreferenceOptions is passed to transformers.TrainingArguments by its name.
OURS = (
    "overwrite_output_dir",
    "resume",
    "loss",
    "loss_weights",
    "beta",
    "label_smoothing",
    "simpo_gamma",
    "desirable_weight",
    "undesirable_weight",
    "ref_model_name_or_path",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "disable_dropout",
    "max_length",
    "feature_store",
    "feature_store_gib",
    "eval_steps",
    "online",
    "chat_template_kwargs",
    "max_completion_length",
    "hf_generation_batch_size",
)
LOSSES = ("dpo", "robust", "hinge", "ipo", "bco", "simpo", "orpo", "kto", "sft")
"""What `loss` may hold."""
WITH_REFERENCE = frozenset({"dpo", "robust", "hinge", "ipo", "bco", "kto"})
"""Losses that compare the policy with a reference model."""
_ALSO = {"sigmoid": "dpo", "bco_pair": "bco", "cdpo": "dpo"}
"""TRL's names, and what they are here."""


@dataclass
class OnlineOptions:
    """`online`: pairs are made while training, of the policy's own answers, by a judge.

    Attributes:
        judge: of an endpoint: base_url, model, … (mmreason.clients.settings.EndpointConfig).
        ask: how the judge is asked (mmreason.clients.judge_types.JudgeSettings).
        how: "score" rates each answer by itself, "compare" every two answers in both orders.
        criteria: names of mmreason.clients.judge_prompts.CRITERIA, or {name: …, description: …} entries.
        num_generations: answers for each prompt, k. prompts_per_round: prompts of a round, over all processes.
        temperature, top_p: of sampling.
        ledger: the file that keeps paid answers; None: `judge.ledger` in output_dir. max_budget: US dollars.
        retry_s: seconds until a judge that doesn't answer is asked again; doubles up to 60.
        give_up_s: seconds after which the run ends, saved nowhere but in its checkpoints; None: never.
    """

    judge: dict[str, Any]
    ask: dict[str, Any] | None = None
    how: str = "score"
    criteria: list[str | dict[str, Any]] | None = None
    num_generations: int = 4
    prompts_per_round: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    ledger: str | None = None
    max_budget: float | None = None
    retry_s: float = 5.0
    give_up_s: float | None = None

    @classmethod
    def parse(cls, given: dict[str, Any]) -> OnlineOptions:
        """From a YAML's mapping. Raises: ConfigError naming the key."""
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict):
            raise ConfigError(f"online: expected settings such as {{judge: {{base_url: …, model: …}}}}, got {given!r}")
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"online: unknown setting {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}"
                )
        if "judge" not in given:
            raise ConfigError("online needs judge: {base_url: http://localhost:8000/v1, model: NAME}")
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        if self.how not in ("score", "compare"):
            raise ConfigError(f"online.how={self.how!r}: score or compare")
        for name, value, least in (
            ("num_generations", self.num_generations, 2),
            ("prompts_per_round", self.prompts_per_round, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"online.{name}={value!r} must be a whole number of at least {least}")
        above_zero = {"temperature": self.temperature, "retry_s": self.retry_s, "top_p": self.top_p}
        if self.give_up_s is not None:
            above_zero["give_up_s"] = self.give_up_s
        for name, number in above_zero.items():
            if not isinstance(number, int | float) or isinstance(number, bool) or not number > 0:
                no_limit = ", or null for never" if name == "give_up_s" else ""
                raise ConfigError(f"online.{name}={number!r} must be a number above 0{no_limit}")
        if self.top_p > 1:
            raise ConfigError(f"online.top_p={self.top_p!r} is a share of probability: above 0 and at most 1")
        if self.criteria is not None and (not isinstance(self.criteria, list) or not self.criteria):
            raise ConfigError(
                f"online.criteria={self.criteria!r} must be a list with at least one criterion; leave it out for "
                "correctness and helpfulness"
            )


@dataclass
class PreferenceOptions(TrainingOptions):
    """Learn from pairs (chosen over rejected) or from completions that are wanted or not."""

    output_dir: str = _opt("outputs/preference", "Checkpoints, metrics and the final model.")

    # objective
    loss: str | list[str] = _opt(
        ["dpo"],
        "(ours) dpo, ipo, simpo, kto, orpo, robust, hinge, bco, sft, or several: [dpo, bco, sft] with loss_weights.",
    )
    loss_weights: list[float] | None = _opt(None, "One weight per loss. None: 1.0 each.")
    beta: float = _opt(0.1, "β of DPO, SimPO and KTO, τ of IPO, λ of ORPO.")
    label_smoothing: float = _opt(
        0.0, "Chance that a label is wrong, below 0.5: conservative DPO (dpo) or robust DPO (robust)."
    )
    simpo_gamma: float = _opt(0.5, "Target reward margin γ of SimPO.")
    desirable_weight: float = _opt(1.0, "KTO's weight of wanted completions, λ_D.")
    undesirable_weight: float = _opt(1.0, "KTO's weight of unwanted completions, λ_U.")

    # reference
    ref_model_name_or_path: str | None = _opt(
        None, "(ours) Reference model, of the policy's vocabulary. None: the policy before training."
    )
    precompute_ref_log_probs: bool = _opt(
        False, "Take the reference's log-probabilities once, before training; no second model stays in memory."
    )
    precompute_ref_batch_size: int | None = _opt(
        None, "Pairs per forward pass of that, on one device. None: per_device_train_batch_size."
    )

    # rows
    max_length: int | None = _opt(
        1024, "Longest row (prompt and one answer) in tokens, pictures included; a longer one is a bad row. None: any."
    )
    max_completion_length: int = _opt(256, "(ours) Token limit of an answer to a held-out problem, and online.")

    # online
    online: dict[str, Any] | None = _opt(
        None,
        "(ours) Pairs of the policy's own answers, picked by a judge: {judge: {base_url: …, model: …}, "
        "num_generations: 4, prompts_per_round: 64, how: score|compare, …}, see docs/preference.md.",
    )

    # optimizer and memory
    learning_rate: float = _opt(1e-6, "Peak learning rate.")
    num_train_epochs: float = _opt(3.0, "Passes over the rows, where max_steps is not given.")
    optim: str = _opt("adamw_torch_fused", "adamw_torch, adamw_torch_fused or sgd.")  # type: ignore[assignment]
    disable_dropout: bool = _opt(True, "Set every dropout of the policy and of the reference to 0.")
    feature_store: str | None = _opt(
        None, "(ours) Folder where a frozen vision tower's features are kept, so that each image is encoded once."
    )
    feature_store_gib: float = _opt(32.0, "(ours) Bound of its size on disk.")

    # evaluation
    eval_steps: int | None = _opt(
        None, "Steps between measurements on the held-out rows while training. None: only before and after."
    )

    @property
    def losses(self) -> list[str]:
        """The names in `loss`, in order, each one of `LOSSES`."""
        given = [self.loss] if isinstance(self.loss, str) else list(self.loss)
        return [_ALSO.get(name, name) for name in given]

    @property
    def weights(self) -> list[float]:
        """One for each of `losses`."""
        return [1.0] * len(self.losses) if self.loss_weights is None else list(self.loss_weights)

    @property
    def needs_reference(self) -> bool:
        """Whether a loss compares with a reference model."""
        return bool(WITH_REFERENCE & set(self.losses))

    @property
    def unpaired(self) -> bool:
        """KTO: completions with labels."""
        return "kto" in self.losses

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError."""
        self.check_training()
        if self.save_steps < 1:
            raise ConfigError(f"save_steps={self.save_steps} must be at least 1")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ConfigError(f"eval_steps={self.eval_steps} must be at least 1, or none")
        self._check_losses()
        for name, above in (("beta", 0.0), ("feature_store_gib", 0.0)):
            if not getattr(self, name) > above:
                raise ConfigError(f"{name}={getattr(self, name)} must be above {above:g}")
        size = self.precompute_ref_batch_size
        if size is not None and size < 1:
            raise ConfigError(f"precompute_ref_batch_size={size} must be at least 1")
        if not self.needs_reference:
            given = [name for name in ("ref_model_name_or_path", "precompute_ref_log_probs") if getattr(self, name)]
            if given:
                raise ConfigError(
                    f"{' and '.join(given)}: loss {', '.join(self.losses)} has no reference; leave it out"
                )
        if self.online is not None:
            self._check_online()

    def _check_losses(self) -> None:
        losses = self.losses
        if not losses:
            raise ConfigError(f"loss is empty: name one of {', '.join(LOSSES)}")
        for name in losses:
            if name not in LOSSES:
                raise ConfigError(f"loss {name!r}: known are {', '.join(LOSSES)}.{did_you_mean(str(name), LOSSES)}")
        if len(set(losses)) != len(losses):
            raise ConfigError(f"loss {', '.join(losses)}: each may stand once; use loss_weights")
        if len(self.weights) != len(losses):
            raise ConfigError(f"loss_weights has {len(self.weights)} numbers for {len(losses)} losses")
        if self.unpaired and len(losses) > 1:
            raise ConfigError("loss kto takes single completions, the others pairs: it stands alone")
        if self.unpaired and self.per_device_train_batch_size < 2:
            raise ConfigError("loss kto: per_device_train_batch_size must be at least 2, its baseline is their mean")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 0.5")
        if self.label_smoothing and not {"dpo", "robust"} & set(losses):
            raise ConfigError(f"label_smoothing: loss {', '.join(losses)} knows none; it is of dpo and robust")
        if min(self.desirable_weight, self.undesirable_weight) < 0:
            raise ConfigError("desirable_weight and undesirable_weight must be at least 0")

    def _check_online(self) -> None:
        assert self.online is not None
        options = OnlineOptions.parse(self.online)
        if self.unpaired:
            raise ConfigError("online makes pairs; loss kto takes single completions")
        if self.precompute_ref_log_probs:
            raise ConfigError(
                "online: answers that are not there yet have no precomputed log-probabilities; leave it out"
            )
        if self.max_steps < 1:
            raise ConfigError("online needs max_steps: how many pairs a round gives isn't known before")
        from mmreason.clients.settings import parse_endpoint

        parse_endpoint(options.judge, "online.judge")


def names_of(losses: Sequence[str]) -> str:
    """For messages and file names: `dpo+sft`."""
    return "+".join(losses)
