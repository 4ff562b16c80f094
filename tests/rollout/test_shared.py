"""Prompts that are read once give the log-probabilities and gradients of separate rows: text, pictures, adapters."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmreason.data.visual import VisualPrompt, render_visual_prompt
from mmreason.models import packed_attention
from mmreason.models.packed_attention import NAME
from mmreason.models.shared_attention import Row
from mmreason.rollout.scoring import completion_logps
from mmreason.rollout.shared import (
    FLOAT32_BOUND,
    HALF_BOUND,
    SharedScoring,
    groups_of,
    lay_out,
    probe_sharing,
    share_prompts_in,
    shared_logps,
    sharing_obstacle,
)
from tests.models.parts import HF_SIGLIP, TIMM_VIT, compose, save_decoder
from tests.models.test_packed_attention import DECODERS, UNFIT, decoder
from tests.pictures import SEEING, ask, cell, picture, save_seeing
from tests.rollout.test_scoring import model_of

BOUND = 1e-5
"""Of a log-probability in nats, and of a gradient relative to the largest one of its model."""

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18], [20, 21]]
SIZES = [3, 2, 2, 1]
COMPLETIONS = [[30, 31, 32, 33], [34, 35, 36, 37, 38, 39, 40], [41], [], [42, 43], [44, 45, 46], [1, 2, 3, 4, 5], [8]]
GROUPS = [number for number, size in enumerate(SIZES) for _ in range(size)]


def rows_of_groups(each: list[Any]) -> list[Any]:
    return [each[number] for number in GROUPS]


def gradients(model: Any, logps: Tensor) -> dict[str, Tensor]:
    """Of a sum in which each token has a weight of its own, so that none can stand for another."""
    model.zero_grad()
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    (logps * weights.to(logps)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, prompts: Any, completions: Any, groups: Any, **options: Any) -> dict[str, Tensor]:
    """Both ways, values and gradients; returns the gradients."""
    share_prompts_in(model)
    alone, entropy = completion_logps(model, prompts, completions, with_entropy=True, **options)
    wanted = gradients(model, alone)
    found, shared_entropy = shared_logps(model, prompts, completions, groups, with_entropy=True, **options)
    got = gradients(model, found)
    model.zero_grad()
    assert entropy is not None and shared_entropy is not None and found.shape == alone.shape
    assert (found - alone).abs().max() <= BOUND and (shared_entropy - entropy).abs().max() <= BOUND
    assert ((found == 0) == (alone == 0)).all(), "padding must be exactly 0"
    assert got.keys() == wanted.keys() and wanted
    scale = max(float(one.abs().max()) for one in wanted.values())
    assert scale > 1e-4, "the gradient vanishes: this would prove nothing"
    gap = max(float((got[name] - wanted[name]).abs().max()) for name in wanted)
    assert gap <= BOUND * scale, (gap, scale)
    return got


# ---- text


@pytest.mark.parametrize("kind", [*DECODERS, "qwen2"])
def test_decoders(kind: str) -> None:
    """Grouped heads, sliding windows shorter than a row, experts, learned positions, capped logits."""
    model = model_of(kind) if kind == "qwen2" else decoder(kind, DECODERS[kind])
    assert sharing_obstacle(model) is None
    assert_same(model, rows_of_groups(PROMPTS), COMPLETIONS, GROUPS, temperature=0.7, banned_token_ids=[0, 50])
    assert probe_sharing(model, half=False) is None


def test_completions_really_would_see_each_other() -> None:
    """Without branches in the positions the log-probabilities are others: the tests above can fail."""
    model = decoder("llama", DECODERS["llama"])
    share_prompts_in(model)
    layout = lay_out(model, rows_of_groups(PROMPTS), COMPLETIONS, GROUPS, None)
    assert layout.positions[0, : 3 + 3 + 6].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    ids = torch.tensor([layout.ids])
    apart = model(input_ids=ids, position_ids=layout.positions, use_cache=False).logits
    mixed = model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None], use_cache=False).logits
    assert torch.allclose(mixed[:, :6], apart[:, :6], atol=1e-5) and (mixed - apart)[:, 6:].abs().max() > 1e-2


def test_work_is_not_repeated() -> None:
    """A prompt goes through the layers once, no padding does, and the head sees what predicts a sampled token only."""
    model = decoder("llama", DECODERS["llama"])
    share_prompts_in(model)
    seen: list[tuple[int, ...]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape[:2])))
        for module in (model.model.layers[0].mlp, model.lm_head)
    ]
    shared_logps(model, [[5] * 40] * 8, [[6] * n for n in (3, 9, 1, 4, 4, 4, 4, 4)], [0] * 8)
    for hook in hooks:
        hook.remove()
    assert seen == [(1, 40 + 2 + 8 + 0 + 5 * 3), (1, 3 + 9 + 1 + 5 * 4)]


_case = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 6), min_size=1, max_size=5)), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(_case, st.integers(0, 10**6), st.sampled_from([None, 3]))
def test_any_lengths_and_groups(case: list[tuple[int, list[int]]], seed: int, window: int | None) -> None:
    """Prompt lengths, group sizes, empty completions, groups of one, in any order; equal prompts in two groups."""
    name = "gemma3" if window else "llama"
    model = model_of(name)
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(3, 60, (n,), generator=generator).tolist()

    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    groups: list[int] = []
    for number, (length, sizes) in enumerate(case):
        prompt = draw(length) if seed % 3 or not prompts else prompts[0]
        prompts += [prompt] * len(sizes)
        completions += [draw(size) for size in sizes]
        groups += [10**12 - number] * len(sizes)
    share_prompts_in(model)
    alone = completion_logps(model, prompts, completions)[0]
    found = shared_logps(model, prompts, completions, groups)[0]
    assert found.shape == alone.shape and torch.allclose(found, alone, atol=BOUND, rtol=0)
    wanted, got = gradients(model, alone), gradients(model, found)
    scale = max([1e-6, *(float(one.abs().max()) for one in wanted.values())])
    zero = torch.zeros(())
    assert all(
        torch.allclose(got.get(n, zero), wanted.get(n, zero), atol=2 * BOUND * scale, rtol=0) for n in got | wanted
    )


@torch.no_grad()
def test_only_empty_completions() -> None:
    model = model_of("qwen2")
    share_prompts_in(model)
    found, entropy = shared_logps(model, [[5, 6]] * 2, [[], []], [0, 0], with_entropy=True)
    assert found.shape == (2, 0) and entropy is not None and entropy.shape == (2, 0)


def test_groups() -> None:
    assert [list(rows) for rows in groups_of([4, 4, 2, 4])] == [[0, 1], [2], [3]] and list(groups_of([])) == []


def test_what_cannot_be_one_group_is_an_error() -> None:
    model = model_of("qwen2")
    with pytest.raises(ValueError, match="rows 1 to 2 are given as one group, but their prompts differ"):
        shared_logps(model, [[4, 4], [5, 7], [5, 6]], [[1], [2], [3]], [1, 0, 0])
    with pytest.raises(ValueError, match="BOS"):
        shared_logps(model, [[], []], [[1], [2]], [0, 0])


# ---- pictures

IMAGES = {"text": [0, 0], "one image": [1, 0, 1], "several": [2, 1, 3]}


def seeing_rows(processor: Any, images: list[int]) -> tuple[list[list[int]], list[VisualPrompt | None]]:
    """A prompt for each number of images; some are large enough to be cut into tiles."""
    prompts: list[list[int]] = []
    visuals: list[VisualPrompt | None] = []
    for i, count in enumerate(images):
        cells = [cell(picture(40 + 40 * (n % 2), 90 - 25 * n, seed=10 * i + n)) for n in range(count)]
        visual = render_visual_prompt(ask(f"Question {i}?", count), cells, processor) if count else None
        prompts.append(processor.tokenizer(f"Only text {i}")["input_ids"] if visual is None else visual.ids)
        visuals.append(visual)
    return prompts, visuals


@pytest.mark.parametrize("kind", SEEING)
def test_pictures(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = save_seeing(kind, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
    model.train()
    assert sharing_obstacle(model) is None
    for name, images in IMAGES.items():
        prompts, visuals = seeing_rows(processor, images)
        groups = [number for number in range(len(images)) for _ in range(3)]
        completions = [[70 + n, *range(80, 80 + n % 4)] for n in range(len(groups))]
        got = assert_same(
            model,
            [prompts[g] for g in groups],
            completions,
            groups,
            visuals=[visuals[g] for g in groups],
            banned_token_ids=[model.config.image_token_id],
        )
        if any(images):
            tower = [one for key, one in got.items() if "vis" in key]
            assert tower and max(float(one.abs().max()) for one in tower) > 0, f"{name}: the tower learned nothing"
    assert probe_sharing(model, half=False) is None


def test_a_picture_is_encoded_once_for_its_group(tmp_path: Path) -> None:
    """And a frozen tower gets no gradient, whereas the projector's sums up."""
    model, processor = compose(
        {"towers": [TIMM_VIT, HF_SIGLIP], "max_tiles": 3},
        {"kind": "pixel_shuffle", "factor": 2},
        save_decoder(tmp_path / "decoder"),
    )
    model.vision_tower.requires_grad_(False)
    prompts, visuals = seeing_rows(processor, [2, 1])
    groups = [0] * 4 + [1] * 4
    views: list[int] = []
    hook = model.vision_tower.register_forward_hook(lambda module, args, out: views.append(len(out)))
    given: dict[str, Any] = {"visuals": [visuals[g] for g in groups]}
    got = assert_same(model, [prompts[g] for g in groups], [[70, 71, 72]] * 8, groups, **given)
    hook.remove()
    assert views[0] == 4 * views[1] and not any("vision_tower" in name for name in got)
    assert any("projector" in name for name in got)


# ---- ways to train


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2_5_vl", "mmreason"])
def test_gradient_checkpointing(kind: str, reentrant: bool, tmp_path: Path) -> None:
    """Layers are run again in the backward pass, and find the branches again; there is no cache that could be lost."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    visuals: list[VisualPrompt | None] | None = None
    if kind == "llama":
        model, prompts, groups, completions = (
            decoder(kind, DECODERS[kind]), rows_of_groups(PROMPTS), GROUPS, COMPLETIONS
        )  # fmt: skip
    else:
        path = save_seeing(kind, tmp_path)
        model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
        each, seen = seeing_rows(processor, [1, 2])
        groups, completions = [0, 0, 1, 1], [[70, 71, 72], [73], [74, 75], [76, 77, 78, 79]]
        prompts, visuals = [each[g] for g in groups], [seen[g] for g in groups]
    wanted = assert_same(model, prompts, completions, groups, visuals=visuals)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    runs: list[int] = []
    hook = model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = gradients(model, shared_logps(model, prompts, completions, groups, visuals=visuals)[0])
    hook.remove()
    assert len(runs) == 2, "nothing was run again: this proves nothing"
    scale = max(float(one.abs().max()) for one in wanted.values())
    missing = {name for name in wanted if name not in got}
    assert not missing, missing
    assert max(float((got[n] - wanted[n]).abs().max()) for n in wanted) <= 2 * BOUND * scale


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_adapters(method: str) -> None:
    """The adapter's gradient, and its model with the adapter switched off: the reference."""
    import peft

    base = decoder("llama", DECODERS["llama"])
    options: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}
    config: Any = peft.LoraConfig(r=4, use_dora=method == "dora", **options)
    if method == "ia3":
        config = peft.IA3Config(feedforward_modules=["down_proj"], **options)
    model: Any = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "ia3" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    assert sharing_obstacle(model) is None
    got = assert_same(model, rows_of_groups(PROMPTS), COMPLETIONS, GROUPS)
    assert all("lora" in name or "ia3" in name for name in got)
    prompts = rows_of_groups(PROMPTS)
    with torch.no_grad():
        adapted = shared_logps(model, prompts, COMPLETIONS, GROUPS)[0]
        with model.disable_adapter():
            found = shared_logps(model, prompts, COMPLETIONS, GROUPS)[0]
            alone = completion_logps(model, prompts, COMPLETIONS)[0]
    assert (found - alone).abs().max() <= BOUND and (found - adapted).abs().max() > 1e-3


def test_half_precision() -> None:
    """bfloat16 weights and autocast: within what `verify_sharing` allows, and well inside of it."""
    for autocast in (False, True):
        model = decoder("llama", DECODERS["llama"])
        scoring = SharedScoring(autocast=autocast)
        if not autocast:
            model = model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert scoring.shares(model) and scoring.half(model)
            gaps = scoring.gaps(model, rows_of_groups(PROMPTS), COMPLETIONS, GROUPS)
        assert 0 < gaps["mean"] <= HALF_BOUND / 5 and scoring.drift(model, gaps) is None


# ---- where it is not exact


def test_dropout_in_training_takes_separate_rows() -> None:
    """Each copy of a prompt has a mask of its own in training; scoring without dropout shares all the same."""
    from peft import LoraConfig, get_peft_model

    told: list[str] = []
    scoring = SharedScoring(tell=told.append)
    model: Any = get_peft_model(
        decoder("llama", DECODERS["llama"]), LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1)
    )
    assert not scoring.shares(model.train()) and scoring.shares(model.eval()) and not scoring.shares(model.train())
    assert len(told) == 1 and told[0].startswith("share_prompts: off in updates, each completion is a row with its")
    assert "lora_dropout" in told[0] and "disable_dropout" in told[0]
    config_dropout = decoder("llama", DECODERS["llama"] | {"attention_dropout": 0.1})
    assert "dropout" in str(sharing_obstacle(config_dropout.train()))
    assert sharing_obstacle(config_dropout.eval()) is None


def test_obstacles_are_named() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = decoder("llama", DECODERS["llama"])
    virtual = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert "PROMPT_TUNING puts virtual tokens before a row" in str(sharing_obstacle(virtual))
    eager = decoder("llama", DECODERS["llama"])
    eager.set_attn_implementation("eager")
    assert "attn_implementation is eager" in str(sharing_obstacle(eager))
    assert "is no transformers model" in str(sharing_obstacle(torch.nn.Linear(2, 2)))
    noisy = decoder("llama", DECODERS["llama"]).train()
    noisy.config.router_jitter_noise = 0.1
    assert "router_jitter_noise = 0.1" in str(sharing_obstacle(noisy))


def test_pictures_whose_tokens_see_each_other_are_an_obstacle() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=small | {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 99},
        vision_config=small | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=50, boi_token_index=51, eoi_token_index=52,
    )  # fmt: skip
    why = sharing_obstacle(Gemma3ForConditionalGeneration(config))
    assert why is not None and "a picture's tokens see each other" in why


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_dont_keep_completions_apart_are_found_out(kind: str) -> None:
    """State that runs through the sequence, positions that nothing can be told of: they get separate rows."""
    told: list[str] = []
    model, scoring = decoder(kind, UNFIT[kind]), SharedScoring(tell=told.append)
    prompts = rows_of_groups(PROMPTS)
    with torch.no_grad():
        found, _ = scoring.score(model, prompts, COMPLETIONS, GROUPS)
        assert torch.equal(found, completion_logps(model, prompts, COMPLETIONS)[0])
    reason = {"mamba": "its layers of kind linear_attention", "bloom": "BloomForCausalLM counts positions by"}[kind]
    assert len(told) == 1 and reason in told[0]


def test_the_probe_finds_lost_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention doesn't hear of the branches, sharing is refused."""
    model = decoder("llama", DECODERS["llama"])
    monkeypatch.setattr(packed_attention, "rows_of", lambda ids: [Row(0, ids.shape[1], ())])
    share_prompts_in(model)
    why = probe_sharing(model, half=False)
    assert why is not None and "doesn't keep completions apart" in why


# ---- the decision, and its check


def test_scoring_shares_and_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scoring = decoder("llama", DECODERS["llama"]), SharedScoring()
    prompts = rows_of_groups(PROMPTS)
    shapes: list[int] = []
    model.model.layers[0].register_forward_hook(lambda module, args, out: shapes.append(len(args[0])))
    found, _ = scoring.score(model, prompts, COMPLETIONS, GROUPS, temperature=0.9)
    single, _ = scoring.score(model, prompts, COMPLETIONS, None, temperature=0.9)
    assert shapes[-2:] == [1, 1] and model.model.config._attn_implementation == NAME
    assert (found - single).abs().max() <= BOUND
    off, _ = SharedScoring(enabled=False).score(model, prompts, COMPLETIONS, GROUPS, temperature=0.9)
    assert shapes[-1] == len(prompts) and (off - found).abs().max() <= BOUND

    gaps = scoring.gaps(model, prompts, COMPLETIONS, GROUPS)
    assert 0 <= gaps["mean"] <= gaps["max"] <= BOUND and scoring.drift(model, gaps) is None
    monkeypatch.setattr(packed_attention, "rows_of", lambda ids: [Row(0, ids.shape[1], ())])
    text = scoring.drift(model, scoring.gaps(model, prompts, COMPLETIONS, GROUPS))
    assert text is not None and "share_prompts: false" in text and str(FLOAT32_BOUND) in text
    assert scoring.drift(model, {"mean": 0.0, "max": float("nan")}) is not None


def test_saved_models_are_as_they_were(tmp_path: Path) -> None:
    model = decoder("llama", DECODERS["llama"])
    assert SharedScoring().shares(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


def test_generation_stays_as_it_is() -> None:
    """Rollouts come from the very same model: with padding, and of a lone prompt without a mask."""
    model = decoder("mistral", DECODERS["mistral"])
    ids = torch.tensor([[0, 0, 5, 6, 7], [11, 12, 13, 14, 15]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    wanted = model.generate(ids, attention_mask=(ids != 0).long(), **options)
    assert SharedScoring().shares(model)
    assert torch.equal(model.generate(ids, attention_mask=(ids != 0).long(), **options), wanted)
    assert torch.equal(model.generate(ids[1:], **options), wanted[1:])
