"""Every YAML of reward models: read, checked, and rows of its form, real ones where there are some, learned from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason._adapters import check_adapter
from mmreason.config import parse_config
from mmreason.trainers.model_parts import check_parts
from mmreason.trainers.reward_data import head_of, load_reward_rows, prepare_reward
from recipes.reward_model import OPTIONS
from tests.recipes.launch import ROOT
from tests.recipes.test_configs import header

FOLDER = ROOT / "recipes" / "configs" / "reward_model"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def read(name: str) -> Any:
    return parse_config(OPTIONS, ["--config", str(FOLDER / f"{name}.yaml")])


def test_the_set_of_configs() -> None:
    assert [path.stem for path in CONFIGS] == ["embedded", "hh-rlhf", "math-shepherd", "rankings", "rlaif-v"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_opens_with_the_command_that_runs_it(path: Path) -> None:
    words, _ = header(path)
    assert words[:2] == ["accelerate", "launch"] and "recipes/reward_model.py" in words
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    if path.stem == "embedded":
        assert words == ["accelerate", "launch", "recipes/reward_model.py"]
    else:
        assert words[words.index("--config") + 1] == f"recipes/configs/reward_model/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_its_options_can_work(path: Path) -> None:
    model, data, args = read(path.stem)
    args.check()
    data.check()
    check_parts(model)
    check_adapter(model, args)
    assert args.output_dir.startswith("outputs/")
    known = {field.name for cls in OPTIONS for field in fields(cls)}
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known


def learned_from(name: str, rows: list[dict[str, Any]] | str, tmp_path: Path, processor: Any = None) -> Any:
    """Rows in the place of the hub's, prepared as the YAML says."""
    import json

    from mmreason.models.tiny import tiny_tokenizer

    _, data, args = read(name)
    if not isinstance(rows, str):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = str(tmp_path / "rows.jsonl")
    data.dataset_name, data.dataset_test_split, data.max_train_samples, data.eval_samples = rows, None, 40, 2
    train, held = load_reward_rows(data, args.seed, lambda _: None)
    head = head_of(train, args.head, rows)
    sets = [prepare_reward(part, processor or tiny_tokenizer(), head, args, data.on_bad_row)[0]
            for part in (train, held["held_out"])]  # fmt: skip
    assert len(sets[1]) == 2
    return sets[0]


def test_pairs_of_people(shared_data: Path, tmp_path: Path) -> None:
    rows = learned_from("hh-rlhf", str(shared_data / "preference" / "hh_harmless_1k.jsonl"), tmp_path)
    assert len(rows) >= 20 and rows.head == "preference" and set(rows.ranks) == {0, 1}


def test_rankings_and_steps(tmp_path: Path) -> None:
    ranking = [{"completion": text, "rank": rank} for rank, text in enumerate(("a", "b", "c"))]
    rows = learned_from(
        "rankings", [{"prompt": f"{i}?", "completion": "a", "meta": {"ranking": ranking}} for i in range(6)], tmp_path
    )
    assert len(rows) == 4 and list(rows.ranks) == [0, 1, 2] * 4
    steps = [{"prompt": f"{i}?", "completions": ["one", "two"], "labels": [True, False]} for i in range(6)]
    rows = learned_from("math-shepherd", steps, tmp_path)
    assert rows.head == "process" and rows.labels == [(1.0, 0.0)] * 4


def test_pairs_about_pictures(tmp_path: Path) -> None:
    """TRL's form of the set: a list of images, messages with places for them."""
    from mmreason.models.loading import load_processor
    from mmreason.trainers.arguments import ModelArguments
    from tests.pictures import ask, picture, save_seeing

    rows = []
    for number in range(5):
        picture(40, 50, number).save(tmp_path / f"{number}.png")
        sides = {side: [{"role": "assistant", "content": [{"type": "text", "text": f"{side} {number}"}]}]
                 for side in ("chosen", "rejected")}  # fmt: skip
        rows.append({"images": [f"{number}.png"], "prompt": ask("what is it?", 1), **sides})
    processor = load_processor(ModelArguments(model_name_or_path=save_seeing("qwen2_5_vl", tmp_path / "model")))
    found = learned_from("rlaif-v", rows, tmp_path, processor)
    assert len(found) == 3 and found.image_counts == [2] * 3


def test_the_made_set_fits_the_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs without options, on a few rows: the repository's decoder reads them within its length."""
    from mmreason.models.loading import load_tokenizer
    from recipes.reward_model import make_data

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, data, args = read("embedded")
    data.word_problems |= {"n": 40, "n_test": 10, "n_unseen": 10}
    make_data(data, lambda *_: None)
    train, held = load_reward_rows(data, args.seed, lambda *_: None)
    assert list(held) == ["held_out", "unseen_templates"]
    model.model_name_or_path = str(ROOT / model.model_name_or_path)
    rows, dropped = prepare_reward(train, load_tokenizer(model), "preference", args, "error")
    assert len(rows) >= 35 and not dropped and list(rows.ranks[:3]) == [0, 1, 2]
