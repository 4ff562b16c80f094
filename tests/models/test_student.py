"""Students against what they must equal: their teacher whole, with layers skipped, or with its other parts at zero."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto import CONFIG_MAPPING

from mmreason.models.student import Kept, from_scratch, prune
from mmreason.models.student_importance import choose, choose_heads, measure_importance, measure_loss
from mmreason.models.student_rank import truncate
from mmreason.models.student_sizes import (
    FAMILIES,
    Sizes,
    Wanted,
    decoder_config,
    largest,
    select_layers,
    serving_note,
    sizes_of,
    student_sizes,
)
from mmreason.types import IGNORE_INDEX, ConfigError, DataError
from tests.models.parts import TIMM_VIT, compose, save_decoder
from tests.tiny_vlms import randomise

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-12, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
CASES = {
    "llama": {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": False, "max_window_layers": 4},
    "qwen2-tied": {"tie_word_embeddings": True, "max_window_layers": 4},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": False, "max_window_layers": 4},
    "gemma": {"head_dim": 16},
    "gemma-untied": {"head_dim": 16, "tie_word_embeddings": False},
}
IDS = torch.tensor([[5, 9, 33, 2, 71, 64, 8, 8, 96, 40, 3, 12], [50, 51, 9, 7, 6, 5, 4, 3, 2, 90, 91, 92]])


def teacher(case: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """A random decoder; its query heads are in two groups of three."""
    kind = case.split("-")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(SIZES | CASES[case] | settings)), dtype=dtype)
        randomise(model)
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **inputs: Any) -> Tensor:
    return model(input_ids=ids, **inputs).logits


def places(*values: int) -> Tensor:
    return torch.tensor(values)


LAYERS = (0, 2, 3)
KEPT: dict[str, Kept] = {
    "channels": Kept(layers=(0, 1, 2, 3), channels=torch.arange(48)[torch.arange(48) % 4 > 0]),
    "neurons": Kept(layers=(0, 1, 2, 3), neurons=[torch.arange(80)[torch.arange(80) % 5 != i] for i in range(4)]),
    "heads": Kept(
        layers=(0, 1, 2, 3),
        heads=[places(0, 2, 3, 4), places(1, 2, 4, 5), places(0, 1, 3, 5), places(0, 1, 4, 5)],
        kv_heads=[places(0, 1)] * 4,
    ),
    "groups": Kept(
        layers=(0, 1, 2, 3),
        heads=[places(3, 4, 5), places(0, 1, 2), places(3, 4, 5), places(3, 4, 5)],
        kv_heads=[places(1), places(0), places(1), places(1)],
    ),
    "all": Kept(
        layers=LAYERS,
        channels=torch.arange(0, 48, 2),
        neurons=[torch.arange(i, 80, 3)[:26] for i in range(3)],
        heads=[places(3, 5), places(0, 2), places(4, 5)],
        kv_heads=[places(1), places(0), places(1)],
    ),
}


@torch.no_grad()
def masked(model: Any, kept: Kept, head_dim: int) -> Any:
    """The teacher itself with everything that isn't kept set to zero, and dropped layers passing on what they get."""
    decoder = getattr(model, "language_model", model).model

    def others(chosen: Tensor, size: int) -> Tensor:
        return torch.tensor([i for i in range(size) if i not in chosen.tolist()], dtype=torch.long)

    for place, layer in enumerate(decoder.layers):
        if place not in kept.layers:
            layer.register_forward_hook(lambda module, args, output: args[0])
            continue
        at = kept.layers.index(place)
        if kept.neurons is not None:
            layer.mlp.down_proj.weight[:, others(kept.neurons[at], layer.mlp.down_proj.in_features)] = 0
        if kept.heads is not None:
            for head in others(kept.heads[at], 6).tolist():
                layer.self_attn.o_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
    if kept.channels is not None:
        gone = others(kept.channels, decoder.embed_tokens.embedding_dim)
        decoder.embed_tokens.register_forward_hook(lambda module, args, out: out.index_fill(-1, gone, 0.0))
        for layer in decoder.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight[gone] = 0
                if module.bias is not None:
                    module.bias[gone] = 0
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_student_that_keeps_everything_is_its_teacher(case: str) -> None:
    model = teacher(case, torch.float32)
    student = prune(model, Kept(layers=(0, 1, 2, 3)))
    mine, theirs = student.state_dict(), model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(logits(student), logits(model)) and logits(model).std() > 0.1
    assert type(student) is type(model) and student.dtype == model.dtype and not student.training
    before, after = model.config.to_dict(), student.config.to_dict()
    assert after.pop("head_dim") == (before.pop("head_dim", None) or 8)
    assert before == after
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(student.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layers", [(0, 3), (1,), (0, 1, 2)])
def test_dropped_layers_are_skipped(case: str, layers: tuple[int, ...]) -> None:
    model = teacher(case)
    student = prune(model, Kept(layers=layers))
    assert len(student.model.layers) == len(layers) == student.config.num_hidden_layers
    skipping, whole = logits(masked(teacher(case), Kept(layers=layers), 0)), logits(model)
    assert (logits(student) - skipping).abs().max() <= 1e-12 < (skipping - whole).abs().max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", KEPT)
def test_a_student_computes_what_its_teacher_does_without_the_other_parts(case: str, what: str) -> None:
    model, kept = teacher(case), KEPT[what]
    head_dim = sizes_of(model.config).head_dim
    student = prune(model, kept)
    wanted, whole = logits(masked(teacher(case), kept, head_dim)), logits(model)
    allowed = 1e-6 * wanted.abs().max()  # norms compute in float32 whatever the dtype is
    assert (logits(student) - wanted).abs().max() <= allowed < 1e-3 < (wanted - whole).abs().max()
    tied = case in ("llama-tied", "qwen2-tied", "gemma")
    assert (student.get_input_embeddings().weight is student.get_output_embeddings().weight) == tied
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in model.parameters())


def test_dead_neurons_heads_and_channels_are_not_missed() -> None:
    """What is zero in the teacher already can go, in float32 too: the logits stay."""
    for what in ("channels", "neurons", "heads"):
        dead = masked(teacher("qwen2", torch.float32), KEPT[what], 8)
        if what == "channels":
            gone = torch.arange(0, 48, 4)
            with torch.no_grad():
                dead.model.embed_tokens.weight[:, gone] = 0
        assert (logits(prune(dead, KEPT[what])) - logits(dead)).abs().max() <= 1e-5 * logits(dead).abs().max()


@pytest.mark.parametrize("case", ["qwen2", "qwen3"])
def test_each_layer_keeps_its_kind_of_attention(case: str) -> None:
    """Windows in the upper layers: a student's layers look as far back as they did, and the configuration says so."""
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model, kept = teacher(case, **windows), Kept(layers=(0, 1, 3))
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    student = prune(model, kept)
    assert student.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert student.config.max_window_layers == 2
    wanted = logits(masked(teacher(case, **windows), kept, 0))
    assert (logits(student) - wanted).abs().max() <= 1e-12
    wide = prune(teacher(case, **windows | {"use_sliding_window": False}), kept)
    assert (logits(wide) - wanted).abs().max() > 1e-3, "the window must matter here"
    scratch = from_scratch(model.config, Sizes(**vars(sizes_of(model.config)) | {"layers": 2}), seed=0, dtype=None)
    assert scratch.config.layer_types == ["full_attention", "sliding_attention"]


def test_the_whole_model_survives_saving(tmp_path: Path) -> None:
    for case in CASES:
        student = prune(teacher(case, torch.float32), KEPT["all"])
        student.save_pretrained(tmp_path / case)
        loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / case, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"]
        assert torch.equal(logits(loaded.eval()), logits(student))
        assert sizes_of(loaded.config) == Sizes(
            layers=3, hidden_size=24, intermediate_size=26, heads=2, kv_heads=1, head_dim=CASES[case].get("head_dim", 8)
        )
        generated = loaded.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert generated.shape == (2, 16)


def test_generation_settings_come_along() -> None:
    model = teacher("qwen2")
    model.generation_config.temperature, model.generation_config.do_sample = 0.4, True
    student = prune(model, Kept(layers=(0,)))
    assert student.generation_config.to_dict() == model.generation_config.to_dict()
    assert student.generation_config is not model.generation_config


# --------------------------------------------------------------------------------------------------------------------
# Importance


class Batches:
    """Two batches; the shorter row of the first is padded, and its first labels don't count."""

    rows = (IDS[0], IDS[1, :7], IDS[1, 5:])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in (self.rows[:2], self.rows[2:]):
            pad = torch.nn.utils.rnn.pad_sequence
            labels = pad([row.clone() for row in rows], batch_first=True, padding_value=IGNORE_INDEX)
            labels[:, :3] = IGNORE_INDEX
            mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
            yield {"input_ids": pad(list(rows), batch_first=True), "attention_mask": mask, "labels": labels}


def literal(model: Any) -> dict[str, Any]:
    """The same numbers by a plain forward pass of a Llama, row by row, token by token."""
    config, decoder = model.config, model.model
    count, heads, groups, width = 4, 6, 2, config.head_dim
    sums: dict[str, Any] = {"layers": [0.0] * 4, "neurons": [0.0] * 4, "heads": [0.0] * 4, "loss": []}
    norms: dict[str, Any] = {}
    tokens = 0

    def norm(name: str, module: Any, x: Tensor) -> Tensor:
        out = module.weight * x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
        norms[name] = norms.get(name, 0) + out.abs().sum(0)
        return out

    for row in Batches.rows:
        x, length = decoder.embed_tokens.weight[row], len(row)
        tokens += length
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        for place in range(count):
            layer, start = decoder.layers[place], x
            y, attention = norm(f"layers.{place}.input_layernorm", layer.input_layernorm, x), layer.self_attn
            outputs = []
            for head in range(heads):
                rows, kv = slice(head * width, (head + 1) * width), head // (heads // groups)
                shared = slice(kv * width, (kv + 1) * width)
                q = y @ attention.q_proj.weight[rows].T + attention.q_proj.bias[rows]
                k = y @ attention.k_proj.weight[shared].T + attention.k_proj.bias[shared]
                v = y @ attention.v_proj.weight[shared].T + attention.v_proj.bias[shared]
                q, k = (t * cos + torch.cat([-t[:, width // 2 :], t[:, : width // 2]], 1) * sin for t in (q, k))
                scores = (q @ k.T / width**0.5).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
                outputs.append(scores.softmax(-1) @ v)
            sums["heads"][place] += torch.stack([out.square().sum(1).sqrt().sum() for out in outputs])
            x = x + torch.cat(outputs, 1) @ attention.o_proj.weight.T + attention.o_proj.bias
            y, mlp = norm(f"layers.{place}.post_attention_layernorm", layer.post_attention_layernorm, x), layer.mlp
            gate = y @ mlp.gate_proj.weight.T + mlp.gate_proj.bias
            inner = gate * gate.sigmoid() * (y @ mlp.up_proj.weight.T + mlp.up_proj.bias)
            sums["neurons"][place] += inner.abs().sum(0)
            x = x + inner @ mlp.down_proj.weight.T + mlp.down_proj.bias
            for a, b in zip(start, x, strict=True):
                sums["layers"][place] += 1 - float(a @ b / (a.norm() * b.norm()))
        logps = (norm("norm", decoder.norm, x) @ model.lm_head.weight.T).log_softmax(-1)
        sums["loss"] += [-float(logps[t - 1, row[t]]) for t in range(3, length)]
    return {
        "layers": torch.tensor(sums["layers"]).double() / tokens,
        "neurons": torch.stack(sums["neurons"]) / tokens,
        "heads": torch.stack(sums["heads"]) / tokens,
        "channels": {name: total / tokens for name, total in norms.items()},
        "loss": sum(sums["loss"]) / len(sums["loss"]),
        "tokens": len(sums["loss"]),
    }


def test_importance_and_loss_against_a_literal_forward_pass() -> None:
    model = teacher("llama")
    found = measure_importance(model, Batches())
    with torch.no_grad():
        wanted = literal(model)
    for name in ("layers", "neurons", "heads"):
        torch.testing.assert_close(getattr(found, name), wanted[name], atol=1e-5, rtol=1e-5)
    assert found.channels.keys() == wanted["channels"].keys() and len(found.channels) == 9
    for name, values in wanted["channels"].items():
        torch.testing.assert_close(found.channels[name], values, atol=1e-5, rtol=1e-5)
    assert found.tokens == wanted["tokens"] == 9 + 4 + 4
    assert found.loss == pytest.approx(wanted["loss"], rel=1e-5)
    assert measure_loss(model, Batches()) == pytest.approx(wanted["loss"], rel=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_without_a_label() -> None:
    with pytest.raises(DataError, match="no token to predict"):
        measure_loss(teacher("qwen2"), [])
    blank = [batch | {"labels": torch.full_like(batch["labels"], IGNORE_INDEX)} for batch in Batches()]
    with pytest.raises(DataError, match="no token to predict"):
        measure_importance(teacher("qwen2"), blank)


@torch.no_grad()
def test_what_does_nothing_is_what_goes() -> None:
    """Silent neurons, heads and channels, and a layer that passes on what it gets, are found and dropped."""
    model = teacher("llama", torch.float32)
    silent = {"neurons": [3, 50], "channels": [0, 17], "layer": 2}
    for place, layer in enumerate(model.model.layers):
        for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
            module.weight[silent["neurons"]], module.bias[silent["neurons"]] = 0, 0
        group = slice(place % 2 * 16, (place % 2 + 1) * 16)
        layer.self_attn.v_proj.weight[group], layer.self_attn.v_proj.bias[group] = 0, 0
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            rows = list(range(48)) if place == 2 else silent["channels"]
            module.weight[rows], module.bias[rows] = 0, 0
    model.model.embed_tokens.weight[:, silent["channels"]] = 0
    wanted = Wanted(layers=3, hidden_size=46, intermediate_size=78, heads=2, kv_heads=1)
    found, sizes = measure_importance(model, Batches()), student_sizes(model.config, wanted)
    kept = choose(found, model.config, wanted, sizes, "importance")
    assert kept.layers == (0, 1, 3) and found.layers[2] < 1e-6
    assert kept.channels is not None and kept.neurons is not None and kept.kv_heads is not None
    assert sorted(set(range(48)) - set(kept.channels.tolist())) == silent["channels"]
    assert all(sorted(set(range(80)) - set(each.tolist())) == silent["neurons"] for each in kept.neurons)
    assert [each.tolist() for each in kept.kv_heads] == [[1], [0], [0]]
    unpruned = Wanted(layers=3, hidden_size=46, intermediate_size=78, heads=3, kv_heads=1)
    with pytest.raises(ConfigError, match="hidden_size=46 must be a multiple of heads=3 in a llama model"):
        student_sizes(model.config, unpruned)
    whole = Wanted(layers=3, hidden_size=46, intermediate_size=78, heads=2, kv_heads=2)
    without = choose(found, model.config, whole, student_sizes(model.config, whole), "importance")
    assert without.heads is not None and [len(each) for each in without.heads] == [2, 2, 2]


def test_choosing_by_numbers() -> None:
    assert largest(torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0]), 2).tolist() == [0, 2]
    scores = torch.tensor([5.0, 1.0, 1.0, 4.0, 4.0, 4.0, 9.0, 0.0, 0.0])  # groups of three: sums 7, 12, 9
    heads, kv = choose_heads(scores, groups=3, heads=6, kv_heads=2)
    assert kv.tolist() == [1, 2] and heads.tolist() == [3, 4, 5, 6, 7, 8]
    heads, kv = choose_heads(scores, groups=3, heads=2, kv_heads=2)  # by the heads that would stay: 5, 4, 9
    assert kv.tolist() == [0, 2] and heads.tolist() == [0, 6]
    heads, kv = choose_heads(scores, groups=3, heads=6, kv_heads=3)
    assert kv.tolist() == [0, 1, 2] and heads.tolist() == [0, 1, 3, 4, 6, 7]


def test_channels_are_weighed_over_the_kept_layers_only() -> None:
    model = teacher("qwen2")
    found = measure_importance(model, Batches())
    wanted = Wanted(layers=[1], hidden_size=24)
    kept = choose(found, model.config, wanted, student_sizes(model.config, wanted))
    names = ("layers.1.input_layernorm", "layers.1.post_attention_layernorm", "norm")
    sums = sum(found.channels[name] for name in names)
    assert kept.layers == (1,) and kept.channels is not None and kept.heads is None and kept.neurons is None
    assert set(kept.channels.tolist()) == set(sums.topk(24).indices.tolist())  # type: ignore[union-attr]
    whole = sum(found.channels.values())
    assert set(kept.channels.tolist()) != set(whole.topk(24).indices.tolist())  # type: ignore[union-attr]


def test_which_layers() -> None:
    assert select_layers(6, 12, "uniform") == (0, 2, 4, 7, 9, 11)  # DistilBERT's
    assert select_layers(1, 12, "uniform") == (0,)
    assert select_layers(3, 12, "first") == (0, 1, 2) and select_layers(3, 12, "last") == (9, 10, 11)
    influence = torch.tensor([0.9, 0.1, 0.3, 0.2, 0.8])
    assert select_layers(3, 5, "importance", influence) == (0, 2, 4)
    for limit in range(1, 49):
        for count in range(1, limit + 1):
            found = select_layers(count, limit, "uniform")
            assert len(set(found)) == count and list(found) == sorted(found) and found[0] == 0
            assert count == 1 or found[-1] == limit - 1
    with pytest.raises(ConfigError, match="layer_selection='importence'; known: uniform.*Did you mean 'importance'"):
        select_layers(1, 2, "importence")


# --------------------------------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(layers=5), "layers=5 must be from 1 to the teacher's 4"),
        (Wanted(layers=0), "layers=0 must be from 1"),
        (Wanted(layers=[0, 4]), r"layers=\[0, 4\]: the teacher's layers are 0 to 3, there is no 4"),
        (Wanted(layers=[-1]), "there is no -1"),
        (Wanted(layers=[2, 1]), "must ascend"),
        (Wanted(layers=[1, 1]), "must ascend"),
        (Wanted(layers=[]), "names no layer"),
        (Wanted(hidden_size=49), "hidden_size=49 must be from 1 to the teacher's 48"),
        (Wanted(intermediate_size=0), "intermediate_size=0 must be from 1"),
        (Wanted(heads=7), "heads=7 must be from 1 to the teacher's 6"),
        (Wanted(kv_heads=3), "kv_heads=3 must be from 1 to the teacher's 2"),
        (Wanted(heads=3), "heads=3 is no multiple of the 2 key-value heads"),
        (Wanted(heads=6, kv_heads=1), "would be 6 query heads for each key-value head; the teacher has 3"),
    ],
)
def test_sizes_that_cannot_be(wanted: Wanted, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        student_sizes(teacher("qwen2").config, wanted)


def test_heads_that_follow() -> None:
    grouped = teacher("mistral").config
    assert student_sizes(grouped, Wanted()) == sizes_of(grouped)
    found = student_sizes(grouped, Wanted(kv_heads=1))
    assert (found.heads, found.kv_heads) == (3, 1)
    found = student_sizes(grouped, Wanted(heads=4))
    assert (found.heads, found.kv_heads) == (4, 2)
    each = CONFIG_MAPPING["mistral"](**(SIZES | {"num_key_value_heads": 6}))
    found = student_sizes(each, Wanted(heads=4))
    assert (found.heads, found.kv_heads, found.head_dim) == (4, 4, 8)


def test_what_no_student_is_made_of() -> None:
    with pytest.raises(ConfigError, match="a gpt_neox model; students are made of llama, mistral, qwen2, qwen3, gemma"):
        decoder_config(CONFIG_MAPPING["gpt_neox"]())
    quantised = CONFIG_MAPPING["llama"](**SIZES, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ConfigError, match="weights are quantised"):
        decoder_config(quantised)
    model = teacher("qwen2")
    model.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(
        ConfigError, match="has a weight model.layers.0.mlp.extra.weight, which is none of a plain qwen2"
    ):
        prune(model, Kept(layers=(0,)))


def test_what_vllm_does_not_serve_is_said() -> None:
    narrow = prune(teacher("qwen2"), KEPT["channels"]).config
    assert "6 heads of 8 are 48, not 36" in str(serving_note(narrow))
    assert serving_note(teacher("qwen2").config) is None
    assert serving_note(prune(teacher("qwen3"), KEPT["channels"]).config) is None


@pytest.mark.parametrize("case", CASES)
def test_from_scratch_has_the_sizes_and_other_weights(case: str) -> None:
    model = teacher(case, torch.float32)
    sizes = student_sizes(model.config, Wanted(layers=2, hidden_size=24, intermediate_size=32, heads=4))
    state = torch.get_rng_state()
    first, again, other = (from_scratch(model.config, sizes, seed=seed, dtype=torch.float32) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert sizes_of(first.config) == sizes and len(first.model.layers) == 2 and type(first) is type(model)
    assert first.model.layers[0].self_attn.q_proj.weight.shape == (4 * sizes.head_dim, 24)
    assert torch.equal(logits(first), logits(again)) and not torch.equal(logits(first), logits(other))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (first.get_input_embeddings().weight is first.get_output_embeddings().weight)
    assert first.get_input_embeddings().weight.shape == (97, 24)


# --------------------------------------------------------------------------------------------------------------------
# Rank


def inputs_of(model: Any, name: str) -> Tensor:
    """(tokens, in) of a linear layer on the rows of Batches, one row at a time."""
    seen: list[Tensor] = []
    handle = model.model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for row in Batches.rows:
        logits(model, row[None])
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["layers.0.mlp.gate_proj", "layers.3.mlp.down_proj", "layers.1.self_attn.o_proj"])
def test_no_matrix_of_that_rank_is_nearer(name: str) -> None:
    """Against the singular values of WX, by Eckart and Young the least that is possible; and a plain SVD is worse."""
    before, model = teacher("llama"), teacher("llama")
    done = truncate(model, Batches(), rank=5)
    weight, x = before.model.get_submodule(name).weight.detach(), inputs_of(before, name)
    new = model.model.get_submodule(name).weight.detach()
    values = torch.linalg.svdvals(weight @ x.T).square()
    assert torch.linalg.matrix_rank(new) == 5 == done[name].rank
    lost = (weight @ x.T - new @ x.T).square().sum()
    assert float(lost) == pytest.approx(float(values[5:].sum()), rel=1e-3)
    assert done[name].energy == pytest.approx(float(values[:5].sum() / values.sum()), abs=1e-4)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    plain = (u[:, :5] * s[:5]) @ v[:5]
    assert (weight @ x.T - plain @ x.T).square().sum() > 1.05 * lost
    rows, columns = weight.shape
    assert (done[name].factored, done[name].whole) == (5 * (rows + columns), rows * columns)
    for untouched in ("embed_tokens.weight", "layers.0.self_attn.q_proj.bias", "norm.weight"):
        assert torch.equal(model.model.get_parameter(untouched), before.model.get_parameter(untouched))


def test_a_share_of_the_rank_and_what_no_row_shows() -> None:
    model, before = teacher("llama"), teacher("llama")
    done = truncate(model, Batches(), share=0.5)
    assert done["layers.0.self_attn.k_proj"].rank == 16 and done["layers.0.mlp.up_proj"].rank == 24
    assert len(done) == 28
    few = [{name: tensor[:1, :4] for name, tensor in next(iter(Batches())).items()}]
    model = teacher("llama")
    truncate(model, few, rank=20)
    for name in ("up_proj", "down_proj"):
        weight, new = (getattr(each.model.layers[0].mlp, name).weight.detach() for each in (before, model))
        assert torch.linalg.matrix_rank(new) == 20
        # Four tokens take up four dimensions and say nothing of the others: there a plain SVD decides.
        assert new.square().sum() > torch.linalg.svdvals(weight)[:16].square().sum()


def test_ranks_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="cuts nothing"):
        truncate(teacher("llama"), Batches(), rank=80)
    with pytest.raises(ConfigError, match="rank=0 must be at least 1"):
        truncate(teacher("llama"), Batches(), rank=0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="must be above 0 and below 1"):
            truncate(teacher("llama"), Batches(), share=share)
    with pytest.raises(DataError, match="no calibration rows"):
        truncate(teacher("llama"), [], rank=4)


# --------------------------------------------------------------------------------------------------------------------
# Composed models

PROJECTORS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp"},
    "deep": {"kind": "mlp", "layers": 3, "width": 24, "bias": False},
    "pixel_shuffle": {"kind": "pixel_shuffle"},
    "perceiver": {"kind": "perceiver", "queries": 4, "layers": 1, "heads": 4},
}


def seen(processor: Any) -> Any:
    """Inputs of a prompt with a picture."""
    from PIL import Image

    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return processor(text=text, images=[Image.new("RGB", (40, 30), (200, 30, 90))], return_tensors="pt")


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("decoder", ["qwen2-tied", "gemma"])
def test_a_composed_student_sees_what_its_teacher_does(kind: str, decoder: str, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "decoder", decoder)
    model, processor = compose(TIMM_VIT, PROJECTORS[kind], folder)
    inputs, channels = seen(processor), torch.arange(64)[torch.arange(64) % 4 > 0]
    kept = Kept(layers=(1,), channels=channels, neurons=[torch.arange(0, 96, 2)])
    student = prune(model, kept)
    student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "student").eval()
    assert loaded.config.text_config.hidden_size == 48 and loaded.config.text_config.num_hidden_layers == 1
    assert all(torch.equal(a, b) for a, b in zip(loaded.vision_tower.parameters(), model.vision_tower.parameters(),
                                                 strict=True))  # fmt: skip
    with torch.no_grad():
        mine, whole = loaded(**inputs).logits, model(**inputs).logits
        blank = loaded(**inputs | {"pixel_values": torch.zeros_like(inputs["pixel_values"])}).logits
        teacher_masked = masked(model, kept, 32)
        gone = torch.arange(0, 64, 4)
        model.projector.register_forward_hook(lambda _, __, out: out.index_fill(-1, gone, 0.0))
        wanted = teacher_masked(**inputs).logits
    assert (mine - wanted).abs().max() <= 1e-4 * wanted.abs().max() < (wanted - whole).abs().max()
    assert (blank - mine).abs().max() > 1e-3, "the picture must matter here"
    new = loaded.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert new.shape[1] == inputs["input_ids"].shape[1] + 5
    assert processor.image_token_id not in new[0, -5:].tolist()
    assert student.generation_config.to_dict() == model.generation_config.to_dict()


def test_a_composed_student_from_scratch_keeps_the_tower(tmp_path: Path) -> None:
    model, processor = compose(TIMM_VIT, {"kind": "mlp"}, save_decoder(tmp_path / "decoder", "qwen2-tied"))
    sizes = student_sizes(decoder_config(model.config), Wanted(layers=1, hidden_size=32, heads=1))
    student = from_scratch(model.config, sizes, seed=0, dtype=torch.float32, teacher=model)
    tower, theirs = student.vision_tower.state_dict(), model.vision_tower.state_dict()
    assert all(torch.equal(tower[name], theirs[name]) for name in theirs)
    assert student.projector.layers[0].weight.shape == (64, 64) and student.projector.layers[2].weight.shape == (32, 64)
    assert not torch.equal(student.projector.layers[0].weight, model.projector.layers[0].weight)
    with torch.no_grad():
        assert student(**seen(processor)).logits.isfinite().all()


def test_importance_is_measured_through_pictures(tmp_path: Path) -> None:
    model, processor = compose(TIMM_VIT, {"kind": "mlp"}, save_decoder(tmp_path / "decoder", "qwen2-tied"))
    inputs = dict(seen(processor))
    inputs["labels"] = inputs["input_ids"].clone()
    blank = inputs | {"pixel_values": torch.zeros_like(inputs["pixel_values"])}
    found, without = measure_importance(model, [inputs]), measure_importance(model, [blank])
    assert not torch.allclose(found.neurons, without.neurons) and not torch.allclose(found.heads, without.heads)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen2", "gemma"])
def test_vllm_writes_what_transformers_does(case: str, tmp_path: Path, repo_root: Path) -> None:
    """Heads as wide as the teacher's in a narrower model; one engine in a process."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    command = [sys.executable, "-m", "tests.models.vllm_student", case, str(tmp_path)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / f"{case}.json").read_text(encoding="utf-8"))
    assert len(found) == 3 and all(each["vllm"] == each["hf"] and len(each["hf"]) == 12 for each in found), found
    assert len({token for each in found for token in each["hf"]}) > 3


def test_every_family_is_tried() -> None:
    assert {case.split("-")[0] for case in CASES} == set(FAMILIES)
