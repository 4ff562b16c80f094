"""Preference pairs, rankings and labelled completions by verifier, judge, people's votes or safety.

    python -m data_builders.preferences --source solutions.jsonl --rank_by verifier --out pairs
    python -m data_builders.preferences --config pairs.yaml source=gsm8k.jsonl teacher.model=qwen2.5-7b

Candidates come from a set's own columns (pairs, rankings, one completion a row, several columns), from samples of one
or several teachers, from the rollouts that an RL run has logged, or from gold rationales in which one step is made
wrong. They are ranked, A > B > C with ties, and the ranking becomes rows: pairs (prompt, chosen, rejected: DPO, reward
models), whole rankings, or completions with a label (KTO). Judges see two answers in both orders; how far judge,
verifier, labels and people agree, and how much longer the chosen texts are, is told in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_builders._preferences.options import LOGGED, PreferenceOptions
from data_builders.building.build import Builder, Drop, Made, SourceNote, Task, Tools
from mmreason.types import ConfigError, DataError, Example

if TYPE_CHECKING:
    from data_builders._preferences.candidates import Group
    from data_builders._preferences.rank import JudgeSet, Ranked
    from data_builders._preferences.rows import RowWriter
    from mmreason.clients.judge_types import Verdict
    from mmreason.clients.safety import SafetyJudge
    from mmreason.clients.votes import Votes, VoteTask


class Preferences(Builder[PreferenceOptions]):
    """See the module's docstring."""

    name, version = "preferences", 1
    needs_teacher = False

    def __init__(self, options: PreferenceOptions) -> None:
        super().__init__(options)
        self.groups: list[Group] = []
        self._left_out: dict[str, dict[str, int]] = {}
        self._votes: Votes | None = None
        self._said: dict[str, list[Verdict]] = {}
        self._pictures = self._with_tools = False
        self._seen: set[bytes] = set()
        self._lengths: list[tuple[int, int]] = []
        self._labels: Counter[bool] = Counter()
        self._labelled: Counter[bool] = Counter()
        from data_builders._preferences.select import Balance

        self._balance = Balance()

    @property
    def columns(self) -> Sequence[str]:  # type: ignore[override]
        """Of the rows' form; images and tools only where some row has them, as trainers take the column for a sign."""
        from data_builders._preferences.rows import COLUMNS

        optional = (*(("tools",) if self._with_tools else ()), *(("images",) if self._pictures else ()))
        return (*COLUMNS[self.options.form], *optional)

    def needs_endpoint(self) -> bool:
        return "samples" in self.options.candidates or (self.options.asks_judge and not self.options.judges)

    def sends_images(self) -> bool:
        return self._pictures and "samples" in self.options.candidates

    def other_endpoints(self) -> Sequence[Mapping[str, Any]]:
        return self.options.judge_settings

    # ----------------------------------------------------------------------------------------------------------------
    # Input

    def sources(self) -> Sequence[SourceNote]:
        if self.options.vote_items is not None:
            raise ConfigError("vote_items: only the command writes them, and ends; leave it out to build rows")
        return self.read()

    def read(self) -> Sequence[SourceNote]:
        """What there is to compare, from all sources, checked. Raises: ConfigError, DataError."""
        options = self.options
        is_logged = "rollouts" in options.candidates
        notes: list[SourceNote] = []
        for name in options.source:
            groups, found = self._rollouts(name) if is_logged else self._set(name)
            self.groups += groups
            notes += found
        if options.safety_lists is not None:
            from mmreason.clients.safety_lists import load_lists

            load_lists(options.safety_lists)
        if options.votes is not None:
            notes.append(self._read_votes())
        self._pictures = any(group.example.get("images") for group in self.groups)
        self._with_tools = any(group.example.get("tools") for group in self.groups)
        self._check_candidates()
        return notes

    def _set(self, name: str) -> tuple[list[Group], list[SourceNote]]:
        from data_builders._preferences.candidates import groups_of, merged

        options = self.options
        if options.candidate_columns:
            mapped = [{**(options.column_map or {}), "completion": column} for column in options.candidate_columns]
            sets = [self._read(name, column_map=one) for one in mapped]
            groups = merged([rows for rows, _ in sets], options.candidate_columns, options.score_columns or ())
            return groups, [sets[0][1]]
        examples, note = self._read(name, column_map=options.column_map)
        wants = {"columns", "corruptions"} & set(options.candidates)
        if not wants:
            alone: Sequence[str] = ("prompt", "answer", "tools", "images", "id", "source", "meta")
            examples = [{k: v for k, v in row.items() if k in alone} for row in examples]  # type: ignore[misc]
        score = options.score_columns[0] if options.score_columns else None
        repeated: Counter[str] = Counter()
        groups = groups_of(
            examples,
            group_by=options.group_by,
            references=options.references,
            score_column=score,
            repeated=repeated,
        )
        self._leave_out(name, repeated)
        return groups, [note]

    def _read(self, name: str, *, column_map: Mapping[str, str] | None) -> tuple[list[Example], SourceNote]:
        """A set's rows; what is dropped is counted."""
        from data_builders.building.sources import read_counted

        options = self.options
        columns = ("prompt", "completion", "chosen", "rejected", "label", "answer", "tools", "images", "id", "source")
        settings: dict[str, Any] = {
            "format": options.format,
            "column_map": column_map,
            "system_prompt": options.system_prompt,
            "on_bad_row": options.on_bad_row,
            "require_answer": options.rank_by == "verifier",
        }
        if options.prompt_template is not None:
            settings["prompt_template"] = options.prompt_template
        if column_map and "completion" in column_map:
            settings |= {"require": ("completion",)}
            settings["format"] = "prompt_completion" if options.format == "auto" else options.format
        examples, note, dropped = read_counted(name, split=options.source_split, columns=(*columns, "meta"), **settings)
        self._leave_out(name, dropped)
        if not examples:
            raise DataError(f"{name} [{options.source_split}]: no usable rows", path=name, reason="empty")
        return examples, note

    def _leave_out(self, name: str, counts: Mapping[str, int]) -> None:
        """Note rows and completions of a source that are no candidates, by reason."""
        found = {reason: count for reason, count in sorted(counts.items()) if count}
        if found:
            self._left_out[name] = self._left_out.get(name, {}) | found

    def _rollouts(self, run: str) -> tuple[list[Group], list[SourceNote]]:
        from data_builders._preferences.candidates import RolloutOptions, rollout_groups

        options = self.options
        problems, notes = None, []
        if options.prompts is not None and options.prompts != LOGGED:
            from data_builders.building.sources import read_source

            settings = {} if options.prompt_template is None else {"prompt_template": options.prompt_template}
            rows, note = read_source(
                options.prompts, split=options.source_split, system_prompt=options.system_prompt, **settings
            )
            problems, notes = {row["id"]: row for row in rows}, [note]
        which = RolloutOptions(
            options.first_rollout, options.last_rollout, options.across_rollouts, options.keep_truncated
        )
        dropped: Counter[str] = Counter()
        groups, note = rollout_groups(run, problems, which, dropped)
        self._leave_out(run, dropped)
        return groups, [note, *notes]

    def _read_votes(self) -> SourceNote:
        from data_builders._preferences.rank import vote_items
        from data_builders.building.sources import note
        from mmreason.clients.votes import VERDICT
        from mmreason.clients.votes_tools import read_votes

        path = self.options.votes
        assert path is not None
        self._votes = read_votes(path, self.vote_task)
        known = {item.id for item in vote_items(self.groups)}
        strange = sorted({vote.item for vote in self._votes.votes} - known)
        if strange:
            raise DataError(
                f"{path}: {len(strange)} votes' items are none of these sets' (the first: {strange[0]!r}; an item "
                f"here is {next(iter(sorted(known)), 'none')!r}): give the data and options that the items came from",
                path=path,
                row=strange[0],
            )
        said: dict[str, list[Verdict]] = defaultdict(list)
        for vote in self._votes.votes:
            said[vote.item].append(vote.values[VERDICT])  # type: ignore[arg-type]
        self._said = dict(said)
        return note(path, "votes", len(self._votes.votes), "")

    @property
    def vote_task(self) -> VoteTask:
        """What people are asked: written and read with the same seed."""
        from mmreason.clients.votes import VoteTask

        return VoteTask(seed=self.options.votes_seed, language=self.options.judge_language)

    def _check_candidates(self) -> None:
        """Before anything is paid: is there anything to compare, and to compare it with? Raises: DataError."""
        options = self.options
        bare = next((group for group in self.groups if group.answer is None), None)
        if options.rank_by == "verifier" and bare is not None:
            raise DataError(
                f"row {bare.id}: no answer to verify with; rank by something else, or give answers", row=bare.id
            )
        if {"samples", "corruptions"} & set(options.candidates) or options.form == "unpaired" or options.add_refusals:
            return
        if not any(len(group.candidates) > 1 for group in self.groups):
            raise DataError(
                f"{', '.join(options.source)}: no prompt has two different completions to compare ({len(self.groups)} "
                "prompts): draw candidates: [columns, samples], or name the columns with candidate_columns",
                path=options.source[0],
                reason="missing_pair",
            )

    # ----------------------------------------------------------------------------------------------------------------
    # Tasks

    def plan(self) -> Iterator[Task]:
        return (Task(group.id, group) for group in self.groups)

    async def make(self, task: Task, tools: Tools) -> Made:
        from data_builders._preferences import drawn

        counts: Counter[str] = Counter()
        drops: list[Drop] = []
        group: Group = task.data
        if "samples" in self.options.candidates:
            images = self._images(group)
            group = group.with_candidates(await drawn.sampled(self.options, group, images, tools.teachers, counts))
        if "corruptions" in self.options.candidates:
            group = group.with_candidates(drawn.corrupted(self.options, group, drops))
        if not group.candidates or (len(group.candidates) < 2 and self._compares):
            return Made(drops=drops or [Drop("one_candidate", task.id)], counts=counts)
        group, ranked = await self._ranked(group, tools)
        rows, dropped, told = self._writer.write(group, ranked)
        return Made(rows, [*drops, *dropped], counts + Counter(ranked.counts) + told)

    @property
    def _compares(self) -> bool:
        absolute = self.options.rank_by in ("verifier", "safety", "given") and self.options.form == "unpaired"
        return not absolute and not (self.options.rank_by == "safety" and self.options.add_refusals)

    async def _ranked(self, group: Group, tools: Tools) -> tuple[Group, Ranked]:
        from data_builders._preferences import drawn, rank

        options = self.options
        order, drop_cycles = options.comparison_order, options.drop_cycles
        if options.rank_by == "verifier":
            return group, await rank.rank_verified(group, unreadable=options.unreadable)
        if options.rank_by == "judge":
            judges = self._judge_set(tools)
            return group, await rank.rank_judged(group, self._images(group), judges, order, drop_cycles=drop_cycles)
        if options.rank_by == "votes":
            votes = self._said
            return group, await rank.rank_voted(group, votes, order, least=options.min_votes, drop_cycles=drop_cycles)
        if options.rank_by == "safety":
            refusals = drawn.refusals(options, group) if options.add_refusals else ()
            judge = self._safety_judge(tools)
            return await rank.rank_safe(group, self._images(group), judge, options.safe_order, refusals)
        if options.rank_by == "none":
            return group, rank.Ranked((tuple(range(len(group.candidates))),))
        return group, rank.rank_given(group, order, drop_cycles=drop_cycles)

    def _judge_set(self, tools: Tools) -> JudgeSet:
        from data_builders._preferences.drawn import teacher_names
        from data_builders._preferences.rank import JudgeSet
        from mmreason.clients.judge_prompts import CRITERIA
        from mmreason.clients.judge_types import JudgeSettings

        options = self.options
        if options.judge_settings:
            named = [(str(one.get("name") or one["model"]), tools.endpoint(one)) for one in options.judge_settings]
        else:
            named = list(zip(teacher_names(options, len(tools.teachers)), tools.teachers, strict=True))
        return JudgeSet(
            judges=named,
            settings=JudgeSettings(
                language=options.judge_language,
                answer_form=options.judge_answers,
                max_tokens=options.judge_max_tokens,
                ignore_length=options.judge_ignores_length,
            ),
            criteria=[CRITERIA[options.judge_language][name] for name in options.judge_criteria or ()],
            orders=options.judge_orders,
            rubric=options.judge_rubric,
            reference=options.judge_reference,
            quorum=options.quorum,
        )

    def _safety_judge(self, tools: Tools) -> SafetyJudge:
        from mmreason.clients.judge_types import JudgeSettings
        from mmreason.clients.safety import SafetyJudge
        from mmreason.clients.safety_lists import load_lists

        options = self.options
        completer = None
        if options.safety_judge:
            completer = tools.endpoint(options.judge_settings[0]) if options.judge_settings else tools.teacher
        settings = JudgeSettings(
            language=options.judge_language, answer_form=options.judge_answers, max_tokens=options.judge_max_tokens
        )
        return SafetyJudge(
            completer, lists=load_lists(options.safety_lists), ask_about=options.safety_ask, settings=settings
        )

    def _images(self, group: Group) -> list[bytes]:
        from data_builders.building.pictures import image_bytes

        return [image_bytes(cell) for cell in group.example.get("images") or ()]

    @property
    def _writer(self) -> RowWriter:
        from data_builders._preferences.rows import RowWriter
        from data_builders._preferences.select import PairRules
        from mmreason.data.prompts import resolve_completion_template

        options = self.options
        given = options.completion_template
        rules = PairRules(
            mode=options.pair_mode,
            min_gap=options.min_gap,
            min_margin=options.min_margin,
            inferred=options.inferred,
            negatives=options.negatives,
            per_chosen=options.per_chosen,
            max_pairs=options.max_pairs,
            max_length_ratio=options.max_length_ratio,
        )
        template = None if given is None else resolve_completion_template(given)
        return RowWriter(options.form, options.rank_by, rules, template, options.seed)

    # ----------------------------------------------------------------------------------------------------------------
    # Rows

    def keep(self, row: Example) -> Drop | None:
        from mmreason.rewards.text import completion_text

        sides = [row.get(name) for name in ("prompt", "chosen", "rejected", "completion", "images")]
        sides += [[entry["completion"], entry["rank"]] for entry in row["meta"].get("ranking", ())]
        key = hashlib.sha256(json.dumps(sides, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).digest()
        if key in self._seen:
            return Drop("duplicate", row["id"])
        if self.options.form == "pairs":
            lengths = len(completion_text(row["chosen"])), len(completion_text(row["rejected"]))
            if self.options.balance_lengths and not self._balance.takes(*lengths):
                return Drop("length_balance", row["id"])
            self._lengths.append(lengths)
        elif self.options.form == "rankings":
            ranking = row["meta"]["ranking"]
            self._lengths.append(tuple(len(completion_text(ranking[end]["completion"])) for end in (0, -1)))  # type: ignore[arg-type]
        else:
            self._labels[row["label"]] += 1
            self._labelled[row["label"]] += len(completion_text(row["completion"]))
        self._seen.add(key)
        return None

    def told(self) -> Mapping[str, object]:
        from data_builders._preferences import told
        from data_builders._preferences.select import length_report

        found: dict[str, object] = {"form": self.options.form, "ranked_by": self.options.rank_by}
        if self._left_out:
            found["left_out"] = self._left_out
        if self.options.form == "unpaired":
            found["labels"] = {
                str(label).lower(): {"rows": n, "mean_length": round(self._labelled[label] / n, 2)}
                for label, n in sorted(self._labels.items(), reverse=True)
            }
        else:
            found["lengths"] = length_report(self._lengths, self.options.seed)
        found["agreement"] = told.agreements(self.counts)
        found["cycles"] = self.counts.get("cycles", 0)
        biases = told.position_biases(self.counts)
        if biases:
            found["position_bias"] = biases
        if self._votes is not None:
            found["votes"] = told.votes_json(self._votes)
        return found


def _write_vote_items(options: PreferenceOptions) -> int:
    """Write what people are to vote on. Raises: ConfigError, DataError."""
    from data_builders._preferences.rank import vote_items
    from mmreason.clients.votes import write_items

    builder = Preferences(options)
    builder.read()
    items = vote_items(builder.groups)
    if not items:
        raise ConfigError(f"{', '.join(options.source)}: no prompt has two completions to vote on")
    assert options.vote_items is not None
    write_items(options.vote_items, items, builder.vote_task)
    print(
        f"{len(items)} items of {len(builder.groups)} prompts in {options.vote_items}; keep votes_seed from the voters"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, see `building/runner.py`."""
    from data_builders.building.command import parse_options
    from data_builders.building.runner import USER_ERROR, run_main
    from mmreason.report.tokens import printable
    from mmreason.types import MMReasonError

    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    text = (__doc__ or "").split("\n\n")[0]
    try:
        options = parse_options(PreferenceOptions, words, "mmreason build preferences", text)
        if options.vote_items is not None:
            return _write_vote_items(options)
    except (MMReasonError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return USER_ERROR
    return run_main(Preferences, PreferenceOptions, words, description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
