"""Tiny decoders made by code: nothing is downloaded. They serve the embedded example and the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# hidden size, layers, heads (32 wide each, the narrowest that vLLM's CPU attention takes), key/value heads, MLP width
TINY_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "xs": (64, 2, 2, 1, 128),
    "s": (160, 3, 5, 5, 640),
}

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte plus five special tokens: any text round-trips, and numbers are spelled digit by digit.

    transformers loads the tokenizer beside a Qwen2 model as Qwen2Tokenizer, whatever class was saved. So it has that
    one's normaliser (Unicode NFC), and names every special token that the class would otherwise add to the vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (PAD, END, SYSTEM, USER, ASSISTANT)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=PAD, eos_token=END, model_max_length=2048
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def tiny_decoder(size: str = "xs", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A randomly initialised float32 Qwen2 decoder over `tiny_tokenizer`'s vocabulary.

    Args:
        size: a key of TINY_SIZES ("xs" has 0.1M parameters, "s" 1.3M).
        seed: of the initialisation; the process-wide generators are left as they were.
        overrides: fields of Qwen2Config.
    """
    import torch

    tokenizer = tiny_tokenizer()
    hidden, layers, heads, kv_heads, mlp = TINY_SIZES[size]
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "dtype": "float32",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(Qwen2Config(**(settings | overrides))).eval()


def save_tiny(folder: str | os.PathLike[str], size: str = "xs", *, seed: int = 0) -> str:
    """Write model and tokenizer as a normal checkpoint folder (safetensors) and return its path."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tiny_decoder(size, seed=seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)
