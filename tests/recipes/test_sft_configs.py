"""Every YAML of supervised fine-tuning: read, checked, and its rows rendered from real data of the same form."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason._adapters import check_adapter
from mmreason.config import parse_config
from mmreason.data.prompts import resolve_template
from mmreason.trainers.model_parts import check_parts
from mmreason.trainers.sft_data import check_data, load_rows, order_of, render_rows
from recipes.sft import OPTIONS
from tests.recipes.launch import ROOT
from tests.recipes.test_configs import header

FOLDER = ROOT / "recipes" / "configs" / "sft"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def read(name: str) -> Any:
    return parse_config(OPTIONS, ["--config", str(FOLDER / f"{name}.yaml")])


def test_the_set_of_configs() -> None:
    names = ["code", "demo-vision", "embedded", "gsm8k-cot", "llava-instruct", "qwen2.5-0.5b", "scienceqa-cot", "tools"]
    assert [path.stem for path in CONFIGS] == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_opens_with_the_command_that_runs_it(path: Path) -> None:
    words, _ = header(path)
    assert words[:2] == ["accelerate", "launch"] and "recipes/sft.py" in words
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    if path.stem == "embedded":
        assert words == ["accelerate", "launch", "recipes/sft.py"]
    else:
        assert words[words.index("--config") + 1] == f"recipes/configs/sft/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_its_options_can_work(path: Path) -> None:
    model, data, args = read(path.stem)
    args.check()
    check_parts(model)
    check_adapter(model, args)
    check_data(data, args)
    if data.prompt_template is not None:
        resolve_template(data.prompt_template)
    assert args.output_dir.startswith("outputs/")
    known = {field.name for cls in OPTIONS for field in fields(cls)}
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known


LOCAL: dict[str, dict[str, Any]] = {
    "code": {
        "dataset_name": "sft_cot/svamp_python_cot.jsonl",
        "column_map": {"prompt": "question", "completion": "answer_cot"},
    },
    "gsm8k-cot": {"dataset_name": "gsm8k/train.jsonl", "dataset_test_split": None},
    "qwen2.5-0.5b": {"dataset_name": "gsm8k/train.jsonl", "dataset_test_split": None},
    "scienceqa-cot": {"dataset_name": "scienceqa/problems_150_full_fields.jsonl", "dataset_test_split": None},
    "tools": {},
}
# The tiny tokenizer's own template has no place for calls: rows with some would be refused, and dropped here.
WITH_CALLS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOOLS = ("tool_use/glaive_toolcall_en_demo.jsonl", "instruction/alpaca_2k.jsonl")


@pytest.mark.parametrize("name", LOCAL)
def test_rows_of_its_form_are_learned_from(name: str, shared_data: Path) -> None:
    """Real rows in the place of the hub's: they are read, rendered, have loss, and get an order."""
    from mmreason.models.tiny import tiny_tokenizer

    _, data, args = read(name)
    for key, value in LOCAL[name].items():
        setattr(data, key, str(shared_data / value) if key == "dataset_name" else value)
    if args.datasets is not None:
        for entry, file in zip(args.datasets, TOOLS, strict=True):
            entry["name"] = str(shared_data / file)
    data.max_train_samples, data.eval_samples, data.max_prompt_length = 60, 4, None
    args.max_length, data.on_bad_row = 6000, "drop"
    members, curriculum, loss_on = check_data(data, args)
    train, held = load_rows(data, members, args.seed, lambda _: None)
    tokenizer = tiny_tokenizer()
    if name == "tools":
        tokenizer.chat_template = WITH_CALLS
    rows, measured = render_rows(train, held, tokenizer, data, args, loss_on, lambda _: None)
    assert len(rows) >= 40 and (rows.weight_sums > 0).all()
    assert 1 <= len(measured.rows["held_out"]) <= 4  # rows that can't be rendered are dropped here, too
    order = order_of(train, rows, members, curriculum, args)
    assert sorted(set(order.take(0, order.rows_per_epoch))) and order.rows_per_epoch >= 0.9 * len(rows)
    if name == "tools":
        assert {weight for i in range(len(rows)) for weight in rows[i].weights} == {0.0, 1.0, 2.0}


def test_llava_conversations(shared_data: Path, tmp_path: Path) -> None:
    """LLaVA's form with pictures, packed, into a model with a tower: generated conversations about real pictures."""
    import json

    import pyarrow.parquet as pq

    from mmreason.models.loading import load_processor
    from mmreason.trainers.arguments import ModelArguments
    from tests.pictures import save_seeing

    pictures = pq.read_table(shared_data / "images" / "scienceqa_test_400.parquet").slice(0, 6)["image"].to_pylist()
    rows = []
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.jpg").write_bytes(picture["bytes"])
        turns = [("human", "<image>\nWhat is it?"), ("gpt", f"Thing {number}."), ("human", "Sure?"), ("gpt", "Yes.")]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": [
            {"from": who, "value": text} for who, text in turns]})  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    _, data, args = read("llava-instruct")
    data.dataset_name, data.image_root, data.eval_samples = str(tmp_path / "rows.json"), str(tmp_path), 2
    members, _, loss_on = check_data(data, args)
    train, held = load_rows(data, members, args.seed, lambda _: None)
    processor = load_processor(ModelArguments(model_name_or_path=save_seeing("mmreason", tmp_path / "model")))
    learned, measured = render_rows(train, held, processor, data, args, loss_on, lambda _: None)
    assert len(learned) == 4 and len(measured.rows["held_out"]) == 2 and not measured.problems
    assert learned.image_counts == [1] * 4
    said = processor.tokenizer.decode([t for t, w in zip(learned[0].ids, learned[0].weights, strict=True) if w])
    assert "Thing" in said and "Yes." in said and "Sure" not in said
