"""The page "From TRL": complete, with a note for each difference, and its two ways of one training say the same."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.commands import ROOT, Block, blocks

PAGE = ROOT / "docs" / "from_trl.md"
RECIPES = ("grpo_math", "sft")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/_hooks.py, loaded as mkdocs loads it."""
    return load("_hooks")


@pytest.fixture
def notes() -> ModuleType:
    """docs/_from_trl.py, a copy of the test's own."""
    return load("_from_trl")


def load(stem: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs{stem}", ROOT / "docs" / f"{stem}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def both(notes: ModuleType, hooks: ModuleType, recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(TRL's fields with defaults, ours)."""
    return notes.trl_fields(recipe), notes.defaults(hooks.recipes()[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_is_ours_or_explained(notes: ModuleType, hooks: ModuleType, recipe: str) -> None:
    text = notes.from_trl(recipe, hooks.recipes()[recipe])
    theirs, ours = both(notes, hooks, recipe)
    assert len(theirs) > 120 and len(ours) > 40
    assert all(f"`{field}`" in text for field in theirs | ours)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_field_without_a_note_is_an_error(notes: ModuleType, hooks: ModuleType, recipe: str) -> None:
    theirs, ours = both(notes, hooks, recipe)
    with pytest.raises(ValueError, match="new_in_trl is neither ours nor explained"):
        notes.check(recipe, theirs | {"new_in_trl": 1}, ours)
    with pytest.raises(ValueError, match="learning_rate has another default and no reason"):
        notes.check(recipe, theirs, ours | {"learning_rate": 1.0})
    with pytest.raises(ValueError, match="seed is neither ours nor explained"):
        notes.check(recipe, theirs, {name: value for name, value in ours.items() if name != "seed"})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_note_that_no_longer_applies_is_an_error(notes: ModuleType, hooks: ModuleType, recipe: str) -> None:
    theirs, ours = both(notes, hooks, recipe)
    with pytest.raises(ValueError, match="load_in_4bit is noted as absent, but is ours"):
        notes.check(recipe, theirs, ours | {"load_in_4bit": False})
    with pytest.raises(ValueError, match="hub_token is noted as absent, but TRL has no such field"):
        notes.check(recipe, {name: value for name, value in theirs.items() if name != "hub_token"}, ours)
    with pytest.raises(ValueError, match="report_to: its default is no longer another"):
        notes.check(recipe, theirs | {"report_to": []}, ours)
    with pytest.raises(ValueError, match="eval_steps is no longer in both"):
        notes.check(recipe, {name: value for name, value in theirs.items() if name != "eval_steps"}, ours)


def test_no_field_has_two_notes(notes: ModuleType) -> None:
    notes.ABSENT["sft"]["packing hub_token"] = "again"
    with pytest.raises(ValueError, match="has two notes"):
        notes.notes_of_absent("sft")


# --------------------------------------------------------------------------------------------------------------------
# A TRL script and the same here


def named(file_name: str) -> Block:
    (block,) = (block for block in blocks(PAGE) if block.file_name == file_name)
    return block


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if ast.unparse(call.func).split(".")[-1] == name]


def keywords(call: ast.Call, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg not in leave_out}


def test_the_script_and_the_yaml_say_the_same() -> None:
    script = ast.parse(named("trl_gsm8k.py").body)
    ours = yaml.safe_load(named("gsm8k.yaml").body)
    (config,), (trainer,), (loading,) = (calls(script, n) for n in ("GRPOConfig", "GRPOTrainer", "load_dataset"))
    theirs = keywords(config) | {
        "model_name_or_path": keywords(trainer, ("reward_funcs", "train_dataset", "args"))["model"],
        "dataset_name": ":".join(ast.literal_eval(argument) for argument in loading.args),
    }
    theirs["report_to"] = [theirs["report_to"]]
    # The script's own reward and prompt; here they are named.
    assert theirs | {"reward_funcs": ["strict_accuracy"], "prompt_template": "boxed"} == ours


def test_the_prompts_are_the_same() -> None:
    from mmreason.data.prompts import PROMPT_TEMPLATES

    tree = ast.parse(named("trl_gsm8k.py").body)
    (ask,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ASK"
    )
    assert "{question}" + ast.literal_eval(ask) == PROMPT_TEMPLATES["boxed"]


@pytest.mark.slow
def test_the_script_runs_under_trl(tmp_path: Path, tiny_checkpoint: str) -> None:
    """On a tiny model and two rows of a file, without vLLM, one step: everything else as on the page."""
    rows = [{"question": f"What is {a} + 1?", "answer": f"One more.\n#### {a + 1}"} for a in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code = named("trl_gsm8k.py").body
    changes = {
        '"Qwen/Qwen2.5-0.5B-Instruct"': repr(tiny_checkpoint),
        '"openai/gsm8k", "main"': '"json", data_files="rows.jsonl"',
        "use_vllm=True": "use_vllm=False, use_cpu=True, bf16=False",
        "max_steps=500": "max_steps=1",
        "max_completion_length=512": "max_completion_length=8",
        "gradient_accumulation_steps=8": "gradient_accumulation_steps=1",
    }
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    (tmp_path / "trl_gsm8k.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "trl_gsm8k.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "outputs" / "from_trl" / "checkpoint-1" / "model.safetensors").is_file()


# --------------------------------------------------------------------------------------------------------------------
# What the page says of TRL's behaviour


def test_trl_passes_no_dtype_to_vllm() -> None:
    from trl.generation import vllm_generation

    (engine,) = calls(ast.parse(inspect.getsource(vllm_generation)), "LLM")
    assert "model" in keywords_of(engine) and "dtype" not in keywords_of(engine)


def keywords_of(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def test_trl_has_no_prompt_limit_and_cuts_rows(notes: ModuleType) -> None:
    assert "max_prompt_length" not in notes.trl_fields("grpo_math")
    assert notes.trl_fields("sft")["truncation_mode"] == "keep_start" and notes.trl_fields("sft")["max_length"] == 1024


def test_trl_samples_anew_after_a_resume() -> None:
    """Its buffered rollout is an attribute that no checkpoint holds."""
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer)
    assert "self._buffered_inputs = None" in source and "_buffered_inputs is None" in source
    assert "_buffered_inputs" not in inspect.getsource(GRPOTrainer._save_checkpoint)
