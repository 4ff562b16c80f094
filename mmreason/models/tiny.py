"""Tiny decoders made by code: nothing is downloaded. They serve the demo and the tests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# hidden size, layers, heads (32 wide each, the narrowest that vLLM's CPU attention takes), key/value heads, MLP width
TINY_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "xs": (64, 2, 2, 1, 128),
    "s": (160, 3, 5, 5, 512),
    "m": (192, 4, 6, 6, 768),
}

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"

# An assistant's reasoning stands on the lines before its answer.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['reasoning_content'] %}{{ message['reasoning_content'] + '\\n' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer(texts: Iterable[str] | None = None, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with five special tokens: any text round-trips, and each digit is a token.

    Args:
        texts: what the merges are learned from, so that frequent words become one token. None: no merges, one token
            per byte.
        vocab_size: upper bound of the vocabulary where merges are learned; the bytes alone take 261.

    transformers loads the tokenizer beside a Qwen2 model as Qwen2Tokenizer, whatever class was saved. So it has that
    one's normaliser and word pattern, and names every special token that the class would otherwise add.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [AddedToken(token, special=True, normalized=False) for token in (PAD, END, SYSTEM, USER, ASSISTANT)]
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if texts is not None:
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(special), initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=PAD, eos_token=END, model_max_length=2048
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def tiny_decoder(
    size: str = "xs", *, vocab_size: int | None = None, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A randomly initialised float32 Qwen2 decoder.

    Args:
        size: a key of TINY_SIZES; with a vocabulary of 1024 "xs" has 0.1M parameters, "s" 1.2M, "m" 2.6M.
        vocab_size: of its tokenizer. None: that of `tiny_tokenizer()`, one token per byte.
        seed: of the initialisation; the process-wide generators are left as they were.
        overrides: fields of Qwen2Config.

    Padding and end-of-text ids are those of `tiny_tokenizer`, which puts its special tokens last.
    """
    import torch

    hidden, layers, heads, kv_heads, mlp = TINY_SIZES[size]
    vocab_size = len(tiny_tokenizer()) if vocab_size is None else vocab_size
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": vocab_size - 5,
        "eos_token_id": vocab_size - 4,
        "bos_token_id": None,
        "dtype": "float32",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(Qwen2Config(**(settings | overrides))).eval()


def save_tiny(
    folder: str | os.PathLike[str],
    size: str = "xs",
    *,
    texts: Iterable[str] | None = None,
    vocab_size: int = 1024,
    seed: int = 0,
    tokenizer: Any = None,
) -> str:
    """Write model and tokenizer (see `tiny_tokenizer` for texts and vocab_size) as a checkpoint; returns its path.

    Args: tokenizer: to take in place of a new one, such as a teacher's.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(texts, vocab_size) if tokenizer is None else tokenizer
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    tiny_decoder(size, vocab_size=len(tokenizer), seed=seed, **ids).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
