"""Argilla and Label Studio: their settings for a task, and the votes in their exports.

Forms checked against argilla 2.8.0, argilla-server 2.8.0, label-studio-sdk 2.1.2 and label-studio 1.23.2.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mmreason.clients.judge_types import Criterion, Language
from mmreason.clients.votes import VERDICT, Vote, Votes, VoteTask, collect
from mmreason.types import ConfigError, DataError

CHOICES = ("answer_1", "answer_2", "tie")
_LABELS: dict[Language, dict[str, str]] = {
    "en": {
        "question": "Question",
        "reference": "Reference answer",
        "answer": "Answer",
        "answer_1": "Answer 1",
        "answer_2": "Answer 2",
        "image": "Image",
        VERDICT: "Which answer is better?",
        "choice_1": "Answer 1 is better",
        "choice_2": "Answer 2 is better",
        "choice_tie": "Neither is better",
        "pairs": (
            "Two answers to the same question are shown; their order means nothing. Say which is better, or that"
            " neither is. Length is no merit."
        ),
        "rubric": "Rate the answer on each scale.",
        "scale": "{low} is worst, {high} is best",
    },
    "zh": {
        "question": "问题",
        "reference": "参考答案",
        "answer": "回答",
        "answer_1": "回答 1",
        "answer_2": "回答 2",
        "image": "图像",
        VERDICT: "哪个回答更好？",
        "choice_1": "回答 1 更好",
        "choice_2": "回答 2 更好",
        "choice_tie": "不分上下",
        "pairs": "下面是对同一问题的两个回答，先后顺序没有任何含义。请判断哪一个更好，或者不分上下。篇幅长短不是优点。",
        "rubric": "请在每个量表上为回答打分。",
        "scale": "{low} 最差，{high} 最好",
    },
}


def label_studio_config(task: VoteTask) -> str:
    """The labelling interface (XML) for a project with this task."""
    labels = _LABELS[task.language]
    lines = ["<View>", f"  <Header value={quoteattr(labels['pairs' if task.pairwise else 'rubric'])}/>"]
    for name in task.fields:
        lines.append(f'  <Header value={quoteattr(_field_label(name, labels))} size="4"/>')
        tag = "Image" if name.startswith("image_") else "Text"
        lines.append(f'  <{tag} name="{name}" value="${name}"/>')
    shown = task.fields[-1]
    if task.pairwise:
        lines.append(f"  <Header value={quoteattr(labels[VERDICT])}/>")
        options = {choice: labels[f"choice_{choice.rpartition('_')[2]}"] for choice in CHOICES}
        lines += _choices(VERDICT, shown, options)
    for c in task.criteria:
        lines.append(f"  <Header value={quoteattr(_criterion_label(c, labels))}/>")
        lines += _choices(c.name, shown, {str(value): str(value) for value in range(c.low, c.high + 1)})
    return "\n".join([*lines, "</View>"]) + "\n"


def argilla_settings(task: VoteTask, *, votes_per_item: int = 1) -> dict[str, Any]:
    """What `rg.Settings.from_json` reads once it is dumped to a file.

    Args:
        task: the task.
        votes_per_item: how many people have to vote until an item is done.

    Raises: ConfigError for a scale outside 0 to 10, which Argilla's ratings can't show.
    """
    labels = _LABELS[task.language]
    for c in task.criteria:
        if c.low < 0 or c.high > 10:
            raise ConfigError(f"criterion {c.name}: Argilla's ratings go from 0 to 10, not from {c.low} to {c.high}")
    questions = [_argilla_rating(c, labels) for c in task.criteria] or [_argilla_verdict(labels)]
    fields = [
        {
            "name": name,
            "title": _field_label(name, labels),
            "required": True,
            "settings": {"type": "image"} if name.startswith("image_") else {"type": "text", "use_markdown": False},
        }
        for name in task.fields
    ]
    blind = {"name": "blind", "title": "blind", "settings": {"type": "terms"}, "visible_for_annotators": False}
    return {
        "guidelines": labels["pairs" if task.pairwise else "rubric"],
        "fields": fields,
        "questions": questions,
        "metadata": [blind] if task.pairwise else [],
        "vectors": [],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": votes_per_item},
    }


def read_votes(path: str | Path, task: VoteTask) -> Votes:
    """Votes from a file: Label Studio's JSON export, Argilla's `to_json` or `to_list(flatten=True)`, or plain votes.

    The file is a JSON list or JSONL; each row says by its keys what it is. Argilla's `to_json` leaves out whether a
    response was submitted, so drafts count there; export with a filter on `response.status`, or flattened.

    Args:
        path: the file.
        task: the one that the items were written with.

    Raises: DataError naming file and line (of a JSON list: file and row, from 0) for what can't be read, a vote outside
        the task's values, or an item that was shown in another task's order.
    """
    skipped: Counter[str] = Counter()

    def votes() -> Iterator[Vote]:
        for where, row in _rows(Path(path)):
            reader = _Reader(Path(path), where, row, task, skipped)
            found = False
            for vote in reader.votes():
                found = True
                if vote.values:
                    yield vote
                else:
                    skipped["empty"] += 1
            if not found:
                skipped["item_without_votes"] += 1

    return collect(votes(), skipped)


class _Reader:
    """The votes of one row of an export."""

    def __init__(self, path: Path, where: str, row: Mapping[str, Any], task: VoteTask, skipped: Counter[str]) -> None:
        self.path, self.where, self.row, self.task, self.skipped = path, where, row, task, skipped

    def votes(self) -> Iterator[Vote]:
        if "annotations" in self.row:
            return self._label_studio()
        if isinstance(self.row.get("responses"), dict):
            return self._argilla(self.row["responses"], self.row.get("metadata"))
        if any(key.endswith(".responses") for key in self.row):
            return self._argilla(self._nested(), self.row)
        if "annotator" in self.row:
            return iter([self._plain()])
        raise self._error(
            "neither a task of Label Studio (annotations), a record of Argilla (responses) nor a plain vote (annotator)"
        )

    def _error(self, what: str, reason: str = "bad_vote") -> DataError:
        return DataError(f"{self.where}: {what}", path=self.path, row=self.where, reason=reason)

    def _plain(self) -> Vote:
        item, annotator = self._text("id", self.row.get("id")), self._text("annotator", self.row["annotator"])
        if not any(name in self.row for name in self.task.questions):
            keys = ", ".join(map(str, self.row))
            raise self._error(f"a vote has {' and '.join(self.task.questions)}; this row has {keys}")
        values = {name: self.row[name] for name in self.task.questions if self.row.get(name) is not None}
        allowed = {"A": "A", "B": "B", "tie": "tie"}
        return Vote(item, annotator, {name: self._value(name, value, allowed) for name, value in values.items()})

    def _label_studio(self) -> Iterator[Vote]:
        data, annotations = self.row.get("data"), self._dicts("annotations", self.row["annotations"])
        if not isinstance(data, dict):
            raise self._error("a task of Label Studio has `data` (export as JSON, not JSON-MIN)")
        item = self._item(data.get("id"), data)
        for annotation in sorted(annotations, key=lambda entry: str(entry.get("updated_at") or "")):
            if annotation.get("was_cancelled"):
                self.skipped["cancelled"] += 1
                continue
            given: dict[str, Any] = {}
            for result in self._dicts("result", annotation.get("result")):
                if result.get("from_name") in self.task.questions:
                    value = result.get("value")
                    chosen = value.get("choices") if isinstance(value, dict) else None
                    if not isinstance(chosen, list) or len(chosen) != 1:
                        raise self._error(f"{result['from_name']}: {chosen!r} isn't one choice")
                    given[result["from_name"]] = chosen[0]
            who = annotation.get("completed_by")
            who = who.get("email") or who.get("id") if isinstance(who, dict) else who
            yield self._vote(item, self._text("completed_by", who), given)

    def _argilla(self, responses: Mapping[str, Any], metadata: Any) -> Iterator[Vote]:
        item = self._item(self.row.get("id"), metadata if isinstance(metadata, dict) else {})
        by_user: dict[str, dict[str, Any]] = {}
        for question, entries in responses.items():
            if question not in self.task.questions:
                continue
            for entry in self._dicts(question, entries):
                user = self._text("user_id", entry.get("user_id"))
                if entry.get("status") not in (None, "submitted"):
                    self.skipped["not_submitted"] += 1
                    continue
                by_user.setdefault(user, {})[question] = entry.get("value")
        for user, given in by_user.items():
            yield self._vote(item, user, given)

    def _nested(self) -> dict[str, Any]:
        """The columns `question.responses`, `.responses.users`, `.responses.status` as lists of responses."""
        nested = {}
        for name in self.task.questions:
            values = self.row.get(f"{name}.responses") or []
            users = self.row.get(f"{name}.responses.users") or []
            status = self.row.get(f"{name}.responses.status") or []
            if not len(values) == len(users) == len(status):
                raise self._error(f"{name}: {len(values)} responses, {len(users)} users, {len(status)} states")
            nested[name] = [
                {"value": value, "user_id": user, "status": state}
                for value, user, state in zip(values, users, status, strict=True)
            ]
        return nested

    def _item(self, id_: Any, marks: Mapping[str, Any]) -> str:
        item = self._text("id", id_)
        if self.task.pairwise and marks.get("blind") != self.task.blind(item):
            raise self._error(
                f"item {item} was written with another seed or task (blind is {marks.get('blind')!r}), so the order of"
                " its answers isn't known; read it with the VoteTask it was written with",
                "blind",
            )
        return item

    def _vote(self, item: str, annotator: str, given: Mapping[str, Any]) -> Vote:
        labels = _LABELS[self.task.language]
        a, b = ("B", "A") if self.task.exchanged(item) else ("A", "B")
        allowed = {"answer_1": a, "answer_2": b, "tie": "tie"}
        # Label Studio writes the alias; where a project was set up without it, the text of the choice.
        allowed |= {labels["choice_1"]: a, labels["choice_2"]: b, labels["choice_tie"]: "tie"}
        values = {name: value for name, value in given.items() if value is not None}
        return Vote(item, annotator, {name: self._value(name, value, allowed) for name, value in values.items()})

    def _value(self, question: str, value: Any, verdicts: Mapping[str, str]) -> str | int:
        if question == VERDICT:
            if isinstance(value, str) and value in verdicts:
                return verdicts[value]
            raise self._error(f"{question} {value!r}; there are {', '.join(verdicts)}")
        criterion = next(c for c in self.task.criteria if c.name == question)
        if isinstance(value, str) and value.lstrip("-").isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not criterion.low <= value <= criterion.high:
            raise self._error(f"{question} {value!r}; the scale goes from {criterion.low} to {criterion.high}")
        return value

    def _dicts(self, name: str, value: Any) -> list[dict[str, Any]]:
        """A list of objects, or nothing."""
        entries = value or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error(f"{name} is no list of objects")
        return entries

    def _text(self, name: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise self._error(f"{name} is {value!r}")
        return str(value)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a JSON list or of JSONL with their place."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} isn't valid UTF-8", path=path, reason="bad_encoding") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty", path=path)
    if text.lstrip().startswith("["):
        rows = [(f"{path} row {i}", row) for i, row in enumerate(_loads(text, str(path)))]
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"{path}:{i}", _loads(line, f"{path}:{i}")) for i, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: no JSON object", path=path, row=where, reason="unreadable_line")
        yield where, row


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON: {error}", row=where, reason="unreadable_line") from None


def _field_label(name: str, labels: Mapping[str, str]) -> str:
    if name.startswith("image_"):
        return f"{labels['image']} {name.removeprefix('image_')}"
    return labels[name]


def _criterion_label(criterion: Criterion, labels: Mapping[str, str]) -> str:
    return (
        f"{criterion.name}: {criterion.description} ({labels['scale'].format(low=criterion.low, high=criterion.high)})"
    )


def _choices(name: str, shown: str, options: Mapping[str, str]) -> Sequence[str]:
    lines = [f'  <Choices name="{name}" toName="{shown}" choice="single" showInLine="true" required="true">']
    lines += [f"    <Choice value={quoteattr(text)} alias={quoteattr(value)}/>" for value, text in options.items()]
    return [*lines, "  </Choices>"]


def _argilla_verdict(labels: Mapping[str, str]) -> dict[str, Any]:
    options = [{"value": choice, "text": labels[f"choice_{choice.rpartition('_')[2]}"]} for choice in CHOICES]
    return {
        "name": VERDICT,
        "title": labels[VERDICT],
        "required": True,
        "settings": {"type": "label_selection", "options": options},
    }


def _argilla_rating(criterion: Criterion, labels: Mapping[str, str]) -> dict[str, Any]:
    values = range(criterion.low, criterion.high + 1)
    return {
        "name": criterion.name,
        "title": criterion.name,
        "description": _criterion_label(criterion, labels),
        "required": True,
        "settings": {"type": "rating", "options": [{"value": value} for value in values]},
    }
