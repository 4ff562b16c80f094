"""What a student saves and what it costs: sizes, speed and accuracy of teacher and student, before and after.

python -m mmreason.trainers.distill_bill CHECKPOINT --prompts 32 --tokens 64       # tokens a second in vLLM, as JSON
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmreason.rollout.engines import end_token_ids, placeholder_token_ids
from mmreason.rollout.evaluate import Evaluation, wilson_interval
from mmreason.rollout.hf import HFEngine, lone_process
from mmreason.rollout.types import Request, Sampling
from mmreason.trainers.arguments import DataArguments, ModelArguments
from mmreason.trainers.evaluation import measure
from mmreason.trainers.problems import Say, check_held_out
from mmreason.trainers.state import write_json

FILE = "bill.json"
"""In the output folder."""
BATCH, NEW_TOKENS, REPEATS = 8, 64, 3
"""Of the speed: rows of a batch, tokens of each, timed calls, of which the median counts."""
_VLLM_S = 1800


@dataclass
class Line:
    """One model of the bill.

    Attributes:
        name: teacher, student before, student. path: its checkpoint.
        parameters: numbers of all weights. disk_bytes: of its weight files. memory_bytes: of its weights in memory.
        peak_bytes: of the GPU while it writes a batch; None on the CPU.
        latency_s: seconds of one answer of `NEW_TOKENS` tokens alone. tokens_per_s: of `BATCH` answers at once, in HF.
        vllm_tokens_per_s: in vLLM, where that was asked for.
        accuracy: greedy, by held-out set: {"correct", "n", "value", "low", "high"}.
    """

    name: str
    path: str
    parameters: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    peak_bytes: int | None = None
    latency_s: float = 0.0
    tokens_per_s: float = 0.0
    vllm_tokens_per_s: float | None = None
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)


def write_bill(
    trainer: Any,
    models: Sequence[tuple[str, ModelArguments]],
    held_out: Mapping[str, Any],
    data: DataArguments,
    say: Say,
    *,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Line]:
    """Measure each model, write `bill.json`, and print the table. Collective.

    Args:
        trainer: of the run, at its end. models: names and where each lies; every process loads each of them whole.
        held_out: rows by the name of their set. known: accuracies by model's name that need no measuring.
    """
    lines = []
    for name, where in models:
        line = _measured(trainer, name, where, held_out, data, (known or {}).get(name))
        lines.append(line)
    if trainer.accelerator.is_main_process:
        if trainer.options.bill_vllm:
            for line in lines:
                line.vllm_tokens_per_s = vllm_speed(line.path)
        write_json(Path(trainer.options.output_dir) / FILE, [asdict(line) for line in lines])
    say(table(lines))
    return lines


def _measured(
    trainer: Any,
    name: str,
    where: ModelArguments,
    held_out: Mapping[str, Any],
    data: DataArguments,
    known: Mapping[str, Any] | None,
) -> Line:
    from mmreason.models.loading import load_policy_model, load_processor

    path = str(where.model_name_or_path)
    processor = load_processor(where)
    tokenizer = getattr(processor, "tokenizer", processor)
    device = trainer.accelerator.device
    model = load_policy_model(where).to(device).eval()
    line = Line(name, path)
    line.parameters = sum(one.numel() for one in model.parameters())
    line.memory_bytes = sum(one.numel() * one.element_size() for one in model.parameters())
    line.disk_bytes = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    engine = HFEngine(
        model,
        lone_process(device),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_ids=end_token_ids(model, tokenizer),
        banned_token_ids=placeholder_token_ids(model),
        batch_size=trainer.options.hf_generation_batch_size,
    )
    _time(line, engine, tokenizer, device)
    options = trainer.options
    sampling = Sampling(max_tokens=options.max_completion_length)
    if known is not None:
        line.accuracy = {key: dict(value) for key, value in known.items()}
    else:
        sets = check_held_out(held_out, processor, data, options.chat_template_kwargs, lambda _: None)
        for key, one in sets.items():
            found, _ = measure(engine, one, tokenizer, sampling, trainer.parallel, k=0, seed=options.seed)
            line.accuracy[key] = _greedy(found)
    del model, engine
    gc.collect()
    return line


def _greedy(found: Evaluation) -> dict[str, Any]:
    low, high = wilson_interval(found.greedy.correct, found.greedy.n)
    return asdict(found.greedy) | {"value": found.greedy.value, "low": low, "high": high}


def _time(line: Line, engine: HFEngine, tokenizer: Any, device: Any) -> None:
    """Latency of one answer, and tokens a second of a batch of answers of fixed length."""
    prompt = tokenizer("What is left of 31 apples, once 17 of them are eaten?")["input_ids"]
    fixed = Sampling(max_tokens=NEW_TOKENS, temperature=0.0, extra={"min_new_tokens": NEW_TOKENS})
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for rows in (1, BATCH):
        seconds = []
        for _ in range(REPEATS + 1):  # the first one warms up
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            engine.generate([Request(prompt, 1) for _ in range(rows)], fixed, 0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        middle = statistics.median(seconds[1:])
        if rows == 1:
            line.latency_s = middle
        line.tokens_per_s = rows * NEW_TOKENS / middle
    if device.type == "cuda":
        line.peak_bytes = int(torch.cuda.max_memory_allocated(device))


def vllm_speed(path: str) -> float | None:
    """Tokens a second of a checkpoint in vLLM, in a process of its own; None where vLLM can't serve it."""
    command = [sys.executable, "-m", "mmreason.trainers.distill_bill", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_VLLM_S, check=False)
    if done.returncode != 0:
        print(f"vLLM can't serve {path}: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}", flush=True)
        return None
    return float(json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_s"])


def table(lines: Sequence[Line]) -> str:
    """The bill as text; ratios are to the first line."""
    first = lines[0]
    rows = [("", "parameters", "disk", "latency", "tokens/s", "vLLM tokens/s", "accuracy")]
    for line in lines:
        share = f" ({line.parameters / first.parameters:.0%})" if line is not first and first.parameters else ""
        faster = f" ({line.tokens_per_s / first.tokens_per_s:.1f} x)" if line is not first else ""
        shown = [
            f"{key} {value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
            for key, value in line.accuracy.items()
        ]
        rows.append(
            (
                line.name,
                f"{line.parameters:,}{share}",
                f"{line.disk_bytes / 2**20:,.1f} MiB",
                f"{line.latency_s:.3f} s",
                f"{line.tokens_per_s:,.0f}{faster}",
                "-" if line.vllm_tokens_per_s is None else f"{line.vllm_tokens_per_s:,.0f}",
                ", ".join(shown) or "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(text)


def _serve(path: str, prompts: int, tokens: int) -> float:
    from vllm import LLM, SamplingParams

    dtype = "auto" if torch.cuda.is_available() else "float32"
    engine = LLM(model=path, dtype=dtype, enforce_eager=not torch.cuda.is_available(), max_model_len=512, seed=0)
    text = "What is left of 31 apples, once 17 of them are eaten?"
    fixed = SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0.0, ignore_eos=True)
    engine.generate([text] * prompts, fixed, use_tqdm=False)
    started = time.perf_counter()
    made = engine.generate([text] * prompts, fixed, use_tqdm=False)
    return sum(len(one.outputs[0].token_ids) for one in made) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens a second of a checkpoint in vLLM, as one line of JSON.")
    parser.add_argument("checkpoint")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=NEW_TOKENS)
    arguments = parser.parse_args()
    speed = _serve(arguments.checkpoint, arguments.prompts, arguments.tokens)
    print(json.dumps({"tokens_per_s": speed}), flush=True)


if __name__ == "__main__":
    main()
