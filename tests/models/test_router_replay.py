"""Routing replay: the experts that were chosen before, weighed as now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    MixtralConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from mmreason.models.router_replay import RouterReplay, Routes, load_routes, save_routes
from mmreason.types import ConfigError

_BASE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
CONFIGS = {
    "qwen3_moe": Qwen3MoeConfig(**_BASE, num_experts=6, moe_intermediate_size=24, head_dim=16, norm_topk_prob=True),
    "mixtral": MixtralConfig(**_BASE, num_local_experts=6),
    "olmoe": OlmoeConfig(**_BASE, num_experts=6),
    "deepseek_v2": DeepseekV2Config(
        **_BASE, n_routed_experts=8, n_group=4, topk_group=1, topk_method="group_limited_greedy", n_shared_experts=1,
        moe_intermediate_size=24, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16,
    ),
    "deepseek_v3": DeepseekV3Config(
        **_BASE, n_routed_experts=8, n_group=2, topk_group=2, moe_intermediate_size=24, n_shared_experts=1,
        first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
    ),
}  # fmt: skip


def make(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind]).float().eval()


def perturbed(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", CONFIGS)
def test_same_weights_same_logits(kind: str) -> None:
    model = make(kind)
    ids = torch.randint(64, (3, 9))
    expected = model(ids).logits
    replay = RouterReplay(model)
    with torch.no_grad(), replay.record() as routes:
        assert torch.equal(model(ids).logits, expected)
    assert len(routes) == sum("Router" in type(module).__name__ for module in model.modules())
    assert all(calls[-1].shape == (27, 2) and calls[-1].dtype == torch.uint8 for calls in routes)
    with replay.replay(routes):
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_moved_weights_keep_their_experts(kind: str, checkpointing: bool, tmp_path: Path) -> None:
    """Beside a literal mixture of experts whose choice is given, forward and gradient."""
    model = make(kind)
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    replay = RouterReplay(model)
    with torch.no_grad(), replay.record() as routes:
        model(ids)
    perturbed(model)
    with torch.no_grad(), replay.record() as moved:
        free = model(ids).logits
    pairs = [(a[-1].sort(-1).values, b[-1].sort(-1).values) for a, b in zip(routes, moved, strict=True)]
    assert any(not torch.equal(a, b) for a, b in pairs)
    save_routes([routes, moved], tmp_path / "routes.safetensors")
    (routes, _) = load_routes(tmp_path / "routes.safetensors")  # as a run does that is continued
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with replay.replay(routes):
        held = model(ids).logits
        held[..., 0].sum().backward()
    assert not torch.allclose(held, free, atol=1e-4)
    trained = {name: one for name, one in model.named_parameters() if one.grad is not None}
    gradients = {name: one.grad.clone() for name, one in trained.items()}
    model.zero_grad()
    expected = literal(model, ids, routes)
    expected[..., 0].sum().backward()
    torch.testing.assert_close(held, expected, atol=1e-5, rtol=1e-4)
    for name, one in trained.items():
        torch.testing.assert_close(gradients[name], one.grad, atol=1e-5, rtol=1e-3, msg=name)


def literal(model: Any, ids: torch.Tensor, routes: Routes) -> torch.Tensor:
    """The model with each router replaced by its formula for given experts."""
    kept = list(routes)
    model.gradient_checkpointing_disable()
    for module in model.modules():
        if type(module).__name__.lower().endswith("topkrouter"):
            module.forward = _formula(module, kept.pop(0)[-1].long())
    return model(ids).logits


def _formula(router: Any, experts: torch.Tensor) -> Any:
    kind = type(router).__name__

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = hidden.reshape(-1, hidden.shape[-1]) @ router.weight.T
        if kind.startswith("DeepseekV2"):
            return logits, torch.softmax(logits.float(), -1).gather(-1, experts) * router.routed_scaling_factor, experts
        if kind.startswith("Deepseek"):
            chosen = torch.sigmoid(logits).gather(-1, experts)
            weights = chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * router.routed_scaling_factor
        else:
            chosen = torch.softmax(logits, -1).gather(-1, experts)
            weights = chosen if kind.startswith("Olmoe") else chosen / chosen.sum(-1, keepdim=True)
        return logits, weights, experts

    return forward


def test_other_tokens_are_refused() -> None:
    model = make("mixtral")
    replay = RouterReplay(model)
    with torch.no_grad(), replay.record() as routes:
        model(torch.zeros(1, 4, dtype=torch.long))
    with replay.replay(routes), pytest.raises(ValueError, match="very same micro-batch"):
        model(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="layers"), replay.replay(routes[:1]):
        pass


def test_a_model_without_experts_is_refused() -> None:
    plain = {name: value for name, value in _BASE.items() if name != "num_experts_per_tok"}
    with pytest.raises(ConfigError, match="no experts"):
        RouterReplay(AutoModelForCausalLM.from_config(Qwen2Config(**plain)))
