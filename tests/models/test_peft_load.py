"""A saved adapter goes on its own base and on no other: another class, name, weights or shapes are refused, by name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mmreason.models.peft import add_adapter, load_adapter
from mmreason.models.tiny import save_tiny, tiny_decoder
from mmreason.types import ConfigError
from tests.models.parts import save_decoder
from tests.models.peft_parts import arguments, logits, train


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(a base's folder, an adapter that was trained on it)."""
    torch.manual_seed(0)
    folder = save_tiny(tmp_path_factory.mktemp("base") / "mine")
    model = add_adapter(AutoModelForCausalLM.from_pretrained(folder), arguments("lora", target_modules="all-linear"))
    train(model, steps=2)
    out = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(out)
    return folder, out


@pytest.fixture
def adapter(owner: tuple[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(owner[1], tmp_path / "adapter"))


def forget_base(adapter: Path, **changes: Any) -> None:
    """What an adapter is that other software has written: a name, and nothing more of its base."""
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"auto_mapping": None} | changes
    file.write_text(json.dumps(config), encoding="utf-8")


def named(model: Any, name: str) -> Any:
    model.name_or_path = model.config._name_or_path = name
    return model


def test_the_same_base_elsewhere(owner: tuple[str, Path], tmp_path: Path) -> None:
    """Its weights say whose it is: a copy under any name will do, in half precision too."""
    folder, adapter = owner
    wanted = logits(load_adapter(AutoModelForCausalLM.from_pretrained(folder), adapter))
    shutil.copytree(folder, tmp_path / "moved")
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert torch.equal(logits(load_adapter(moved, adapter)), wanted)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.testing.assert_close(logits(load_adapter(half, adapter)).float(), wanted, atol=0.1, rtol=0.1)


def test_another_models_weights(owner: tuple[str, Path], tmp_path: Path) -> None:
    """The same class, shapes and name, but trained otherwise: only looking at weights can tell."""
    folder, adapter = owner
    other = named(tiny_decoder(seed=7), folder)
    with pytest.raises(
        ConfigError, match="is an adapter for .*mine, not for .*mine .Qwen2ForCausalLM.: the weights of"
    ):
        load_adapter(other, adapter)
    load_adapter(tiny_decoder(seed=7), adapter, any_base=True)


def test_another_class(owner: tuple[str, Path], tmp_path: Path) -> None:
    llama = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama", "llama"))
    for anyway in (False, True):
        with pytest.raises(ConfigError, match="for .*mine, a Qwen2ForCausalLM, not for .*llama .LlamaForCausalLM."):
            load_adapter(copy.deepcopy(llama), owner[1], any_base=anyway)


def test_another_name(owner: tuple[str, Path], adapter: Path) -> None:
    """Of an adapter that says no more than a name: a hub's name and its copy in a folder end alike."""
    forget_base(adapter, base_model_name_or_path="somebody/theirs")
    with pytest.raises(ConfigError, match="an adapter for somebody/theirs, not for .*mine .Qwen2ForCausalLM.. If they"):
        load_adapter(AutoModelForCausalLM.from_pretrained(owner[0]), adapter)
    load_adapter(AutoModelForCausalLM.from_pretrained(owner[0]), adapter, any_base=True)
    forget_base(adapter, base_model_name_or_path="somebody/mine")
    load_adapter(AutoModelForCausalLM.from_pretrained(owner[0]), adapter)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"intermediate_size": 96}, "trained on .*mine and doesn't fit .*mine .Qwen2ForCausalLM.: .*size mismatch"),
        ({"num_hidden_layers": 1}, "has what belongs to nothing in the model: .*layers.1.*Was it trained on"),
        ({"num_hidden_layers": 3}, "lacks .*layers.2.*Was it trained on .*mine"),
    ],
)
def test_other_shapes(owner: tuple[str, Path], adapter: Path, settings: dict[str, int], said: str) -> None:
    forget_base(adapter)
    with pytest.raises(ConfigError, match=said):
        load_adapter(named(tiny_decoder(**settings), owner[0]), adapter)


def no_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def broken_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{", encoding="utf-8")


def no_type(adapter: Path) -> None:
    forget_base(adapter, peft_type=None)


def no_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def pickled(adapter: Path) -> None:
    no_weights(adapter)
    torch.save({}, adapter / "adapter_model.bin")


def cut_weights(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def lost_tensor(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_config, "is no adapter: it holds no adapter_config.json"),
        (broken_config, "is no adapter: adapter_config.json can't be read"),
        (no_type, "names no peft_type"),
        (no_weights, "has no adapter_model.safetensors$"),
        (pickled, "only pickled weights, which may run code"),
        (cut_weights, "adapter_model.safetensors can't be read"),
        (lost_tensor, "lacks base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"),
    ],
)
def test_damaged_adapters(owner: tuple[str, Path], adapter: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(adapter)
    with pytest.raises(ConfigError, match=said):
        load_adapter(AutoModelForCausalLM.from_pretrained(owner[0]), adapter)


def test_two_kinds_on_one_model(owner: tuple[str, Path], tmp_path: Path) -> None:
    folder, adapter = owner
    other = add_adapter(AutoModelForCausalLM.from_pretrained(folder), arguments("ia3"))
    with pytest.raises(
        ConfigError, match="of kind lora, and the model has one of PEFT's type IA3: one model takes one"
    ):
        load_adapter(other, adapter, "second")
