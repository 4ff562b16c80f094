"""The options of `data_builders.preferences`, and the names that its parts share. Light, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_builders.building.build import BuildOptions, option
from mmreason.types import ConfigError, OnBadRow

CandidatesFrom = Literal["columns", "samples", "rollouts", "corruptions"]
RankBy = Literal["given", "verifier", "judge", "votes", "safety", "none"]
Form = Literal["pairs", "rankings", "unpaired"]
GroupBy = Literal["auto", "row", "prompt"]
"""auto: rows that hold a pair or a ranking stay apart, rows of one completion each meet by their prompt."""
PairMode = Literal["all", "adjacent", "best_worst"]
"""Of which levels pairs are made: any two, each and the next one, only the first and the last."""
OrderBy = Literal["topological", "bradley_terry"]
Negatives = Literal["any", "hard"]
"""Which of several worse completions a chosen one meets: drawn by the seed, or those most alike it."""
CorruptionKind = Literal["slip", "operator", "operand", "choice"]
SafeOrder = Literal["equal", "refusal_first", "help_first"]
"""Of two safe answers: neither is better, the refusal is, the one that helps is. An unsafe one is always worst."""
LOGGED = "logged"
"""In the place of a set of prompts: the prompt's text as the run logged it."""
CRITERIA = ("correctness", "reasoning", "helpfulness", "clarity", "grounding")

_IN, _RANK, _SAMPLE, _JUDGE, _PAIRS = "Input", "Ranking", "Sampling", "Judges and safety", "Pairs"


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(BuildOptions):
    """What is ranked, by what, and which pairs become rows. See the `help` of each field."""

    source: list[str] = field(metadata=option("Sets (hub ids, files, folders); for rollouts: folders of RL runs.", _IN))
    candidates: list[CandidatesFrom] = field(
        default_factory=lambda: ["columns"],
        metadata=option(
            "Where completions come from: the set's columns, samples of the teacher, a run's logged rollouts, "
            "corruptions of gold rationales; several together.",
            _IN,
        ),
    )
    source_split: str = field(default="train", metadata=option("Split of the sets, e.g. train, test[:100].", _IN))
    format: str = field(default="auto", metadata=option("Format of the sets, as in training.", _IN))
    column_map: dict[str, str] | None = field(default=None, metadata=option("Our field: their column.", _IN))
    candidate_columns: list[str] | None = field(
        default=None, metadata=option("Columns that hold a completion each, in sets with several in a row.", _IN)
    )
    score_columns: list[str] | None = field(
        default=None, metadata=option("Number columns that score them, in the same order (or the one completion).", _IN)
    )
    group_by: GroupBy = field(
        default="auto",
        metadata=option("Which rows' completions meet: by prompt; row keeps each apart; auto: pairs apart.", _IN),
    )
    references: bool = field(default=True, metadata=option("Gold completions are candidates, too.", _IN))
    prompt_template: str | None = field(default=None, metadata=option("As in training; default: none.", _IN))
    system_prompt: str | None = field(default=None, metadata=option("Put before each prompt.", _IN))
    completion_template: str | None = field(
        default=None,
        metadata=option("Write thoughts into the text, for chat templates without a place for them, e.g. boxed.", _IN),
    )
    on_bad_row: OnBadRow = field(default="error", metadata=option("error, or drop (counted by reason).", _IN))
    prompts: str | None = field(
        default=None,
        metadata=option("Rollouts: the set that the run was trained on, or `logged` for the text as logged.", _IN),
    )
    first_rollout: int | None = field(default=None, metadata=option("Rollouts: number of the first one.", _IN))
    last_rollout: int | None = field(default=None, metadata=option("Rollouts: number of the last one.", _IN))
    across_rollouts: bool = field(
        default=False, metadata=option("Rollouts: completions of different steps' policies may meet.", _IN)
    )
    keep_truncated: bool = field(
        default=False, metadata=option("Completions cut off at the length limit are candidates, too.", _IN)
    )

    samples: int = field(default=4, metadata=option("Samples of each prompt from each teacher.", _SAMPLE))
    temperature: float | None = field(default=1.0, metadata=option("Of the samples.", _SAMPLE))
    top_p: float | None = field(default=None, metadata=option("Of the samples.", _SAMPLE))
    max_tokens: int = field(default=1024, metadata=option("Of a sample.", _SAMPLE))

    corruptions: int = field(default=2, metadata=option("Corrupted versions of each gold rationale.", _SAMPLE))
    corruption_kinds: list[CorruptionKind] = field(
        default_factory=lambda: ["slip", "operator", "operand", "choice"],
        metadata=option("Which steps are made wrong, and how; choice: another option, without rationale.", _SAMPLE),
    )

    rank_by: RankBy = field(
        default="given",
        metadata=option(
            "given: the set's pairs, labels, scores or rewards; verifier: right before wrong answers; judge; votes; "
            "safety; none (rankings in which all tie, to be voted on).",
            _RANK,
        ),
    )
    unreadable: Literal["wrong", "drop"] = field(
        default="wrong", metadata=option("Verifier: what an answer that can't be read is.", _RANK)
    )
    order_by: OrderBy | None = field(
        default=None,
        metadata=option(
            "How comparisons become a ranking; default: given pairs topological, else bradley_terry.", _RANK
        ),
    )
    drop_cycles: bool = field(
        default=True, metadata=option("A > B > C > A gives no row (no: its members tie, or strengths decide).", _RANK)
    )
    votes: Path | None = field(
        default=None, metadata=option("People's votes: Label Studio's or Argilla's export, or plain.", _RANK)
    )
    vote_items: Path | None = field(
        default=None,
        metadata=option("Write the items that people are to vote on (.jsonl, .json), and end.", _RANK, rows=False),
    )
    votes_seed: int = field(default=0, metadata=option("Of the order in which people see two answers.", _RANK))
    min_votes: int = field(default=1, metadata=option("People who must have compared two answers.", _RANK))

    judges: dict[str, Any] | list[dict[str, Any]] | None = field(
        default=None,
        metadata=option("Endpoints of the judge, or of a committee; default: the teacher judges.", _JUDGE),
    )
    judge_criteria: list[str] | None = field(
        default=None, metadata=option(f"What to weigh: {', '.join(CRITERIA)}; default: the judge decides.", _JUDGE)
    )
    judge_rubric: bool = field(
        default=False, metadata=option("Rate each answer by the criteria instead of comparing two.", _JUDGE)
    )
    judge_reference: bool = field(default=False, metadata=option("Show the gold answer to the judge.", _JUDGE))
    judge_orders: Literal["both", "shuffled"] = field(
        default="both", metadata=option("Ask in both orders (a changed verdict is a tie), or in one by chance.", _JUDGE)
    )
    judge_answers: Literal["json", "text"] = field(
        default="json", metadata=option("Structured output, or lines of text.", _JUDGE)
    )
    judge_language: Literal["en", "zh"] = field(default="en", metadata=option("Of the prompts.", _JUDGE))
    judge_max_tokens: int = field(default=1024, metadata=option("Of a judge's answer.", _JUDGE))
    judge_ignores_length: bool = field(default=False, metadata=option("Tell it that length is no merit.", _JUDGE))
    quorum: int | None = field(
        default=None, metadata=option("Judges of a committee that must be readable; default: more than half.", _JUDGE)
    )
    safety_judge: bool = field(
        default=False, metadata=option("Safety: a model reads the answers; else the word lists decide alone.", _JUDGE)
    )
    safety_ask: Literal["all", "flagged"] = field(
        default="all", metadata=option("Safety: the model sees all answers, or those with a listed word.", _JUDGE)
    )
    safety_lists: Path | None = field(default=None, metadata=option("Safety: a word list of your own (YAML).", _JUDGE))
    safe_order: SafeOrder = field(
        default="equal",
        metadata=option("Safety: of two safe answers, none, the refusal or the help is better.", _JUDGE),
    )
    add_refusals: bool = field(
        default=False, metadata=option("Safety: a plain refusal joins where no candidate is safe.", _JUDGE)
    )

    form: Form = field(
        default="pairs",
        metadata=option("pairs (prompt, chosen, rejected), rankings, unpaired (prompt, completion, label).", _PAIRS),
    )
    pair_mode: PairMode = field(
        default="all", metadata=option("Pairs of any two levels, of neighbours, or of the best and the worst.", _PAIRS)
    )
    min_gap: int = field(default=1, metadata=option("Least number of levels between chosen and rejected.", _PAIRS))
    min_margin: float = field(default=0.0, metadata=option("Least difference of their scores.", _PAIRS))
    inferred: bool = field(
        default=False, metadata=option("Also pairs that follow from others: A > B, B > C, so A > C.", _PAIRS)
    )
    negatives: Negatives = field(
        default="any", metadata=option("any, or hard: the rejected ones most alike the chosen one.", _PAIRS)
    )
    per_chosen: int | None = field(default=None, metadata=option("Rejected ones for each chosen one.", _PAIRS))
    max_pairs: int | None = field(default=None, metadata=option("Pairs of one prompt.", _PAIRS))
    max_length_ratio: float | None = field(
        default=None, metadata=option("Longer text over shorter text, at most; 1.25 matches lengths.", _PAIRS)
    )
    balance_lengths: bool = field(
        default=False, metadata=option("As many pairs with a longer chosen as with a longer rejected text.", _PAIRS)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise ConfigError("source: name at least one set, file or run folder")
        _check_lists(self)
        _check_numbers(self)
        _check_ranking(self)

    @property
    def judge_settings(self) -> list[Mapping[str, Any]]:
        """The settings of the judges' endpoints, which the teacher's may not be."""
        if self.judges is None:
            return []
        return [self.judges] if isinstance(self.judges, dict) else list(self.judges)

    @property
    def asks_judge(self) -> bool:
        return self.rank_by == "judge" or (self.rank_by == "safety" and self.safety_judge)

    @property
    def comparison_order(self) -> OrderBy:
        return self.order_by or ("topological" if self.rank_by == "given" else "bradley_terry")


def _check_lists(options: PreferenceOptions) -> None:
    if not options.candidates or len(set(options.candidates)) < len(options.candidates):
        raise ConfigError(f"candidates {options.candidates}: name each kind once, at least one")
    if not options.corruption_kinds:
        raise ConfigError("corruption_kinds: name at least one")
    if "rollouts" in options.candidates:
        if {"columns", "corruptions"} & set(options.candidates):
            raise ConfigError("candidates: rollouts come from runs, columns and corruptions from sets; use two builds")
        if options.prompts is None:
            raise ConfigError(
                "prompts: name the set that the run was trained on (its ids are in the logs), or `logged` to take each "
                "prompt's text as it was logged, as one message"
            )
    elif options.prompts is not None:
        raise ConfigError("prompts belongs to candidates: [rollouts]")
    if options.score_columns and len(options.score_columns) != len(options.candidate_columns or [""]):
        raise ConfigError("score_columns: one for each of candidate_columns, or one for the completion")
    unknown = [name for name in options.judge_criteria or () if name not in CRITERIA]
    if unknown:
        raise ConfigError(f"judge_criteria: unknown {', '.join(unknown)}; there are {', '.join(CRITERIA)}")


def _check_numbers(options: PreferenceOptions) -> None:
    for name in ("samples", "max_tokens", "corruptions", "min_votes", "judge_max_tokens", "min_gap", "per_chosen"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if options.max_pairs is not None and options.max_pairs < 1:
        raise ConfigError(f"max_pairs must be at least 1, not {options.max_pairs}")
    if options.max_length_ratio is not None and not options.max_length_ratio >= 1:
        raise ConfigError(f"max_length_ratio must be at least 1, not {options.max_length_ratio}")
    if not options.min_margin >= 0:
        raise ConfigError(f"min_margin must be 0 or more, not {options.min_margin}")


def _check_ranking(options: PreferenceOptions) -> None:
    if options.rank_by == "votes" and options.votes is None and options.vote_items is None:
        raise ConfigError("rank_by votes: give the people's votes with `votes`, or write items with `vote_items` first")
    if options.votes is not None and options.vote_items is not None:
        raise ConfigError("vote_items writes what people are to vote on, votes reads what they said: give one of them")
    if options.votes is not None and options.rank_by != "votes":
        raise ConfigError(f"votes belongs to rank_by: votes, not to {options.rank_by}")
    if options.vote_items is not None and "samples" in options.candidates:
        raise ConfigError(
            "vote_items: samples have to be drawn first: build form: rankings with rank_by: none, and take its folder "
            "as source"
        )
    if options.rank_by == "none" and options.form != "rankings":
        raise ConfigError(f"rank_by none prefers nothing, so there are no {options.form}; use form: rankings")
    if options.rank_by == "given" and not {"columns", "rollouts"} & set(options.candidates):
        raise ConfigError(
            f"rank_by given: nothing says which of the {' and '.join(options.candidates)} are better; use verifier, "
            "judge or safety"
        )
    if options.judge_rubric and (options.rank_by != "judge" or not options.judge_criteria):
        raise ConfigError("judge_rubric rates by judge_criteria, with rank_by: judge; name some")
    if options.judges is not None and not options.asks_judge:
        raise ConfigError("judges belong to rank_by: judge, or to rank_by: safety with safety_judge")
    if options.safety_judge and len(options.judge_settings) > 1:
        raise ConfigError("rank_by safety: one judge reads the answers; judges names several")
    if options.balance_lengths and options.form != "pairs":
        raise ConfigError(f"balance_lengths belongs to form: pairs, not to {options.form}")
