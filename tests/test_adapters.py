"""The `adapter:` block: what is read, the nearest match for what isn't known, and TRL's names as its short form."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mmreason._adapters import KINDS, adapter_block, kind_of, read_block
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_kind_is_taken(kind: str) -> None:
    values = {key: s.words[0] if s.words else s.default for key, s in KINDS[kind].settings.items()}
    settings = read_block({"kind": kind, **values})
    assert settings.kind == kind and settings.options.keys() >= KINDS[kind].fixed.keys()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "adapter.kind is missing; known: lora, rslora"),
        ({"kind": "lorra"}, "adapter.kind='lorra' is no kind of adapter; known: lora.*Did you mean 'lora'"),
        ({"kind": 3}, "adapter.kind=3 is no kind"),
        ({"kind": "lora", "rank": 3}, "adapter.rank is no setting of kind 'lora', which takes r, alpha"),
        ({"kind": "lora", "target_module": ["q"]}, "Did you mean 'target_modules'"),
        ({"kind": "rslora", "rslora": True}, "adapter.rslora is no setting of kind 'rslora'"),
        ({"kind": "prefix", "target_modules": ["q"]}, "adapter.target_modules is no setting of kind 'prefix'"),
        ({"kind": "lora", "r": 0}, "adapter.r=0 must be at least 1"),
        ({"kind": "lora", "r": 2.5}, "adapter.r=2.5 must be a whole number"),
        ({"kind": "lora", "r": True}, "adapter.r=True must be a whole number"),
        ({"kind": "lora", "alpha": 0}, "adapter.alpha=0 must be above 0"),
        ({"kind": "lora", "dropout": 1.0}, "adapter.dropout=1.0 must be at least 0.0 and below 1"),
        ({"kind": "lora", "rslora": "yes"}, "adapter.rslora='yes' must be true or false"),
        ({"kind": "bottleneck", "activation": "gelo"}, "known: gelu, .*Did you mean 'gelu'"),
        ({"kind": "lora", "target_modules": [3]}, "must be a name or a list of names"),
        ({"kind": "adalora", "r": 12}, "adapter.init_r=12 must be above r=12"),
        ({"path": "nowhere", "r": 3}, "leave out adapter.r"),
        ({"path": "nowhere"}, "nowhere is no adapter"),
    ],
)
def test_what_is_refused(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_block(block)


def test_trls_names_build_a_block() -> None:
    assert adapter_block(ModelArguments()) is None
    short = ModelArguments(use_peft=True, lora_r=8, lora_target_modules=["all-linear"], use_rslora=True)
    assert adapter_block(short) == {
        "kind": "lora", "r": 8, "alpha": 32, "dropout": 0.05, "rslora": True, "target_modules": ["all-linear"],
        "modules": "all",
    }  # fmt: skip
    assert (adapter_block(ModelArguments(use_peft=True, use_dora=True)) or {})["kind"] == "dora"
    for clash in ({"use_peft": True}, {"lora_r": 3}, {"use_dora": True, "lora_dropout": 0.2}):
        with pytest.raises(ConfigError, match=f"adapter and .*{next(iter(clash))}"):
            adapter_block(ModelArguments(adapter={"kind": "lora"}, **clash))


def test_kinds_of_saved_adapters() -> None:
    for kind, what in KINDS.items():
        if kind != "qlora":  # its adapter is a LoRA
            assert kind_of({"peft_type": what.peft_type, **what.fixed}) == kind
    assert kind_of({"peft_type": "LOHA"}) == "LOHA"


def test_it_is_light() -> None:
    code = "import sys, mmreason._adapters; print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
