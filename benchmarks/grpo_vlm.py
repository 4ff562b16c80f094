"""What does it save to read a prompt and encode its image once for a whole group? Beside TRL, on the same samples.

    python benchmarks/grpo_vlm.py                       # all cases, memory and growth; what is there already is kept
    python benchmarks/grpo_vlm.py --cases short --again

A small visual policy (random weights, fixed data): a timm ViT of 196 patches, frozen, before a Qwen2 decoder of 6
layers of width 384 with a vocabulary of 32,000. One GRPO step is measured: log-probabilities under a reference model,
and the update (forward, backward, clipping, AdamW). Sampling is left out: it is the same work for all.

Beside the measured ratio stands the limit: the ratio of the floating-point operations that the two ways need (all
matrix products of decoder, head, projector and tower, and attention), which no implementation of sharing can exceed on
equal kernels. TRL's step, ours, and ours with separate rows are run in turn in one process, on the same samples; losses
and gradient norms have to agree. TRL may do more than what is counted (without Triton its head reads the prompts as
well), so the share of the limit is that of our separate rows. Processor seconds are compared, so that what else the
machine does counts little. Memory is that of a process of its own.

Results go to benchmarks/results/grpo_vlm.csv, the plot beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, ROOT, Row, child_environment, commit, provenance, read_rows, save_rows

GOAL = 0.85
"""Share of the limit that is claimed."""

LAYERS, WIDTH, HEADS, KEY_HEADS, INNER, VOCABULARY = 6, 384, 6, 2, 1024, 32_000
TOWER: dict[str, Any] = {
    "source": "timm", "name": "vit_tiny_patch16_224", "weights": "random", "image_size": 224, "config": {"depth": 6},
}  # fmt: skip
TOWER_WIDTH, TOWER_DEPTH, PATCHES = 192, 6, 196
PART = ("what", "case", "trainer")


class Case(NamedTuple):
    """prompt: tokens of a prompt, 196 of each image included; completion: tokens of each. groups: of one step."""

    prompt: int
    completion: int
    g: int
    images: int = 1
    groups: int = 1

    @property
    def tokens(self) -> int:
        """Of all prompts and completions, as separate rows."""
        return self.groups * self.g * (self.prompt + self.completion)


CASES = {"short": Case(220, 32, 8), "long": Case(600, 200, 8), "wide": Case(600, 64, 16)}
GROWTH_G = {f"G={g}": Case(220, 32, g, groups=1) for g in (2, 4, 8, 16)}
GROWTH_IMAGES = {f"images={n}": Case(24 + 196 * n, 32, 8, images=n, groups=1) for n in (1, 2, 3)}


# ---- the limit


def flops(case: Case, *, shared: bool) -> dict[str, float]:
    """Floating-point operations of one step, by part: of reference and update, a multiplication and an addition each.

    A backward pass costs two forward passes. Separate rows are counted as TRL makes them, with whole completions. The
    tower is frozen: it has no backward pass; shared, reference and update use one encoding.
    """
    p, c, g = case.prompt, case.completion, case.g
    layer = 2 * WIDTH * (WIDTH + 2 * WIDTH * KEY_HEADS // HEADS + WIDTH + 3 * INNER)
    if shared:
        body = c - 1  # the last token predicts nothing
        tokens = p + g * body
        pairs = p * (p + 1) / 2 + g * (p * body + body * (body + 1) / 2)
        encodings, projections = 1, 2
    else:
        tokens = g * (p + c)
        pairs = g * (p + c) * (p + c + 1) / 2
        encodings, projections = 2 * g, 2 * g
    update_and_reference = 3 + 1
    view = PATCHES + 1
    tower = TOWER_DEPTH * (2 * 12 * TOWER_WIDTH**2 * view + 4 * TOWER_WIDTH * view**2) + 2 * 768 * TOWER_WIDTH * PATCHES
    projector = 2 * PATCHES * (TOWER_WIDTH * WIDTH + WIDTH * WIDTH)
    return {
        "decoder": case.groups * update_and_reference * LAYERS * layer * tokens,
        "attention": case.groups * update_and_reference * LAYERS * 4 * WIDTH * pairs,
        "head": case.groups * update_and_reference * 2 * WIDTH * VOCABULARY * g * c,
        "tower": case.groups * case.images * encodings * tower,
        "projector": case.groups * case.images * projections / 2 * update_and_reference * projector,
    }


def limit(case: Case) -> float:
    """How many times the operations of shared rows separate rows need."""
    return sum(flops(case, shared=False).values()) / sum(flops(case, shared=True).values())


# ---- what is measured


def save_parts(folder: Path, seed: int) -> str:
    """Write the composed model and its processor."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from mmreason.models.compose import from_parts
    from mmreason.models.tiny import tiny_tokenizer

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS,
        intermediate_size=INNER, vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    model, processor = from_parts(TOWER, {"kind": "mlp"}, str(folder / "decoder"), seed=seed)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return str(folder / "model")


def load(path: str) -> Any:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(path)
    model.vision_tower.requires_grad_(False)
    return model


class Data:
    """Prompts with images, completions and advantages, all fixed by the seed."""

    def __init__(self, case: Case, processor: Any, seed: int) -> None:
        import numpy as np
        from PIL import Image

        from mmreason.data.visual import render_visual_prompt

        rng = np.random.default_rng(seed)
        rows: list[dict[str, Any]] = []
        for number in range(case.groups):
            pictures = [
                Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(case.images)
            ]

            def ask(text: str, images: int = case.images) -> Any:
                return [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}]

            # Bytes are tokens: the text fills the prompt up to its length.
            bare = render_visual_prompt(ask("?"), pictures, processor)
            text = "".join(rng.choice(list("abcdefgh"), case.prompt - len(bare.ids) + 1))
            rows.append({"id": str(number), "prompt": ask(text), "pictures": pictures})
        self.visuals = [render_visual_prompt(row["prompt"], row["pictures"], processor) for row in rows]
        self.prompt_ids = [visual.ids for visual in self.visuals]
        wrong = {len(ids) for ids in self.prompt_ids} - {case.prompt}
        if wrong:
            raise RuntimeError(f"prompts of {sorted(wrong)} tokens, not {case.prompt}")
        self.rows = [number for number in range(case.groups) for _ in range(case.g)]
        self.completions = rng.integers(1000, VOCABULARY, (len(self.rows), case.completion)).tolist()
        self.advantages = rng.normal(size=len(self.rows)).tolist()
        self.messages = [row["prompt"] for row in rows]
        self.pictures = [row["pictures"] for row in rows]


def settings(case: Case, out: Path, bf16: bool) -> dict[str, Any]:
    """Options that both trainers read under the same names: a micro-batch is one group."""
    import torch

    return {
        "output_dir": str(out), "per_device_train_batch_size": case.g, "gradient_accumulation_steps": case.groups,
        "num_generations": case.g, "max_completion_length": case.completion, "learning_rate": 1e-6, "beta": 0.04,
        "loss_type": "dapo", "gradient_checkpointing": False, "bf16": bf16, "report_to": [], "seed": 0,
        "max_steps": 100, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


class Ours:
    """The policy loop's scoring and update.

    Args: share: prompts are read, and images encoded, once for their group.
    """

    def __init__(self, path: str, case: Case, data: Data, out: Path, bf16: bool, share: bool = True) -> None:
        from transformers import AutoProcessor

        from mmreason.data.schema import to_dataset
        from mmreason.trainers.arguments import PolicyConfig
        from mmreason.trainers.batch import Samples
        from mmreason.trainers.distributed import build_accelerator
        from mmreason.trainers.policy import PolicyTrainer

        self.share = share
        config = PolicyConfig(**settings(case, out, bf16), save_steps=0, share_prompts=share)
        accelerator = build_accelerator(config)
        rows: Any = [
            {"id": str(number), "prompt": prompt, "images": [png(picture) for picture in pictures]}
            for number, (prompt, pictures) in enumerate(zip(data.messages, data.pictures, strict=True))
        ]
        self.trainer = PolicyTrainer(
            load(path),
            config,
            reward_funcs=[],
            train_dataset=to_dataset(rows, ("id", "prompt", "images")),
            prompt_ids=data.prompt_ids,
            tokenizer=AutoProcessor.from_pretrained(path),
            accelerator=accelerator,
            checkpoint=path,
            ref_model=load(path),
        )
        self.trainer.banned_token_ids = self.trainer.scorer.banned_token_ids = []  # as TRL, which masks none in scoring
        self.samples = Samples(
            rows=data.rows,
            prompt_ids=[data.prompt_ids[row] for row in data.rows],
            completion_ids=data.completions,
            sampling_logps=[[0.0] * case.completion for _ in data.rows],
            truncated=[False] * len(data.rows),
            in_loss=[True] * len(data.rows),
            advantages=data.advantages,
        )

    def step(self) -> dict[str, float]:
        """{"loss", "grad_norm"}. Images are as new as those of a rollout: read, processed and encoded in here."""
        assert self.trainer.visuals is not None
        self.trainer.visuals._kept.clear()
        self.trainer.scorer.score_fixed(self.samples)
        out = self.trainer._update(self.samples)
        if self.trainer.scorer.sharing.shares(self.trainer.policy) != self.share:
            raise RuntimeError("prompts are not shared: there is nothing to measure")
        return {"loss": out["loss"], "grad_norm": out["grad_norm"]}


class Theirs:
    """What TRL's GRPOTrainer does between sampling and the next step: reference log-probabilities, loss, update."""

    def __init__(self, path: str, case: Case, data: Data, out: Path, bf16: bool) -> None:
        import torch
        from datasets import Dataset
        from transformers import AutoProcessor
        from trl import GRPOConfig, GRPOTrainer
        from trl.trainer.utils import add_fused_lm_head

        options = settings(case, out, bf16)
        beta = options.pop("beta")
        self.trainer = trainer = GRPOTrainer(
            load(path),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=GRPOConfig(**options, save_strategy="no", disable_tqdm=True),
            train_dataset=Dataset.from_dict({"prompt": data.messages[:1] * (case.g * case.groups)}),
            processing_class=AutoProcessor.from_pretrained(path),
        )
        # It can't load a second model of a class outside transformers by itself.
        reference = load(path)
        add_fused_lm_head(reference, temperature=trainer.temperature)
        trainer.beta, trainer.ref_model = beta, trainer.accelerator.prepare_model(reference, evaluation_mode=True)
        trainer.create_optimizer()
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.current_gradient_accumulation_steps = case.groups
        self.case, device = case, trainer.accelerator.device
        prompts = torch.tensor([data.prompt_ids[row] for row in data.rows], device=device)
        completions = torch.tensor(data.completions, device=device)
        self.inputs = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": completions,
            "completion_mask": torch.ones_like(completions),
            "advantages": torch.tensor(data.advantages, device=device),
            "pixel_values": torch.cat([data.visuals[row].inputs["pixel_values"] for row in data.rows]).to(device),
        }

    def step(self) -> dict[str, float]:
        """{"loss", "grad_norm"}."""
        import torch

        trainer, case = self.trainer, self.case
        ids = torch.cat([self.inputs["prompt_ids"], self.inputs["completion_ids"]], 1)
        with torch.no_grad():
            self.inputs["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, ids, torch.ones_like(ids), case.completion, batch_size=case.g,
                pixel_values=self.inputs["pixel_values"], num_images=[case.images] * len(ids),
            )[0]  # fmt: skip
        self.model.train()
        loss = torch.zeros((), device=ids.device)
        for group in range(case.groups):
            rows = slice(group * case.g, (group + 1) * case.g)
            views = slice(group * case.g * case.images, (group + 1) * case.g * case.images)
            part: dict[str, Any] = {n: v[views if n == "pixel_values" else rows] for n, v in self.inputs.items()}
            part |= {"num_images": [case.images] * case.g, "num_items_in_batch": self.inputs["completion_mask"].sum()}
            share = trainer.compute_loss(self.model, part)
            share.backward()  # Accelerate would divide it by the number of groups, which TRL has done already
            loss += share.detach()
        norm = trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": float(loss), "grad_norm": float(norm)}


TRAINERS: dict[str, Callable[..., Any]] = {"ours": Ours, "rows": partial(Ours, share=False), "trl": Theirs}
"""Shared prompts, the same loop with separate rows (share_prompts: false), and TRL."""


def png(picture: Any) -> dict[str, Any]:
    """An image as a dataset stores it."""
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def seconds() -> float:
    """Of the processor, of all threads; of the clock where a GPU does the work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def time_case(path: str, case: Case, repeats: int, seed: int, bf16: bool, out: Path) -> dict[str, list[float]]:
    """Seconds of each step of both, run in turn. Raises RuntimeError where they don't do the same."""
    from transformers import AutoProcessor

    data = Data(case, AutoProcessor.from_pretrained(path), seed)
    both = {name: make(path, case, data, out / name, bf16) for name, make in TRAINERS.items()}
    first = {name: trainer.step() for name, trainer in both.items()}  # also warms up
    for number in ("loss", "grad_norm"):
        values = {name: step[number] for name, step in first.items()}
        if not max(values.values()) - min(values.values()) <= (2e-2 if bf16 else 1e-4) * max(abs(values["trl"]), 1e-2):
            raise RuntimeError(f"{number} differs: {values}; they don't take the same step")
    taken: dict[str, list[float]] = {name: [] for name in both}
    for repeat in range(repeats):
        for name in list(both)[:: 1 if repeat % 2 else -1]:
            started = seconds()
            both[name].step()
            taken[name].append(seconds() - started)
    return taken


def memory_of(path: str, case: Case, trainer: str, seed: int, bf16: bool, out: Path) -> float:
    """MiB that one step takes on top of what was there before it (activations, gradients, the optimizer's state)."""
    import torch
    from transformers import AutoProcessor

    data = Data(case, AutoProcessor.from_pretrained(path), seed)
    made = TRAINERS[trainer](path, case, data, out, bf16)
    if torch.cuda.is_available():
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        made.step()
        return float(torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    made.step()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A size of this process in MiB, by its name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


# ---- a process for each measurement


def worker(arguments: argparse.Namespace) -> None:
    """Entry of a child process: one measurement, its result as a file."""
    import torch

    import mmreason.models  # noqa: F401  (transformers' Auto classes learn of the composed model)

    torch.set_num_threads(arguments.threads)
    case, out = Case(*json.loads(arguments.case)), Path(arguments.out)
    bf16 = torch.cuda.is_available()
    if arguments.job == "time":
        result: Any = time_case(arguments.model, case, arguments.repeats, arguments.seed, bf16, out)
    else:
        result = memory_of(arguments.model, case, arguments.job, arguments.seed, bf16, out)
    (out / "result.json").write_text(json.dumps(result))


def run(arguments: argparse.Namespace, path: str, job: str, case: Case, folder: Path) -> Any:
    """What a worker found. Raises SystemExit naming its log where it fails."""
    folder.mkdir(parents=True)
    words = [sys.executable, __file__, "--job", job, "--case", json.dumps(list(case)), "--out", str(folder)]
    words += ["--model", path, "--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
    words += ["--seed", str(arguments.seed)]
    environment = child_environment(arguments.threads) | {"HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(words, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = (folder / "log.txt").read_text()[-1500:]
        raise SystemExit(f"{job} of {case} failed:\n{tail}")
    return json.loads((folder / "result.json").read_text())


def time_rows(name: str, what: str, case: Case, taken: dict[str, list[float]], peak_tflops: float | None) -> list[Row]:
    """A row for each trainer: medians, and how many times as fast shared prompts are.

    The share of the limit is that of the same loop with separate rows, which does the counted work and no more.
    """
    rows: list[Row] = []
    for trainer in TRAINERS:
        value = statistics.median(taken[trainer])
        pairs = [theirs / own for own, theirs in zip(taken["ours"], taken[trainer], strict=True)]
        work = sum(flops(case, shared=trainer == "ours").values())
        rows.append(
            {
                "what": what,
                "case": name,
                "trainer": trainer,
                "prompt": case.prompt,
                "completion": case.completion,
                "g": case.g,
                "images": case.images,
                "groups": case.groups,
                "repeats": len(taken[trainer]),
                "seconds": round(value, 4),
                "gflop": round(work / 1e9, 1),
                "gflop_per_second": round(work / value / 1e9, 1),
                "over_ours": round(statistics.median(pairs), 3),
                "least": round(min(pairs), 3),
                "most": round(max(pairs), 3),
                "limit": round(limit(case), 3),
                "share_of_limit": round(statistics.median(pairs) / limit(case), 3),
                "mfu": None if peak_tflops is None else round(work / value / 1e12 / peak_tflops, 3),
            }
        )
    return rows


def measure(arguments: argparse.Namespace) -> None:
    """Measure what isn't in the results yet, and save each part once it is there."""
    from tqdm import tqdm

    path = RESULTS / "grpo_vlm.csv"
    under = {"threads": arguments.threads, **provenance(arguments.seed, ("torch", "trl", "transformers", "timm"))}
    # Growth with G and with images is timed at one group; memory is measured everywhere.
    jobs = [("step", name, case) for name, case in CASES.items()]
    jobs += [("growth", name, case) for name, case in (GROWTH_G | GROWTH_IMAGES).items()]
    jobs = [job for job in jobs if not arguments.cases or job[1] in arguments.cases]
    known = {tuple(row[name] for name in PART) for row in read_rows(path) if row.get("commit") == commit()}
    with tempfile.TemporaryDirectory(prefix="grpo_vlm_") as scratch:
        model = save_parts(Path(scratch), arguments.seed)
        for what, name, case in tqdm(jobs, desc="cases"):
            if not arguments.again and (what, name, "trl") in known:
                continue
            folder = Path(scratch) / name
            taken = run(arguments, model, "time", case, folder / "time")
            rows = time_rows(name, what, case, taken, arguments.peak_tflops)
            peaks = {trainer: run(arguments, model, trainer, case, folder / trainer) for trainer in TRAINERS}
            rows = [{**row, "peak_mib": round(peaks[row["trainer"]]), **under} for row in rows]
            save_rows(path, rows, PART)
            print(said(rows))


def said(rows: Sequence[Row]) -> str:
    """One line for a case."""
    by = {row["trainer"]: row for row in rows}
    ours, alone, trl = by["ours"], by["rows"], by["trl"]
    return (
        f"{ours['case']:<9} {float(ours['seconds']):7.2f} s   separate rows {float(alone['over_ours']):5.2f} times "
        f"that ({float(alone['share_of_limit']):.0%} of the limit {float(ours['limit']):.2f})   TRL "
        f"{float(trl['over_ours']):5.2f} times   MiB {ours['peak_mib']} / {alone['peak_mib']} / {trl['peak_mib']}"
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratio beside its limit for each case; seconds and memory over G and over images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.1), layout="constrained")
    by = {(row["case"], row["trainer"]): row for row in rows if row["what"] == "step"}
    cases = [case for case in CASES if (case, "ours") in by]
    places = range(len(cases))
    limits = [float(by[case, "ours"]["limit"]) for case in cases]
    axes[0].bar([x - 0.27 for x in places], limits, 0.27, color="tab:gray", label="limit")
    for shift, trainer, label, color in (
        (0.0, "rows", "separate rows", "tab:green"),
        (0.27, "trl", "TRL", "tab:orange"),
    ):
        times = [float(by[case, trainer]["over_ours"]) for case in cases]
        bars = axes[0].bar([x + shift for x in places], times, 0.27, label=label, color=color)
        axes[0].bar_label(bars, [f"{value:.2f}" for value in times], fontsize=7)
    names = [f"{CASES[case].prompt} / {CASES[case].completion} / {CASES[case].g}" for case in cases]
    axes[0].set_xticks(list(places), names, fontsize=8)
    axes[0].set(title="times as long as shared", xlabel="prompt / completion / G")
    axes[0].legend(fontsize=7)
    growth = [row for row in rows if row["what"] == "growth"]
    panels = [("G", "g", "seconds"), ("G", "g", "peak_mib"), ("images", "images", "seconds")]
    for axis, (label, column, value) in zip(axes[1:], panels, strict=True):
        for trainer, color in (("ours", "tab:blue"), ("rows", "tab:green"), ("trl", "tab:orange")):
            mine = [row for row in growth if row["trainer"] == trainer and row["case"].startswith(f"{label}=")]
            mine = sorted(mine, key=lambda row: int(row[column]))
            axis.plot([int(row[column]) for row in mine], [float(row[value]) for row in mine], "o-", color=color)
        title = {"seconds": "seconds of a step", "peak_mib": "MiB of a step"}[value]
        axis.set(title=title, xlabel=label, ylim=(0, None))
    axes[1].legend(["shared", "separate rows", "TRL"], fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3, help="steps of each trainer (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads (default %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *GROWTH_G, *GROWTH_IMAGES], help="default: all")
    parser.add_argument("--again", action="store_true", help="measure again what this commit's results have")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, for model FLOPs utilisation (MFU)")
    parser.add_argument("--seed", type=int, default=0)
    for hidden in ("--job", "--case", "--out", "--model"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.job:
        worker(arguments)
        sys.stdout.flush()
        os._exit(0)  # nothing is left to do, and what Accelerate leaves behind would take its time
    measure(arguments)
    path = RESULTS / "grpo_vlm.csv"
    rows = read_rows(path)
    plot(rows, path.with_suffix(".png"))
    for name in CASES:
        mine = [row for row in rows if row["what"] == "step" and row["case"] == name]
        if mine:
            reached = min(float(row["share_of_limit"]) for row in mine if row["trainer"] != "ours")
            verdict = "as claimed" if reached >= GOAL else "LESS THAN CLAIMED"
            print(f"{said(mine)}   {GOAL:.0%} is claimed: {verdict}")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
