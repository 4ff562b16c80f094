"""`mmreason doctor` as its users call it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmreason.cli.doctor import doctor_options, parse_arguments, read_recipe
from mmreason.cli.main import main
from tests.clients.server import running_server
from tests.pictures import cell, picture
from tests.tiny_vlms import tiny_vlm

ROOT = Path(__file__).resolve().parents[2]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def healthy(tmp_path: Path) -> str:
    rows = [{"instruction": f"What is the number {i}?", "output": f"It is number {i}."} for i in range(8)]
    return write_rows(tmp_path / "healthy.jsonl", rows)


def test_help_in_half_a_second() -> None:
    """Of processor time, so that a busy machine plays no part."""
    command = [sys.executable, "-m", "mmreason.cli.main", "doctor", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert "--recipe_config" in done.stdout and "--eval_sets" in done.stdout


def test_a_healthy_set_is_0_and_faults_are_1(healthy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", healthy]) == 0
    shown = capsys.readouterr().out
    assert "8 rows, format alpaca, stage sft: 0 errors, 0 warnings" in shown and "clarity" in shown
    rows = [json.loads(line) for line in Path(healthy).read_text().splitlines()]
    rows[3]["output"], rows[5]["output"] = "", rows[5]["output"] + " At the cafÃ©."
    broken = write_rows(tmp_path / "broken.jsonl", rows)
    out, everything = tmp_path / "d.html", tmp_path / "new" / "d.json"
    assert main(["doctor", broken, "--out", str(out), "--json", str(everything)]) == 1
    shown = capsys.readouterr().out
    assert "error: missing_completion: 1 rows" in shown and f"broken/3 ({broken}:4)" in shown
    assert "warning: mojibake" in shown and "broken/5" in shown
    facts = json.loads(everything.read_text())
    assert [kind["code"] for kind in facts["faults"]] == ["missing_completion", "mojibake"]
    assert len(facts["scores"]) == facts["good"] == 7 and "broken/3" in out.read_text()


def test_a_warning_alone_is_0(healthy: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(healthy).read_text().splitlines()]
    assert main(["doctor", write_rows(tmp_path / "twice.jsonl", [*rows, rows[0]])]) == 0


def test_every_row_is_named_where_all_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Say {i} to me.", "output": "" if i > 12 else f"It is {i}."} for i in range(20)]
    path = write_rows(tmp_path / "empty.jsonl", rows)
    assert main(["doctor", path]) == 1
    assert "… and 2 more" in capsys.readouterr().out
    assert main(["doctor", path, "--show", "0"]) == 1
    shown = capsys.readouterr().out
    assert all(f"empty/{i} " in shown for i in range(13, 20)) and "more (" not in shown


def test_with_a_model(healthy: str, tiny_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens, padding, memory; a recipe's YAML brings batch, adapter and model; ZeRO shares what is trained."""
    out = tmp_path / "d.html"
    assert main(["doctor", healthy, "--model", tiny_checkpoint, "--out", str(out)]) == 0
    plain = capsys.readouterr().out
    assert "Memory on one device" in plain and "packed into" in plain and "Chat template" in out.read_text()
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"model_name_or_path: {tiny_checkpoint}\nper_device_train_batch_size: 2\nuse_peft: true\nlora_r: 4\n"
        "max_length: 8\nprompt_template: none\n"
    )
    found = tmp_path / "d.json"
    words = ["doctor", healthy, "--recipe_config", str(recipe), "--json", str(found)]
    assert main(words) == 1
    facts = json.loads(found.read_text())
    assert {kind["code"] for kind in facts["faults"]} == {"too_long"} and facts["padding"]["rows"] == 2
    assert 0 < facts["memory"]["optimizer"] < facts["memory"]["weights"]
    assert main([*words, "--truncation", "drop", "--max_length", "500"]) == 0
    assert main([*words, "--max_length", "500", "--zero_stage", "3", "--processes", "4"]) == 0
    shared = json.loads(found.read_text())["memory"]
    assert shared["weights"] * 4 == pytest.approx(facts["memory"]["weights"], abs=4)


def test_pictures_count_as_the_models_tokens(tmp_path: Path) -> None:
    model = tiny_vlm("llava", tmp_path / "llava")
    rows = [
        {
            "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}],
            "images": [],
        }
        for _ in range(2)
    ]
    (tmp_path / "p.png").write_bytes(cell(picture(30, 30))["bytes"])
    rows[1]["images"] = ["p.png"]  # type: ignore[list-item]
    found = tmp_path / "d.json"
    main(["doctor", write_rows(tmp_path / "train.jsonl", rows), "--model", model, "--json", str(found)])
    facts = json.loads(found.read_text())
    assert not facts["errors"], facts["faults"]
    assert facts["tokens"]["longest"] > facts["tokens"]["lengths"]["min"] + 1
    assert facts["memory"]["weights"] > 0


@pytest.mark.parametrize("kind", ["lora", "ia3", "qlora", "bottleneck"])
def test_what_an_adapter_trains_is_counted_on_no_memory(kind: str, tiny_checkpoint: str) -> None:
    """As many parameters as the adapter has on the real model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from mmreason.cli.doctor import count_trainable
    from mmreason.data.doctor_memory import meta_model
    from mmreason.models.peft import add_adapter
    from mmreason.trainers.arguments import ModelArguments

    arguments = ModelArguments(adapter={"kind": kind})
    counted = count_trainable(meta_model(AutoConfig.from_pretrained(tiny_checkpoint)), arguments)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    if kind == "qlora":  # the same adapter on layers that aren't quantised
        arguments = ModelArguments(adapter={"kind": "lora"})
    assert counted == sum(p.numel() for p in add_adapter(model, arguments).parameters() if p.requires_grad) > 0
    frozen = ModelArguments(freeze_modules=["embed_tokens"])
    left = count_trainable(meta_model(AutoConfig.from_pretrained(tiny_checkpoint)), frozen)
    assert 0 < left < sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_checkpoint).parameters())


def test_a_judge_is_asked(healthy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_server() as server:
        judge = f"{{base_url: {server.base_url}, model: judge, api_key_env: null}}"
        out = tmp_path / "d.json"
        assert main(["doctor", healthy, "--judge", judge, "--judge_rows", "3", "--json", str(out)]) == 0
        assert len(server.log) == 3
    found = json.loads(out.read_text())["judge"]
    assert found["rows"] == 3 and found["means"]["difficulty"] == 1.0 and len(found["lowest"]) == 3
    assert "Quality, by the judge" in capsys.readouterr().out


def test_the_commands_options_go_before_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("max_length: 77\nsystem_prompt: Be brief.\nprompt_template: gsm8k\n")
    config = parse_arguments(["d.jsonl", "--max_length", "99"])
    options = doctor_options(config, read_recipe(recipe))
    assert (options.max_length, options.system_prompt, options.prompt_template) == (99, "Be brief.", "gsm8k")
    recipe.write_text("reward_funcs: [accuracy]\nmax_prompt_length: 200\n")
    assert read_recipe(recipe).options["stage"] == "rl"
    assert doctor_options(config, read_recipe(recipe)).max_prompt_length == 200


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["d.jsonl", "--show", "-1"], "show=-1"),
        (["d.jsonl", "--stage", "sfft"], "sfft"),
        (["d.jsonl", "--judge", "{base_ulr: x, model: m}"], "unknown setting 'base_ulr'"),
        (["d.jsonl", "--judge", "{model: m}"], "give base_url and model"),
        (["d.jsonl", "--recipe_config", "none.yaml"], "none.yaml"),
        (["d.jsonl", "--max_lenght", "7"], "max_lenght"),
        (["d.jsonl", "--zero_stage", "7"], "zero_stage=7 must be from 0 to 3"),
        (["d.jsonl", "--min_share", "5"], "min_share=5 must be"),
        (["HEALTHY", "--dataset_format", "gsm8"], "unknown format 'gsm8'"),
        (["HEALTHY", "--column_map", "{promt: instruction}"], "Did you mean 'prompt'"),
        (["HEALTHY", "--recipe_config", "recipes/configs/pretrain/align-embedded.yaml"], "learns from captions"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], error: str, healthy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["doctor", *(healthy if word == "HEALTHY" else word for word in words)]) == 2
    assert error in capsys.readouterr().err


def test_a_missing_test_set_is_said_before_rows_are_read(healthy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", healthy, "--eval_sets", "{a: none.jsonl}"]) == 2
    told = capsys.readouterr().err
    assert "none.jsonl: no such file" in told and "reading rows" not in told


def test_an_id_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"id": "a\x1b[31m\nb", "prompt": "1?", "completion": ""}])
    assert main(["doctor", path, "--stage", "sft"]) == 1
    assert f"\n  a\\x1b[31m\\nb ({path}:1): " in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "\x1b[31m")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_every_pretraining_on_texts_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "recipes" / "configs" / "pretrain"
    for file in sorted(folder.glob("*.yaml")):
        if not file.stem.startswith(("align", "contrastive")):
            assert read_recipe(file).options["stage"] == "pretrain", file
    path = write_rows(tmp_path / "d.jsonl", [{"body": "some words " * 300}, {"body": ""}])
    recipe = tmp_path / "clm.yaml"
    recipe.write_text("objective: clm\nmodel_name_or_path: recipes/warm_start\ntext_column: body\nmax_length: 64\n")
    assert main(["doctor", path, "--recipe_config", str(recipe)]) == 1
    told = capsys.readouterr().out
    assert "2 rows, format text, stage pretrain: 1 errors, 0 warnings" in told and "missing_text" in told
