"""The builder of picture instructions through its command line, with a teacher that is a real HTTP server."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from data_builders import visual_instruct
from data_builders._visual.grounding import Ground, ungrounded
from data_builders._visual.making import hallucinated, without_hallucinated
from data_builders._visual.scienceqa import contradiction
from mmreason.answers.verify import verify
from tests.clients.server import Running
from tests.data_builders.teaching import kill_when, manifest_of, rows_in, words, write_rows
from tests.data_builders.visual_teacher import LIE, is_liar, visual_teacher

Row = dict[str, Any]
WORD = "data_builders.visual_instruct"


def captioned(shared_data: Path, n: int) -> list[Row]:
    path = shared_data / "llava" / "caps_boxes_coco2014_val_80.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n]]


def draw_pictures(rows: Sequence[Row], folder: Path) -> None:
    """A picture for each row, where no real one is: its boxes, each category in a color of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        image = Image.new("RGB", (64, 48), "white")
        pen = ImageDraw.Draw(image)
        for box in row.get("instances", ()):
            digest = hashlib.sha256(box["category"].encode()).digest()
            x0, y0, x1, y1 = box["bbox"]
            pen.rectangle((x0 * 63, y0 * 47, x1 * 63, y1 * 47), outline=tuple(digest[:3]))
        image.save(folder / row["image"], "JPEG" if row["image"].endswith("jpg") else "PNG")


@pytest.fixture
def source(shared_data: Path, tmp_path: Path) -> Path:
    """Twelve real annotations with drawn pictures, in a folder of their own."""
    rows = captioned(shared_data, 12)
    draw_pictures(rows, tmp_path / "data" / "images")
    return write_rows(tmp_path / "data" / "pictures.jsonl", rows)


def run(server: Running, source: Path, out: Path, **options: Any) -> int:
    """The command in this process."""
    given = {"source": [str(source)], "image_root": source.parent / "images", "out": out, "license": "cc-by-4.0"}
    return visual_instruct.main(words(server, **(given | options)))


def texts_of(row: Row) -> str:
    return json.dumps([row["prompt"], row["completion"]], ensure_ascii=False)


def test_three_kinds_of_real_annotations(source: Path, tmp_path: Path, shared_data: Path) -> None:
    """All twelve pictures in the three kinds; just the texts that name the violin are dropped."""
    with visual_teacher() as server:
        assert run(server, source, tmp_path / "out") == 0
        log = server.log
    annotations = captioned(shared_data, 12)
    rows, manifest = rows_in(tmp_path / "out"), manifest_of(tmp_path / "out")
    lied = {entry.prompt for entry in log if is_liar(entry.prompt, 1)}
    assert 0 < len(lied) < 12 and len(log) == 36
    assert all("data:image" not in json.dumps(entry.body) for entry in log), "a teacher of annotations sees no picture"
    assert len(rows) == 3 * (12 - len(lied))
    assert manifest["counts"]["dropped"] == {"hallucinated": 3 * len(lied)}
    by_id = {row["id"]: row for row in rows}
    for annotation in annotations:
        for kind in ("conversation", "detail", "reasoning"):
            row = by_id.get(f"{kind}/en/{annotation['id']}")
            if row is None:
                continue
            assert row["meta"]["captions"] == annotation["captions"] and row["meta"]["parent"] == annotation["id"]
            assert row["meta"]["boxes"][0]["category"] == annotation["instances"][0]["category"]
            assert row["images"][0].size == (64, 48)
            assert row["prompt"][0]["content"][0] == {"type": "image"}
            assert "violin" not in texts_of(row)
    turn = by_id[next(key for key in by_id if key.startswith("conversation"))]
    assert [message["role"] for message in turn["prompt"]] == ["user", "assistant", "user"]
    assert by_id[next(key for key in by_id if key.startswith("reasoning"))]["completion"][0]["reasoning_content"]
    source_note, images_note = manifest["sources"]
    assert images_note["rows"] == 0 and images_note["name"].endswith("images [12 images]")
    assert source_note["license"] == "cc-by-4.0" and source_note["rows"] == 12 and len(source_note["sha256"]) == 64


@pytest.mark.parametrize("cure", ["ask", "cut"])
def test_hallucinations_are_cured_on_request(cure: str, source: Path, tmp_path: Path) -> None:
    with visual_teacher() as server:
        assert run(server, source, tmp_path / "out", on_hallucination=cure, kinds=["conversation", "detail"]) == 0
        log = server.log
    rows, counts = rows_in(tmp_path / "out"), manifest_of(tmp_path / "out")["counts"]
    lied = [entry for entry in log if is_liar(entry.prompt, 1) and len(entry.body["messages"]) == 2]
    assert lied and len(rows) == 24 and counts["dropped"] == {}
    assert not any("violin" in texts_of(row) for row in rows)
    assert counts["extra"]["repaired"] == len(lied)
    if cure == "ask":
        complaints = [entry for entry in log if len(entry.body["messages"]) == 4]
        assert len(complaints) == len(lied) and all("violin" in entry.prompt for entry in complaints)
    else:
        assert len(log) == 24 and any(len(row["prompt"]) == 1 for row in rows if row["meta"]["task"] == "conversation")


def test_what_stays_wrong_is_dropped(tmp_path: Path) -> None:
    rows = [{"id": "a", "image": "a.png", "captions": ["A stubborn cat."]}]
    draw_pictures(rows, tmp_path / "images")
    source = write_rows(tmp_path / "pictures.jsonl", rows)
    with visual_teacher() as server:
        assert run(server, source, tmp_path / "out", on_hallucination="ask", kinds=["reasoning"]) == 0
        assert len(server.log) == 2
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["dropped"] == {"hallucinated": 1} and counts["extra"]["asked_again"] == 1


def test_cutting_keeps_what_is_grounded() -> None:
    ground = Ground.of(["A cat on a bench."])
    turns = [{"question": "What is it?", "answer": "A cat."}, {"question": "Is there a dog?", "answer": "Yes, a dog."}]
    assert without_hallucinated("conversation", {"turns": turns}, ground) == {"turns": turns[:1]}
    assert without_hallucinated("conversation", {"turns": turns[1:]}, ground) is None
    said = {"description": "A cat sits on a bench. A dog is there too.\nThe cat sleeps."}
    assert without_hallucinated("detail", said, ground) == {"description": "A cat sits on a bench. The cat sleeps."}
    assert without_hallucinated("reasoning", {"question": "", "reasoning": "A dog.", "answer": ""}, ground) is None
    denied = [{"question": "Is there a dog?", "answer": "No, there is no dog."}]
    assert without_hallucinated("conversation", {"turns": denied}, ground) == {"turns": denied}


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("Is there a dog?", "No, there is only a cat.", []),
        ("Is there a dog next to the violin?", "No.", ["violin"]),
        ("Is there a cat next to the violin?", "No, there isn't.", ["violin"]),
        ("Is there a carriage?", "No, there is a car.", ["car"]),
        ("有大象吗？旁边有小提琴吗？", "没有。", ["小提琴"]),
    ],
)
def test_only_what_was_asked_for_may_be_named_and_denied(question: str, answer: str, found: list[str]) -> None:
    said = {"turns": [{"question": question, "answer": answer}]}
    assert hallucinated("conversation", said, Ground.of(["A cat on a bench."])) == found


def test_pictures_of_two_sources_with_the_same_id(tmp_path: Path) -> None:
    """Each is held against its own list; the same text about both is two rows."""
    replies, sources = {}, []
    for name, color in (("one", "red"), ("two", "blue")):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (40, 30), color).save(folder / "a.png")
        data = (folder / "a.png").read_bytes()
        replies[hashlib.sha256(data).hexdigest()] = json.dumps([f"The {color} picture shows a cat.", "It sleeps."])
        sources.append(write_rows(folder / "rows.jsonl", [{"id": "p", "image": "a.png", "captions": ["A cat."]}]))
    with visual_teacher(replies=replies) as server:
        given = {"source": list(map(str, sources)), "sees": "both", "inventory": "always", "kinds": ["conversation"]}
        assert visual_instruct.main(words(server, out=tmp_path / "out", license="cc-by-4.0", **given)) == 0
        log = server.log
    assert len([entry for entry in log if "List the objects" in entry.body["messages"][0]["content"]]) == 2
    rows = rows_in(tmp_path / "out")
    assert len(rows) == 2 and texts_of(rows[0]) == texts_of(rows[1])
    assert rows[0]["meta"]["parent"] == rows[1]["meta"]["parent"] == "p"


def test_a_seeing_teacher_gets_the_bytes_and_lists_what_it_sees(tmp_path: Path) -> None:
    """Rows without any annotation: one list for each picture, and the texts are held against it."""
    rows = [{"id": f"p{i}", "image": f"{i}.png", "instances": [], "color": i} for i in range(6)]
    folder = tmp_path / "images"
    folder.mkdir()
    shown, replies = {}, {}
    for row in rows:
        Image.new("RGB", (40, 30), (row["color"] * 40, 90, 160)).save(folder / row["image"])
        data = (folder / row["image"]).read_bytes()
        shown[row["id"]] = data
        replies[hashlib.sha256(data).hexdigest()] = json.dumps([f"A cat with {row['id']} balls.", "It sleeps."])
    source = write_rows(tmp_path / "pictures.jsonl", rows)
    with visual_teacher(replies=replies) as server:
        kinds = ["detail", "reasoning"]
        assert run(server, source, tmp_path / "out", sees="image", kinds=kinds) == 0
        log = server.log
    lists = [entry for entry in log if "List the objects" in entry.body["messages"][0]["content"]]
    assert len(lists) == 6 and len(log) == 18
    assert all(entry.body["messages"][1]["content"][0]["type"] == "image_url" for entry in log)
    got = rows_in(tmp_path / "out")
    lied = sum(is_liar(f"A cat with {row['id']} balls.", 1) for row in rows)
    assert 0 < lied < 6
    assert len(got) == 12 - 2 * lied
    for row in got:
        assert row["meta"]["parent"] in row["completion"][0]["content"] + row["completion"][0].get(
            "reasoning_content", ""
        )


def test_chinese_is_asked_for_and_checked(source: Path, tmp_path: Path) -> None:
    with visual_teacher() as server:
        assert run(server, source, tmp_path / "out", language="zh", kinds=["detail", "conversation"]) == 0
        log = server.log
    assert all("请用简体中文写" in entry.body["messages"][0]["content"] for entry in log)
    rows, counts = rows_in(tmp_path / "out"), manifest_of(tmp_path / "out")["counts"]
    lied = sum(is_liar(entry.prompt, 1) for entry in log)
    assert lied and counts["dropped"] == {"hallucinated": lied} and len(rows) == 24 - lied
    assert not any("小提琴" in texts_of(row) for row in rows)
    assert all(re.search(r"[一-鿿]", row["prompt"][0]["content"][1]["text"]) for row in rows)


@pytest.mark.parametrize("origin", ["captions", "boxes", "teacher"])
def test_captions_to_align_with(origin: str, source: Path, tmp_path: Path, shared_data: Path) -> None:
    with visual_teacher() as server:
        options = {"task": "captions", "captions_from": origin}
        if origin != "teacher":
            options["teacher"] = "null"
        assert run(server, source, tmp_path / "out", **options) == 0
        asked = len(server.log)
    assert asked == (12 if origin == "teacher" else 0)
    by_id = {row["id"]: row for row in captioned(shared_data, 12)}
    rows = rows_in(tmp_path / "out")
    assert len(rows) >= 6
    for row in rows:
        annotation = by_id[row["meta"]["parent"]]
        caption = row["completion"][0]["content"]
        assert row["answer"] == caption
        assert not ungrounded(
            caption, Ground.of(annotation["captions"], [b["category"] for b in annotation["instances"]])
        )
        if origin == "captions":
            assert caption in annotation["captions"]
        if origin == "boxes":
            most = Counter(box["category"] for box in annotation["instances"]).most_common(1)[0][0]
            assert caption.endswith(".") and (most == "person" or most in caption.lower())


# ---- ScienceQA


def science(shared_data: Path, folder: Path) -> Path:
    """The 150 full rows, with the three of their images that are here, where the official set has them."""
    from mmreason.data.reader import read_rows

    folder.mkdir()
    file = shared_data / "scienceqa" / "problems_150_full_fields.jsonl"
    (folder / "problems.jsonl").write_bytes(file.read_bytes())
    wanted = {json.loads(line)["id"]: json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()}
    for _, row in read_rows(shared_data / "images" / "scienceqa_test_400.parquet"):
        if not isinstance(row, dict) or row["id"] not in wanted:
            continue
        place = folder / "images" / "test" / row["id"]
        place.mkdir(parents=True)
        (place / wanted[row["id"]]["image"]).write_bytes(row["image"]["bytes"])
    return folder / "problems.jsonl"


def test_scienceqa_lectures_become_reasoning(shared_data: Path, tmp_path: Path) -> None:
    source = science(shared_data, tmp_path / "scienceqa")
    command = ["--task", "scienceqa", "--source", str(source), "--decontaminate", "[]", "--out", str(tmp_path / "out")]
    assert visual_instruct.main(command) == 2, "64 rows lack their image"
    assert visual_instruct.main([*command, "--missing_images", "drop", "--report", "false"]) == 0
    manifest, rows = manifest_of(tmp_path / "out"), rows_in(tmp_path / "out")
    assert manifest["told"] == {"rows_without_their_image": 64}
    assert manifest["counts"]["extra"]["with_image"] == 3 == sum(bool(row["images"]) for row in rows)
    originals = {row["id"]: row for row in map(json.loads, source.read_text(encoding="utf-8").splitlines())}
    assert len(rows) + sum(manifest["counts"]["dropped"].values()) == 86 and len(rows) >= 80
    for row in rows:
        original = originals[row["meta"]["parent"]]
        gold = "ABCDEFGH"[original["answer"]]
        said = row["completion"][0]
        assert row["answer"] == gold and verify(said["content"], gold, "choice", original["choices"]).correct
        for text in (original["lecture"], original["solution"]):
            first = text.split("\n")[0].split("  ")[0].strip()
            assert first in said["reasoning_content"]
        parts = row["prompt"][0]["content"]
        assert (not isinstance(parts, str)) == bool(row["images"])


def test_llavas_one_text_form(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "scienceqa" / "minitrain_1000_cot.jsonl"
    command = ["--task", "scienceqa", "--source", str(source), "--decontaminate", "[]", "--out", str(tmp_path / "out")]
    assert (
        visual_instruct.main(
            [*command, "--missing_images", "drop", "--report", "false", "--source_split", "train[:300]"]
        )
        == 0
    )
    rows = rows_in(tmp_path / "out")
    assert len(rows) > 100
    assert all(row["completion"][0]["reasoning_content"] and "(A)" in row["prompt"][0]["content"] for row in rows)


def test_a_solution_that_concludes_otherwise_is_seen() -> None:
    choices = ["a red ball", "a blue ball"]
    assert contradiction("It rolls. So, the answer is a red ball.", choices, "B") is not None
    assert contradiction("It rolls. So, the answer is a blue ball.", choices, "B") is None
    assert contradiction("A red ball is smaller. A blue ball is not.", choices, "A") is None


# ---- killed, and bad input


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [12, *(pytest.param(moment, marks=pytest.mark.soak) for moment in (1, 3, 6, 7, 15, 20, 25, 30, 35))]
)
def test_killed_and_run_again(moment: int, source: Path, tmp_path: Path) -> None:
    """kill -9 after so many requests: the rows of an unbroken run, nothing that was answered is asked again."""
    with visual_teacher() as server:
        assert run(server, source, tmp_path / "whole", tasks_per_shard=6) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.parquet")}
    with visual_teacher(latency_s=0.1, jitter=0.9) as server:
        given = {
            "source": [str(source)], "image_root": source.parent / "images", "out": tmp_path / "out",
            "license": "cc-by-4.0", "tasks_per_shard": 6, "concurrency": 3,
        }  # fmt: skip
        command = [WORD, *words(server, **given)]
        assert kill_when(command, lambda: len(server.log) >= moment)
        assert moment <= len(server.log) < 36 + 3
        assert visual_instruct.main(command[1:]) == 0
        asked = [json.dumps(entry.body, sort_keys=True) for entry in server.log]
    assert len(set(asked)) == 36
    assert len(asked) - 36 <= 3, "only what was in flight at the kill may be asked again"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")} == whole


@pytest.mark.slow
@pytest.mark.parametrize("task", ["instruct", pytest.param("geometry", marks=pytest.mark.soak)])
def test_the_rows_train_a_step(task: str, source: Path, tmp_path: Path) -> None:
    """recipes/sft.py by its command line, on a tiny model with eyes."""
    from tests.data_builders.training import train_one_step
    from tests.tiny_vlms import tiny_vlm

    out = tmp_path / "out"
    if task == "instruct":
        with visual_teacher() as server:
            assert run(server, source, out, limit=9) == 0
    else:
        command = ["--task", task, "--n", "4", "--out", str(out), "--decontaminate", "[]", "--report", "false"]
        assert visual_instruct.main(command) == 0
    logged = train_one_step(out, tmp_path, model_name_or_path=tiny_vlm("qwen2_5_vl", tmp_path / "model"))
    assert logged["loss"] > 0


def error_of(capsys: pytest.CaptureFixture[str], server: Running, source: Path, tmp_path: Path, **options: Any) -> str:
    assert run(server, source, tmp_path / "out", **options) == 2
    assert not server.log, "nothing may be asked before the error"
    return capsys.readouterr().err


def test_errors_before_the_first_paid_call(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_data: Path
) -> None:
    folder = source.parent / "images"
    rows = captioned(shared_data, 3)
    with visual_teacher() as server:
        gone = folder / rows[1]["image"]
        gone.rename(folder / "elsewhere.jpg")
        told = error_of(capsys, server, source, tmp_path)
        assert "pictures.jsonl:2" in told and rows[1]["image"] in told and "--missing_images drop" in told
        (folder / "elsewhere.jpg").rename(gone)

        outside = [{"id": "x", "image": "../../secret.png", "captions": ["A cat."]}]
        Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
        told = error_of(capsys, server, write_rows(source.parent / "out.jsonl", outside), tmp_path)
        assert "out.jsonl:1" in told and "leads out of" in told

        bare = write_rows(source.parent / "bare.jsonl", [{"id": "x", "image": rows[0]["image"]}])
        assert "neither captions nor boxes" in error_of(capsys, server, bare, tmp_path)
        twice = write_rows(source.parent / "twice.jsonl", [rows[0], rows[0]])
        assert "the id" in error_of(capsys, server, twice, tmp_path)
        odd = write_rows(source.parent / "odd.jsonl", [{**rows[0], "instances": [{"bbox": [0, 0, 1, 1]}]}])
        assert "a box is" in error_of(capsys, server, odd, tmp_path)
        empty = write_rows(source.parent / "empty.jsonl", [])
        assert "empty" in error_of(capsys, server, empty, tmp_path)
        broken = source.parent / "latin.jsonl"
        broken.write_bytes('{"id": "é", "image": "a.jpg"}\n'.encode("latin-1"))
        assert "UTF-8" in error_of(capsys, server, broken, tmp_path)
        for options, said in (
            ({"task": "instrct"}, "Did you mean 'instruct'"),
            ({"kinds": ["detial"]}, "Did you mean 'detail'"),
            ({"task": "charts"}, "takes no --source"),
            ({"task": "scienceqa", "language": "zh"}, "the set is English"),
            ({"task": "captions", "language": "both"}, "no caption in the language zh"),
            ({"image_size": 32}, "from 96 to 448"),
            ({"turns": 0}, "--turns must be at least 1"),
            ({"inventory": "always"}, "give --sees image or both"),
        ):
            assert said in error_of(capsys, server, source, tmp_path, **options), options


def test_a_damaged_picture_is_dropped_before_it_is_asked_about(source: Path, tmp_path: Path, shared_data: Path) -> None:
    victim = captioned(shared_data, 1)[0]
    path = source.parent / "images" / victim["image"]
    path.write_bytes(path.read_bytes()[:200])
    with visual_teacher() as server:
        assert run(server, source, tmp_path / "out", kinds=["detail"], on_hallucination="cut") == 0
        assert len(server.log) == 11
    assert manifest_of(tmp_path / "out")["counts"]["dropped"] == {"truncated_image": 1}


def test_the_lie_is_one() -> None:
    assert ungrounded(LIE["en"], Ground.of(["A cat."])) == ["violin"]
    assert ungrounded(LIE["zh"], Ground.of(["A cat."])) == ["小提琴"]
