"""The same recipe on rows with pictures, with no other command, and what it says where that can't work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmreason.data.schema import RL_COLUMNS, to_dataset
from mmreason.types import ConfigError, DataError
from tests.pictures import ask, cell, picture, save_seeing
from tests.recipes.conftest import reset_accelerate
from tests.recipes.launch import SMALL_CONFIG, command, metrics, run

SETTINGS = (
    "--num_generations", "4", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
    "--max_completion_length", "6", "--max_prompt_length", "1024", "--learning_rate", "1e-4", "--save_steps", "0",
    "--logging_steps", "50", "--gradient_checkpointing", "false",
)  # fmt: skip


def call(output_dir: Path, model: str, data: str, *flags: str) -> None:
    from recipes.grpo_math import main

    reset_accelerate()
    named = ("--model_name_or_path", model, "--dataset_name", data, "--output_dir", str(output_dir))
    main(["--config", str(SMALL_CONFIG), *named, *SETTINGS, *flags])


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_seeing("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl"))


def write(path: Path, counts: list[int], **broken: Any) -> str:
    """A file of rows with these numbers of pictures; `broken`: cells of rows by id."""
    rows = [
        {
            "prompt": ask(f"What is {i}?", count),
            "images": broken.get(f"p{i}", [cell(picture(40 + i, 50, 10 * i + j)) for j in range(count)]),
            "answer": str(i), "id": f"p{i}", "source": "test", "meta": {},
        }
        for i, count in enumerate(counts)
    ]  # fmt: skip
    to_dataset(rows, (*RL_COLUMNS, "images")).to_parquet(path)  # type: ignore[arg-type]
    return str(path)


def test_a_run_on_pictures(seeing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "train.parquet", [1, 2, 0, 1] * 5)
    reward = ("--reward_funcs", "tests.pictures.varied_reward", "--eval_samples", "4", "--eval_num_generations", "2")
    call(tmp_path / "run", seeing, data, "--max_steps", "2", *reward)
    assert "held out: 4 held_out\n16 training problems" in capsys.readouterr().out
    assert [line["grad_norm"] > 0 for line in metrics(tmp_path / "run")] == [True, True]
    assert list(json.loads((tmp_path / "run" / "evaluation.json").read_text())) == ["before", "after"]
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "rollout-000001.parquet").to_pylist()
    assert {row["images"] for row in rows} <= {0, 1, 2} and any(row["images"] for row in rows)
    # The checkpoint is a model like the first: a run can start from it.
    call(tmp_path / "next", str(tmp_path / "run" / "checkpoint-2"), data, "--max_steps", "1", *reward)


def test_a_text_model_on_pictures(tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a model is loaded."""
    import mmreason.models.loading

    monkeypatch.setattr(mmreason.models.loading, "load_policy_model", lambda *_: pytest.fail("a model was loaded"))
    data = write(tmp_path / "train.parquet", [1, 1, 1, 1])
    with pytest.raises(ConfigError, match="reads text only, but the row has 1 image"):
        call(tmp_path / "run", tiny_checkpoint, data, "--max_steps", "1")


def test_pictures_that_can_not_be_used(seeing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named by row, or counted; a limit on the prompt counts what pictures take."""
    cut = {"bytes": cell(picture(50, 50))["bytes"][:99], "path": None}
    data = write(tmp_path / "train.parquet", [1] * 12, p3=[cut], p7=[{"bytes": b"no picture", "path": None}])
    with pytest.raises(DataError, match=r"2 of 12 prompts can't be used") as caught:
        call(tmp_path / "run", seeing, data, "--max_steps", "1", "--eval_samples", "0")
    assert "row p3: truncated_image" in str(caught.value) and "row p7: bad_image" in str(caught.value)
    drop = ("--on_bad_row", "drop", "--eval_samples", "0", "--max_steps", "1")
    call(tmp_path / "run", seeing, data, *drop)
    said = capsys.readouterr().out
    assert "dropped of the training problems: 1 bad_image, 1 truncated_image" in said and "10 training problems" in said
    with pytest.raises(DataError, match=r"every prompt is over|no prompt can be used"):
        call(tmp_path / "short", seeing, data, *drop, "--max_prompt_length", "10")


def test_a_set_of_text_keeps_its_columns(seeing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vision-language model on text alone: no column of images, none in what is kept."""
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(12)))
    call(tmp_path / "run", seeing, str(path), "--max_steps", "1", "--eval_samples", "0")
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "rollout-000001.parquet").to_pylist()
    assert rows and "images" not in rows[0]
    assert "opening images" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_composed_model_on_mixed_rows_under_zero3(tmp_path: Path) -> None:
    """Processes without pictures in a step run its tower all the same, so that nobody waits for them."""
    data = write(tmp_path / "mixed.parquet", [0, 1, 1, 0, 2, 0] * 3)
    named = ("--model_name_or_path", save_seeing("mmreason", tmp_path / "model"), "--dataset_name", data)
    reward = ("--reward_funcs", "tests.pictures.varied_reward", "--eval_samples", "4", "--max_steps", "3")
    micro = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    words = ("--config", str(SMALL_CONFIG), *named, *SETTINGS, *micro, *reward)
    done = run(command(tmp_path / "run", *words, accelerate="cpu_zero3"))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = metrics(tmp_path / "run")
    assert [line["grad_norm"] > 0 for line in lines] == [True] * 3
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_two_processes(accelerate: str, seeing: str, tmp_path: Path) -> None:
    """Sharded weights need pictures in every row; plain data parallelism takes rows with and without."""

    def words(data: str) -> list[str]:
        reward = ("--reward_funcs", "tests.pictures.varied_reward", "--eval_samples", "0", "--max_steps", "3")
        named = ("--config", str(SMALL_CONFIG), "--model_name_or_path", seeing, "--dataset_name", data)
        micro = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
        return command(tmp_path / "run", *named, *SETTINGS, *micro, *reward, accelerate=accelerate)

    mixed = run(words(write(tmp_path / "mixed.parquet", [0, 1, 1, 0, 2, 0] * 3)))
    if accelerate == "cpu_zero3":
        assert mixed.returncode != 0 and "9 of 18 rows have images" in mixed.stdout + mixed.stderr
        done = run([*words(write(tmp_path / "pictures.parquet", [1, 2] * 9)), "--overwrite_output_dir"])
    else:
        done = mixed
    assert done.returncode == 0, done.stderr[-3000:]
    lines = metrics(tmp_path / "run")
    assert [line["grad_norm"] > 0 for line in lines] == [True] * 3
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) <= 1e-4
