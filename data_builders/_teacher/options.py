"""The options of the teacher builder, and those of reading questions that it shares with the augmenting one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from data_builders._teacher.filters import AnswerFilter
from data_builders.building.build import BuildOptions, option
from mmreason.clients.types import Request
from mmreason.data.prompts import PROMPT_TEMPLATES
from mmreason.types import ConfigError, OnBadRow

Mode = Literal["answer", "self_instruct", "deepen"]
Choose = Literal["all", "best", "agreed"]
_READ, _ASK, _CHECK = "Source", "Asking", "Checks"
_SELF, _DEEP = "Self-Instruct", "Deepening"


@dataclass(frozen=True, kw_only=True)
class SourceOptions(BuildOptions):
    """What is read, for builders whose source is one set of questions."""

    source: str = field(metadata=option("Questions or seed tasks: file, folder or hub id.", _READ))
    source_split: str = field(default="train", metadata=option("Its split, such as train or test[:100].", _READ))
    format: str = field(default="auto", metadata=option("Its format, see `mmreason show`.", _READ))
    column_map: dict[str, str] | None = field(
        default=None, metadata=option("Our field: its column, {prompt: Body, answer: Answer}.", _READ)
    )
    system_prompt: str | None = field(default=None, metadata=option("Put before each question, and kept.", _READ))
    prompt_template: str | None = field(
        default=None,
        metadata=option(f"Text with {{question}}, asked and kept, or one of {', '.join(PROMPT_TEMPLATES)}.", _READ),
    )
    max_rows: int | None = field(default=None, metadata=option("Read at most so many rows.", _READ))
    on_bad_row: OnBadRow = field(default="error", metadata=option("A row that can't be read: error or drop.", _READ))
    image_root: str | None = field(default=None, metadata=option("Where images' paths start.", _READ))

    def load_options(self) -> dict[str, Any]:
        """The options of `read_source` that are given."""
        given = {
            name: getattr(self, name)
            for name in ("column_map", "system_prompt", "prompt_template", "max_rows", "image_root")
            if getattr(self, name) is not None
        }
        return {"split": self.source_split, "format": self.format, "on_bad_row": self.on_bad_row} | given


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(SourceOptions):
    """The options of `data_builders.teacher`."""

    mode: Mode = field(
        default="answer",
        metadata=option("Answer the questions, make new instructions of seed tasks, or deepen instructions.", _ASK),
    )
    samples: int = field(default=1, metadata=option("Answers of each teacher to each question.", _ASK))
    max_tokens: int = field(default=2048, metadata=option("The most tokens of an answer.", _ASK))
    temperature: float | None = field(default=None, metadata=option("Of answers; null leaves it to the server.", _ASK))
    top_p: float | None = field(default=None, metadata=option("Of answers.", _ASK))
    request_seed: int | None = field(default=None, metadata=option("The seed that requests carry.", _ASK))
    extra: dict[str, Any] = field(
        default_factory=dict, metadata=option("More of each request's body, {reasoning_effort: low}.", _ASK)
    )
    top_logprobs: int | None = field(
        default=None, metadata=option("Keep the k likeliest tokens at each place, for soft distillation.", _ASK)
    )
    choose: Choose = field(
        default="all",
        metadata=option("Of the good answers to a question: all, the judge's best, or what most agree on.", _CHECK),
    )
    min_agreement: float = field(
        default=0.5, metadata=option("Share of all answers that `choose: agreed` wants, and more than it.", _CHECK)
    )
    verify: bool = field(default=True, metadata=option("Keep only right answers, where a row has a gold.", _CHECK))
    run_tests: bool = field(
        default=True, metadata=option("Keep only programs that pass, where a row has tests.", _CHECK)
    )
    test_timeout_s: float = field(default=10.0, metadata=option("Seconds that a program may run.", _CHECK))
    min_chars: int = field(default=1, metadata=option("Shortest answer, without its thoughts.", _CHECK))
    max_chars: int | None = field(default=None, metadata=option("Longest answer, without its thoughts.", _CHECK))
    keep_refusals: bool = field(default=False, metadata=option("Keep answers that refuse.", _CHECK))
    keep_truncated: bool = field(default=False, metadata=option("Keep answers cut off at max_tokens.", _CHECK))
    any_language: bool = field(default=False, metadata=option("Keep answers in another language.", _CHECK))
    max_repetition: float = field(
        default=0.4, metadata=option("Largest share of six-word runs that stood there before.", _CHECK)
    )
    judge: dict[str, Any] | None = field(
        default=None, metadata=option("The endpoint of a judge, {base_url: …, model: …}.", _CHECK)
    )
    judge_criteria: list[str] = field(
        default_factory=lambda: ["helpfulness", "correctness"],
        metadata=option("What it rates: correctness, reasoning, helpfulness, clarity, grounding.", _CHECK),
    )
    judge_language: Literal["en", "zh"] = field(default="en", metadata=option("Of its prompts.", _CHECK))
    min_judge_score: float | None = field(default=None, metadata=option("Least mean rating, from 1 to 10.", _CHECK))
    novelty: float = field(
        default=0.7, metadata=option("New instructions have a smaller ROUGE-L with all others.", _SELF)
    )
    target: int = field(default=1000, metadata=option("Instructions wanted.", _SELF))
    requests_per_round: int = field(
        default=16, metadata=option("Requests for new instructions between two looks at what is there.", _SELF)
    )
    per_request: int = field(default=8, metadata=option("New instructions that a request asks for.", _SELF))
    seed_shots: int = field(default=6, metadata=option("Seed tasks that a request shows.", _SELF))
    own_shots: int = field(default=2, metadata=option("Instructions of earlier rounds that it shows.", _SELF))
    max_requests: int | None = field(
        default=None, metadata=option("Requests after which it ends anyway (default: the target).", _SELF)
    )
    blocked_words: list[str] = field(
        default_factory=list, metadata=option("Further words that no new instruction may have.", _SELF)
    )
    generations: int = field(default=2, metadata=option("Times that an instruction is deepened on.", _DEEP))
    breadth: float = field(
        default=0.2, metadata=option("Share of steps that go to a new instruction of the same field.", _DEEP)
    )

    def __post_init__(self) -> None:
        BuildOptions.__post_init__(self)
        for name in (
            "samples", "max_tokens", "target", "requests_per_round", "per_request", "generations", "top_logprobs",
            "max_requests", "max_chars",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in ("min_agreement", "max_repetition", "novelty", "breadth"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.seed_shots < 1 or self.own_shots < 0:
            raise ConfigError("a request for new instructions shows at least one seed task: seed_shots 1 or more")
        if self.choose == "best" and self.judge is None:
            raise ConfigError("choose: best needs a judge, for example judge: {base_url: http://…/v1, model: NAME}")
        if self.min_judge_score is not None and self.judge is None:
            raise ConfigError("min_judge_score needs a judge, for example judge: {base_url: http://…/v1, model: NAME}")
        if self.mode == "self_instruct":
            defaults = {one.name: one.default for one in fields(self)}
            for name in ("top_logprobs", "judge", "samples", "choose", "min_agreement"):
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(
                        f"{name} goes with mode answer or deepen: a Self-Instruct reply holds more than the answer"
                    )

    @property
    def filter(self) -> AnswerFilter:
        """The rules for answers."""
        return AnswerFilter(
            min_chars=self.min_chars,
            max_chars=self.max_chars,
            refusals=not self.keep_refusals,
            truncated=not self.keep_truncated,
            same_language=not self.any_language,
            max_repetition=self.max_repetition,
        )

    def request(self, prompt: str, name: str) -> Request:
        """A request of one user message, with what the options say of sampling. Args: name: of the row."""
        return Request(
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.request_seed,
            extra=self.extra,
            id=name,
        )
