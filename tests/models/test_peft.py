"""Every kind of adapter: it learns and nothing else moves, comes back bit for bit, and merges where it can."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason._adapters import KINDS, PARTS
from mmreason.models.loading import load_policy_model
from mmreason.models.peft import activate, add_adapter, load_adapter
from mmreason.models.peft_targets import parts_of
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.models.parts import HF_SIGLIP, OPEN_CLIP_VIT, TIMM_VIT, compose, save_decoder
from tests.models.peft_parts import BLOCKS, IDS, PLACED, arguments, logits, moved, text_loss, train
from tests.pictures import ask, picture
from tests.tiny_vlms import TINY_VLMS

VIRTUAL = [kind for kind in BLOCKS if kind not in PLACED]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """(a composed model, inputs with two pictures and labels)."""
    model, processor = compose(
        HF_SIGLIP, {"kind": "mlp"}, save_decoder(tmp_path_factory.mktemp("decoder"), "qwen2-tied")
    )
    texts = [
        processor.apply_chat_template(ask(text, count), add_generation_prompt=True, tokenize=False)
        for text, count in (("How many?", 1), ("Which one?", 1))
    ]
    images = [[picture(60, 60)], [picture(30, 90, seed=1)]]
    inputs = dict(processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt"))
    return model, inputs


def loss_with(inputs: dict[str, Any]) -> Any:
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    return lambda model: model(**inputs, labels=labels).loss


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", PLACED)
def test_it_learns_alone_reloads_and_merges(made: Any, kind: str, part: str, tmp_path: Path) -> None:
    model, inputs = made
    adapted = add_adapter(copy.deepcopy(model), arguments(kind, modules=[part]))
    learns = [name for name, p in adapted.named_parameters() if p.requires_grad]
    inside = parts_of(model, [name.removeprefix("base_model.model.") for name in learns])
    assert learns and set(inside.values()) == {part}
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    losses = train(adapted, loss_with(inputs))
    assert losses[-1] < losses[0], losses
    assert moved(adapted, model) == []
    still = [n for n, p in adapted.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert [
        n for n in still if "lora_E" not in n
    ] == []  # AdaLoRA may leave a layer no rank: its singular values stay 0

    wanted = logits(adapted, inputs)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, inputs), logits(model, inputs))
    adapted.save_pretrained(tmp_path)
    again = load_adapter(copy.deepcopy(model), tmp_path)
    assert torch.equal(logits(again, inputs), wanted) and not any(p.requires_grad for p in again.parameters())
    if KINDS[kind].merges:
        merged = again.merge_and_unload(safe_merge=True)
        gap = (logits(merged, inputs) - wanted)[inputs["attention_mask"].bool()].abs().max() / wanted.abs().max()
        assert gap <= 1e-5 and {n for n, _ in merged.named_parameters()} == {n for n, _ in model.named_parameters()}
    else:
        with pytest.raises(ValueError, match="can't be merged"):
            again.merge_and_unload()


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_learn_alone_and_reload(kind: str, tmp_path: Path) -> None:
    base = tiny_decoder()
    adapted = add_adapter(copy.deepcopy(base), arguments(kind))
    assert all("prompt_encoder" in name for name, p in adapted.named_parameters() if p.requires_grad)
    losses = train(adapted)
    assert losses[-1] < losses[0] and moved(adapted, base) == []
    wanted = logits(adapted)
    assert not torch.allclose(wanted[:, -12:], logits(base))
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(copy.deepcopy(base), tmp_path)), wanted)


@pytest.mark.parametrize("kind", ["prefix", "p_tuning_v2"])
def test_a_prefix_before_pictures(made: Any, kind: str) -> None:
    model, inputs = made
    adapted = add_adapter(copy.deepcopy(model), arguments(kind))
    losses = train(adapted, loss_with(inputs))
    assert losses[-1] < losses[0] and moved(adapted, model) == []
    blank = inputs | {"pixel_values": torch.zeros_like(inputs["pixel_values"])}
    assert not torch.allclose(logits(adapted, inputs), logits(adapted, blank))


@pytest.mark.parametrize("kind", ["prompt", "p_tuning"])
def test_a_prompt_before_pictures_is_refused(made: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match="pictures are missing: use kind: prefix"):
        add_adapter(copy.deepcopy(made[0]), arguments(kind))


@pytest.mark.parametrize("kind", VIRTUAL)
def test_tokens_before_positions_in_three_dimensions_are_refused(kind: str) -> None:
    model, _ = TINY_VLMS["qwen2_5_vl"]()
    with pytest.raises(ConfigError, match="Qwen2_5_VLForConditionalGeneration counts positions of pictures"):
        add_adapter(model, arguments(kind))


@pytest.mark.parametrize("kind", BLOCKS)
def test_three_tasks_in_sequence(kind: str) -> None:
    """Training adapters 2 and 3 leaves adapter 1 and the base exactly as they were."""
    base = tiny_decoder()
    model, outputs = copy.deepcopy(base), {}
    for task, name in enumerate(("task1", "task2", "task3")):
        model = add_adapter(model, arguments(kind), name)
        ids = IDS.roll(task, 0) * 2
        before = logits(model)
        losses = train(model, lambda m, ids=ids: m(input_ids=ids, labels=ids).loss, steps=6)
        assert losses[-1] < losses[0], (name, losses)
        outputs[name] = logits(model)
        assert not torch.equal(outputs[name], before)
    for name in ("task1", "task3", "task2", "task1"):
        activate(model, name)
        assert torch.equal(logits(model), outputs[name]), name
        assert not any(p.requires_grad for p in model.parameters())
    assert moved(model, base) == []
    if kind in PLACED:
        activate(model, None)
        assert torch.equal(logits(model), logits(base))
        activate(model, "task3")
        assert torch.equal(logits(model), outputs["task3"])
    with pytest.raises(ConfigError, match="no adapter 'task4'; loaded: task1, task2, task3. Did you mean 'task"):
        activate(model, "task4")


def test_going_on_with_a_saved_adapter(tmp_path: Path) -> None:
    base = tiny_decoder()
    first = add_adapter(copy.deepcopy(base), arguments("lora"))
    losses = train(first)
    first.save_pretrained(tmp_path)
    second = add_adapter(copy.deepcopy(base), ModelArguments(adapter={"path": str(tmp_path)}))
    assert torch.equal(logits(second), logits(first))
    again = train(second)
    assert again[0] == pytest.approx(losses[-1]) and again[-1] < again[0] and moved(second, base) == []


def test_trls_options_build_the_same_adapter() -> None:
    options: dict[str, Any] = {
        "lora_r": 3, "lora_alpha": 7, "lora_dropout": 0.25, "lora_target_modules": ["q_proj", "up_proj"],
        "lora_modules_to_save": ["norm"], "use_rslora": True, "use_dora": True,
    }  # fmt: skip
    short = add_adapter(tiny_decoder(), ModelArguments(use_peft=True, **options)).peft_config["default"]
    assert (short.r, short.lora_alpha, short.lora_dropout) == (3, 7, 0.25)
    assert short.target_modules == {"q_proj", "up_proj"} and short.modules_to_save == ["norm"]
    assert short.use_rslora and short.use_dora
    block = {
        "kind": "dora", "r": 3, "alpha": 7, "dropout": 0.25, "rslora": True,
        "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["norm"],
    }  # fmt: skip
    assert add_adapter(tiny_decoder(), ModelArguments(adapter=block)).peft_config["default"] == short
    defaults = add_adapter(tiny_decoder(), ModelArguments(use_peft=True)).peft_config["default"]
    from peft import LoraConfig, get_peft_model

    plain = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.05)
    assert get_peft_model(tiny_decoder(), plain).peft_config["default"].target_modules == defaults.target_modules


def test_no_adapter_leaves_the_model_alone() -> None:
    model = tiny_decoder()
    assert add_adapter(model, ModelArguments(lora_r=3)) is model


def test_modules_to_save_learn_in_full(tmp_path: Path) -> None:
    base = tiny_decoder()
    adapted = add_adapter(copy.deepcopy(base), arguments("bottleneck", modules_to_save=["input_layernorm"]))
    train(adapted)
    norms = [n for n, p in adapted.named_parameters() if p.requires_grad and "bottleneck" not in n]
    assert len(norms) == 2 and all("input_layernorm.modules_to_save" in name for name in norms)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(copy.deepcopy(base), tmp_path)), logits(adapted))


def test_bottlenecks_begin_at_the_base_and_equal_the_formula() -> None:
    base = tiny_decoder()
    adapted = add_adapter(copy.deepcopy(base), arguments("bottleneck", activation="relu"))
    assert torch.equal(logits(adapted), logits(base))
    train(adapted)
    layer = adapted.base_model.model.model.layers[1].mlp.down_proj
    x = torch.randn(3, 128)
    h = base.model.layers[1].mlp.down_proj(x)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    wanted = h + torch.relu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), wanted, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(layer(x), h, atol=1e-3)


@pytest.mark.slow
def test_peft_knows_bottlenecks_in_a_process_that_only_imports_models(tmp_path: Path) -> None:
    base = tiny_decoder()
    base.save_pretrained(tmp_path / "base")
    adapted = add_adapter(base, arguments("bottleneck"))
    adapted.save_pretrained(tmp_path / "adapter")
    code = (
        "import sys, mmreason.models, transformers, peft\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = peft.PeftModel.from_pretrained(model, sys.argv[2])\n"
        "print(model.peft_config['default'].peft_type.value, peft.PeftType('BOTTLENECK').name)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["BOTTLENECK", "BOTTLENECK"]


def test_4_bit_weights(tmp_path: Path, tiny_checkpoint: str) -> None:
    pytest.importorskip("bitsandbytes")
    args = ModelArguments(
        model_name_or_path=tiny_checkpoint,
        adapter={"kind": "qlora", "r": 4, "target_modules": "all-linear"},
    )
    model = add_adapter(load_policy_model(args), args)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested, layer.weight.dtype) == ("nf4", True, torch.uint8)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

    def loss_of(model: Any) -> torch.Tensor:
        if model.training:  # on some CPUs evaluation packs the 4-bit weights in another order
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
        return text_loss(model)

    losses = train(model, loss_of)
    assert losses[-1] < losses[0]
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(load_policy_model(args), tmp_path)), wanted)
    with pytest.raises(ConfigError, match="loaded in 4 bits"):
        add_adapter(tiny_decoder(), args)


def test_4_bit_weights_without_their_library(tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes .*pip install 'mmreason\[qlora\]'"):
        load_policy_model(ModelArguments(model_name_or_path=tiny_checkpoint, adapter={"kind": "qlora"}))


@pytest.mark.parametrize("vision", [TIMM_VIT, OPEN_CLIP_VIT])
def test_towers_of_other_libraries(vision: Any, tmp_path: Path) -> None:
    """Every layer that all-linear adapts in the tower gets gradients: none of them is passed by."""
    model, processor = compose(vision, {"kind": "mlp"}, save_decoder(tmp_path))
    args = arguments("lora", modules=["vision_tower"], target_modules="all-linear")
    adapted = add_adapter(model, args)
    text = processor.apply_chat_template(ask("How many?", 1), tokenize=False)
    inputs = dict(processor(text=[text], images=[[picture(60, 60)]], return_tensors="pt"))
    loss_with(inputs)(adapted).backward()
    idle = [name for name, p in adapted.named_parameters() if "lora_B" in name and (p.grad is None or not p.grad.any())]
    assert idle == [] and sum("lora_B" in name for name, _ in adapted.named_parameters()) >= 6


def test_no_warning_where_all_is_well(tmp_path: Path) -> None:
    base = tiny_decoder()
    base.name_or_path = str(tmp_path / "gone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in BLOCKS:
            add_adapter(tiny_decoder(), arguments(kind))


def test_what_is_kept_of_the_base(tmp_path: Path) -> None:
    adapted = add_adapter(tiny_decoder(), arguments("lora"))
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["auto_mapping"]["base_model_class"] == "Qwen2ForCausalLM"
    assert len(config["auto_mapping"]["samples"]) == 4
