"""Options of distillation: those of supervised fine-tuning, the teachers, and what the student learns from them.

`teacher_model_name_or_path`, `temperature` and `lmbda` are TRL's names (`DistillationConfig`, `GKDConfig`). Imports no
torch: `--help` stays fast.
"""
# ruff: noqa: RUF009  (_opt makes a dataclasses.field)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mmreason._functions import did_you_mean
from mmreason.trainers._options import _opt
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.sft_arguments import OURS as SFT_OURS
from mmreason.trainers.sft_arguments import SFTOptions
from mmreason.trainers.stages import stage_options
from mmreason.types import ConfigError

Mode = Literal["hard", "reinforce", "step_by_step", "soft", "proxy", "on_policy", "white_box"]
ROWS = "rows"
"""The path of a teacher whose log-probabilities the rows bring."""
TEXTS: tuple[Mode, ...] = ("hard", "reinforce", "step_by_step")
"""Modes that learn from texts alone."""


@dataclass(frozen=True)
class TeacherOptions:
    """One entry of `teachers`.

    Attributes:
        path: hub id or folder of a causal LM or vision-language model; "rows": the log-probabilities that the rows
            bring in `meta`, kept of an endpoint by `mmreason build teacher`.
        weight: of its divergence, relative to the other teachers'.
        sources: weights by the rows' `source` in place of `weight`; a source that isn't named has weight 0.
        dtype: of its weights. quantization: "8bit" or "4bit" (bitsandbytes); None: whole.
        revision: on the hub.
    """

    path: str
    weight: float = 1.0
    sources: Mapping[str, float] | None = None
    dtype: str = "float32"
    quantization: Literal["8bit", "4bit"] | None = None
    revision: str = "main"

    @classmethod
    def parse(cls, given: Any, where: str) -> TeacherOptions:
        """From a YAML's mapping. Raises: ConfigError naming the key."""
        checked = _mapping(cls, given, where)
        if "path" not in checked:
            raise ConfigError(f"{where} needs path: the hub id or folder of a model")
        made = cls(**checked)
        if made.sources is not None and not isinstance(made.sources, Mapping):
            raise ConfigError(f"{where}: sources={made.sources!r} must be a mapping of sources to weights")
        if not isinstance(made.path, str):
            raise ConfigError(f"{where}: path={made.path!r} must be a hub id or a folder")
        if made.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"{where}: dtype={made.dtype!r}: auto, float32, bfloat16 or float16")
        if made.quantization not in (None, "8bit", "4bit"):
            raise ConfigError(f"{where}: quantization={made.quantization!r}: 8bit, 4bit or none")
        for name, weight in {"weight": made.weight, **(made.sources or {})}.items():
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight >= 0:
                raise ConfigError(f"{where}: {name}: {weight!r} must be a number of at least 0")
        return made

    def model_arguments(self) -> ModelArguments:
        """How it is loaded."""
        return ModelArguments(
            model_name_or_path=self.path,
            model_revision=self.revision,
            dtype=self.dtype,  # type: ignore[arg-type]
        )

    def weight_of(self, source: str) -> float:
        """Of a row from this source."""
        return self.weight if self.sources is None else float(self.sources.get(source, 0.0))


@dataclass(frozen=True)
class LayerOptions:
    """`white_box`: what is learned from inside the teacher; each number is a term's weight, 0 leaves it out.

    Attributes:
        map: uniform, last, or pairs [[student, teacher], …] of layers counted from 1.
        hidden: of hidden states, mse or cosine as `hidden_loss` says, through a learned projection where sizes differ.
        attention: of attention maps, KL. relations: of MiniLMv2's query, key and value relations, here of hidden
            states' relations, with `relation_heads`.
        embedding: of the embeddings' output. relational: distances and angles between the rows of a micro-batch.
        contrastive: InfoNCE between pooled rows of a micro-batch.
        features: of what pictures become before the first layer (tower and projector), token by token, or averaged to
            the shorter of both where the numbers of tokens differ.
        progressive: share of the steps over which the mapped layers come in one after another, the first one at once.
    """

    map: str | list[list[int]] = "uniform"
    hidden: float = 1.0
    hidden_loss: Literal["mse", "cosine"] = "mse"
    attention: float = 0.0
    relations: float = 0.0
    relation_heads: int = 4
    embedding: float = 0.0
    relational: float = 0.0
    contrastive: float = 0.0
    features: float = 0.0
    progressive: float = 0.0

    @classmethod
    def parse(cls, given: Any) -> LayerOptions:
        """From a YAML's mapping. Raises: ConfigError naming the key."""
        made = cls(**_mapping(cls, given, "layers"))
        for field in fields(cls):
            value = getattr(made, field.name)
            if field.name not in ("map", "hidden_loss") and (
                not isinstance(value, int | float) or isinstance(value, bool) or value < 0
            ):
                raise ConfigError(f"layers.{field.name}={value!r} must be a number of at least 0")
        if made.hidden_loss not in ("mse", "cosine"):
            raise ConfigError(f"layers.hidden_loss={made.hidden_loss!r}: mse or cosine")
        if not isinstance(made.relation_heads, int) or made.relation_heads < 1:
            raise ConfigError(f"layers.relation_heads={made.relation_heads!r} must be a whole number of at least 1")
        if made.progressive > 1:
            raise ConfigError(f"layers.progressive={made.progressive} is a share of the steps: at most 1")
        return made


@dataclass(frozen=True)
class Schedule:
    """A number that changes over a run: from `start` to `end` while a share `over` of the steps goes by, linearly."""

    start: float
    end: float
    over: float = 1.0

    @classmethod
    def parse(cls, given: float | Mapping[str, Any], where: str) -> Schedule:
        """A number stays as it is. Raises: ConfigError naming the key."""
        if isinstance(given, int | float) and not isinstance(given, bool):
            return cls(float(given), float(given))
        checked = _mapping(cls, given, where)
        missing = [name for name in ("start", "end") if name not in checked]
        if missing:
            raise ConfigError(f"{where} needs {' and '.join(missing)}: {{start: …, end: …, over: 1.0}}, or a number")
        for name, value in checked.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ConfigError(f"{where}.{name}={value!r} must be a number")
        made = cls(**checked)
        if not 0 < made.over <= 1:
            raise ConfigError(f"{where}.over={made.over} is a share of the steps: above 0 and at most 1")
        return made

    def at(self, step: int, steps: int) -> float:
        """At `step` of `steps`."""
        done = min(1.0, step / max(1.0, self.over * steps))
        return self.start + (self.end - self.start) * done

    @property
    def values(self) -> tuple[float, float]:
        return self.start, self.end


def _mapping(cls: type, given: Any, where: str) -> dict[str, Any]:
    known = [field.name for field in fields(cls)]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: expected a mapping of {', '.join(known)}, got {given!r}")
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ConfigError(f"{where}: unknown setting {name!r}; known: {', '.join(known)}.{hint}")
    return dict(given)


@dataclass
class DistillOptions(SFTOptions):
    """Distillation: a student learns from one teacher or several."""

    _proxy_is_made = False  # no option

    output_dir: str = _opt("outputs/distill", "Checkpoints, metrics, what the teacher gave, and the final student.")
    mode: Mode = _opt(
        "soft",
        "(ours) hard: the teacher's texts; reinforce: those of its samples that are right; step_by_step: answers and "
        "rationales as two tasks; soft: its distributions over the rows' tokens; proxy: of a model that learned the "
        "rows first; on_policy: over the student's own tokens; white_box: also its layers.",
    )

    # teachers
    teacher_model_name_or_path: str | None = _opt(None, "Hub id or folder of the teacher; several: teachers.")
    teachers: list[dict[str, Any]] | None = _opt(
        None, "(ours) [{path: …, weight: 1.0, sources: {SOURCE: WEIGHT}, dtype, quantization: 8bit}, …]"
    )
    teacher_weighting: Literal["fixed", "confidence"] = _opt(
        "fixed",
        "(ours) How several teachers are weighed: as they are given, or for each row the more the better a teacher "
        "predicts its tokens (arXiv 2201.00007).",
    )
    teacher_logits: Literal["online", "stored"] = _opt(
        "online", "(ours) soft: the teacher runs beside the student, or once before it, its likeliest tokens kept."
    )
    top_k: int | None = _opt(
        None, "(ours) Tokens of the teacher that are compared, all others together as one. None: all; stored: 64."
    )
    teacher_store: str | None = _opt(
        None, "(ours) Folder of stored log-probabilities, which runs may share. None: teacher in output_dir."
    )
    teacher_samples: int = _opt(1, "(ours) hard and reinforce, with a teacher named: its answers to each prompt.")
    teacher_temperature: float = _opt(0.0, "(ours) Of these answers; 0 takes the likeliest tokens.")
    rationale_weight: float = _opt(1.0, "(ours) step_by_step: λ, weight of a rationale's tokens.")
    prefix_language: Literal["en", "zh"] = _opt("en", "(ours) step_by_step: of what tells the tasks apart.")
    proxy: dict[str, Any] | None = _opt(
        None,
        "(ours) proxy: {model_name_or_path: …} of the model that learns the rows first and then teaches, with further "
        "options of recipes/sft.py.",
    )
    teacher_alignment: Literal["tokens", "spans"] = _opt(
        "tokens",
        "(ours) soft: compare tokens, which wants one vocabulary; or the stretches of text that both tokenizers cut "
        "out, which suits any.",
    )
    on_teacher_nan: Literal["skip", "error"] = _opt(
        "skip", "(ours) A row for which a teacher gives NaN is named and left out, or ends the run."
    )

    # what is learned
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tv"] = _opt(
        "forward_kl", "(ours) Between the teacher's distribution and the student's; jsd has beta."
    )
    beta: float = _opt(0.5, "Of jsd: 0 tends to the forward KL, 1 to the reverse one.")
    temperature: float | dict[str, Any] = _opt(
        1.0, "Divides both logits; a number, or (ours) {start: 4, end: 1, over: 0.5} of the steps."
    )
    alpha: float | dict[str, Any] = _opt(
        1.0, "(ours) Weight of the divergence; 1 - alpha is that of the rows' own tokens. A number or a schedule."
    )
    layers: dict[str, Any] | None = _opt(
        None, "(ours) white_box: {map: uniform, hidden: 1.0, attention: 0, relations: 0, …}; see docs/distill.md."
    )
    hard_share: float = _opt(
        1.0, "(ours) Share of a micro-batch's tokens that count: those on which teacher and student are farthest apart."
    )
    sample_by_gap: float = _opt(
        0.0,
        "(ours) Draw rows with a chance of gap^x, the gap being both models' divergence before the first step. 0: off.",
    )
    logits_chunk_size: int | None = _opt(
        256, "(ours) Tokens whose logits exist at a time; the heads are computed again backwards. None: all at once."
    )

    # the bill
    bill: bool = _opt(True, "(ours) At the end, measure teacher and student: sizes, speed, accuracy before and after.")
    bill_vllm: bool = _opt(False, "(ours) There also measure tokens a second in vLLM, in a process of its own.")

    # on_policy
    lmbda: float | dict[str, Any] = _opt(
        1.0, "Share of the steps that learn from the student's own answers; the others from the rows'."
    )
    sampling_temperature: float = _opt(1.0, "(ours) Of the student's answers.")

    def check(self) -> None:
        """Refuse what can't work. Raises ConfigError."""
        super().check()
        self._check_teachers()
        self._check_loss()
        if self.mode == "on_policy":
            self._check_on_policy()
        if self.layers is not None and self.mode != "white_box":
            raise ConfigError("layers needs mode: white_box")
        if self.mode == "white_box" and (self.packing or self.padding_free):
            raise ConfigError("mode: white_box compares layers of padded rows; leave out packing and padding_free")
        self.layer_options()

    def _check_teachers(self) -> None:
        if self.teachers is not None and self.teacher_model_name_or_path is not None:
            raise ConfigError("teacher_model_name_or_path and teachers: name all of them in teachers")
        found = self.all_teachers()
        if self.mode == "proxy":
            self._check_proxy(found)
        elif self.mode not in TEXTS and not found and self.teacher_logits != "stored":
            raise ConfigError(f"mode: {self.mode} needs a teacher: teacher_model_name_or_path, or teachers")
        if self.mode == "white_box" and len(found) > 1:
            raise ConfigError("mode: white_box has one teacher, whose layers are learned from")
        if self.mode not in ("soft", "proxy") and self.teacher_logits == "stored":
            raise ConfigError(f"teacher_logits: stored is for mode: soft; {self.mode} needs the teacher beside it")
        self._check_texts(found)
        if self.teacher_alignment == "spans":
            self._check_spans()
        if any(one.path == ROWS for one in found) and self.teacher_logits != "stored":
            raise ConfigError(f"teachers: path: {ROWS} needs mode: soft with teacher_logits: stored")
        if any(one.path == ROWS for one in found) and Schedule.parse(self.temperature, "temperature").start != 1:
            raise ConfigError(f"teachers: path: {ROWS}: such log-probabilities are at temperature 1; leave it there")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")

    def _check_texts(self, found: list[TeacherOptions]) -> None:
        if self.mode in TEXTS and len(found) > 1:
            raise ConfigError(
                f"mode: {self.mode} has one teacher that writes; texts of several come from mmreason build teacher"
            )
        if self.mode == "reinforce" and not found:
            raise ConfigError("mode: reinforce needs the teacher that samples: teacher_model_name_or_path")
        if self.mode == "step_by_step" and found:
            raise ConfigError(
                "mode: step_by_step learns the rationales of the rows (mmreason build cot writes some); leave the "
                "teacher out"
            )
        if not self.rationale_weight > 0:
            raise ConfigError(f"rationale_weight={self.rationale_weight} must be above 0")
        if self.teacher_samples < 1:
            raise ConfigError(f"teacher_samples={self.teacher_samples} must be at least 1")
        if self.teacher_temperature < 0 or (self.teacher_samples > 1 and not self.teacher_temperature):
            raise ConfigError(
                f"teacher_temperature={self.teacher_temperature} must be at least 0, and above it for several samples"
            )

    def _check_spans(self) -> None:
        if self.mode not in ("soft", "proxy") or self.teacher_logits == "stored":
            raise ConfigError(
                "teacher_alignment: spans is for mode: soft with the teacher beside the student: other modes compare "
                "tokens or layers, and what is stored is of tokens"
            )
        if Schedule.parse(self.temperature, "temperature").values != (1.0, 1.0) or self.top_k is not None:
            raise ConfigError("teacher_alignment: spans compares probabilities of texts: temperature 1, and no top_k")
        if self.packing or self.padding_free:
            raise ConfigError("teacher_alignment: spans reads padded rows; leave out packing and padding_free")

    def _check_proxy(self, found: list[TeacherOptions]) -> None:
        if found and not self._proxy_is_made:
            raise ConfigError("mode: proxy makes its own teacher; name it in proxy, and leave the others out")
        if not (self.proxy or {}).get("model_name_or_path"):
            raise ConfigError("mode: proxy needs proxy: {model_name_or_path: …}, the model that learns the rows first")
        self.proxy_stage()

    def proxy_stage(self) -> tuple[ModelArguments, SFTOptions]:
        """The proxy's own training. Raises ConfigError for a key or a value that recipes/sft.py refuses."""
        model, made = stage_options("proxy", self.proxy, (ModelArguments, SFTOptions), self)
        made.output_dir = str(Path(self.output_dir) / "proxy")
        made.overwrite_output_dir = self.overwrite_output_dir
        made.check()
        return model, made

    def proxy_made(self) -> None:
        """From here on the proxy is the teacher."""
        self._proxy_is_made = True

    def _check_loss(self) -> None:
        if self.divergence == "jsd" and not 0 < self.beta < 1:
            raise ConfigError(f"beta={self.beta} must be between 0 and 1; its ends are forward_kl and reverse_kl")
        for name, low, high in (("temperature", 0.0, None), ("alpha", 0.0, 1.0), ("lmbda", 0.0, 1.0)):
            for value in Schedule.parse(getattr(self, name), name).values:
                above = value > low if high is None else value >= low
                if not above or not value <= (float("inf") if high is None else high):
                    wanted = "above 0" if high is None else f"between {low:g} and {high:g}"
                    raise ConfigError(f"{name}: {value} must be {wanted}")
        if not 0 < self.hard_share <= 1:
            raise ConfigError(f"hard_share={self.hard_share} must be above 0 and at most 1")
        if self.hard_share < 1 and self.mode in TEXTS:
            raise ConfigError(f"hard_share goes by divergences, of which mode: {self.mode} has none; leave it out")
        self._check_gap()
        if self.logits_chunk_size is not None and self.logits_chunk_size < 1:
            raise ConfigError(f"logits_chunk_size={self.logits_chunk_size} must be at least 1, or none")
        if self.teacher_logits == "stored":
            temperatures = set(Schedule.parse(self.temperature, "temperature").values)
            if len(temperatures) > 1:
                raise ConfigError("teacher_logits: stored keeps probabilities at one temperature; give one number")

    def _check_gap(self) -> None:
        if not 0 <= self.sample_by_gap < float("inf"):
            raise ConfigError(f"sample_by_gap={self.sample_by_gap} must be at least 0")
        if self.sample_by_gap and (self.mode in TEXTS or self.packing or self.datasets or self.curriculum):
            raise ConfigError(
                "sample_by_gap needs a mode that compares distributions, and draws rows by itself: leave out packing, "
                "datasets and curriculum"
            )

    def _check_on_policy(self) -> None:
        if self.packing or self.padding_free:
            raise ConfigError("mode: on_policy samples padded rows; leave out packing and padding_free")
        if self.loss_on not in (None, "last"):
            raise ConfigError("mode: on_policy learns the whole of its own answers; leave loss_on out")
        if not self.sampling_temperature > 0:
            raise ConfigError(f"sampling_temperature={self.sampling_temperature} must be above 0")

    def all_teachers(self) -> list[TeacherOptions]:
        """The teachers in their order. Raises ConfigError naming the entry."""
        if self._proxy_is_made:
            return [TeacherOptions(str(Path(self.output_dir) / "proxy" / "final"))]
        if self.teacher_model_name_or_path is not None:
            return [TeacherOptions(self.teacher_model_name_or_path)]
        return [TeacherOptions.parse(given, f"teachers[{i}]") for i, given in enumerate(self.teachers or [])]

    def weights_of(self, source: str) -> list[float]:
        """Weight of each teacher for a row from this source, as shares of 1; all 0 where none is to say anything."""
        weights = [one.weight_of(source) for one in self.all_teachers()] or [1.0]
        return [weight / sum(weights) if sum(weights) else 0.0 for weight in weights]

    def layer_options(self) -> LayerOptions | None:
        """None but for white_box."""
        return None if self.mode != "white_box" else LayerOptions.parse(self.layers or {})

    @property
    def stored_k(self) -> int:
        return self.top_k or 64


OURS = (*SFT_OURS, *(f.name for f in fields(DistillOptions) if f.name not in {g.name for g in fields(SFTOptions)}))
"""Options that TRL's SFTConfig does not know."""
