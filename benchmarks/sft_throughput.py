"""Supervised tokens per second, rows of mixed lengths with and without pictures: recipes' trainer against TRL's.

    python benchmarks/sft_throughput.py

The same rows, the same randomly initialised model and the same optimizer for both, each in a process of its own, one
after the other, with peak memory beside it; a row of benchmarks/results/sft_throughput.csv for each way:

    pictures  TRL       its SFTTrainer for vision-language models: micro-batches of 8, padded (it refuses packing here)
    pictures  padded    ours in the same micro-batches
    pictures  packed    ours, rows packed into sequences of `max_length`
    text      TRL       its SFTTrainer with packing: true (best-fit decreasing)
    text      packed    ours

Model, vocabulary and data are fixed below: a LLaVA of 19M parameters (30 % of them embeddings, about as in models of
half a billion), answers of 4 to 400 tokens, log-normal. An epoch is timed from the end of its first step on; both must
have learned from as many supervised tokens in it. The machine may be shared: ways take turns, the best repeat counts,
and beside tokens a second stand tokens a second of CPU, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, Row, child_environment, provenance, read_rows, save_rows

PICTURES, TEXT = "pictures", "text"
TRL, PADDED, PACKED = "TRL", "padded", "packed"
WAYS = ((PICTURES, TRL), (PICTURES, PADDED), (PICTURES, PACKED), (TEXT, TRL), (TEXT, PACKED))
CLAIMED = {PICTURES: 2.0, TEXT: 1.0}
"""Speed of `packed`, relative to TRL's."""

VOCABULARY = 16_384
SIZES: dict[str, tuple[dict[str, int], dict[str, int], int]] = {
    # decoder, tower, tokens of a packed sequence
    "full": (
        {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 10, "num_attention_heads": 5,
         "num_key_value_heads": 5},
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3},
        2048,
    ),
    "quick": (
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2},
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2},
        1024,
    ),
}  # fmt: skip
_PIXELS, _PATCH = 112, 14  # 64 tokens an image
_BATCH = 8
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Questions with answers of 4 to some 400 tokens; a third of the pictures' questions show two."""
    from data_builders import shapes, word_problems

    asked: list[Any] = [*shapes.generate(count, seed, image_size=_PIXELS, two_images=0.33)]
    problems: list[Any] = [*word_problems.generate(4 * count, seed, level=1)]
    said = [problem["completion"][0] for problem in problems]
    sentences = [f"{message['reasoning_content']}" for message in said]
    draw, rows = random.Random(seed), []
    for number, example in enumerate(asked):
        words = max(2, min(200, int(draw.lognormvariate(3.2, 0.9))))
        text = " ".join(" ".join(draw.sample(sentences, min(len(sentences), 1 + words // 8))).split()[:words])
        asked_for: Any = example["prompt"]
        prompt = asked_for if kind == PICTURES else [_without_pictures(asked_for[-1])]
        row = {
            "id": f"row {number}", "source": kind, "prompt": prompt,
            "completion": [{"role": "assistant", "content": text}],
        }  # fmt: skip
        rows.append(row | ({"images": example["images"]} if kind == PICTURES else {}))
    return rows


def _without_pictures(message: Any) -> dict[str, str]:
    content = message["content"]
    text = content if isinstance(content, str) else " ".join(part["text"] for part in content if "text" in part)
    return {"role": "user", "content": text}


def make_model(kind: str, size: str, texts: Sequence[str], seed: int) -> tuple[Any, Any]:
    """(model, processor or tokenizer), random weights."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaImageProcessor,
        LlavaProcessor,
    )

    from mmreason.models.tiny import tiny_tokenizer

    decoder, tower, _ = SIZES[size]
    tokenizer = tiny_tokenizer(texts, vocab_size=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = _TEMPLATE
    text = decoder | {
        "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    if kind == TEXT:
        return LlamaForCausalLM(LlamaConfig(**text)).float(), tokenizer
    vision = tower | {"model_type": "clip_vision_model", "image_size": _PIXELS, "patch_size": _PATCH}
    config = LlavaConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(_PIXELS // _PATCH) ** 2,
        tie_word_embeddings=True,
    )
    square = {"height": _PIXELS, "width": _PIXELS}
    processor = LlavaProcessor(
        LlavaImageProcessor(size={"shortest_edge": _PIXELS}, crop_size=square),
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config).float(), processor


class Clock:
    """Seconds and supervised tokens of all steps but the first."""

    def __init__(self, trainer: Any, labels_of: str) -> None:
        from transformers import TrainerCallback

        self.tokens: list[int] = []
        self.ends: list[tuple[float, float]] = []
        inner = trainer.data_collator

        def counting(examples: Any) -> Any:
            batch = inner(examples)
            self.tokens.append(int((batch[labels_of][:, 1:] != -100).sum()))
            return batch

        clock = self

        class Ticking(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.ends.append((time.perf_counter(), time.process_time()))

        trainer.data_collator = counting
        trainer.add_callback(Ticking())

    def result(self) -> dict[str, Any]:
        seconds, of_cpu = (last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True))
        timed = sum(self.tokens[1:])
        return {"tokens": sum(self.tokens), "tokens_per_s": timed / seconds, "tokens_per_cpu_s": timed / of_cpu}


def _training(folder: str, batch: int) -> dict[str, Any]:
    return {
        "output_dir": folder, "use_cpu": True, "gradient_checkpointing": False, "num_train_epochs": 1,
        "per_device_train_batch_size": batch, "learning_rate": 1e-4, "logging_steps": 1000, "report_to": [],
    }  # fmt: skip


def run_trl(kind: str, size: str, count: int, seed: int, folder: str) -> dict[str, Any]:
    """One epoch of TRL's trainer."""
    from trl import SFTConfig, SFTTrainer

    from mmreason.data.schema import to_dataset

    rows = make_rows(kind, count, seed)
    model, processor = make_model(kind, size, [row["completion"][0]["content"] for row in rows], seed)
    columns = ("prompt", "completion", "images") if kind == PICTURES else ("prompt", "completion")
    dataset = to_dataset(rows, columns, decode_images=True)  # type: ignore[arg-type]
    settings = _training(folder, _BATCH if kind == PICTURES else 1) | {"save_strategy": "no", "bf16": False}
    if kind == TEXT:
        settings |= {"packing": True, "max_length": SIZES[size][2]}
    else:
        settings |= {"max_length": None}
    trainer = SFTTrainer(model, SFTConfig(**settings), train_dataset=dataset, processing_class=processor)
    clock = Clock(trainer, "labels")
    trainer.train()
    return clock.result()


def run_ours(kind: str, way: str, size: str, count: int, seed: int, folder: str) -> dict[str, Any]:
    """One epoch of the recipe's trainer."""
    from mmreason.data.schema import to_dataset
    from mmreason.data.supervised import prepare_supervised
    from mmreason.trainers.sft import SFTTrainer, trl_config
    from mmreason.trainers.sft_arguments import SFTOptions

    rows = make_rows(kind, count, seed)
    model, processor = make_model(kind, size, [row["completion"][0]["content"] for row in rows], seed)
    columns = ("prompt", "completion", "id", "source", *(("images",) if kind == PICTURES else ()))
    checked, _ = prepare_supervised(to_dataset(rows, columns), processor)  # type: ignore[arg-type]
    settings = _training(folder, 1 if way == PACKED else _BATCH) | {"save_steps": 10**6, "bf16": False}
    options = SFTOptions(**settings, packing=way == PACKED, max_length=SIZES[size][2])
    options.check()
    trainer = SFTTrainer(model, options, trl_config(options), checked, processor)
    clock = Clock(trainer, "labels")
    trainer.train()
    return clock.result()


def child(arguments: argparse.Namespace) -> None:
    """Measure one way in this process; the last line of the output is the result."""
    import resource

    kind, way = arguments.child
    common = (arguments.size, arguments.rows, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="sft_throughput_") as folder:
        measured = run_trl(kind, *common, folder) if way == TRL else run_ours(kind, way, *common, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps(measured | {"peak_mib": round(peak / 2**20)}))


def measure(size: str, count: int, repeats: int, threads: int | None, seed: int) -> list[Row]:
    """A row for each way. Raises RuntimeError where one fails, or two learned from different numbers of tokens."""
    from tqdm import tqdm

    found: dict[tuple[str, str], list[dict[str, Any]]] = {way: [] for way in WAYS}
    for kind, way in tqdm([way for _ in range(repeats) for way in WAYS], desc="sft throughput", leave=False):
        words = ["--child", kind, way, "--size", size, "--rows", str(count), "--seed", str(seed)]
        command = [sys.executable, "-m", "benchmarks.sft_throughput", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=child_environment(threads), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{kind}, {way}: {done.stderr[-3000:]}")
        found[kind, way].append(json.loads(done.stdout.strip().splitlines()[-1]))
    rows: list[Row] = []
    for (kind, way), repeated in found.items():
        tokens, theirs = repeated[0]["tokens"], found[kind, TRL][0]["tokens"]
        if tokens != theirs:
            raise RuntimeError(f"{kind}, {way}: {tokens} supervised tokens an epoch, TRL has {theirs}")
        best = {name: max(one[name] for one in repeated) for name in ("tokens_per_s", "tokens_per_cpu_s")}
        over = {name: speed / max(one[name] for one in found[kind, TRL]) for name, speed in best.items()}
        rows.append(
            {
                "kind": kind,
                "way": way,
                "tokens_per_s": round(best["tokens_per_s"], 1),
                "over_trl": round(over["tokens_per_s"], 2),
                "tokens_per_cpu_s": round(best["tokens_per_cpu_s"], 1),
                "over_trl_per_cpu_s": round(over["tokens_per_cpu_s"], 2),
                "peak_mib": min(one["peak_mib"] for one in repeated),
                "supervised_tokens": tokens,
                "rows": count,
                "size": size,
                "threads": threads,
                "repeats": repeats,
            }
        )
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Supervised tokens a second and peak memory, a bar for each way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
    names = [f"{row['kind']}, {'TRL' if row['way'] == TRL else 'ours, ' + str(row['way'])}" for row in rows]
    colors = ["tab:gray" if row["way"] == TRL else "tab:blue" for row in rows]
    speeds = [float(row["tokens_per_s"]) for row in rows]
    bars = axes[0].barh(names, speeds, color=colors)
    labels = [f"{speed:.0f}  (× {row['over_trl']})" for speed, row in zip(speeds, rows, strict=True)]
    axes[0].bar_label(bars, labels, padding=4, fontsize=9)
    axes[0].set(xlim=(0, 1.35 * max(speeds)), xlabel="supervised tokens a second")
    memory = axes[1].barh(names, [float(row["peak_mib"]) for row in rows], color=colors)
    axes[1].bar_label(memory, padding=4, fontsize=9)
    axes[1].set(xlabel="peak memory of the process, MiB", xlim=(0, 1.25 * max(float(row["peak_mib"]) for row in rows)))
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=64, help="of an epoch (default %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the model (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="of each way the best counts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="of each process (default: as torch chooses)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        child(arguments)
        return 0
    rows = measure(arguments.size, arguments.rows, arguments.repeats, arguments.threads, arguments.seed)
    for row in rows:
        name = "TRL" if row["way"] == TRL else f"ours, {row['way']}"
        print(
            f"{row['kind']:<9} {name:<13} {row['tokens_per_s']:>8} supervised tokens/s   {row['over_trl']} × TRL   "
            f"({row['over_trl_per_cpu_s']} per second of CPU)   peak {row['peak_mib']} MiB"
        )
    for kind, claimed in CLAIMED.items():
        (packed,) = [row for row in rows if (row["kind"], row["way"]) == (kind, PACKED)]
        verdict = "as claimed" if packed["over_trl"] >= claimed else "LESS THAN CLAIMED"
        print(f"{kind}, packed: {packed['over_trl']} × TRL, {claimed} is claimed: {verdict}")
    if not arguments.no_save:
        path = RESULTS / "sft_throughput.csv"
        under = provenance(arguments.seed, ("torch", "transformers", "trl"))
        save_rows(path, [{**row, **under} for row in rows], ("kind", "way", "size"))
        plot([row for row in read_rows(path) if row["size"] == arguments.size], path.with_suffix(".png"))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
