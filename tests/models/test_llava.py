"""The composed model against transformers' LLaVA with the same weights, both ways, also through a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mmreason.models.llava import from_llava, to_llava
from mmreason.types import ConfigError
from tests.models.parts import HF_CLIP, HF_SIGLIP, TIMM_VIT, compose, save_decoder
from tests.pictures import picture
from tests.tiny_vlms import tiny_vlm

BOUND = 1e-5
TOWERS = {
    "clip": HF_CLIP | {"feature_layer": -2},  # as LLaVA-1.5
    "clip, class token too": HF_CLIP | {"feature_layer": -2, "select": "all", "resize": "pad"},
    "clip, last": HF_CLIP | {"resize": "crop"},
    "siglip": HF_SIGLIP | {"feature_layer": -1},
    "siglip, second last": HF_SIGLIP | {"feature_layer": -2, "resize": "pad"},
}
DECODERS = ["qwen2-tied", "qwen2", "llama", "llama-tied", "gemma", "gpt_neox"]
QUESTIONS = ["{} How many?", "Nothing to see.", "{}{}{} Which of them is the largest?"]
# Square pictures, of which any way of resizing sees the same part.
PICTURES = [[picture(50, 50, 1)], [], [picture(32, 32, 2), picture(20, 20, 3), picture(99, 99, 4)]]


def batch(processor: Any, side: str) -> dict[str, Any]:
    processor.tokenizer.padding_side = side
    texts = [question.replace("{}", processor.image_token) for question in QUESTIONS]
    images = [image for row in PICTURES for image in row]
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Of real tokens alone."""
    with torch.no_grad():
        output = model(**{key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")})
    return output.logits[inputs["attention_mask"].bool()]


def gradients(model: Any, inputs: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    given = {key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    loss = model(**given, labels=inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)).loss
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True))


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("decoder"), request.param)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("decoder"), "qwen2-tied")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tower", TOWERS)
def test_equals_transformers_llava(tower: str, side: str, qwen2: str, tmp_path: Path) -> None:
    """Processor and model, from a checkpoint that transformers reads, for rows with none, one and three pictures."""
    check_equal(*compose(TOWERS[tower], None, qwen2), side, tmp_path)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_equals_transformers_llava_with_every_decoder(tower: str, decoder: str, tmp_path: Path) -> None:
    check_equal(*compose(TOWERS[tower], {"kind": "mlp", "layers": 2, "bias": False}, decoder), "left", tmp_path)


def check_equal(model: Any, processor: Any, side: str, folder: Path) -> None:
    shared, _ = to_llava(model, processor, folder)
    theirs, told = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    their_processor = AutoProcessor.from_pretrained(folder)
    ours, other = batch(processor, side), batch(their_processor, side)
    assert type(their_processor).__name__ == "LlavaProcessor"
    assert torch.equal(ours["input_ids"], other["input_ids"])
    assert torch.equal(ours["attention_mask"], other["attention_mask"])
    torch.testing.assert_close(ours["pixel_values"], other["pixel_values"], rtol=0, atol=0.02)  # uint8 rounding
    wanted = logits(theirs, ours)
    assert wanted.std() > 0.3  # there is something to be equal
    torch.testing.assert_close(logits(model, ours), wanted, rtol=0, atol=BOUND)
    torch.testing.assert_close(logits(shared, ours), wanted, rtol=0, atol=BOUND)
    if side == "left":
        settings = {"max_new_tokens": 5, "do_sample": False}
        theirs_given = {**other, "pixel_values": ours["pixel_values"]}
        assert torch.equal(model.generate(**ours, **settings), theirs.generate(**theirs_given, **settings))

    mine = {
        "projector": model.projector.layers[0].weight,
        "patches": next(p for name, p in model.vision_tower.named_parameters() if "patch_embedding.weight" in name),
        "decoder": model.get_input_embeddings().weight,
    }
    yours = {
        "projector": theirs.model.multi_modal_projector.linear_1.weight,
        "patches": next(p for name, p in theirs.named_parameters() if "patch_embedding.weight" in name),
        "decoder": theirs.get_input_embeddings().weight,
    }
    found, wanted_gradients = gradients(model, ours, mine), gradients(theirs, ours, yours)
    for name, wanted_gradient in wanted_gradients.items():
        scale = float(wanted_gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(found[name], wanted_gradient, rtol=0, atol=BOUND * max(scale, 1))


@pytest.mark.parametrize("tower", TOWERS)
def test_there_and_back(tower: str, qwen2: str, tmp_path: Path) -> None:
    model, processor = compose(TOWERS[tower], None, qwen2)
    to_llava(model, processor, tmp_path)
    back, back_processor = from_llava(tmp_path)
    assert {k: list(v.shape) for k, v in back.state_dict().items()} == {
        k: list(v.shape) for k, v in model.state_dict().items()
    }
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    ours, theirs = batch(processor, "left"), batch(back_processor, "left")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(back, ours), logits(model, ours))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert back_processor.apply_chat_template(messages) == processor.apply_chat_template(messages)
    pictures = [picture(50, 30), picture(30, 50)]
    seen, seen_back = processor.image_processor(pictures), back_processor.image_processor(pictures)
    assert torch.equal(seen["pixel_values"], seen_back["pixel_values"])


def test_weights_are_shared_both_ways(qwen2: str) -> None:
    model, processor = compose(TOWERS["clip"], None, qwen2)
    llava, llava_processor = to_llava(model, processor)
    back, _ = from_llava(llava, llava_processor)
    tower = [p for name, p in llava.named_parameters() if ".vision_tower." in name and "post_layernorm" not in name]
    mine = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in mine for p in tower)
    assert {p.data_ptr() for p in llava.parameters()} >= mine
    assert {p.data_ptr() for n, p in back.named_parameters() if not n.startswith("vision_tower")} <= mine
    assert not hasattr(model.vision_tower.towers[0].encoder.config, "post_layernorm")


def test_a_checkpoint_made_by_transformers(tmp_path: Path) -> None:
    """With all its tower's layers, pooled norm and image processor, as LLaVA-1.5 has them."""
    folder = tiny_vlm("llava", tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model, processor = from_llava(folder)
    assert model.config.vision_config.towers[0]["feature_layer"] == -2 and model.config.vision_config.resize == "crop"
    their_processor = AutoProcessor.from_pretrained(folder)
    ours, other = batch(processor, "left"), batch(their_processor, "left")
    assert torch.equal(ours["input_ids"], other["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], other["pixel_values"], rtol=0, atol=0.02)
    torch.testing.assert_close(logits(model, other), logits(theirs, other), rtol=0, atol=BOUND)


REFUSED = {
    "tiles": (HF_CLIP | {"max_tiles": 4}, None, "tiles .*max_tiles: 4"),
    "two towers": ([HF_SIGLIP, TIMM_VIT], None, "2 vision towers"),
    "another library": (TIMM_VIT, None, "its tower is timm vit_tiny_patch16_224"),
    "normed features": (HF_SIGLIP, None, "feature_layer: -1"),
    "another size": (HF_SIGLIP | {"image_size": 48, "feature_layer": -1}, None, "from 32 to 48 pixels"),
    "queries": (HF_CLIP, {"kind": "perceiver", "queries": 2, "heads": 2}, "its projector is perceiver"),
    "pooled": (HF_CLIP, {"kind": "avg_pool"}, "its projector is avg_pool"),
    "one layer": (HF_CLIP, {"kind": "linear"}, "its projector is linear"),
    "narrow": (HF_CLIP, {"kind": "mlp", "width": 32}, "two layers as wide as the decoder"),
    "several": (TIMM_VIT | {"max_tiles": 4}, {"kind": "linear"}, "timm .*; .*tiles .*; .*linear"),
}


@pytest.mark.parametrize("part", REFUSED)
def test_parts_without_a_place_in_llava(part: str, qwen2: str) -> None:
    vision, projector, told = REFUSED[part]
    with pytest.raises(ConfigError, match=told):
        to_llava(*compose(vision, projector, qwen2))


def test_a_decoder_that_does_more_to_its_logits(tmp_path: Path) -> None:
    """Gemma 2 caps its logits, which LLaVA would not."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from mmreason.models.tiny import tiny_tokenizer

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    tokenizer = tiny_tokenizer()
    config = Gemma2Config(**sizes, num_key_value_heads=1, head_dim=32, vocab_size=len(tokenizer), pad_token_id=0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="Gemma2ForCausalLM is more than its base model and a linear head"):
        to_llava(*compose(HF_CLIP, None, str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"vision_feature_layer": [-2, -1]}, "reads one layer"),
        ({"vision_feature_layer": -9}, "feature_layer=-9: the tower has 2 layers"),
    ],
)
def test_a_llava_that_our_model_has_no_place_for(change: dict[str, Any], told: str, qwen2: str) -> None:
    llava, processor = to_llava(*compose(TOWERS["clip"], None, qwen2))
    llava.config = copy.deepcopy(llava.config)
    for name, value in change.items():
        setattr(llava.config, name, value)
    with pytest.raises(ConfigError, match=told):
        from_llava(llava, processor)


def test_what_is_no_llava(qwen2: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Qwen2ForCausalLM is no LlavaForConditionalGeneration"):
        from_llava(qwen2)
    with pytest.raises(ConfigError, match="nowhere"):
        from_llava(tmp_path / "nowhere")
    llava, _ = to_llava(*compose(TOWERS["clip"], None, qwen2))
    with pytest.raises(ConfigError, match="processor"):
        from_llava(llava)
