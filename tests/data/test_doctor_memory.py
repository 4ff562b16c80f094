"""The memory estimate against what torch really keeps: parameters, states, and tensors saved for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmreason.data.doctor_memory import (
    ModelSize,
    TrainingShape,
    activation_bytes,
    estimate_memory,
    measure_model,
    meta_model,
)
from mmreason.types import ConfigError


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **more})


def saved_bytes(model: torch.nn.Module, tokens: int, rows: int) -> int:
    """Bytes of the different tensors that a forward pass of the decoder layers keeps, without parameters."""
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 512, (rows, tokens // rows))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(input_ids=ids, use_cache=False).last_hidden_state
        total = sum(kept.values())
        del out
    return total


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_those_that_torch_keeps(attention: str) -> None:
    """A Llama in float32 on 2 x 96 tokens: within a tenth (cosines, embeddings and masks are not counted)."""
    from transformers import AutoModel

    torch.manual_seed(0)
    config = llama(attn_implementation=attention)
    size = measure_model(meta_model(config))
    model = AutoModel.from_config(config).train()
    run = TrainingShape(tokens=192, longest=96, attention="eager" if attention == "eager" else "fused")
    estimated = 3 * activation_bytes(size, run, 4, 4)
    assert saved_bytes(model, 192, 2) == pytest.approx(estimated, rel=0.1)


def test_parameters_are_counted_exactly() -> None:
    from transformers import AutoModelForCausalLM

    config = llama(tie_word_embeddings=True)
    size = measure_model(meta_model(config))
    model = AutoModelForCausalLM.from_config(config)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert (size.decoder_layers, size.hidden, size.intermediate, size.query, size.key_value) == (3, 128, 352, 128, 32)
    assert size.vocabulary == 512


def test_a_model_that_sees_is_counted_with_its_tower() -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(
        "llava",
        text_config=llama().to_dict(),
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16,
        },
    )  # fmt: skip
    size = measure_model(meta_model(config))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert size.parameters == sum(p.numel() for p in model.parameters()) and size.decoder_layers == 3
    inside = [m for n, m in model.named_modules() if "language_model.layers" in n and isinstance(m, torch.nn.Linear)]
    assert size.linear == sum(m.weight.numel() for m in inside) > 0


def test_states_are_what_an_optimizer_holds() -> None:
    from transformers import AutoModelForCausalLM

    config = llama()
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters())
    loss = model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    loss.backward()
    optimizer.step()
    held = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    parts = estimate_memory(measure_model(meta_model(config)), TrainingShape(tokens=8, longest=8))
    assert parts["optimizer"] == held
    assert parts["gradients"] == parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert (
        estimate_memory(measure_model(meta_model(config)), TrainingShape(tokens=8, longest=8, optim="sgd"))["optimizer"]
        == 0
    )


SEVEN_BILLION = ModelSize(7_500_000_000, 7_000_000_000, 32, 4096, 11008, 4096, 4096, 32, 32000)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_as_figure_1_of_its_paper_has_it(stage: int, gigabytes: float) -> None:
    """arXiv 1910.02054, figure 1: 7.5 billion parameters on 64 devices, K = 12, in GB of model states."""
    run = TrainingShape(
        tokens=1, longest=1, dtype="bfloat16", bf16=True, zero_stage=stage, processes=64, deepspeed=True
    )
    parts = estimate_memory(SEVEN_BILLION, run)
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert states / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_what_checkpointing_packing_and_adapters_change() -> None:
    usual = TrainingShape(tokens=4096, longest=512, dtype="bfloat16")
    parts = estimate_memory(SEVEN_BILLION, usual)
    whole = estimate_memory(
        SEVEN_BILLION, TrainingShape(tokens=4096, longest=512, dtype="bfloat16", gradient_checkpointing=False)
    )
    assert parts["activations"] < whole["activations"] / 10 and parts["weights"] == whole["weights"]
    adapter = estimate_memory(SEVEN_BILLION, TrainingShape(tokens=4096, longest=512, trainable=10_000_000))
    assert adapter["gradients"] == 40_000_000 and adapter["optimizer"] == 80_000_000
    half = estimate_memory(SEVEN_BILLION, TrainingShape(tokens=4096, longest=512, supervised_share=0.5))
    assert half["logits"] * 2 == estimate_memory(SEVEN_BILLION, TrainingShape(tokens=4096, longest=512))["logits"]
    cast = estimate_memory(SEVEN_BILLION, TrainingShape(tokens=4096, longest=512, bf16=True))
    assert cast["casts"] == 15_000_000_000
    four_bits = estimate_memory(SEVEN_BILLION, TrainingShape(tokens=1, longest=1, dtype="bfloat16", quantised=True))
    assert four_bits["weights"] == 500_000_000 * 2 + int(7_000_000_000 * 4.127 / 8)
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"optim": "adam"}, "unknown optim 'adam'"),
        ({"zero_stage": 4}, "zero_stage=4"),
    ],
)
def test_what_it_does_not_know_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainingShape(tokens=1, longest=1, **settings)


def test_a_configuration_of_no_language_model_is_refused() -> None:
    from transformers import ViTConfig

    with pytest.raises(ConfigError, match="ViTConfig is no language model"):
        meta_model(ViTConfig())
