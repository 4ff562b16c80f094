"""completion_logps against transformers' forward of one row at a time, for several ways to count positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmreason.rollout.scoring import completion_logps, completion_mask, pad_right

VOCAB = 61
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18], [20, 21]]
COMPLETIONS = [[30, 31, 32, 33], [34, 35, 36, 37, 38, 39, 40], [41], []]


def decoder(name: str) -> Any:
    import transformers as hf

    small: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "qwen2":
        return hf.Qwen2ForCausalLM(hf.Qwen2Config(**small, **ids, num_key_value_heads=1, intermediate_size=64))
    if name == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**small, **ids, intermediate_size=64))
    if name == "gemma3":  # sliding windows of 4 tokens in one layer of two, soft-capped logits
        config = hf.Gemma3TextConfig(
            **small, **ids, num_key_value_heads=1, head_dim=16, intermediate_size=64, sliding_window=4,
            final_logit_softcapping=5.0, layer_types=["sliding_attention", "full_attention"],
        )  # fmt: skip
        return hf.Gemma3ForCausalLM(config)
    if name == "gpt2":  # learned absolute positions, counted from the first token
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=32, **ids)
        )
    if name == "opt":  # learned absolute positions, taken from the attention mask, with an offset
        config = hf.OPTConfig(
            **small, **ids, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32, do_layer_norm_before=True
        )
        return hf.OPTForCausalLM(config)
    if name == "qwen2_5_vl":
        config = hf.Qwen2_5_VLConfig(
            text_config={
                **small, **ids, "num_key_value_heads": 1, "intermediate_size": 64,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0},
            },
            vision_config={
                "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32,
            },
            image_token_id=50, video_token_id=51, vision_start_token_id=52, vision_end_token_id=53,
        )  # fmt: skip
        return hf.Qwen2_5_VLForConditionalGeneration(config)
    if name == "llava":
        config = hf.LlavaConfig(
            text_config=hf.LlamaConfig(**small, **ids, intermediate_size=64),
            vision_config=hf.CLIPVisionConfig(
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=28,
                patch_size=14,
            ),
            image_token_index=50,
        )
        return hf.LlavaForConditionalGeneration(config)
    raise KeyError(name)


DECODERS = ["qwen2", "llama", "gemma3", "gpt2", "opt", "qwen2_5_vl", "llava"]


@cache
def model_of(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = decoder(name).eval()
        with torch.no_grad():
            for param in model.parameters():  # initial weights are so small that positions hardly matter
                if param.dim() > 1:
                    param.normal_(std=0.3)
    return model


def one_row_at_a_time(
    model: Any, temperature: float = 1.0, banned: Sequence[int] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """(log-probabilities, entropies) of each completion from a plain forward without padding, summed up in float64."""
    logps, entropies = [], []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        logits[:, list(banned)] = float("-inf")
        whole = torch.log_softmax(logits / temperature, -1)[len(prompt) - 1 : -1]
        logps.append(whole.gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
        entropies.append(torch.distributions.Categorical(logits=whole).entropy() if len(completion) else whole.sum(-1))
    return logps, entropies


def assert_rows(found: Tensor, rows: Sequence[Tensor], atol: float = 1e-5) -> None:
    assert found.shape == (len(rows), max(len(row) for row in rows))
    for got, row in zip(found, rows, strict=True):
        torch.testing.assert_close(got[: len(row)].double(), row, atol=atol, rtol=1e-5)
        assert (got[len(row) :] == 0).all(), "padding must be exactly 0"


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_equals_one_row_at_a_time(name: str) -> None:
    model = model_of(name)
    logps, entropies = one_row_at_a_time(model, 0.7)
    found, entropy = completion_logps(model, PROMPTS, COMPLETIONS, temperature=0.7, with_entropy=True)
    assert entropy is not None
    assert_rows(found, logps)
    assert_rows(entropy, entropies)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "qwen2_5_vl"])
@torch.no_grad()
def test_banned_tokens_are_masked_as_in_sampling(name: str) -> None:
    model, banned = model_of(name), [0, 50, 3]
    found, entropy = completion_logps(
        model, PROMPTS, COMPLETIONS, temperature=1.3, banned_token_ids=banned, with_entropy=True
    )
    logps, entropies = one_row_at_a_time(model, 1.3, banned)
    assert entropy is not None
    assert_rows(found, logps)
    assert_rows(entropy, entropies)
    unmasked, _ = completion_logps(model, PROMPTS, COMPLETIONS, temperature=1.3)
    assert (found - unmasked)[0, : len(COMPLETIONS[0])].min() > 1e-3, "banning moved nothing: this proves nothing"


@pytest.mark.parametrize("banned", [[], [0, 50]])
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "opt"])
def test_gradient_equals_one_row_at_a_time(name: str, banned: list[int]) -> None:
    model = model_of(name)

    def gradients(total: Tensor) -> list[Tensor]:
        model.zero_grad()
        total.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    found = gradients(completion_logps(model, PROMPTS, COMPLETIONS, temperature=0.7, banned_token_ids=banned)[0].sum())
    expected = gradients(sum((row.sum() for row in one_row_at_a_time(model, 0.7, banned)[0]), torch.zeros(())))
    model.zero_grad()
    assert len(found) == len(expected) and all(torch.isfinite(g).all() for g in found)
    scale = max(g.abs().max().item() for g in expected)
    assert max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) <= 2e-5 * scale


@torch.no_grad()
def test_a_model_without_logits_to_keep() -> None:
    """Custom and older models give all logits; the ones in front are then cut off here."""

    class Old(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model_of("llama")

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    some = slice(0, 3, 2)  # prompts of 3 and 8 tokens, so that there is something to cut off
    found, _ = completion_logps(Old(), PROMPTS[some], COMPLETIONS[some])
    assert_rows(found, one_row_at_a_time(model_of("llama"))[0][some])


@torch.no_grad()
def test_only_the_logits_that_are_needed_are_computed() -> None:
    """Up to the end of the shortest prompt no logits are made, also behind a wrapper such as DDP's."""
    model = model_of("qwen2")
    widths: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    prompts, completions = [[5] * 20, [6] * 22], [[7] * 4, [8] * 2]
    completion_logps(Wrapper(), prompts, completions)
    handle.remove()
    assert widths == [24 - 19]


def test_logits_are_not_copied() -> None:
    """Logits are the largest tensor of a step: the scoring keeps the model's own, and no second one beside it."""
    model = model_of("qwen2")
    made: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, out: made.append(out))
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps, _ = completion_logps(model, [[5, 6]] * 9, [list(range(1, 30))] * 9)
    handle.remove()
    assert logps.requires_grad
    large = [t for t in saved if t.shape[-1] == VOCAB and t.numel() >= made[0].numel() // 2]
    assert large and {t.data_ptr() for t in large} == {made[0].data_ptr()}


@torch.no_grad()
def test_padding_token_plays_no_part() -> None:
    first, _ = completion_logps(model_of("gpt2"), PROMPTS, COMPLETIONS, pad_token_id=0)
    second, _ = completion_logps(model_of("gpt2"), PROMPTS, COMPLETIONS, pad_token_id=60)
    assert torch.equal(first, second)


@torch.no_grad()
def test_only_empty_completions() -> None:
    found, entropy = completion_logps(model_of("qwen2"), [[5, 6], [7]], [[], []], with_entropy=True)
    assert found.shape == (2, 0) and entropy is not None and entropy.shape == (2, 0)


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="BOS"):
        completion_logps(model_of("qwen2"), [[5], []], [[1], [2]])


def test_mask_and_padding() -> None:
    assert completion_mask([[4, 4], [], [4]]).tolist() == [[1, 1], [0, 0], [1, 0]]
    assert completion_mask([[], []]).shape == (2, 0)
    padded = pad_right([[1.5, 2.0], [], [3.0]], -1.0, torch.float32, torch.device("cpu"))
    assert padded.tolist() == [[1.5, 2.0], [-1.0, -1.0], [3.0, -1.0]]
