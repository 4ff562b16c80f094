"""Votes out and in: what tools take, what they export (forms as their own code writes them), blind order, bad files."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from mmreason.clients.agreement import krippendorff_alpha
from mmreason.clients.judge_types import Criterion, PairItem, RubricItem
from mmreason.clients.votes import (
    Vote,
    Votes,
    VoteTask,
    human_agreement,
    judge_agreement,
    vote_rows,
    write_items,
    write_votes,
)
from mmreason.clients.votes_tools import argilla_settings, label_studio_config, read_votes
from mmreason.types import ConfigError, DataError

PAIRS = [PairItem(id=f"q{i}", question=f"Why {i}?", answer_a=f"A's {i}", answer_b=f"B's {i}") for i in range(40)]
TASK = VoteTask(seed=7)
RATED = VoteTask(criteria=(Criterion("correctness", "Right & <proper>."), Criterion("clarity", '"Clear"', 0, 5)))
SINGLE = [RubricItem(id=f"s{i}", question="Why?", answer=f"because {i}") for i in range(3)]


def annotated(row, *votes, task=TASK):
    """A task as Label Studio exports it; a vote is (annotator, the chosen text for each question)."""
    annotations = []
    for number, (who, given) in enumerate(votes):
        results = [
            {"id": f"r{number}{name}", "from_name": name, "to_name": task.fields[-1], "type": "choices",
             "origin": "manual", "value": {"choices": [value]}}
            for name, value in given.items()
        ]  # fmt: skip
        annotations.append(
            {"id": number, "completed_by": who, "result": results, "was_cancelled": False, "ground_truth": False,
             "updated_at": f"2025-03-0{number + 1}T10:00:00.000000Z", "lead_time": 4.2}
        )  # fmt: skip
    return {"id": 1000, "data": row, "annotations": annotations, "predictions": [], "project": 3}


def record(row, responses):
    """A record as Argilla's `records.to_json` writes it."""
    fields = {name: row[name] for name in TASK.fields}
    return {"id": row["id"], "fields": fields, "metadata": {"blind": row["blind"]}, "suggestions": {},
            "responses": responses, "vectors": {}, "status": "completed", "_server_id": None}  # fmt: skip


def prefer_a(row):
    """What someone who likes A's texts clicks."""
    return "answer_1" if row["answer_1"].startswith("A's") else "answer_2"


def test_rows_are_blind_and_the_seed_decides():
    rows = vote_rows(PAIRS, TASK)
    exchanged = [row["answer_1"].startswith("B's") for row in rows]
    assert 8 < sum(exchanged) < 32
    assert {row["answer_1"][0] + row["answer_2"][0] for row in rows} == {"AB", "BA"}
    assert vote_rows(PAIRS, TASK) == rows
    assert [row["answer_1"] for row in vote_rows(PAIRS, VoteTask(seed=8))] != [row["answer_1"] for row in rows]
    # The order of an item doesn't depend on which others are there, and the mark doesn't tell it.
    assert vote_rows(PAIRS[5:6], TASK) == rows[5:6]
    assert len({row["blind"] for row in rows}) == len(rows)
    assert all(re.fullmatch(r"[0-9a-f]{8}", row["blind"]) for row in rows)


def test_a_file_of_items_for_each_tool(tmp_path):
    write_items(tmp_path / "items.jsonl", PAIRS, TASK)
    lines = (tmp_path / "items.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == vote_rows(PAIRS, TASK)
    write_items(tmp_path / "items.json", PAIRS, TASK)
    assert json.loads((tmp_path / "items.json").read_text()) == [{"data": row} for row in vote_rows(PAIRS, TASK)]
    assert {path.name for path in tmp_path.iterdir()} == {"items.jsonl", "items.json"}
    with pytest.raises(ConfigError, match=r"\.jsonl"):
        write_items(tmp_path / "items.csv", PAIRS, TASK)


def test_label_studios_export_is_read_and_the_order_undone(tmp_path):
    rows = vote_rows(PAIRS, TASK)
    tasks = [
        annotated(row, (1, {"verdict": prefer_a(row)}), ({"id": 2, "email": "b@x.org"}, {"verdict": "tie"}))
        for row in rows
    ]
    tasks[0]["annotations"][1]["was_cancelled"] = True
    tasks[1]["annotations"][1]["result"] = []
    tasks[2]["annotations"] = []
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    votes = read_votes(path, TASK)
    assert {vote.values["verdict"] for vote in votes.votes if vote.annotator == "1"} == {"A"}
    assert {vote.values["verdict"] for vote in votes.votes if vote.annotator == "b@x.org"} == {"tie"}
    assert votes.skipped == {"cancelled": 1, "empty": 1, "item_without_votes": 1}
    assert len(votes.votes) == 2 * 40 - 4


def test_the_later_annotation_of_the_same_person_counts(tmp_path):
    row = vote_rows(PAIRS, TASK)[0]
    task = annotated(row, (1, {"verdict": "answer_1"}), (1, {"verdict": "tie"}))
    task["annotations"].reverse()
    (tmp_path / "export.json").write_text(json.dumps([task]))
    votes = read_votes(tmp_path / "export.json", TASK)
    assert votes.votes == [Vote("q0", "1", {"verdict": "tie"})] and votes.skipped == {"repeated": 1}


def test_argillas_export_is_read_nested_and_flattened(tmp_path):
    rows = vote_rows(PAIRS, TASK)
    nested = [
        record(row, {"verdict": [{"value": prefer_a(row), "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]})
        for row in rows
    ]
    (tmp_path / "nested.json").write_text(json.dumps(nested))
    votes = read_votes(tmp_path / "nested.json", TASK)
    assert {vote.values["verdict"] for vote in votes.votes if vote.annotator == "u1"} == {"A"}
    assert votes.annotators == ["u1", "u2"] and votes.skipped == {}
    flat = [
        {**row, "status": "completed", "_server_id": None, "verdict.responses": [prefer_a(row), "tie"],
         "verdict.responses.users": ["u1", "u2"], "verdict.responses.status": ["submitted", "draft"]}
        for row in rows
    ]  # fmt: skip
    (tmp_path / "flat.jsonl").write_text("\n".join(map(json.dumps, flat)))
    votes = read_votes(tmp_path / "flat.jsonl", TASK)
    assert votes.annotators == ["u1"] and {vote.values["verdict"] for vote in votes.votes} == {"A"}
    assert votes.skipped == {"not_submitted": 40}


def test_ratings_go_through_both_tools(tmp_path):
    rows = vote_rows(SINGLE, RATED)
    assert "blind" not in rows[0] and rows[0]["answer"] == "because 0"
    tasks = [
        annotated(row, (1, {"correctness": "10", "clarity": "0"}), (2, {"correctness": "9"}), task=RATED)
        for row in rows
    ]
    (tmp_path / "ls.json").write_text(json.dumps(tasks))
    votes = read_votes(tmp_path / "ls.json", RATED)
    assert votes.votes[0].values == {"correctness": 10, "clarity": 0}
    assert votes.table("clarity") == (["s0", "s1", "s2"], [[0, None]] * 3)
    responses = {"correctness": [{"value": 3, "user_id": "u"}], "clarity": [{"value": 5, "user_id": "u"}]}
    (tmp_path / "argilla.json").write_text(
        json.dumps([{"id": "s0", "fields": {}, "metadata": {}, "responses": responses}])
    )
    assert read_votes(tmp_path / "argilla.json", RATED).votes == [Vote("s0", "u", {"correctness": 3, "clarity": 5})]


def test_plain_votes_come_back_as_they_were(tmp_path):
    votes = Votes([Vote("q0", "ann", {"verdict": "A"}), Vote("q0", "bob", {"verdict": "tie"})])
    write_votes(tmp_path / "votes.jsonl", votes)
    assert json.loads((tmp_path / "votes.jsonl").read_text().splitlines()[0]) == {
        "id": "q0",
        "annotator": "ann",
        "verdict": "A",
    }
    assert read_votes(tmp_path / "votes.jsonl", TASK) == votes


def test_the_labelling_interface_names_what_the_rows_have():
    view = ET.fromstring(label_studio_config(VoteTask(seed=1, reference=True, images=2)))
    shown = {element.get("value")[1:] for element in view if element.tag in ("Text", "Image")}
    assert shown == {"question", "image_1", "image_2", "reference", "answer_1", "answer_2"}
    choices = view.find("Choices")
    assert choices.get("toName") in shown and choices.get("name") == "verdict"
    assert [choice.get("alias") for choice in choices] == ["answer_1", "answer_2", "tie"]
    rated = ET.fromstring(label_studio_config(RATED))
    assert [element.get("name") for element in rated.findall("Choices")] == ["correctness", "clarity"]
    assert [choice.get("value") for choice in rated.findall("Choices")[1]] == list("012345")
    assert any("Right & <proper>." in element.get("value") for element in rated.findall("Header"))
    chinese = label_studio_config(VoteTask(language="zh"))
    assert "哪个回答更好" in chinese and "Answer" not in chinese


def test_argillas_settings_name_what_the_rows_have():
    settings = argilla_settings(VoteTask(reference=True), votes_per_item=3)
    assert [field["name"] for field in settings["fields"]] == ["question", "reference", "answer_1", "answer_2"]
    assert [option["value"] for option in settings["questions"][0]["settings"]["options"]] == [
        "answer_1",
        "answer_2",
        "tie",
    ]
    assert settings["metadata"][0]["name"] == "blind" and not settings["metadata"][0]["visible_for_annotators"]
    assert settings["distribution"] == {"strategy": "overlap", "min_submitted": 3}
    rated = argilla_settings(RATED)
    assert [question["settings"]["type"] for question in rated["questions"]] == ["rating", "rating"]
    assert [option["value"] for option in rated["questions"][1]["settings"]["options"]] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="from 0 to 10, not from 1 to 20"):
        argilla_settings(VoteTask(criteria=(Criterion("x", "", 1, 20),)))


ROW = vote_rows(PAIRS, TASK)[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "q1", "annotator": "x", "verdict": "A"}\nnot json', r"votes.jsonl:2: no JSON"),
        ('{"id": "q1", "annotator": "x", "verdict": "A"}\n[1]', r"votes.jsonl:2: no JSON object"),
        ('{"id": "q1", "annotator": "x", "verdict": "left"}', r"votes.jsonl:1: verdict 'left'; there are A, B, tie"),
        ('{"id": "q1", "annotator": "x", "verdct": "A"}', r"votes.jsonl:1: a vote has verdict; this row has id, annot"),
        ('{"id": "q1", "verdict": "A"}', r"votes.jsonl:1: neither a task of Label Studio"),
        ('\n{"id": null, "annotator": "x", "verdict": "A"}', r"votes.jsonl:2: id is None"),
        (json.dumps([annotated(ROW, (1, {"verdict": "answer_3"}))]), r"votes.jsonl row 0: verdict 'answer_3'"),
        (json.dumps([annotated({"id": "q0"}, (1, {"verdict": "tie"}))]), r"row 0: item q0 was written with"),
        (json.dumps([annotated({**ROW, "id": "q1"}, (1, {"verdict": "tie"}))]), r"another seed or task"),
        (json.dumps([{"data": ROW, "annotations": 3}]), r"row 0: annotations is no list of objects"),
        (json.dumps([{"id": 1, "annotations": []}]), r"row 0: a task of Label Studio has `data`"),
        (json.dumps([record(ROW, {"verdict": [{"value": "tie"}]})]), r"row 0: user_id is None"),
        (json.dumps([{**ROW, "verdict.responses": ["tie"]}]), r"1 responses, 0 users, 0 states"),
        ("", r"the file is empty"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_their_place(tmp_path, lines, message):
    path = tmp_path / "votes.jsonl"
    path.write_text(lines)
    with pytest.raises(DataError, match=message):
        read_votes(path, TASK)


def test_more_bad_files(tmp_path):
    with pytest.raises(DataError, match="missing.json: can't be read"):
        read_votes(tmp_path / "missing.json", TASK)
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}')
    with pytest.raises(DataError, match=r"byte 12 isn't valid UTF-8"):
        read_votes(tmp_path / "latin.jsonl", TASK)
    (tmp_path / "rated.jsonl").write_text('{"id": "s0", "annotator": "x", "correctness": 11}')
    with pytest.raises(DataError, match="correctness 11; the scale goes from 1 to 10"):
        read_votes(tmp_path / "rated.jsonl", RATED)


def test_another_seed_is_noticed(tmp_path):
    (tmp_path / "export.json").write_text(json.dumps([annotated(ROW, (1, {"verdict": "tie"}))]))
    read_votes(tmp_path / "export.json", TASK)
    with pytest.raises(DataError, match="another seed"):
        read_votes(tmp_path / "export.json", VoteTask(seed=8))


def test_items_that_do_not_fit_the_task_are_refused():
    with pytest.raises(DataError, match=r"item s0: the task takes pairs"):
        vote_rows(SINGLE, TASK)
    with pytest.raises(DataError, match="item q0: no reference"):
        vote_rows(PAIRS, VoteTask(reference=True))
    with pytest.raises(DataError, match="item q0: 0 images; the task says 1"):
        vote_rows(PAIRS, VoteTask(images=1))
    item = PairItem(id="q0", question="", answer_a="", answer_b="", images=(b"GIF89a",))
    with pytest.raises(DataError, match="neither PNG nor JPEG"):
        vote_rows([item], VoteTask(images=1))
    with pytest.raises(ConfigError, match="'q0' stands twice"):
        vote_rows([PAIRS[0], PAIRS[0]], TASK)
    with pytest.raises(ConfigError, match="criterion 'answer'"):
        VoteTask(criteria=(Criterion("answer", ""),))
    png = PairItem(id="q0", question="", answer_a="", answer_b="", images=(b"\x89PNG\r\n",))
    assert vote_rows([png], VoteTask(images=1))[0]["image_1"] == "data:image/png;base64,iVBORw0K"


def test_tasks_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="language 'fr'; there are en, zh"):
        VoteTask(language="fr")
    with pytest.raises(ConfigError, match="images -1"):
        VoteTask(images=-1)


def test_a_judges_verdict_that_is_none_is_refused():
    votes = Votes([Vote("q0", "x", {"verdict": "A"})])
    with pytest.raises(DataError, match="item q0: the judge's verdict is 'a'; there are A, B, tie"):
        judge_agreement(votes, {"q0": "a"})


def test_people_among_themselves_and_against_a_judge():
    given = {"q0": "AAA", "q1": "BBA", "q2": "BBB", "q3": "AAB", "q4": "BAB"}
    votes = Votes(
        [Vote(item, name, {"verdict": v}) for item, row in given.items() for name, v in zip("xyz", row, strict=True)]
    )
    humans = human_agreement(votes, resamples=100)
    assert (humans.kappa_kind, humans.raters, humans.items) == ("fleiss", 3, 5)
    assert humans.alpha == pytest.approx(krippendorff_alpha([list(row) for row in given.values()]))
    judged = {"q0": "A", "q1": "B", "q2": "A", "q3": None, "q9": "B"}
    report = judge_agreement(votes, judged, resamples=100)
    assert report.humans.alpha == humans.alpha
    assert (report.with_consensus.items, report.with_consensus.percent) == (3, pytest.approx(2 / 3))
    assert report.with_consensus.kappa_kind == "cohen"
    assert {name: figures.percent for name, figures in report.with_each.items()} == pytest.approx(
        {"x": 2 / 3, "y": 2 / 3, "z": 1 / 3}
    )
    assert (report.only_people, report.only_judge) == (2, 1)


def test_ratings_of_people_against_a_judge_use_the_mean():
    votes = Votes([Vote(f"s{i}", who, {"clarity": i + j}) for i in range(4) for j, who in enumerate("xy")])
    report = judge_agreement(votes, {f"s{i}": i + 0.5 for i in range(4)}, "clarity", resamples=50)
    assert report.with_consensus.alpha == pytest.approx(1.0) and report.humans.level == "interval"
    with pytest.raises(ConfigError, match="nobody answered 'correctness'; there are clarity"):
        human_agreement(votes, "correctness")
