"""The preference recipe through its command line: it learns, resumes bit for bit, follows a judge, names bad input."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmreason.config import parse_config
from mmreason.types import ConfigError, DataError
from recipes.preference import OPTIONS, main, run_identity
from tests.clients.server import running_server
from tests.recipes.launch import ROOT, metrics, run, run_and_signal

SETTINGS = [
    "--max_steps", "8", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
    "--learning_rate", "1e-2", "--warmup_steps", "0", "--gradient_checkpointing", "false", "--use_cpu",
    "--logging_steps", "1", "--save_steps", "2", "--eval_samples", "6", "--eval_steps", "4",
    "--max_completion_length", "4", "--max_length", "null", "--max_prompt_length", "null",
]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a random decoder and a small set of pairs."""
    from data_builders._preferences.word_pairs import _build
    from data_builders.word_problems import SetOptions
    from mmreason.models.tiny import save_tiny

    folder = tmp_path_factory.mktemp("parts")
    _build(folder / "pairs", SetOptions.of({"n": 60, "n_test": 12, "n_unseen": 0, "level": 1}))
    return ["--model_name_or_path", save_tiny(folder / "model", seed=1), "--dataset_name", str(folder / "pairs"),
            "--dataset_test_split", "test", "--prompt_template", "null"]  # fmt: skip


def command(output_dir: Path, *flags: str, accelerate: str | None = None) -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        start += ["-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{accelerate}.yaml"]
    return [*start, "recipes/preference.py", "--output_dir", str(output_dir), *SETTINGS, *flags]


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


PRECOMPUTED = ("--precompute_ref_log_probs", "--loss", "dpo", "sft", "--loss_weights", "1.0", "0.5")


@pytest.fixture(scope="module")
def unbroken(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference") / "run"
    done = run(command(folder, *parts, *PRECOMPUTED))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training: " in done.stdout and "pairs" in done.stdout and "after (step 8)" in done.stdout
    return folder


@pytest.mark.slow
def test_what_a_run_leaves_behind(unbroken: Path) -> None:
    lines = [line for line in metrics(unbroken) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    rewards = {f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")}
    assert rewards | {"logps/chosen", "logps/rejected", "loss/dpo", "loss/sft"} <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    measured = [line for line in metrics(unbroken) if "eval/held_out/rewards/accuracies" in line]
    assert [line["step"] for line in measured] == [0, 4, 8]
    assert measured[-1]["eval/held_out/rewards/margins"] > measured[0]["eval/held_out/rewards/margins"]
    evaluation = json.loads((unbroken / "evaluation.json").read_text())
    assert {name: entry["step"] for name, entry in evaluation.items()} == {"before": 0, "step 4": 4, "after": 8}
    for name in ("config.yaml", "run.json", "checkpoint-8", "final/tokenizer.json", "reference", "report.html"):
        assert (unbroken / name).exists(), name


@pytest.mark.slow
def test_killed_twice_with_precomputed_log_probs(unbroken: Path, parts: list[str], tmp_path: Path) -> None:
    words = command(tmp_path / "run", *parts, *PRECOMPUTED)
    for step in (3, 5):
        run_and_signal(words, tmp_path / "run", step=step, number=signal.SIGKILL)
        assert len(metrics(tmp_path / "run")) < len(metrics(unbroken)), "the run ended before it could be killed"
    again = run(words)
    assert again.returncode == 0 and "Continuing from" in again.stdout, again.stderr[-3000:]
    assert metrics(tmp_path / "run") == metrics(unbroken)
    want, got = weights(unbroken / "final"), weights(tmp_path / "run" / "final")
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.slow
def test_two_processes_and_a_second_model(parts: list[str], tmp_path: Path) -> None:
    """KTO, whose baseline is that of all processes: half the batch on each of two gives the same first losses."""
    flags = (
        "--loss",
        "kto",
        "--max_steps",
        "2",
        "--eval_samples",
        "0",
        "--optim",
        "sgd",
        "--gradient_accumulation_steps",
        "1",
    )
    one = run(command(tmp_path / "one", *parts, *flags, "--per_device_train_batch_size", "8"))
    two = run(command(tmp_path / "two", *parts, *flags, accelerate="cpu_ddp2"))
    assert one.returncode == 0 and two.returncode == 0, two.stderr[-3000:]
    left, right = (
        [line for line in metrics(tmp_path / name) if "loss" in line] for name in ("one", "two")
    )  # fmt: skip
    for key in ("loss", "rewards/chosen", "rewards/rejected", "kl", "logps/chosen"):
        assert [line[key] for line in left] == pytest.approx([line[key] for line in right], rel=1e-4, abs=1e-6), key


# The judge likes answers that show an equation; nothing else in its prompt has a "=".
LIKES_STEPS = {"=": "Good.\nRating: [[9]]", "": "Bare.\nRating: [[2]]"}


def online(base_url: str) -> list[str]:
    judge = {"base_url": base_url, "model": "judge", "api_key_env": None, "max_retries": 0, "retry_s": 0}
    settings = {
        "judge": judge, "ask": {"answer_form": "text"}, "criteria": [{"name": "taste", "description": "What I like."}],
        "num_generations": 4, "prompts_per_round": 16, "retry_s": 0.5,
    }  # fmt: skip
    return [
        "--config", "recipes/configs/preference/embedded.yaml", "--online", json.dumps(settings), "--loss", "dpo",
        "--loss_weights", "null", "--precompute_ref_log_probs", "false", "--max_steps", "9", "--save_steps", "2",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1",
        "--learning_rate", "4e-4", "--lr_scheduler_type", "constant",
        "--word_problems", "{level: 1, n: 100, n_test: 0, n_unseen: 0}", "--dataset_test_split", "null",
        "--eval_samples", "0", "--max_completion_length", "40",
    ]  # fmt: skip


def shares(folder: Path) -> list[float]:
    """Of each round, the share of answers with an equation."""
    import pyarrow.parquet as pq

    rounds = [pq.read_table(path).to_pylist() for path in sorted((folder / "online").glob("round-*.parquet"))]
    return [sum("=" in answer["text"] for answer in answers) / len(answers) for answers in rounds]


@pytest.mark.slow
def test_the_policy_moves_to_the_judges_taste(tmp_path: Path) -> None:
    """A real server that fails for its first seconds; the run waits, is killed, goes on, and pays for nothing twice."""
    with running_server(replies=LIKES_STEPS, down_s=1.5) as server:
        words = command(tmp_path / "run", *online(server.base_url))
        output = run_and_signal(words, tmp_path / "run", step=3, number=signal.SIGKILL)
        assert "Asking again in" in output and "what it has answered is kept" in output
        done = run(words)
        assert done.returncode == 0, done.stderr[-3000:]
        answered = [entry.content for entry in server.log if entry.fault == "ok"]
        assert len(answered) == len(set(answered)), "an answer was paid for twice"
    found = shares(tmp_path / "run")
    assert len(found) >= 3 and found[-1] >= found[0] + 0.3 and found[-1] >= 0.8, found
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert lines[-1]["online/score"] > lines[0]["online/score"]


BAD: list[tuple[list[str], list[str]]] = [
    (["--loss", "dop"], ["loss 'dop'", "dpo"]),
    (["--loss", "dpo", "--loss_weights", "1", "2"], ["loss_weights has 2"]),
    (["--loss", "kto", "dpo"], ["kto", "alone"]),
    (["--loss", "kto", "--per_device_train_batch_size", "1"], ["per_device_train_batch_size"]),
    (["--loss", "simpo", "--precompute_ref_log_probs"], ["precompute_ref_log_probs", "no reference"]),
    (["--label_smoothing", "0.5"], ["label_smoothing=0.5"]),
    (["--beta", "0"], ["beta=0"]),
    (["--online", "{judge: {base_url: 'http://localhost:1/v1', model: m}, num_generations: 1}"], ["num_generations=1"]),
    (["--online", "{judge: {base_url: 'http://localhost:1/v1', model: m}, top_p: 5}"], ["online.top_p=5", "at most 1"]),
    (["--online", "{jugde: 1}"], ["jugde", "judge"]),
    (["--online", "{judge: {model: m}}", "--max_steps", "5"], ["online.judge", "base_url"]),
    (["--adapter", "{path: nowhere}"], ["nowhere"]),
    (["--save_steps", "0"], ["save_steps=0"]),
]


def test_a_run_goes_on_once_its_judge_has_been_put_right(tmp_path: Path) -> None:
    """Address, key, budget and patience may change; what decides the pairs may not."""
    from mmreason.trainers.state import open_output_dir

    judge = {"base_url": "http://localhost:1/v1", "model": "m"}

    def claim(**online: Any) -> None:
        words = ["--model_name_or_path", "m", "--max_steps", "5", "--loss", "dpo"]
        options = parse_config(
            OPTIONS, [*words, "--online", json.dumps({"judge": judge} | online)], "preference.py", ""
        )
        options[2].check()
        open_output_dir(str(tmp_path / "run"), run_identity(*options), overwrite=False, is_main=True)

    claim(max_budget=1.0)
    right = judge | {"base_url": "http://localhost:2/v1", "api_key_env": "OTHER_KEY", "max_retries": 9}
    claim(judge=right, max_budget=20.0, give_up_s=60.0, retry_s=1.0, how="score", num_generations=4)
    for changes in (
        {"judge": judge | {"model": "another"}},
        {"how": "compare"},
        {"criteria": ["reasoning"]},
        {"num_generations": 3},
        {"prompts_per_round": 8},
        {"temperature": 0.5},
        {"top_p": 0.9},
    ):
        with pytest.raises(ConfigError, match="holds another run .online: "):
            claim(**changes)


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[" ".join(flags[:2])[:40] for flags, _ in BAD])
def test_bad_options_are_named_before_anything_is_loaded(flags: list[str], said: list[str], tmp_path: Path) -> None:
    words = ["--model_name_or_path", "m", "--output_dir", str(tmp_path / "run"), "--use_cpu", *flags]
    with pytest.raises(ConfigError) as caught:
        main(words)
    assert all(word in str(caught.value) for word in said), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_pair_that_says_nothing_is_named() -> None:
    """The same tokens on both sides, though the texts differ."""
    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.preference_data import prepare_pairs
    from tests.trainers.preference_rows import dataset, say, text_pairs

    rows = text_pairs(3)
    rows[1]["chosen"], rows[1]["rejected"] = say("a"), [{"role": "assistant", "content": "a", "reasoning_content": ""}]
    with pytest.raises(DataError, match=r"row row 1.*the same \d+ tokens") as caught:
        prepare_pairs(dataset(rows), tiny_tokenizer())
    assert caught.value.reason == "bad_pair"
    kept, dropped = prepare_pairs(dataset(rows), tiny_tokenizer(), on_bad_row="drop")
    assert len(kept) == 2 and dropped == {"bad_pair": 1}
    with pytest.raises(DataError, match="row 2.*max_length is 12"):
        prepare_pairs(dataset(rows), tiny_tokenizer(), max_length=12)


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from mmreason.models.tiny import save_tiny, tiny_tokenizer
    from mmreason.trainers.arguments import ModelArguments
    from mmreason.trainers.preference_reference import load_reference
    from tests.trainers.preference_rows import options

    other = save_tiny(tmp_path / "other", texts=["some other words, and words again"], vocab_size=300)
    args = options(tmp_path, ref_model_name_or_path=other)
    with pytest.raises(ConfigError, match="another vocabulary"):
        load_reference(ModelArguments(model_name_or_path="mine"), args, tiny_tokenizer())


def test_an_adapter_to_go_on_with_needs_its_reference_beforehand(tmp_path: Path) -> None:
    """Its base without it is no reference: what it had learned would be pushed away again."""
    from mmreason.models.peft import add_adapter
    from mmreason.models.tiny import tiny_decoder
    from mmreason.trainers.arguments import ModelArguments
    from mmreason.trainers.preference_reference import check_reference
    from tests.trainers.preference_rows import options

    kept = ModelArguments(adapter={"kind": "lora", "r": 2, "target_modules": ["q_proj"]})
    add_adapter(tiny_decoder(), kept).save_pretrained(tmp_path / "adapter")
    again = ModelArguments(model_name_or_path="m", adapter={"path": str(tmp_path / "adapter")})
    with pytest.raises(ConfigError, match="precompute_ref_log_probs: true"):
        check_reference(again, options(tmp_path))
    check_reference(again, options(tmp_path, precompute_ref_log_probs=True))
    check_reference(again, options(tmp_path, loss="orpo"))


def read(path: Path) -> Any:
    return parse_config(OPTIONS, ["--config", str(path)])


CONFIGS = sorted((ROOT / "recipes" / "configs" / "preference").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_opens_with_its_command_and_its_options_can_work(path: Path) -> None:
    from mmreason._adapters import check_adapter
    from mmreason.trainers.model_parts import check_parts
    from tests.recipes.test_configs import header

    words, _ = header(path)
    assert words[:2] == ["accelerate", "launch"] and "recipes/preference.py" in words
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    if path.stem == "embedded":
        assert words == ["accelerate", "launch", "recipes/preference.py"]
    else:
        assert words[words.index("--config") + 1] == f"recipes/configs/preference/{path.name}"
    model, _, args = read(path)
    args.check()
    check_parts(model)
    check_adapter(model, args)
    assert args.output_dir.startswith("outputs/")


LOCAL = {
    "hh-dpo-lora": "preference/hh_harmless_1k.jsonl",
    "kto": "preference/kto_en_demo.jsonl",
    "simpo": "preference/dpo_en_demo.jsonl",
}


@pytest.mark.parametrize("name", LOCAL)
def test_real_rows_of_its_form_are_learned_from(name: str, shared_data: Path) -> None:
    """In the place of the hub's set: real pairs and labels are read, rendered, and differ."""
    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.preference_data import load_rows, render_rows

    _, data, args = read(ROOT / "recipes" / "configs" / "preference" / f"{name}.yaml")
    data.dataset_name, data.dataset_train_split, data.dataset_test_split = str(shared_data / LOCAL[name]), "train", None
    data.max_train_samples, data.eval_samples, args.max_length, data.on_bad_row = 60, 8, None, "drop"
    train, held = load_rows(data, args, lambda _: None)
    rows = render_rows(train, held, tiny_tokenizer(), data, args, lambda _: None)
    assert rows.train_pairs is not None and len(rows.train_pairs) >= 40 and len(rows.held_out["held_out"]) >= 6
    for i in range(5):
        pair = rows.train_pairs[i]
        assert pair.first.ids != pair.second.ids and any(pair.first.weights) and any(pair.second.weights)
        assert (pair.label is not None) == args.unpaired
