"""The shipped warm start: small, safe, made by the code as it is now, and as good as its manifest says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data_builders.word_problems import VERSION, generate
from mmreason.rollout.evaluate import wilson_interval
from tests.recipes.launch import ROOT

FOLDER = ROOT / "recipes" / "warm_start"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def test_weights_are_small_and_the_files_are_the_published_ones() -> None:
    weights = (FOLDER / "model.safetensors").read_bytes()
    assert len(weights) <= 4_000_000
    assert hashlib.sha256(weights).hexdigest() == MANIFEST["weights_sha256"]
    suffixes = {path.suffix for path in FOLDER.iterdir()}
    assert suffixes <= {".json", ".jinja", ".md", ".safetensors"}, "nothing that is unpickled is shipped"


def test_it_was_trained_on_what_the_builder_makes_today() -> None:
    assert MANIFEST["word_problems"]["version"] == VERSION, "word problems changed: benchmarks/warm_start.py --publish"


def test_the_tokenizer_is_the_one_that_the_code_makes() -> None:
    """From the same texts the same merges: a warm start can be made again from scratch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for example in generate(200, 5, level="1-2", split="unseen_templates"):
        text = str(example["prompt"][0]["content"])  # type: ignore[index, typeddict-item]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        words = len(text.replace(".", " .").replace("?", " ?").split()) + sum(c.isdigit() for c in text)
        assert len(ids) <= 1.3 * words, (text, tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.slow
def test_it_is_as_good_as_the_manifest_says() -> None:
    """Greedy accuracy on 200 of the held-out problems, by transformers alone, near the recorded one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    chosen: dict[str, Any] = {k: v for k, v in MANIFEST["word_problems"].items() if k in ("level", "language")}
    problems = generate(200, 0, split="test", **chosen)
    prompts = [tokenizer.apply_chat_template(p["prompt"], tokenize=False, add_generation_prompt=True) for p in problems]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=96, do_sample=False)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    correct = sum(text.endswith(f"The answer is {p['answer']}.") for text, p in zip(texts, problems, strict=True))
    recorded = MANIFEST["evaluation"]["sets"]["held_out"]["greedy"]
    low, high = wilson_interval(correct, 200, 0.999)
    assert low <= recorded["value"] <= high, (correct, recorded)


def test_nothing_names_the_machine_it_was_made_on() -> None:
    for path in FOLDER.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert str(Path.home()) not in text and "/tmp/" not in text, path
