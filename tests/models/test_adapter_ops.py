"""Sums of adapters against formulas written out here, merging into files, and taking an adapter out of two models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mmreason.models.adapter_ops import combine, extract, merge
from mmreason.models.adapter_switch import AdapterSwitch
from mmreason.models.loading import load_tokenizer
from mmreason.models.peft import add_adapter, load_adapter
from mmreason.models.tiny import tiny_decoder
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.models.parts import save_decoder
from tests.models.peft_parts import IDS, arguments, logits

WEIGHTS = (0.7, -0.4, 1.3)
KINDS = ("lora", "rslora", "lora")
TARGETS = (["q_proj", "down_proj"], ["q_proj", "v_proj"], ["q_proj", "down_proj"])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """(a base, folders of three random adapters of it, of two ranks, kinds and sets of layers)."""
    base, folders = tiny_decoder(), []
    for i, (kind, targets) in enumerate(zip(KINDS, TARGETS, strict=True)):
        args = arguments(kind, r=2 + i, target_modules=targets)
        folders.append(str(saved(copy.deepcopy(base), args, tmp_path_factory.mktemp("part"), seed=i)))
    return base, folders


def saved(base: Any, args: ModelArguments, folder: Path, seed: int = 0, scale: float = 0.3) -> Path:
    """An adapter of random numbers in a folder."""
    model = add_adapter(base, args)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def changes(base: Any, folder: str | Path) -> dict[str, np.ndarray]:
    """Layer → ΔW of an adapter in float64, from its files alone."""
    from safetensors.numpy import load_file

    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    names = {name.rpartition(".lora_")[0] for name in tensors}
    out = {}
    for name in names:
        a, b = (tensors[f"{name}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        out[name.removeprefix("base_model.model.")] = scale * b @ a
    return out


def nearly(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys() and found
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= tolerance * max(1.0, np.abs(value).max()), name


def weighted(base: Any, folders: list[str]) -> dict[str, np.ndarray]:
    total: dict[str, Any] = {}
    for folder, weight in zip(folders, WEIGHTS, strict=True):
        for name, change in changes(base, folder).items():
            total[name] = total.get(name, 0.0) + weight * change
    return total


@pytest.mark.parametrize("method", ["linear", "svd"])
def test_sums_are_exact(parts: Any, method: str, tmp_path: Path) -> None:
    base, folders = parts
    done = combine(copy.deepcopy(base), list(zip(folders, WEIGHTS, strict=True)), tmp_path / "new", method=method)
    assert done.rank == 2 + 3 + 4 and done.captured == pytest.approx(1, abs=1e-6)
    wanted = weighted(base, folders)
    nearly(changes(base, tmp_path / "new"), wanted)
    loaded = load_adapter(copy.deepcopy(base), tmp_path / "new")
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for name, change in wanted.items():
            by_hand.get_submodule(name).weight += torch.tensor(change, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(by_hand), atol=1e-4, rtol=1e-4)


def test_svd_cut_to_a_rank_is_the_best_there_is(parts: Any, tmp_path: Path) -> None:
    base, folders = parts
    adapters = list(zip(folders, WEIGHTS, strict=True))
    done = combine(copy.deepcopy(base), adapters, tmp_path / "new", method="svd", rank=3)
    wanted, kept, total = weighted(base, folders), 0.0, 0.0
    best = {}
    for name, change in wanted.items():
        u, s, v = np.linalg.svd(change, full_matrices=False)
        best[name] = (u[:, :3] * s[:3]) @ v[:3]
        kept, total = kept + (s[:3] ** 2).sum(), total + (s**2).sum()
    nearly(changes(base, tmp_path / "new"), best)
    assert done.captured == pytest.approx(kept / total, abs=1e-5) and 0.1 < done.captured < 0.999


def test_one_adapter_cut_to_a_rank(parts: Any, tmp_path: Path) -> None:
    base, folders = parts
    done = combine(copy.deepcopy(base), [(folders[2], -0.5)], tmp_path / "new", method="svd", rank=2)
    best = {}
    for name, change in changes(base, folders[2]).items():
        u, s, v = np.linalg.svd(-0.5 * change, full_matrices=False)
        best[name] = (u[:, :2] * s[:2]) @ v[:2]
    nearly(changes(base, tmp_path / "new"), best)
    assert done.rank == 2 and done.captured is not None and done.captured < 0.95
    combine(copy.deepcopy(base), [(folders[2], -0.5)], tmp_path / "same")
    nearly(changes(base, tmp_path / "same"), {n: -0.5 * change for n, change in changes(base, folders[2]).items()})


def literal_ties(deltas: list[np.ndarray], weights: list[float], density: float) -> np.ndarray:
    """Number by number: trim, elect a sign, average those that agree (arXiv 2306.01708, algorithm 1)."""
    trimmed = []
    for delta in deltas:
        keep = int(density * delta.size)
        limit = np.sort(np.abs(delta).ravel())[delta.size - keep]
        trimmed.append(np.where(np.abs(delta) >= limit, delta, 0.0))
    out = np.zeros_like(deltas[0])
    for place in np.ndindex(out.shape):
        values = [delta[place] for delta in trimmed]
        sign = 1.0 if sum(values) >= 0 else -1.0
        agreeing = [w * v for v, w in zip(values, weights, strict=True) if v * sign > 0]
        out[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def test_ties_equals_its_algorithm(parts: Any, tmp_path: Path) -> None:
    base, folders = parts
    pair = [folders[0], folders[2]]
    combine(
        copy.deepcopy(base), [(pair[0], 0.7), (pair[1], 1.3)], tmp_path / "new", method="ties", density=0.3, rank=64
    )
    first, second = (changes(base, folder) for folder in pair)
    wanted = {name: literal_ties([first[name], second[name]], [0.7, 1.3], 0.3) for name in first}
    nearly(changes(base, tmp_path / "new"), wanted)


def test_dare_drops_and_rescales(parts: Any, tmp_path: Path) -> None:
    """Each number is 0 or 1/density of what it was; alone, and in the share that was asked for (arXiv 2311.03099)."""
    base, folders = parts
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        options: dict[str, Any] = {"method": "dare", "density": 0.25, "rank": 64, "seed": seed}
        assert combine(copy.deepcopy(base), [(folders[0], 1.0)] * 2, tmp_path / folder, **options).captured is None
    found, again, other = (changes(base, tmp_path / name) for name in "abc")
    nearly(again, found, 0)
    assert any(np.abs(other[name] - found[name]).max() > 0.1 for name in found)
    dropped = []
    for name, change in changes(base, folders[0]).items():
        times = found[name] / change  # 0, 1 or 2 of the two copies were kept, each four times as large
        clear = np.abs(change) > 1e-3
        nearest = np.abs(times[clear][:, None] - np.array([0.0, 4.0, 8.0])).min(1)
        assert nearest.max() < 2e-2
        dropped.append((times[clear] / 4).round().ravel())
    counts = np.concatenate(dropped)
    assert counts.mean() == pytest.approx(2 * 0.25, abs=0.02)


def test_full_density_ties_and_dare_change_nothing(parts: Any, tmp_path: Path) -> None:
    base, folders = parts
    combine(copy.deepcopy(base), [(folders[0], 1.0), (folders[2], 1.0)], tmp_path / "d", method="dare", density=1.0)
    first, second = changes(base, folders[0]), changes(base, folders[2])
    nearly(changes(base, tmp_path / "d"), {name: first[name] + second[name] for name in first})


def test_what_cannot_be_combined(parts: Any, tmp_path: Path) -> None:
    base, folders = parts
    out = tmp_path / "out"
    dora = str(saved(copy.deepcopy(base), arguments("dora"), tmp_path / "dora"))
    norms = str(saved(copy.deepcopy(base), arguments("lora", modules_to_save=["norm"]), tmp_path / "norms"))
    for adapters, options, said in (
        ([(dora, 1.0)], {}, "is of kind dora: only lora and rslora"),
        ([(norms, 1.0)], {}, "has modules_to_save=\\['norm'\\]"),
        ([(folders[0], 1.0)], {"method": "tis"}, "Did you mean 'ties'"),
        ([(folders[0], 1.0)] * 2, {"density": 0.0}, "must be above 0"),
        ([(folders[0], 1.0)], {"method": "ties"}, "needs two adapters"),
        ([(str(tmp_path), 1.0)], {}, "is no adapter"),
    ):
        with pytest.raises(ConfigError, match=said):
            combine(copy.deepcopy(base), adapters, out, **options)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        combine(copy.deepcopy(base), [(folders[0], 1.0)], out)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_merging_writes_a_whole_model(kind: str, tmp_path: Path, tiny_checkpoint: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    saved(copy.deepcopy(base), arguments(kind), tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("of the run", encoding="utf-8")
    wanted = logits(load_adapter(copy.deepcopy(base), tmp_path / "adapter"))
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=tiny_checkpoint))
    assert merge(base, tmp_path / "adapter", tokenizer, tmp_path / "out") < 1e-5
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), wanted, atol=1e-5, rtol=1e-5)
    assert load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "out"))).chat_template == "of the run"


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    saved(tiny_decoder(), arguments("bottleneck"), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="an adapter of kind 'bottleneck' can't be merged into weights; lora, .*can"):
        merge(tiny_decoder(), tmp_path / "adapter", None, tmp_path / "out")


def planted(base: Any, rank: int, names: list[str]) -> Any:
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in names:
            weight = tuned.get_submodule(name).weight
            factors = [torch.randn(size, rank, generator=generator) for size in weight.shape]
            weight += 0.1 * factors[0] @ factors[1].T
    return tuned


def test_a_planted_change_is_found(tmp_path: Path) -> None:
    base = tiny_decoder()
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    tuned = planted(base, 3, names)
    done = extract(copy.deepcopy(base), tuned, tmp_path / "out", rank=3)
    assert done.modules == 2 and done.captured == pytest.approx(1, abs=1e-6) and done.others == ()
    wanted = {
        n: (tuned.get_submodule(n).weight - base.get_submodule(n).weight).detach().double().numpy() for n in names
    }
    nearly(changes(base, tmp_path / "out"), wanted)
    torch.testing.assert_close(
        logits(load_adapter(copy.deepcopy(base), tmp_path / "out")), logits(tuned), atol=1e-5, rtol=1e-4
    )
    less = extract(copy.deepcopy(base), tuned, tmp_path / "less", rank=1)
    parts, total = 0.0, 0.0
    for change in wanted.values():
        s = np.linalg.svd(change, compute_uv=False)
        parts, total = parts + s[0] ** 2, total + (s**2).sum()
    assert less.captured == pytest.approx(parts / total, abs=1e-5) and less.worst[1] <= less.captured < 0.9


def test_what_an_adapter_cannot_hold_is_told(tmp_path: Path) -> None:
    base = tiny_decoder(tie_word_embeddings=False)
    tuned = planted(base, 2, ["model.layers.0.mlp.up_proj", "lm_head"])
    with torch.no_grad():
        tuned.model.norm.weight += 1
        tuned.model.layers[0].self_attn.q_proj.bias += 1
    done = extract(base, tuned, tmp_path / "out", rank=2)
    assert done.others == ("lm_head.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.weight")
    for model, said in (
        (tiny_decoder("xs", intermediate_size=96), r"differ in shape: .* is \(.*128.*\) and \(.*96.*\)"),
        (tiny_decoder(), "no layer among target_modules=.* changed"),
        (AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama", "llama")), "of two architectures"),
    ):
        with pytest.raises(ConfigError, match=said):
            extract(tiny_decoder(), model, tmp_path / "none", rank=2)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3", "bottleneck", "p_tuning_v2"])
def test_requests_of_several_adapters_at_once(kind: str, tmp_path: Path) -> None:
    """A batch in which every row asks for another adapter gives what each would give alone."""
    base = tiny_decoder()
    folders = {}
    for seed, name in enumerate(("math", "code")):
        folders[name] = saved(copy.deepcopy(base), arguments(kind), tmp_path / name, seed, scale=3.0)
    switch = AdapterSwitch(copy.deepcopy(base), folders)
    assert switch.mixes is (kind in ("lora", "rslora"))
    ids, mask = IDS[:, :6], torch.ones(4, 6, dtype=torch.long)
    asked = ["code", None, "math", "code"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 256, "eos_token_id": None}
    found = switch.generate(ids, mask, asked, **options)
    assert torch.equal(found, switch.generate(ids, mask, asked, **options))
    for i, name in enumerate(asked):
        alone = copy.deepcopy(base) if name is None else load_adapter(copy.deepcopy(base), folders[name])
        one = alone.eval().generate(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1], **options)[0, 6:]
        assert torch.equal(found[i], one), (i, name)
    assert not torch.equal(*(switch.generate(ids[:1], mask[:1], [name], **options) for name in ("math", "code")))
    with pytest.raises(ConfigError, match="no adapter 'maths'; loaded: math, code. Did you mean 'math'"):
        switch.generate(ids, mask, ["maths"] * 4, **options)
