"""The pretraining recipe through its command line: objectives learn, runs resume bit for bit, faults are named."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.launch import metrics, run, run_and_signal

SETTINGS = [
    "--max_steps", "8", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--tiny_size", "xs",
    "--learning_rate", "1e-2", "--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", "null", "--warmup_steps", "0",
    "--use_cpu", "--logging_steps", "1", "--save_steps", "2", "--eval_samples", "4", "--eval_steps", "4",
    "--max_length", "64", "--packing_window", "8", "--train_tokenizer", "{vocab_size: 512}",
    "--word_problems", "{n: 200, n_test: 12, n_unseen: 0}",
]  # fmt: skip


def command(output_dir: Path, *flags: str, accelerate: str | None = None, config: str = "embedded") -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        start += ["-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{accelerate}.yaml"]
    files = ["--config", f"recipes/configs/pretrain/{config}.yaml", "--output_dir", str(output_dir)]
    return [*start, "recipes/pretrain.py", *files, *SETTINGS, *flags]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    done = run(command(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "200 documents" in done.stdout and "Held out: loss" in done.stdout
    return folder


@pytest.mark.slow
def test_what_a_run_leaves_behind(unbroken: Path) -> None:
    lines = [line for line in metrics(unbroken) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    measured = [line for line in metrics(unbroken) if "eval/perplexity" in line]
    assert [line["step"] for line in measured] == [0, 4, 8]
    assert measured[0]["eval/perplexity"] > measured[1]["eval/perplexity"] > measured[2]["eval/perplexity"]
    assert measured[2]["eval/bits_per_byte"] < measured[0]["eval/bits_per_byte"]
    for name in ("config.yaml", "run.json", "checkpoint-8/data.json", "final/tokenizer.json", "report.html"):
        assert (unbroken / name).exists(), name
    final, last = weights(unbroken / "final"), weights(unbroken / "checkpoint-8")
    assert all(torch.equal(final[name], last[name]) for name in last)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--streaming", "--dataloader_num_workers", "1")], ids=["stored", "streamed"])
def test_killed_run_ends_like_an_unbroken_one(flags: tuple[str, ...], unbroken: Path, tmp_path: Path) -> None:
    if flags:
        done = run(command(tmp_path / "unbroken", *flags))
        assert done.returncode == 0, done.stderr[-3000:]
        unbroken = tmp_path / "unbroken"
    words = command(tmp_path / "run", *flags)
    run_and_signal(words, tmp_path / "run", step=5, number=signal.SIGKILL)
    assert len(metrics(tmp_path / "run")) < len(metrics(unbroken)), "the run ended before it could be killed"
    again = run(words)
    assert again.returncode == 0 and "Continuing from" in again.stdout, again.stderr[-3000:]
    assert metrics(tmp_path / "run") == metrics(unbroken)
    want, got = weights(unbroken / "final"), weights(tmp_path / "run" / "final")
    assert all(torch.equal(want[name], got[name]) for name in want)
    finished = run(words)  # nothing is left to do: the same end again
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert metrics(tmp_path / "run") == metrics(unbroken)


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = command(tmp_path / "run", "--max_steps", "2000", "--save_steps", "2000", "--eval_steps", "null")
    output = run_and_signal(words, tmp_path / "run", step=2, number=signal.SIGINT)
    assert "Run the same command to continue" in output
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").is_file() and (checkpoint / "data.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu_ddp2", "cpu_zero3"])
def test_two_processes(accelerate: str, unbroken: Path, tmp_path: Path) -> None:
    """Half the batch on each of two: the same bins in each step, so the same losses. (Random weights are others under
    ZeRO-3, which draws them piece by piece.)"""
    flags = ["--model_name_or_path", str(unbroken / "final"), "--train_tokenizer", "null"]
    flags += ["--gradient_accumulation_steps", "1", "--max_steps", "3", "--optim", "sgd", "--max_grad_norm", "0"]
    one = run(command(tmp_path / "one", *flags, "--per_device_train_batch_size", "4"))
    done = run(command(tmp_path / "two", *flags, accelerate=accelerate))
    assert one.returncode == 0 and done.returncode == 0, done.stderr[-3000:]
    left, right = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in right if "loss" in line] == [1, 2, 3]
    for a, b in zip(left, right, strict=True):
        assert b.keys() == a.keys()
        for name in {"loss", "eval/loss"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-5)
    whole, gathered = weights(tmp_path / "one" / "final"), weights(tmp_path / "two" / "final")
    assert all(torch.allclose(gathered[name], whole[name], rtol=0, atol=1e-6) for name in whole)


OBJECTIVES = [
    ("mlm", ()),
    ("span", ()),
    ("ul2", ()),
    ("infill", ()),
    ("infill", ("--infill_format", "glm")),
    ("ul2", ("--model_type", "llama", "--config_overrides", "{hidden_size: 64, intermediate_size: 96, "
             "num_hidden_layers: 1, num_attention_heads: 2}")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "flags"), OBJECTIVES)
def test_every_objective_learns(objective: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoConfig

    from recipes.pretrain import main

    main(command(tmp_path / "run", "--objective", objective, *flags)[2:])
    measured = [line["eval/loss"] for line in metrics(tmp_path / "run") if "eval/loss" in line]
    assert measured[-1] < 0.95 * measured[0]
    config = AutoConfig.from_pretrained(tmp_path / "run" / "final")
    assert config.is_encoder_decoder == (objective in ("span", "ul2") and not flags)


@pytest.mark.slow
def test_going_on_with_a_model_and_a_longer_context(unbroken: Path, tmp_path: Path) -> None:
    """Continued pretraining: the model's own tokenizer gets FIM tokens, its context is four times as long, LoRA."""
    from recipes.pretrain import main

    flags = ["--model_name_or_path", str(unbroken / "final"), "--train_tokenizer", "null", "--max_steps", "1"]
    scaling = ["--rope_scaling", "{rope_type: yarn, factor: 4.0}", "--objective", "infill"]
    main(command(tmp_path / "run", *flags, *scaling, "--model_type", "null")[2:])
    saved = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert saved["rope_parameters"]["rope_type"] == "yarn" and saved["max_position_embeddings"] == 8192
    before, after = weights(unbroken / "final"), weights(tmp_path / "run" / "final")
    name = "model.embed_tokens.weight"
    assert after[name].shape[0] == before[name].shape[0] + 3
    main(command(tmp_path / "lora", *flags, "--use_peft", "--lora_target_modules", "all-linear")[2:])
    assert (tmp_path / "lora" / "final" / "adapter_model.safetensors").is_file()


BAD: list[tuple[list[str], list[str]]] = [
    (["--objectiv", "clm"], ["objectiv", "objective"]),
    (["--dataset_name", "nowhere/at_all.txt"], ["nowhere/at_all.txt"]),
    (["--model_name_or_path", "no/such/folder", "--train_tokenizer", "null"], ["no/such/folder"]),
    (["--model_type", "qwen33"], ["qwen33", "Did you mean"]),
    (["--train_tokenizer", "{vocab_size: 20}"], ["vocab_size=20", "at least 261"]),
    (["--rope_scaling", "{rope_type: yan, factor: 2}"], ["yan", "Did you mean 'yarn'"]),
    (["--streaming", "--max_steps", "-1"], ["streaming needs max_steps"]),
    (["--objective", "infill", "--model_type", "t5"], ["objective infill is for decoders"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "said"), BAD, ids=[" ".join(flags[:2]) for flags, _ in BAD])
def test_bad_input_is_named_before_training(flags: list[str], said: list[str], tmp_path: Path) -> None:
    from mmreason.types import MMReasonError
    from recipes.pretrain import main

    with pytest.raises(MMReasonError) as error:
        main(command(tmp_path / "run", *flags)[2:])
    assert all(word in str(error.value) for word in said), error.value
    assert not metrics(tmp_path / "run")


@pytest.mark.slow
def test_another_run_is_not_continued(unbroken: Path) -> None:
    from mmreason.types import ConfigError
    from recipes.pretrain import main

    with pytest.raises(ConfigError, match="max_length: 64 there, 32 now"):
        main(command(unbroken, "--max_length", "32")[2:])
