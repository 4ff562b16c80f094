"""Pairs of the policy's own answers, picked by a judge while training: online DPO with AI feedback (arXiv 2402.04792).

A round asks some prompts, samples k answers to each from the current weights, and lets a judge tell the best from the
worst. Its pairs are learned from once; then comes the next round. Every answer and its score is kept in the output
folder, so that a run that is continued asks neither the policy nor the judge again.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import broadcast_object_list

from mmreason._functions import did_you_mean
from mmreason.clients.endpoint import Endpoint
from mmreason.clients.judge import Judge
from mmreason.clients.judge_prompts import CRITERIA
from mmreason.clients.judge_types import Call, Criterion, JudgeSettings, PairItem, RubricItem
from mmreason.clients.ledger import Ledger
from mmreason.clients.settings import parse_endpoint
from mmreason.data.images import load_image
from mmreason.data.supervised import SupervisedRow
from mmreason.data.visual import Visuals, visuals_of
from mmreason.rollout.types import Completion, Engine, Request, Sampling
from mmreason.trainers.batch_source import Place
from mmreason.trainers.distributed import DataParallel
from mmreason.trainers.preference_arguments import OnlineOptions
from mmreason.trainers.preference_data import Pair, RunRows
from mmreason.trainers.prompt_order import PromptOrder
from mmreason.trainers.records import write_rows
from mmreason.trainers.reporting import decode
from mmreason.types import ConfigError, Message, MMReasonError

FOLDER = "online"
"""In a run's output folder: a file of answers and scores for each round, and the judge's ledger."""
_PASSING = {"rate_limit", "server", "timeout", "connection", "circuit_open", "bad_reply"}
"""Errors of an endpoint that may be over after a while."""
_EMPTY_ROUNDS = 10
_LONGEST_WAIT_S = 60.0
_ENDPOINT_RETRY_S = 30.0
"""Seconds that one call may wait by itself: other processes wait with it, and their collectives have a limit."""


@dataclass(frozen=True)
class Question:
    """A prompt whose answers are judged.

    question: what the judge is shown. reference: the gold answer, if there is one. images: PNG or JPEG bytes.
    """

    id: str
    question: str | Sequence[Message]
    reference: str | None = None
    images: Sequence[bytes] = ()


@dataclass(frozen=True)
class Judged:
    """Scores of answers by (question's id, place among its answers); without those that could not be read.

    waiting: why the judge has to be asked again; "" where it is through.
    """

    scores: dict[tuple[str, int], float]
    waiting: str = ""


class Grader(Protocol):
    """What picks the best of some answers."""

    def score(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Judged:
        """A number for each answer, comparable among those of one question. Raises MMReasonError: it never will."""
        ...


class JudgeGrader:
    """A judge behind an endpoint; what it has answered is in a ledger and never paid for twice.

    Args: options: of the run. folder: where the ledger lies, if `options` names none.

    Raises: ConfigError: unknown criteria, a wrong endpoint, no key.
    """

    def __init__(self, options: OnlineOptions, folder: Path) -> None:
        self.options = options
        try:
            self.settings = JudgeSettings(**(options.ask or {}))
        except TypeError as error:
            raise ConfigError(f"online.ask: {error}") from None
        self.criteria = _criteria(options.criteria, self.settings)
        config = parse_endpoint({"retry_s": _ENDPOINT_RETRY_S} | options.judge, "online.judge")
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(Path(options.ledger or folder / "judge.ledger"), max_budget=options.max_budget)
        self.endpoint = Endpoint(config, ledger=self.ledger)

    def score(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Judged:
        """See `Grader`. The share of its comparisons that an answer wins, or the mean of its ratings."""
        compare = self.options.how == "compare"
        return asyncio.run((self._compared if compare else self._rated)(questions, answers))

    async def _rated(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Judged:
        places = [(q, i) for q, texts in zip(questions, answers, strict=True) for i in _distinct(texts)]
        texts = {question.id: given for question, given in zip(questions, answers, strict=True)}
        items = [
            RubricItem(
                id=f"{question.id}/{i}",
                question=question.question,
                answer=texts[question.id][i],
                reference=question.reference,
                images=question.images,
            )
            for question, i in places
        ]
        async with self.endpoint as endpoint:
            report = await Judge(endpoint, settings=self.settings).score(items, self.criteria)
        waiting = _waiting([result.call for result in report.results])
        scores = {
            (question.id, i): sum(result.scores.values()) / len(result.scores)
            for (question, i), result in zip(places, report.results, strict=True)
            if result.scores is not None
        }
        return Judged(_spread(scores, texts), waiting)

    async def _compared(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Judged:
        texts = {question.id: given for question, given in zip(questions, answers, strict=True)}
        couples = [(q, i, j) for q in questions for i, j in combinations(_distinct(texts[q.id]), 2)]
        items = [
            PairItem(
                id=f"{question.id}/{i}-{j}",
                question=question.question,
                answer_a=texts[question.id][i],
                answer_b=texts[question.id][j],
                reference=question.reference,
                images=question.images,
            )
            for question, i, j in couples
        ]
        async with self.endpoint as endpoint:
            report = await Judge(endpoint, settings=self.settings).compare(items, self.criteria)
        waiting = _waiting([call for result in report.results for call in result.calls])
        gained: dict[tuple[str, int], list[float]] = {}
        for (question, i, j), result in zip(couples, report.results, strict=True):
            if result.verdict is not None:
                for place, won in ((i, "A"), (j, "B")):
                    points = 0.5 if result.verdict == "tie" else float(result.verdict == won)
                    gained.setdefault((question.id, place), []).append(points)
        # Of its own verdicts: a comparison that could not be read is no lost one.
        scores = {key: sum(points) / len(points) for key, points in gained.items()}
        return Judged(_spread(scores, texts), waiting)


def _criteria(given: Sequence[str | dict[str, Any]] | None, settings: JudgeSettings) -> list[Criterion]:
    known = CRITERIA[settings.language]
    found = []
    for one in ["correctness", "helpfulness"] if given is None else given:
        if isinstance(one, str):
            if one not in known:
                hint = did_you_mean(one, list(known))
                raise ConfigError(
                    f"online.criteria: {one!r} is unknown; there are {', '.join(known)}.{hint} Your own: "
                    "{name: …, description: …}"
                )
            found.append(known[one])
            continue
        try:
            found.append(Criterion(**one))
        except TypeError as error:
            raise ConfigError(f"online.criteria: {one!r}: {error}") from None
    return found


def _distinct(texts: Sequence[str]) -> list[int]:
    """Places of the first of equal texts: an answer is judged once."""
    return [i for i, text in enumerate(texts) if text not in texts[:i]]


def _spread(
    scores: Mapping[tuple[str, int], float], texts: Mapping[str, Sequence[str]]
) -> dict[tuple[str, int], float]:
    """The same number for equal texts of a question."""
    return {
        (name, i): scores[name, given.index(text)]
        for name, given in texts.items()
        for i, text in enumerate(given)
        if (name, given.index(text)) in scores
    }


def _waiting(calls: Sequence[Call[Any]]) -> str:
    """Why some calls have no answer yet. Raises: ConfigError where waiting is of no use."""
    failed = [call for call in calls if call.status == "error"]
    for call in failed:
        if call.reason in ("auth", "budget", "bad_request"):
            raise ConfigError(f"online.judge: {call.detail}. Put it right, then run the same command to continue")
    passing = [call for call in failed if call.reason in _PASSING]
    return f"{len(passing)} of {len(calls)} calls have no answer: {passing[0].detail}" if passing else ""


# ---- rounds


@dataclass(frozen=True)
class Answer:
    """One sampled answer. row: of the prompt. role: "chosen", "rejected" or "". score: None where it has none."""

    row: int
    text: str
    completion_ids: list[int]
    truncated: bool
    score: float | None
    role: str


class Rounds:
    """The pairs of all rounds, one behind the other, made as far as they are asked for.

    Args:
        options: `online`. folder: where rounds are kept. parallel: the processes.
        prompt_ids, visuals: of the training rows. questions: what the judge is shown of row i.
        order: of the prompts. engine: makes a sampler of the current weights. grader: on the main process.
        decode: token ids -> text. max_tokens: of an answer. say: told while the judge doesn't answer.
    """

    def __init__(
        self,
        options: OnlineOptions,
        folder: Path,
        parallel: DataParallel,
        *,
        prompt_ids: Sequence[list[int]],
        visuals: Visuals | None,
        questions: Callable[[int], Question],
        order: PromptOrder,
        engine: Callable[[], Engine],
        grader: Grader | None,
        decode: Callable[[list[int]], str],
        max_tokens: int,
        say: Callable[[str], object],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options, self.folder, self.parallel = options, folder, parallel
        self.prompt_ids, self.visuals, self.questions, self.order = prompt_ids, visuals, questions, order
        self.engine, self.grader, self.decode, self.say, self.sleep = engine, grader, decode, say, sleep
        self.sampling = Sampling(max_tokens, temperature=options.temperature, top_p=options.top_p)
        self.pairs: list[tuple[Answer, Answer]] = []
        self.done = 0
        self.metrics: dict[str, float] = {}

    def take(self, start: int, count: int) -> list[Pair]:
        """Pairs start … start + count - 1, after as many rounds as it takes. Collective.

        Raises: ConfigError: the judge finds no difference, or its endpoint can't be used.
        """
        empty = 0
        while len(self.pairs) < start + count:
            before = len(self.pairs)
            self._round()
            empty = empty + 1 if len(self.pairs) == before else 0
            if empty == _EMPTY_ROUNDS:
                raise ConfigError(
                    f"online: in {empty} rounds the judge preferred no answer to another, or none ended by itself: "
                    "raise temperature or max_completion_length, or look at its answers in "
                    f"{self.folder}"
                )
        return [self._pair(*self.pairs[number]) for number in range(start, start + count)]

    def _round(self) -> None:
        number, path = self.done, self.folder / f"round-{self.done:06d}.parquet"
        main = self.parallel.accelerator.is_main_process
        (answers,) = broadcast_object_list([_read(path) if main else None])
        if answers is None:
            answers = self._judged(self._sampled(number))
            if main:
                write_rows(path, [asdict(answer) for answer in answers])
        self.done += 1
        found = _pairs_of(answers)
        self.pairs += found
        self.metrics = _metrics(answers, len(found), number)

    def _sampled(self, number: int) -> list[tuple[int, list[Completion]]]:
        """(row, its answers) of a round, of all processes. Collective."""
        count, world = self.options.prompts_per_round, self.parallel.size
        share = -(-count // world)  # every process asks as often
        rows = [self.order[number * count + (i * world + self.parallel.rank) % count] for i in range(share)]
        seen = [None if self.visuals is None else self.visuals[row] for row in rows]
        asked = [
            Request(self.prompt_ids[row], self.options.num_generations, visual)
            for row, visual in zip(rows, seen, strict=True)
        ]
        engine = self.engine()
        engine.sync()
        drawn = engine.generate(asked, self.sampling, (self.order.seed * 1_000_003 + number * 104_729) % 2**31)
        mine = [(i * world + self.parallel.rank, row, drawn[i]) for i, row in enumerate(rows)]
        every = sorted(self.parallel.gather_objects(mine), key=lambda one: int(one[0]))
        return [(row, completions) for place, row, completions in every if place < count]

    def _judged(self, sampled: Sequence[tuple[int, list[Completion]]]) -> list[Answer]:
        """The answers with their scores, waiting for the judge as long as it takes. Collective."""
        questions = [self.questions(row) for row, _ in sampled]
        # A prompt may stand twice in a round: its place keeps the two apart.
        named = [Question(f"{i}/{q.id}", q.question, q.reference, q.images) for i, q in enumerate(questions)]
        texts = [[self.decode(one.token_ids) for one in completions] for _, completions in sampled]
        began, wait = time.monotonic(), self.options.retry_s
        while True:
            judged = self._asked(named, texts)
            if not judged.waiting:
                break
            limit = self.options.give_up_s
            if limit is not None and self.parallel.any(time.monotonic() - began > limit):
                raise MMReasonError(
                    f"online: the judge did not answer for {limit:g} s ({judged.waiting}). Run the same command to "
                    "continue; what it has answered is kept"
                )
            self.say(f"The judge: {judged.waiting}. Asking again in {wait:g} s; what it has answered is kept.")
            self.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
        return [
            answer
            for i, (row, completions) in enumerate(sampled)
            for answer in _answers(row, completions, texts[i], named[i].id, judged.scores)
        ]

    def _asked(self, questions: Sequence[Question], texts: Sequence[Sequence[str]]) -> Judged:
        """What the judge says, asked by the main process. Collective."""
        found: Judged | str | None = None
        if self.parallel.accelerator.is_main_process:
            assert self.grader is not None
            try:
                found = self.grader.score(questions, texts)
            except MMReasonError as error:  # the others would wait for an answer for ever
                found = str(error)
        (found,) = broadcast_object_list([found])
        if isinstance(found, str):
            raise ConfigError(found)
        assert isinstance(found, Judged)
        return found

    def _pair(self, chosen: Answer, rejected: Answer) -> Pair:
        prompt = self.prompt_ids[chosen.row]
        visual = None if self.visuals is None else self.visuals[chosen.row]
        first, second = (
            SupervisedRow(
                prompt + one.completion_ids,
                [0.0] * len(prompt) + [1.0] * len(one.completion_ids),
                str(one.row),
                FOLDER,
                visual,
            )
            for one in (chosen, rejected)
        )
        return Pair(first, second)


def online_rounds(
    trainer: Any,
    rows: RunRows,
    options: OnlineOptions,
    folder: Path,
    grader: Grader | None,
    say: Callable[[str], object],
) -> Rounds:
    """The rounds of a `PreferenceTrainer` on these prompts. Args: grader: on the main process, None on others."""
    dataset, args = rows.train, trainer.options
    visuals = visuals_of(dataset, rows.prompt_ids, trainer.processing_class, args.chat_template_kwargs)
    if visuals is not None and trainer.features is not None:
        visuals.use_features(trainer.features, keep_images=False)

    def question(row: int) -> Question:
        example = dataset[row]
        images = [_png(cell) for cell in example.get("images") or ()]
        return Question(str(example["id"]), example["prompt"], example.get("answer"), images)

    return Rounds(
        options,
        folder,
        DataParallel(trainer.accelerator),
        prompt_ids=rows.prompt_ids,
        visuals=visuals,
        questions=question,
        order=PromptOrder(len(rows.prompt_ids), args.seed, shuffle=True),
        engine=trainer.engine,
        grader=grader,
        decode=lambda ids: decode(trainer.tokenizer, ids),
        max_tokens=args.max_completion_length,
        say=say,
    )


def _png(cell: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    load_image(cell).save(buffer, "PNG")
    return buffer.getvalue()


class OnlineSource:
    """Micro-batches of a `Rounds`' pairs; a place counts the pairs taken by all processes together.

    Args: see `mmreason.trainers.preference.PairSource`.
    """

    def __init__(
        self, rounds: Rounds, collate: Callable[[Sequence[Pair]], dict[str, Any]], size: int, micro_batches: int
    ) -> None:
        self.rounds, self.collate, self.size, self.micro_batches = rounds, collate, size, micro_batches

    def batches(self, place: Place, rank: int, world_size: int) -> Iterator[tuple[dict[str, Any], Place]]:
        """See `BatchSource`. A new round is sampled just before the step that needs its pairs."""
        taken, together = place["taken"], self.size * world_size
        while True:
            pairs = self.rounds.take(taken, together * self.micro_batches)
            pairs.sort(key=lambda pair: len(pair.first.ids) + len(pair.second.ids))
            for start in range(0, len(pairs), together):
                taken += together
                mine = pairs[start + rank * self.size : start + (rank + 1) * self.size]
                yield self.collate(mine), {"taken": taken}


def _answers(
    row: int,
    completions: Sequence[Completion],
    texts: Sequence[str],
    name: str,
    scores: Mapping[tuple[str, int], float],
) -> list[Answer]:
    """The answers to one prompt, the best and the worst of them marked, if they differ.

    An answer that was cut at the limit may be rejected, but never chosen: the policy would learn not to end.
    """
    known = {i: scores[name, i] for i in range(len(texts)) if (name, i) in scores}
    ended = [i for i in known if not completions[i].truncated]
    roles: dict[int, str] = {}
    if ended:
        best, worst = max(ended, key=lambda i: (known[i], -i)), min(known, key=lambda i: (known[i], i))
        if known[best] > known[worst]:
            roles = {best: "chosen", worst: "rejected"}
    return [
        Answer(row, texts[i], list(one.token_ids), one.truncated, known.get(i), roles.get(i, ""))
        for i, one in enumerate(completions)
    ]


def _pairs_of(answers: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """Chosen and rejected, as they stand one near the other."""
    chosen = [answer for answer in answers if answer.role == "chosen"]
    rejected = [answer for answer in answers if answer.role == "rejected"]
    return list(zip(chosen, rejected, strict=True))


def _metrics(answers: Sequence[Answer], pairs: int, number: int) -> dict[str, float]:
    scores = [answer.score for answer in answers if answer.score is not None]
    lengths = [len(answer.completion_ids) for answer in answers]
    return {
        "online/round": float(number),
        "online/pairs": float(pairs),
        "online/unreadable": float(len(answers) - len(scores)),
        "online/score": sum(scores) / len(scores) if scores else 0.0,
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/clipped_ratio": sum(answer.truncated for answer in answers) / len(answers),
    }


def _read(path: Path) -> list[Answer] | None:
    """A kept round; None where there is none."""
    if not path.is_file():
        return None
    import pyarrow.parquet as pq

    return [Answer(**row) for row in pq.read_table(path).to_pylist()]
