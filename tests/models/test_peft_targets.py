"""Where adapters go: parts of composed and other vision-language models, names, patterns, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mmreason._adapters import read_block
from mmreason.models.peft import add_adapter
from mmreason.models.peft_targets import adaptable, parts_of, resolve_targets
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.models.parts import HF_CLIP, OPEN_CLIP_VIT, TIMM_VIT, compose, save_decoder
from tests.tiny_vlms import TINY_VLMS


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Towers of open_clip and transformers side by side."""
    towers = {"towers": [OPEN_CLIP_VIT, HF_CLIP]}
    return compose(towers, {"kind": "mlp"}, save_decoder(tmp_path_factory.mktemp("decoder")))[0]


def adapted(model: Any, **block: Any) -> list[str]:
    """Names of the modules that PEFT really adapts for a block."""
    import copy

    wrapped = add_adapter(copy.deepcopy(model), ModelArguments(adapter={"kind": "lora", **block}))
    return sorted(wrapped.base_model.targeted_module_names)


VISION = {
    "qwen2_5_vl": ("model.visual.blocks.0.attn.qkv", "model.visual.merger.mlp.0"),
    "qwen3_vl": ("model.visual.blocks.2.mlp.linear_fc2", "model.visual.deepstack_merger_list.1.linear_fc1"),
    "smolvlm": ("model.vision_model.encoder.layers.0.self_attn.q_proj", "model.connector.modality_projection.proj"),
    "llava": ("model.vision_tower.encoder.layers.0.self_attn.q_proj", "model.multi_modal_projector.linear_2"),
    "internvl": ("model.vision_tower.encoder.layer.0.attention.q_proj", "model.multi_modal_projector.linear_1"),
}
"""Model → (a layer of its tower, a layer of its projector)."""


@pytest.mark.parametrize("kind", TINY_VLMS)
def test_parts_of_vision_language_models(kind: str) -> None:
    model, _ = TINY_VLMS[kind]()
    tower, projector = VISION[kind]
    parts = parts_of(model, adaptable(model))
    assert (parts[tower], parts[projector]) == ("vision_tower", "projector")
    where = {name for name in parts if (name.endswith("_proj") and "language_model" in name) or "text_model" in name}
    assert where and {parts[name] for name in where} == {"decoder"} and parts["lm_head"] == "decoder"
    for part, inside in (("vision_tower", tower), ("projector", projector)):
        names = adapted(model, modules=[part], target_modules="all-linear")
        assert inside in names and {parts[name] for name in names} == {part}
    names = adapted(model, target_modules="all-linear")
    assert {parts[name] for name in names} == {"decoder"} and "lm_head" not in names and len(names) == 2 * 7


def test_parts_of_composed_models(composed: Any) -> None:
    starts = {"decoder": "language_model.model.layers.", "projector": "projector.", "vision_tower": "vision_tower."}
    for part, start in starts.items():
        names = adapted(composed, modules=[part], target_modules="all-linear")
        assert names and all(name.startswith(start) for name in names)
    both = adapted(composed, modules=["decoder", "projector"], target_modules="all-linear")
    assert len(both) == 2 * 7 + 2
    assert adapted(composed, modules="all", target_modules="all-linear") == adapted(
        composed, modules=["decoder", "projector", "vision_tower"], target_modules=["all-linear"]
    )


def test_names_are_looked_for_in_the_chosen_parts_alone(composed: Any) -> None:
    everywhere = adapted(composed, modules="all", target_modules=["q_proj"])
    assert {name.split(".")[0] for name in everywhere} == {"vision_tower", "language_model"}
    decoder = adapted(composed, target_modules=["q_proj"])
    assert decoder == [f"language_model.model.layers.{i}.self_attn.q_proj" for i in (0, 1)]


def test_patterns_and_exclusions(composed: Any) -> None:
    text = tiny_decoder()
    assert adapted(text, target_modules=["layers.1.*.[qv]_proj"]) == [
        "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    ]  # fmt: skip
    without = adapted(text, target_modules="all-linear", exclude_modules=["mlp.*"])
    assert len(without) == 2 * 4 and not any("mlp" in name for name in without)
    assert adapted(text, target_modules=["model.layers.0.mlp.up_proj"]) == ["model.layers.0.mlp.up_proj"]


def test_short_forms_are_kept() -> None:
    def names(**block: Any) -> list[str]:
        return resolve_targets(tiny_decoder(), read_block({"kind": "lora", **block}))

    assert names(target_modules=["q_proj", "up_proj"]) == ["q_proj", "up_proj"]
    assert names() == ["q_proj", "v_proj"]  # PEFT's choice for Qwen2
    everything = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert names(target_modules="all-linear") == everything


def test_ia3_scales_what_goes_into_feed_forward_layers(composed: Any) -> None:
    for targets in (None, ["k_proj", "v_proj", "down_proj"]):
        model = add_adapter(tiny_decoder(), ModelArguments(adapter={"kind": "ia3", "target_modules": targets}))
        layer = model.base_model.model.model.layers[0]
        assert layer.mlp.down_proj.is_feedforward and layer.mlp.down_proj.ia3_l["default"].shape == (1, 128)
        assert not layer.self_attn.v_proj.is_feedforward


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"target_modules": ["q_projj"]}, "target_modules: 'q_projj' fits no module of Qwen2.*Did you mean 'q_proj'"),
        ({"target_modules": ["q_proj", "no_such_proj"]}, "'no_such_proj' fits no module"),
        ({"target_modules": ["layers.7.*"]}, "'layers.7.*' fits no module"),
        ({"target_modules": "all-linear", "exclude_modules": ["dwn_proj"]}, "exclude_modules: .*'down_proj'"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "leaves no module"),
        ({"target_modules": ["input_layernorm"]}, "input_layernorm is a Qwen2RMSNorm; kind 'lora' goes on Conv1D"),
        ({"target_modules": ["embed_tokens"], "kind": "oft"}, "embed_tokens is a Embedding; kind 'oft'"),
        ({"modules_to_save": ["norn"]}, "modules_to_save: 'norn' fits no module.*Did you mean 'norm'"),
        ({"modules_to_save": ["embed_tokens"], "kind": "ia3"}, "kind 'ia3' would change the embedding"),
        ({"modules": ["projector"]}, "Qwen2ForCausalLM has no projector, only decoder"),
        ({"modules": ["decodr"]}, "modules: 'decodr'; known: .*Did you mean 'decoder'"),
    ],
)
def test_what_is_refused(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        add_adapter(tiny_decoder(), ModelArguments(adapter={"kind": "lora", **block}))


def test_a_name_of_another_part(composed: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"'c_fc' is in the vision_tower \(.*\), and adapter.modules is \['decoder'\]"
    ):
        adapted(composed, target_modules=["c_fc"])


def test_attention_that_never_calls_its_layers(composed: Any) -> None:
    """torch's nn.MultiheadAttention reads out_proj's weight: an adapter there would stay at zero without a word."""
    names = adapted(composed, modules=["vision_tower"], target_modules="all-linear")
    assert any("mlp.c_fc" in name for name in names) and any("self_attn.out_proj" in name for name in names)
    assert not any("attn.out_proj" in name and "towers.0" in name for name in names)
    with pytest.raises(ConfigError, match=r"towers.0.*attn.out_proj would never learn: nn.MultiheadAttention takes"):
        adapted(composed, modules=["vision_tower"], target_modules=["out_proj"])
    kept = adapted(composed, modules=["vision_tower"], target_modules=["out_proj"], exclude_modules=["attn.out_proj"])
    assert len(kept) == 3 and all("towers.1" in name for name in kept)


def test_timms_attention_with_biases_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    tower = TIMM_VIT | {"name": "beit_base_patch16_224", "config": {"embed_dim": 64, "depth": 1, "num_heads": 2}}
    tower = tower | {"image_size": 32}
    model, _ = compose(tower, {"kind": "mlp"}, save_decoder(tmp_path_factory.mktemp("decoder")))
    names = adapted(model, modules=["vision_tower"], target_modules="all-linear")
    assert names and not any(name.endswith("qkv") for name in names)
