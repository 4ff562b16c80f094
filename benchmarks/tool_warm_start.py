"""How recipes/warm_start_tools is made, from which grpo_tools.py and grpo_code.py start without options.

    python benchmarks/tool_warm_start.py             # train, measure, write to outputs/tool_warm_start
    python benchmarks/tool_warm_start.py --publish   # and put the checkpoint into recipes/warm_start_tools

The decoder of recipes/warm_start, which can read short stories, is taught for some hundred steps: to call the
calculator (ReAct's `Action: calculator[3*4]`) where a question says so, and seldom where none does; to write small
programs, most of them with one mistake. The loss is on its own turns only. So it knows both, and prefers neither.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, provenance
from data_builders import tool_tasks
from mmreason._files import write_whole
from mmreason.types import Example

OUT = ROOT / "outputs" / "tool_warm_start"
START = ROOT / "recipes" / "warm_start"
SHIPPED = ROOT / "recipes" / "warm_start_tools"
PACKAGES = ("torch", "transformers", "tokenizers")
CARD = """\
# The start of the tool and code demos

The decoder of recipes/warm_start ({parameters:.2f}M parameters), taught {steps} steps of {batch} made-up examples more:

    python benchmarks/tool_warm_start.py --publish

It calls the calculator where a question says so ({told:.0%} of such answers) and seldom elsewhere ({untold:.1%}), and
writes small programs that mostly have one mistake. Weights are stored in float16. manifest.json says what went in.
"""


def conversation(row: Example) -> list[dict[str, Any]]:
    """A row as ReAct turns: calls and final answers in text, results as a user's observations."""
    turns: list[dict[str, Any]] = [dict(message) for message in row["prompt"]]  # type: ignore[arg-type]
    is_program = row["answer"] is None
    for message in row["completion"]:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        if calls:
            function = calls[0]["function"]
            (argument,) = function["arguments"].values()
            turns.append({"role": "assistant", "content": f"Action: {function['name']}[{argument}]"})
        elif message["role"] == "tool":  # type: ignore[index]
            turns.append({"role": "user", "content": f"Observation: {message['content']}"})  # type: ignore[index]
        else:
            text = message["content"] if is_program else f"Final Answer: {row['answer']}"  # type: ignore[index]
            turns.append({"role": "assistant", "content": text})
    return turns


def tokens(row: Example, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """(token ids, whether the model writes each of them)."""
    text = tokenizer.apply_chat_template(conversation(row), tokenize=False)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    opens, ends = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    mine, written = False, []
    for token in ids:
        written.append(mine)
        mine = token == opens or (mine and token != ends)
    return ids, written


def train(steps: int, batch: int, learning_rate: float, seed: int) -> tuple[Any, Any]:
    """(model, tokenizer) after `steps` of AdamW under a cosine, the loss a mean over the written tokens of a batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmreason.losses.lm import token_logps
    from mmreason.rollout.scoring import pad_right

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(START)
    model = AutoModelForCausalLM.from_pretrained(START, dtype=torch.float32)
    rows = tool_tasks.generate(steps * batch, seed, task="calculator+calculator+program", style="novice")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    started, device = time.perf_counter(), model.device
    for step in range(steps):
        part = [tokens(row, tokenizer) for row in rows[step * batch : (step + 1) * batch]]
        ids = pad_right([ids for ids, _ in part], tokenizer.pad_token_id, torch.long, device)
        mask = pad_right([written for _, written in part], 0.0, torch.float32, device)[:, 1:]
        logps, _ = token_logps(model(input_ids=ids).logits[:, :-1], ids[:, 1:])
        loss = -(logps * mask).sum() / mask.sum()
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 10)
            group["lr"] = learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval(), tokenizer


def measure(model: Any, tokenizer: Any, n: int) -> dict[str, float]:
    """Of n held-out questions that say to use the calculator and n that don't: calls and right answers, sampled."""
    from accelerate import Accelerator

    from mmreason.answers import verify_many
    from mmreason.rewards.text import completion_text
    from mmreason.rollout.hf import HFEngine
    from mmreason.rollout.multi_turn import EnvironmentSettings, MultiTurnEngine
    from mmreason.rollout.tool_env import tool_factory
    from mmreason.rollout.types import Request, Sampling

    ends = [tokenizer.eos_token_id]
    inner = HFEngine(model, Accelerator(cpu=True), pad_token_id=tokenizer.pad_token_id, eos_token_ids=ends)
    settings = EnvironmentSettings(tool_factory(["calculator"], call_format="react"), max_turns=3)
    engine = MultiTurnEngine(inner, settings, tokenizer, end_token_ids=ends)
    found: dict[str, float] = {}
    for name, told in (("told", tool_tasks.TOLD), ("untold", "")):
        requests = []
        for row in tool_tasks.generate(n, 7, task="calculator", split="test"):
            question = row["prompt"][0]["content"]  # type: ignore[index]
            prompt: list[Any] = [{"role": "user", "content": f"{question}{told}"}]
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            requests.append(Request(list(ids), 1, example={**row, "prompt": prompt}))
        drawn = [group[0] for group in engine.generate(requests, Sampling(96), seed=1)]
        golds = [str(request.example["answer"]) for request in requests if request.example]
        judged = verify_many([completion_text(c.messages) for c in drawn], golds, [None] * n, [None] * n)
        found[f"{name}_calls"] = sum(bool(c.columns.get("tool_calls")) for c in drawn) / n
        found[f"{name}_right"] = sum(judgement.correct for judgement in judged) / n
    engine.close()
    return found


def save(model: Any, tokenizer: Any, folder: Path, manifest: dict[str, Any]) -> None:
    """The checkpoint in float16, with its card and manifest, whole or not at all."""
    import torch

    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.to(torch.float16).save_pretrained(new)
    tokenizer.save_pretrained(new)
    write_whole(new / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    card = CARD.format(
        parameters=model.num_parameters() / 1e6,
        steps=manifest["steps"],
        batch=manifest["batch"],
        told=manifest["told_calls"],
        untold=manifest["untold_calls"],
    )
    write_whole(new / "README.md", card)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new.replace(folder)
    print(f"written to {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--publish", action="store_true", help="put the checkpoint into recipes/warm_start_tools")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=24, help="examples to a step")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=60, help="questions of each kind that are measured")
    arguments = parser.parse_args(argv)
    model, tokenizer = train(arguments.steps, arguments.batch, arguments.learning_rate, arguments.seed)
    measured = measure(model, tokenizer, arguments.questions)
    print(measured)
    manifest = {
        "made_by": "python benchmarks/tool_warm_start.py --publish",
        "steps": arguments.steps,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "tool_tasks_version": tool_tasks.VERSION,
        **measured,
    } | provenance(arguments.seed, PACKAGES)
    save(model, tokenizer, SHIPPED if arguments.publish else OUT, manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
