"""A small real tokenizer for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if think is defined %}<think>{% endif %}{% endif %}"
)
SPECIAL = ["<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<think>"]


def make_tokenizer(*, post: str | None = "<bos> $A", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A real fast tokenizer over single characters, with or without BOS/EOS added by its post-processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "[UNK]", *(chr(c) for c in range(32, 127))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.add_special_tokens(SPECIAL)
    if post:
        ids = [(token, vocabulary[token]) for token in ("<bos>", "<eos>")]
        core.post_processor = processors.TemplateProcessing(single=post, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="[UNK]")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(name="make_tokenizer", scope="session")
def make_tokenizer_fixture() -> Callable[..., PreTrainedTokenizerFast]:
    """The factory `make_tokenizer(post=..., template=...)`."""
    return make_tokenizer
