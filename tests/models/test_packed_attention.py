"""Packed rows are as if each stood alone: log-probabilities and gradients, pictures and M-RoPE included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.data.collate import collate_rows
from mmreason.data.supervised import SupervisedRow
from mmreason.models.loading import load_policy_model, load_processor
from mmreason.models.packed_attention import NAME, check_rows_apart, use_packed_attention
from mmreason.models.positions import row_positions_of
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.pictures import SEEING, save_seeing
from tests.trainers.sft_rows import picture_rows

IMAGES = {"text": [0, 0, 0], "one image": [1, 0, 1], "many images": [2, 1, 3, 0]}


def scored(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the supervised tokens; their sum is sent back through the model."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "loss_weights", "row_numbers")}
    logits = model(**inputs, use_cache=False).logits.float()
    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    learned = logps[batch["loss_weights"][:, 1:] > 0]
    learned.sum().backward()
    return learned.detach()


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", SEEING)
def test_packed_equals_alone(kind: str, tmp_path: Path) -> None:
    args = ModelArguments(model_name_or_path=save_seeing(kind, tmp_path))
    processor = load_processor(args)
    for name, images in IMAGES.items():
        rows, model = picture_rows(processor, images), load_policy_model(args)
        alone = torch.cat([scored(model, collate_rows([row], 0)) for row in rows])
        wanted = gradient(model).clone()
        assert (row_positions_of(model) is not None) == kind.startswith("qwen")
        batch = collate_rows(rows, 0, padding_free=True, row_positions=row_positions_of(model))
        for blocks in (False, True):  # transformers' dense mask, then row by row
            if blocks:
                use_packed_attention(model)
                assert model.get_decoder().config._attn_implementation == NAME
            check_rows_apart(model)
            model.zero_grad()
            found = scored(model, batch)
            assert (found - alone).abs().max() <= 1e-5, (name, blocks)
            assert (gradient(model) - wanted).norm() / wanted.norm() <= 1e-5, (name, blocks)


def test_rows_really_would_see_each_other(tmp_path: Path) -> None:
    """Without restarted positions the log-probabilities are others: the test above can fail."""
    args = ModelArguments(model_name_or_path=save_seeing("llava", tmp_path))
    rows, model = picture_rows(load_processor(args), IMAGES["text"]), load_policy_model(args)
    batch = collate_rows(rows, 0, padding_free=True)
    apart = scored(model, batch)
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    assert (scored(model, batch) - apart).abs().max() > 1e-2


_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = _TEXT | {"num_key_value_heads": 1, "head_dim": 32}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED, "gpt_neox": _TEXT, "gemma": _GROUPED, "phi3": _TEXT | {"num_key_value_heads": 1},
    "mistral": _GROUPED | {"sliding_window": 4},
    "gemma3_text": _GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 128, "n_positions": 256},
}  # fmt: skip


def decoder(kind: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto import CONFIG_MAPPING

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings), dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders(kind: str) -> None:
    """Grouped heads, sliding windows shorter than a row, experts, learned positions."""
    model = decoder(kind, DECODERS[kind])
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 128, (n,), generator=generator).tolist() for n in (11, 6, 17)]
    alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows], 1)
    use_packed_attention(model)
    check_rows_apart(model)
    batch = collate_rows([SupervisedRow(row, [0.0] * len(row), "row", "set") for row in rows], 0, padding_free=True)
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    assert (packed - alone).abs().max() <= 1e-5


def test_generation_stays_as_it_is() -> None:
    """Held-out problems are solved with the same model: padded prompts of different lengths, with a cache."""
    model = decoder("mistral", DECODERS["mistral"])
    ids = torch.tensor([[0, 0, 5, 6, 7], [11, 12, 13, 14, 15]])
    settings = {"attention_mask": (ids != 0).long(), "max_new_tokens": 8, "do_sample": False}
    wanted = model.generate(ids, **settings)
    use_packed_attention(model)
    assert torch.equal(model.generate(ids, **settings), wanted)
    assert torch.equal(model.generate(ids[1:], max_new_tokens=8, do_sample=False), wanted[1:])


REFUSED = {
    "lfm2": _TEXT | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": _GROUPED | {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_layers_that_look_across_rows_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"ForCausalLM \({kind}\) can't read packed rows: its layers of kind"):
        use_packed_attention(decoder(kind, REFUSED[kind]))


UNFIT = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 2, "vocab_size": 128},
}


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_dont_keep_rows_apart_are_found_out(kind: str) -> None:
    """Nothing in their configuration says so; three short rows do."""
    model = decoder(kind, UNFIT[kind])
    with pytest.raises(ConfigError, match=rf"\({kind}\)"):
        use_packed_attention(model)
        check_rows_apart(model)


def test_virtual_tokens_are_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(decoder("llama", _GROUPED), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ConfigError, match="PROMPT_TUNING puts virtual tokens before a row"):
        use_packed_attention(model)


@pytest.mark.gpu
def test_flash_attention_over_rows() -> None:
    """On a GPU in half precision: torch's kernel for rows of different lengths against the dense mask."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = decoder("mistral", _GROUPED | {"sliding_window": 8}).cuda().bfloat16()
    rows = [SupervisedRow(list(range(3, 3 + n)), [0.0] * n, "row", "set") for n in (11, 64, 17)]
    batch = {k: v.cuda() for k, v in collate_rows(rows, 0, padding_free=True).items() if k.endswith("_ids")}
    dense = model(**batch, use_cache=False).logits
    use_packed_attention(model)
    assert (model(**batch, use_cache=False).logits - dense).abs().max() <= 0.05 * dense.abs().max()
