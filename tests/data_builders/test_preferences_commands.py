"""The preference builder's command on real sets, with a real server as teacher and judge; its rows in plain TRL."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from data_builders._preferences.options import PreferenceOptions
from data_builders.building.runner import run
from data_builders.preferences import Preferences, main
from tests.clients.server import Running, running_server
from tests.data_builders.teaching import Ruled, kill_when, manifest_of, rows_in, words, write_rows

pytestmark = pytest.mark.slow
MODULE = "data_builders.preferences"
# A judge that looks for the gold at the end of an answer, in lines of text; it takes the first fragment that occurs.
JUDGE_REPLIES = {
    "A: 18\n</answer-A": "Here is why.\nVerdict: [[A]]",
    "A: 18\n</answer-B": "Here is why.\nVerdict: [[B]]",
    "<answer-A": "Neither.\nVerdict: [[tie]]",
}


def given(path: Path, out: Path, **more: Any) -> list[str]:
    """The words of a command without a teacher."""
    settings = {"source": path, "out": out, "decontaminate": "[]", "license": "MIT", "report": "false"} | more
    return [f"{name}={value}" for name, value in settings.items()]


def test_labelled_solutions_to_pairs_by_the_verifier(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "gsm8k" / "model_solutions_labeled.jsonl"
    assert main(given(path, tmp_path / "out", rank_by="verifier")) == 0
    manifest, rows = manifest_of(tmp_path / "out"), rows_in(tmp_path / "out")
    solutions: dict[str, dict[str, bool]] = defaultdict(dict)
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    for row in raw:
        solutions[row["question"]].setdefault(row["solution"], row["is_correct"])
    # Every right solution of a question with every wrong one, counted from the raw file.
    wanted = sum(
        sum(labels.values()) * (len(labels) - sum(labels.values())) for labels in map(dict, solutions.values())
    )
    assert len(rows) == manifest["counts"]["rows"]["kept"] == wanted > 1600
    agreement = manifest["told"]["agreement"]["verifier~label"]
    assert agreement["items"] == sum(map(len, solutions.values()))
    assert agreement["percent"] == agreement["kappa"] == 1.0
    assert manifest["told"]["left_out"][str(path)]["repeated_completion"] == 3600 - agreement["items"]
    assert manifest["sources"][0] | {"sha256": ""} == {
        "name": str(path), "rows": 3600, "license": "MIT", "revision": None, "sha256": "",
    }  # fmt: skip
    assert manifest["told"]["lengths"]["pairs"] == wanted


def test_hh_rlhf_is_imported_whole(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_data / "preference" / "hh_harmless_1k.jsonl"
    assert main(given(path, tmp_path / "strict")) == 2
    assert "5 of" in (said := capsys.readouterr().err) and "on_bad_row" in said
    assert main(given(path, tmp_path / "out", on_bad_row="drop")) == 0
    told, rows = manifest_of(tmp_path / "out")["told"], rows_in(tmp_path / "out")
    assert told["left_out"][str(path)] == {"empty_turn": 4, "role_order": 1} and len(rows) == 995
    raw = {json.loads(line)["chosen"] for line in path.read_text().splitlines()}
    for row in rows[::50]:
        turns = {"user": "Human", "assistant": "Assistant"}
        assert "".join(f"\n\n{turns[m['role']]}: {m['content']}" for m in [*row["prompt"], *row["chosen"]]) in raw


def judged(server: Running, path: Path, out: Path, **more: Any) -> list[str]:
    """A command whose judge is the server."""
    judge = {"base_url": server.base_url, "model": "judge", "api_key_env": None, "backoff_s": 0.01, "name": "judge"}
    settings = {"rank_by": "judge", "judges": json.dumps(judge), "judge_answers": "text", "judge_reference": "true"}
    return given(path, out, **settings, tasks_per_shard=4, concurrency=3, **more)


@pytest.fixture
def few_solutions(shared_data: Path, tmp_path: Path) -> Path:
    """The solutions of 12 questions; each question's answer is called 18, as the scripted judge expects it."""
    raw = (shared_data / "gsm8k" / "model_solutions_labeled.jsonl").read_text().splitlines()[:48]
    rows = []
    for number, row in enumerate(map(json.loads, raw)):
        text = row["solution"].rpartition("A:")[0] + ("A: 18" if row["is_correct"] else f"A: 7{number}")
        rows.append(row | {"solution": text, "gold": "18"})
    return write_rows(tmp_path / "few.jsonl", rows)


@pytest.mark.parametrize("moment", [0.5, *(pytest.param(i / 20, marks=pytest.mark.soak) for i in range(20))])
def test_a_judge_over_http_killed_and_resumed(few_solutions: Path, tmp_path: Path, moment: float) -> None:
    with running_server(replies=JUDGE_REPLIES, latency_s=0.01, jitter=0.5) as server:
        assert main(judged(server, few_solutions, tmp_path / "whole")) == 0
        asked = len(server.log)
    with running_server(replies=JUDGE_REPLIES, latency_s=0.02, jitter=0.5) as server:
        command = [MODULE, *judged(server, few_solutions, tmp_path / "killed")]
        assert kill_when(command, lambda: len(server.log) >= asked * moment)
        before = len(server.log)
        assert main(judged(server, few_solutions, tmp_path / "killed")) == 0
        # What was in flight at the kill is asked again, and nothing else.
        assert asked <= len(server.log) <= asked + 3 * 12 and before <= asked
    assert rows_in(tmp_path / "killed") == rows_in(tmp_path / "whole") != []
    told = [manifest_of(tmp_path / name)["told"] for name in ("killed", "whole")]
    assert told[0] == told[1]
    figures = told[0]["agreement"]["judge~verifier"]
    assert figures["without_ties"]["percent"] == 1.0 and figures["without_ties"]["items"] > 10
    # Of two right answers it takes the first, of two wrong ones none.
    bias = told[0]["position_bias"]["judge"]
    assert (
        bias["first"] > 0 == bias["second"] == bias["mixed"] and bias["first"] + bias["consistent"] == figures["items"]
    )


def test_samples_over_http_are_verified(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "gsm8k" / "train.jsonl"
    replies = {"Natalia": "A: 72", "Weng": "A: 11"}
    with running_server(replies=replies) as server:
        command = words(server, source=[str(path)], out=tmp_path / "out", candidates=["columns", "samples"], samples=2,
                        rank_by="verifier", source_split="train[:3]", license="MIT")  # fmt: skip
        assert main(command) == 0
        assert len(server.log) == 6 and server.log[0].body["temperature"] == 1.0
    rows = rows_in(tmp_path / "out")
    # Natalia's sample is right as the gold is; Weng's is wrong; the third one ends with a number of its question.
    assert rows[0]["chosen"][0]["content"] == "10" and rows[0]["rejected"][0]["content"] == "A: 11"
    assert manifest_of(tmp_path / "out")["counts"]["dropped"] == {"all_good": 1}


def test_dpo_reward_and_kto_trainers_of_plain_trl_take_the_rows(
    few_solutions: Path, tmp_path: Path, tiny_checkpoint: str
) -> None:
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

    for form in ("pairs", "unpaired"):
        assert main(given(few_solutions, tmp_path / form, form=form, rank_by="verifier", limit=4)) == 0
    for trainer, config, form in (
        (DPOTrainer, DPOConfig, "pairs"), (RewardTrainer, RewardConfig, "pairs"), (KTOTrainer, KTOConfig, "unpaired"),
    ):  # fmt: skip
        rows = load_dataset(str(tmp_path / form), split="train[:4]", cache_dir=str(tmp_path / "cache"))
        args = config(
            output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, max_length=512, use_cpu=True,
            bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        assert trainer(model=tiny_checkpoint, args=args, train_dataset=rows).train().training_loss > 0


def test_pictures_go_to_the_teacher_and_into_the_rows(shared_data: Path, tmp_path: Path) -> None:
    from mmreason.clients.images import media_type

    path = shared_data / "images" / "easyvqa_test_500.parquet"
    teacher = Ruled(lambda text, request: ["yes", "no", "red", "circle"][request.sample])
    options = PreferenceOptions(
        source=[str(path)], out=tmp_path / "out", candidates=["samples"], rank_by="verifier", source_split="test[:4]",
        decontaminate=[], report=False, license="MIT",
    )  # fmt: skip
    run(Preferences(options), completers=[teacher], say=lambda _: None)
    rows = rows_in(tmp_path / "out")
    assert rows and all(len(row["images"]) == 1 and row["images"][0].size == (64, 64) for row in rows)
    assert all([media_type(image) for image in request.images] == ["image/png"] for request in teacher.requests)
    assert rows[0]["prompt"][0]["content"][0] == {"type": "image"}
