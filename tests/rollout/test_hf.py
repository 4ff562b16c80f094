"""HFEngine: it samples from the policy as it is, and what it records is what the trainer scores."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import GenerationConfig

from mmreason.models.tiny import tiny_decoder
from mmreason.rollout.hf import HFEngine
from mmreason.rollout.scoring import completion_logps
from mmreason.rollout.types import Completion, Request, Sampling

EOS = list(range(100, 130))  # many, so that samples of a random model end now and then
PROMPTS = [[10, 20, 30], [40, 41], list(range(50, 90)), [7]]
REQUESTS = [Request(prompt, n) for prompt, n in zip(PROMPTS, [4, 1, 3, 2], strict=True)]


@pytest.fixture(scope="module")
def model() -> Any:
    """Random, but with a peaked distribution: at initialisation every token would be about as likely as any other."""
    policy = tiny_decoder()
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(3)
    return policy


@pytest.fixture(autouse=True)
def unchanged(model: Any) -> Iterator[None]:
    """No test may leave the shared model's generation defaults or mode changed."""
    before = model.generation_config.to_dict()
    yield
    assert model.generation_config.to_dict() == before
    model.eval()


def engine_of(model: Any, **options: Any) -> HFEngine:
    return HFEngine(model, Accelerator(cpu=True), **({"pad_token_id": 0, "eos_token_ids": EOS} | options))


def pairs(groups: list[list[Completion]]) -> list[tuple[list[int], Completion]]:
    return [
        (request.prompt_ids, completion)
        for request, group in zip(REQUESTS, groups, strict=True)
        for completion in group
    ]


def ids(groups: list[list[Completion]]) -> list[list[int]]:
    return [completion.token_ids for group in groups for completion in group]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(12),
        Sampling(12, temperature=0.6),
        Sampling(12, temperature=1.7),
        Sampling(12, temperature=0.8, top_k=5),
        Sampling(12, temperature=0.8, top_p=0.7, min_p=0.05),
        Sampling(12).greedy(),
    ],
    ids=["plain", "cold", "hot", "top_k", "top_p", "greedy"],
)
@pytest.mark.parametrize("banned", [[], [65, 200]], ids=["all", "banned"])
def test_recorded_logps_are_the_trainers(model: Any, sampling: Sampling, banned: list[int]) -> None:
    """Of the whole distribution, whatever top-k and top-p cut off: the scoring knows nothing of them."""
    drawn = pairs(engine_of(model, banned_token_ids=banned).generate(REQUESTS, sampling, seed=1))
    with torch.no_grad():
        scored, _ = completion_logps(
            model,
            [prompt for prompt, _ in drawn],
            [c.token_ids for _, c in drawn],
            temperature=sampling.temperature or 1.0,
            banned_token_ids=banned,
        )
    for row, (_, completion) in zip(scored.tolist(), drawn, strict=True):
        assert len(completion.logps) == len(completion.token_ids)
        assert completion.logps == pytest.approx(row[: len(completion.logps)], abs=1e-5)


def test_counts_order_and_ends(model: Any) -> None:
    seen: Counter[bool] = Counter()
    for seed in range(4):
        groups = engine_of(model).generate(REQUESTS, Sampling(10), seed)
        assert [len(group) for group in groups] == [4, 1, 3, 2]
        for completion in (c for group in groups for c in group):
            seen[completion.truncated] += 1
            *front, last = completion.token_ids
            assert not set(front) & set(EOS), "went on after an end token"
            if completion.truncated:
                assert last not in EOS and len(completion.token_ids) == 10
            else:
                assert last in EOS
    assert seen[True] > 5 and seen[False] > 5, f"one of the two was hardly seen: {seen}"


def test_samples_follow_the_distribution(model: Any) -> None:
    """Frequencies of 4,000 first tokens at temperature 0.7 against the softmax: mean square of their z-scores."""
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.7, -1)
    groups = engine_of(model).generate([Request(PROMPTS[0], 4000)], Sampling(1, temperature=0.7), seed=5)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in groups[0]]), minlength=len(expected))
    likely = expected > 0.005
    z = (counts - 4000 * expected) / (4000 * expected * (1 - expected)).sqrt()
    assert likely.sum() >= 5
    assert z[likely].pow(2).mean().item() < 2.5


def test_greedy_is_the_argmax_of_an_unpadded_forward(model: Any) -> None:
    for prompt, completion in pairs(engine_of(model).generate(REQUESTS, Sampling(8).greedy(), seed=0)):
        context = list(prompt)
        for token in completion.token_ids:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([context])).logits[0, -1].argmax()) == token
            context.append(token)


def test_seed_decides_and_nothing_else_notices(model: Any) -> None:
    engine = engine_of(model)
    first = engine.generate(REQUESTS, Sampling(8), seed=3)
    torch.rand(7)
    state = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert engine.generate(REQUESTS, Sampling(8), seed=3) == first
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), str(np.random.get_state())) == state[1:]
    assert ids(engine.generate(REQUESTS, Sampling(8), seed=4)) != ids(first)
    assert len({tuple(c.token_ids) for c in first[0]}) > 1, "the samples of a group are all the same"


@pytest.mark.parametrize(
    "defaults",
    [
        {"repetition_penalty": 1.3, "top_k": 1, "do_sample": True},
        {"temperature": 0.1, "top_p": 0.1, "do_sample": True},
        {"min_new_tokens": 8},
        {"no_repeat_ngram_size": 1},
        {"typical_p": 0.2, "do_sample": True},
        {"bad_words_ids": [[token] for token in range(100, 200)]},
        {"suppress_tokens": list(range(100, 200))},
        {"num_beams": 3},
        {"forced_eos_token_id": 3},
        {"max_length": 5},
    ],
    ids=lambda defaults: next(iter(defaults)),
)
def test_checkpoints_generation_config_plays_no_part(model: Any, defaults: dict[str, Any]) -> None:
    expected = engine_of(model).generate(REQUESTS, Sampling(8), seed=2)
    greedy = engine_of(model).generate(REQUESTS, Sampling(8).greedy(), seed=2)
    kept = model.generation_config
    model.generation_config = GenerationConfig(**defaults)
    try:
        assert engine_of(model).generate(REQUESTS, Sampling(8), seed=2) == expected
        assert engine_of(model).generate(REQUESTS, Sampling(8).greedy(), seed=2) == greedy
        assert model.generation_config.to_dict() == GenerationConfig(**defaults).to_dict()
    finally:
        model.generation_config = kept


def test_checkpoints_generation_config_plays_no_part_behind_an_adapter(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_decoder()
    base.load_state_dict(model.state_dict())
    base.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=1.3)
    peft_model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    expected = engine_of(model).generate(REQUESTS, Sampling(8), seed=2)
    assert ids(engine_of(peft_model).generate(REQUESTS, Sampling(8), seed=2)) == ids(expected)
    assert base.generation_config.top_k == 1


def test_banned_tokens_are_never_sampled(model: Any) -> None:
    """The two likeliest tokens of each prompt, which sampling without the ban takes all the time."""
    free = Counter(token for row in ids(engine_of(model).generate(REQUESTS, Sampling(12), seed=6)) for token in row)
    banned = [token for token, _ in free.most_common(4)]
    for sampling in (Sampling(12), Sampling(12).greedy()):
        drawn = ids(engine_of(model, banned_token_ids=banned).generate(REQUESTS, sampling, seed=6))
        assert not {token for row in drawn for token in row} & set(banned)


def test_batches_of_rows(model: Any) -> None:
    """Smaller calls change the draws, not the form: each request still gets its n, and greedy answers stay the same."""
    whole = engine_of(model).generate(REQUESTS, Sampling(6).greedy(), seed=0)
    parts = engine_of(model, batch_size=3).generate(REQUESTS, Sampling(6).greedy(), seed=0)
    assert ids(parts) == ids(whole)
    sampled = engine_of(model, batch_size=3).generate(REQUESTS, Sampling(6), seed=0)
    assert [len(group) for group in sampled] == [4, 1, 3, 2]
    assert engine_of(model).generate([], Sampling(6), seed=0) == []


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_comes_back_even_after_an_error(model: Any, training: bool) -> None:
    engine = engine_of(model)
    model.train(training)
    engine.generate(REQUESTS[:1], Sampling(2), seed=0)
    assert model.training is training
    with pytest.raises(IndexError):
        engine.generate([Request([10**6], 1)], Sampling(2), seed=0)  # a token that the model does not have
    assert model.training is training


def test_dropout_is_off_while_sampling() -> None:
    model = tiny_decoder(attention_dropout=0.5)
    model.train()
    drawn = engine_of(model).generate(REQUESTS, Sampling(8), seed=1)
    model.eval()
    assert engine_of(model).generate(REQUESTS, Sampling(8), seed=1) == drawn


def test_gradient_checkpointing_comes_back_with_its_options() -> None:
    model = tiny_decoder()
    options = {"use_reentrant": True}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    engine_of(model, gradient_checkpointing_kwargs=options).generate(REQUESTS[:1], Sampling(2), seed=0)
    assert model.is_gradient_checkpointing
    function = next(
        m for m in model.modules() if getattr(m, "gradient_checkpointing", False)
    )._gradient_checkpointing_func
    assert function.keywords == options


def test_extra_settings_reach_transformers(model: Any) -> None:
    drawn = engine_of(model).generate(REQUESTS, Sampling(8, extra={"min_new_tokens": 8}), seed=1)
    assert {len(row) for row in ids(drawn)} == {8}
    assert {len(row) for row in ids(engine_of(model).generate(REQUESTS, Sampling(8), seed=1))} != {8}
