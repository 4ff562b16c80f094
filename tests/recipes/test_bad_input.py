"""What goes wrong at a user's hands is said early, by name, with what to do; nothing that was saved is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mmreason.types import MMReasonError
from tests.recipes.conftest import call_recipe
from tests.recipes.launch import EMBEDDED, SMALL, command, metrics, run

Finished = tuple[Path, tuple[str, ...]]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that shows only after the model was loaded comes too late."""

    def loaded(*args: Any) -> None:
        raise AssertionError("the model was loaded before the error showed")

    monkeypatch.setattr("mmreason.models.loading.load_policy_model", loaded)


def message(output_dir: Path, *flags: str) -> str:
    with pytest.raises(MMReasonError) as caught:
        call_recipe(output_dir, *flags)
    return str(caught.value)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


GOOD = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(12)]


# ---- before a model is loaded


def test_missing_dataset_gets_the_nearest_name(tmp_path: Path, no_model: None) -> None:
    write_rows(tmp_path / "train.jsonl", GOOD)
    said = message(tmp_path / "run", "--dataset_name", str(tmp_path / "trian.jsonl"))
    assert f"Did you mean {tmp_path / 'train.jsonl'}?" in said


def test_empty_dataset(tmp_path: Path, no_model: None) -> None:
    path = write_rows(tmp_path / "train.jsonl", [])
    assert str(path) in (said := message(tmp_path / "run", "--dataset_name", str(path))) and "empty" in said


def test_bad_rows_are_named(tmp_path: Path, no_model: None) -> None:
    rows = [
        *GOOD,
        {"id": "lost-7", "prompt": "1 + 1 =", "answer": ""},
        {"id": "odd-8", "prompt": "1", "answer": "...?"},
    ]
    path = write_rows(tmp_path / "train.jsonl", rows)
    said = message(tmp_path / "run", "--dataset_name", str(path))
    assert "lost-7" in said and "odd-8" in said and "2 of 14 rows" in said and "on_bad_row: drop" in said


def test_bad_rows_can_be_dropped_and_are_counted(tmp_path: Path) -> None:
    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.arguments import DataArguments, PolicyConfig
    from recipes.grpo_math import load_problems

    rows = [
        *GOOD,
        {"prompt": "1 + 1 =", "answer": ""},
        {"prompt": "1", "answer": "...?"},
        {"prompt": "9" * 600, "answer": "1"},
    ]
    data = DataArguments(
        dataset_name=str(write_rows(tmp_path / "train.jsonl", rows)), on_bad_row="drop", eval_samples=4
    )
    said: list[str] = []
    train, prompt_ids, held_out = load_problems(data, PolicyConfig(), tiny_tokenizer(), said.append)
    assert "dropped 2 of 15 rows: 1 bad_gold, 1 missing_answer" in said[0]
    assert re.search("^dropped of the (training|held_out) problems: 1 prompt_too_long$", "\n".join(said), re.M)
    (held,) = held_out.values()
    assert len(prompt_ids) == len(train) and len(train) + len(held.dataset) == len(GOOD)
    assert not {str(p) for p in train["prompt"]} & {str(p) for p in held.dataset["prompt"]}


def test_extra_test_split_that_is_not_there(tmp_path: Path, no_model: None) -> None:
    for split in ("train", "unseen"):
        write_rows(tmp_path / f"{split}.jsonl", GOOD)
    flags = ("--dataset_test_split", "None", "--extra_test_splits", "unsen", "--eval_samples", "4")
    said = message(tmp_path / "run", "--dataset_name", str(tmp_path), *flags)
    assert "Did you mean split 'unseen'" in said and str(tmp_path) in said


def test_prompt_over_the_limit(tmp_path: Path, no_model: None) -> None:
    path = write_rows(tmp_path / "train.jsonl", [*GOOD, {"id": "long", "prompt": "9" * 99, "answer": "9"}])
    said = message(tmp_path / "run", "--dataset_name", str(path), "--max_prompt_length", "120")
    assert "row long: " in said and "the limit is 120" in said and "1 of 13 prompts" in said


def test_unknown_key_on_the_command_line(tmp_path: Path) -> None:
    assert "--learning_rat" in (said := message(tmp_path / "run", "--learning_rat", "1")) and "--learning_rate" in said
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_the_yaml(tmp_path: Path) -> None:
    from recipes.grpo_math import main

    path = tmp_path / "mine.yaml"
    path.write_text(EMBEDDED.read_text(encoding="utf-8") + "num_generation: 4\n", encoding="utf-8")
    with pytest.raises(MMReasonError, match=r"mine\.yaml:\d+: unknown key 'num_generation'.*num_generations"):
        main(["--config", str(path), "--output_dir", str(tmp_path / "run")])


def test_unknown_reward(tmp_path: Path, no_model: None) -> None:
    assert "Did you mean 'accuracy'?" in message(tmp_path / "run", "--reward_funcs", "acuracy")


def test_number_of_reward_weights(tmp_path: Path, no_model: None) -> None:
    said = message(tmp_path / "run", "--reward_funcs", "accuracy", "format", "--reward_weights", "1.0")
    assert said == "reward_weights has 1 numbers for 2 reward_funcs"


def test_num_generations_that_does_not_divide_the_batch(tmp_path: Path, no_model: None) -> None:
    said = message(tmp_path / "run", "--num_generations", "5")
    assert "num_generations=5 doesn't divide the batch of 16 completions" in said and "one of [2, 4, 8, 16]" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_generations", "1"), "at least 2"),
        (("--temperature", "0"), "temperature=0.0 must be above 0"),
        (("--max_steps", "0"), "max_steps=0"),
        (("--per_device_train_batch_size", "0"), "per_device_train_batch_size=0 must be at least 1"),
        (("--generation_batch_size", "24"), "generation_batch_size=24 must be a multiple of"),
        (("--generation_batch_size", "32", "--steps_per_generation", "2"), "not both"),
        (("--steps_per_generation", "3", "--gradient_accumulation_steps", "2"), "must be a multiple of gradient_acc"),
        (("--loss_type", "gppo"), "loss_type"),
        (("--max_steps", "many"), "--max_steps"),
    ],
    ids=lambda value: value[0].removeprefix("--") if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_work(tmp_path: Path, no_model: None, flags: tuple[str, ...], words: str) -> None:
    assert words in message(tmp_path / "run", *flags)


def test_vllm_that_is_not_installed(tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # `import vllm` fails as where it is not installed
    said = message(tmp_path / "run", "--use_vllm")
    assert re.search(r"pip install 'mmreason\[vllm(-cpu)?\]'", said) and "use_vllm: false" in said


def test_model_that_does_not_exist(tmp_path: Path, no_model: None) -> None:
    assert "no-such-model" in message(tmp_path / "run", "--model_name_or_path", str(tmp_path / "no-such-model"))


def test_tokenizer_without_chat_template(tmp_path: Path, tiny_checkpoint: str, no_model: None) -> None:
    bare = shutil.copytree(tiny_checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    said = message(tmp_path / "run", "--model_name_or_path", str(bare))
    assert "no chat template" in said and "chat: false" in said and "chat_template_path" in said


def test_damaged_model(tmp_path: Path, tiny_checkpoint: str) -> None:
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(broken) in message(tmp_path / "run", "--model_name_or_path", str(broken))


# ---- the output folder


def test_output_dir_below_a_file(tmp_path: Path, no_model: None) -> None:
    (tmp_path / "file").write_text("x")
    said = message(tmp_path / "file" / "run")
    assert "can't be written" in said and "--output_dir" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; test_output_dir_below_a_file covers root")
def test_output_dir_without_permission(tmp_path: Path, no_model: None) -> None:
    (tmp_path / "mine").mkdir(mode=0o555)
    assert "can't be written" in message(tmp_path / "mine")


def test_folder_of_another_run(earlier: Finished, no_model: None) -> None:
    folder, flags = earlier
    before = sorted(p for p in folder.rglob("*"))
    said = message(folder, *flags, "--seed", "7", "--num_generations", "8")
    assert "num_generations: 4 there, 8 now" in said and "seed: 42 there, 7 now" in said
    assert "--overwrite_output_dir" in said and "max_steps" not in said
    assert sorted(p for p in folder.rglob("*")) == before


def test_checkpoints_that_no_run_claims(earlier: Finished, no_model: None) -> None:
    folder, flags = earlier
    (folder / "run.json").unlink()
    assert "this command did not write" in message(folder, *flags)
    (folder / "run.json").write_text("{")
    assert "run.json can't be read" in message(folder, *flags)


def test_overwrite_starts_over(earlier: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, flags = earlier
    call_recipe(folder, *flags, "--overwrite_output_dir", "--max_steps", "2", "--seed", "7")
    assert "Continuing" not in capsys.readouterr().out
    assert [row["step"] for row in metrics(folder)] == [1, 2]
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(list((folder / "rollouts").glob("*.parquet"))) == 2


def test_saved_config_reruns(earlier: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """config.yaml holds what was asked for, not what it was resolved to: it is the same run again."""
    from recipes.grpo_math import main

    folder, _ = earlier
    main(["--config", str(folder / "config.yaml"), "--output_dir", str(folder)])
    assert "Nothing to train" in capsys.readouterr().out


# ---- continuing


def test_finished_run_says_that_there_is_nothing_to_train(
    earlier: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, flags = earlier
    before = {p: p.read_bytes() for p in folder.rglob("*.safetensors")} | {0: (folder / "metrics.jsonl").read_bytes()}
    call_recipe(folder, *flags)
    assert "Nothing to train: this run is finished" in capsys.readouterr().out
    after = {p: p.read_bytes() for p in folder.rglob("*.safetensors")} | {0: (folder / "metrics.jsonl").read_bytes()}
    assert after == before


def test_more_steps_go_on(earlier: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, flags = earlier
    call_recipe(folder, *flags, "--max_steps", "5")
    assert "at step 4 of 5" in capsys.readouterr().out
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4, 5]


def test_resume_from_what_is_no_checkpoint(earlier: Finished, no_model: None, tmp_path: Path) -> None:
    folder, flags = earlier
    said = message(folder, *flags, "--resume", str(folder / "checkpoint-3"))
    assert "checkpoint-3: no such checkpoint folder" in said and "checkpoint-2, checkpoint-4" in said
    (tmp_path / "other").mkdir()
    assert "is not a checkpoint" in message(folder, *flags, "--resume", str(tmp_path / "other"))


def test_resume_never_does_not_mix_two_runs(earlier: Finished, no_model: None, tmp_path: Path) -> None:
    folder, flags = earlier
    said = message(folder, *flags, "--resume", "never")
    assert "holds checkpoint-4" in said and "--overwrite_output_dir" in said


def test_going_back_sets_newer_checkpoints_aside(earlier: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, flags = earlier
    want = metrics(folder)
    call_recipe(folder, *flags, "--resume", str(folder / "checkpoint-2"), "--max_steps", "3")
    assert "at step 2 of 3" in capsys.readouterr().out
    names = sorted(p.name for p in folder.glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-3", "checkpoint-4.abandoned"]
    got = metrics(folder)
    assert [row["step"] for row in got] == [1, 2, 3]
    assert got[:2] == want[:2] and got[2]["reward"] == want[2]["reward"]


@pytest.mark.parametrize("name", ["model.safetensors", "state/optimizer.bin", "state/random_states_0.pkl"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_checkpoint_is_named(earlier: Finished, name: str, damage: str) -> None:
    folder, flags = earlier
    path = folder / "checkpoint-4" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    said = message(folder, *flags, "--max_steps", "6")
    assert str(folder / "checkpoint-4") in said and "--resume" in said
    assert (folder / "checkpoint-2" / "run_state.json").is_file()


def test_damaged_run_state_is_named(earlier: Finished, no_model: None) -> None:
    folder, flags = earlier
    (folder / "checkpoint-4" / "run_state.json").write_text('{"step": 4, "roll')
    assert "checkpoint-4 is not a checkpoint that can be continued" in message(folder, *flags)


def test_damaged_rollout_in_flight_is_named(tmp_path: Path, tiny_checkpoint: str) -> None:
    flags = ("--model_name_or_path", tiny_checkpoint, "--num_iterations", "2")
    call_recipe(tmp_path / "run", *flags, "--max_steps", "1")
    (kept,) = (tmp_path / "run" / "checkpoint-1").glob("samples-*.parquet")
    kept.write_bytes(kept.read_bytes()[:100])
    assert str(kept) in message(tmp_path / "run", *flags, "--max_steps", "2")


def test_save_only_model_cannot_be_continued(
    tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model_name_or_path", tiny_checkpoint, "--save_only_model")
    call_recipe(tmp_path / "run", *flags, "--max_steps", "1")
    assert "save_only_model" in (said := message(tmp_path / "run", *flags)) and "--model_name_or_path" in said


# ---- rewards

REWARDS = """
def fails(completions, **kwargs):
    raise KeyError("no_such_column")

def fails_on_one(completions, answer, **kwargs):
    return [float(a) if a != answer[-1] else 1 / 0 for a in answer]

def too_few(completions, **kwargs):
    return [0.0] * (len(completions) - 1)

def not_a_number(completions, **kwargs):
    return [float("nan")] * len(completions)

def says_much(completions, **kwargs):
    return "0.5"
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "KeyError: 'no_such_column'"),
        ("fails_on_one", "failed on row arithmetic/"),
        ("too_few", "returned 15 rewards for 16 completions"),
        ("not_a_number", "not finite (None skips a row)"),
        ("says_much", "returned str, not a list"),
    ],
)
def test_reward_that_fails_is_named(tmp_path: Path, tiny_checkpoint: str, name: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    flags = ("--model_name_or_path", tiny_checkpoint, "--reward_funcs", f"{tmp_path / 'mine.py'}:{name}")
    said = message(tmp_path / "run", *flags)
    assert f"reward {name!r}" in said and words in said


def test_reward_file_that_does_not_load(tmp_path: Path, no_model: None) -> None:
    broken, fine = tmp_path / "broken.py", tmp_path / "fine.py"
    broken.write_text("import no_such_package\n")
    fine.write_text(REWARDS)
    assert "can't be loaded: ModuleNotFoundError" in message(tmp_path / "run", "--reward_funcs", f"{broken}:mine")
    said = message(tmp_path / "run", "--reward_funcs", f"{fine}:fials")
    assert "has no function 'fials'. Did you mean 'fails'?" in said


# ---- through the command line

FULL = """
import resource

def fills_the_disk(completions, trainer_state, **kwargs):
    \"\"\"From step 3 on this process can write no file over 64 KiB, as on a disk with that much left.\"\"\"
    if trainer_state.step >= 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    return [float(len(c[0]["content"])) for c in completions]
"""


def errors_of(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error")]


@pytest.mark.slow
def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = run(command(tmp_path / "run", *SMALL, "--dataset_name", str(tmp_path / "no.jsonl")))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = errors_of(done.stderr)
    assert line.startswith(f"error: {tmp_path / 'no.jsonl'}: no such file or folder")


@pytest.mark.slow
def test_an_error_of_two_processes_has_a_clear_line(tmp_path: Path) -> None:
    done = run(command(tmp_path / "run", *SMALL, "--num_generations", "7", accelerate="cpu_ddp2"))
    assert done.returncode != 0
    lines = [
        line.split("error", 1)[1] for line in done.stderr.splitlines() if "num_generations=7 doesn't divide" in line
    ]
    assert any(line.startswith(": num_generations=7") for line in lines), done.stderr[-3000:]
    assert "batch of 32 completions" in done.stderr


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "def picky(completions, trainer_state, **kwargs):\n"
        "    if os.environ['RANK'] == '1' and trainer_state.step == 1:\n"
        "        raise ValueError('rank one')\n"
        "    return [0.0] * len(completions)\n"
    )
    flags = ("--reward_funcs", f"{tmp_path / 'mine.py'}:picky")
    done = run(command(tmp_path / "run", *SMALL, *flags, accelerate="cpu_ddp2"), timeout=120)
    assert done.returncode != 0
    assert "error (process 1): reward 'picky' failed" in done.stderr, done.stderr[-3000:]
    assert "rank one" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", [None, "cpu_zero3"])
def test_full_disk_keeps_the_last_checkpoint_and_goes_on(tmp_path: Path, accelerate: str | None) -> None:
    (tmp_path / "mine.py").write_text(FULL)
    flags = (*SMALL, "--reward_funcs", f"{tmp_path / 'mine.py'}:fills_the_disk")
    words = command(tmp_path / "run", *flags, accelerate=accelerate)
    done = run(words)
    assert done.returncode != 0
    said = next(line for line in errors_of(done.stderr) if line.startswith("error: "))
    assert "checkpoint-4: the checkpoint could not be written" in said
    assert f"The last whole one is {tmp_path / 'run' / 'checkpoint-2'}" in said
    if accelerate is None:
        assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]

    (tmp_path / "mine.py").write_text(FULL.replace("trainer_state.step >= 2", "False"))
    again = run(words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "at step 2 of 6" in again.stdout
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
