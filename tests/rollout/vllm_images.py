"""Measures a real colocated vLLM engine with images against transformers, and writes what it saw as JSON.

Run by test_vllm_images.py, one process per kind of model, because only one engine per process is safe:
    python -m tests.rollout.vllm_images KIND FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmreason.data.visual import collate_visual, render_visual_prompt
from mmreason.rollout.types import Completion, Request, Sampling
from tests.tiny_vlms import tiny_vlm

TOKENS = 12
SIZES = [(56, 56), (70, 40), (30, 90)]


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def make_request(processor: Any, text: str, images: Sequence[Image.Image]) -> Request:
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
    prompt: Any = [{"role": "user", "content": content}]
    if images:
        visual = render_visual_prompt(prompt, list(images), processor)
        return Request(visual.ids, 1, visual)
    rendered = processor.apply_chat_template(prompt, add_generation_prompt=True)
    return Request(processor.tokenizer(rendered, add_special_tokens=False)["input_ids"], 1)


def reason(call: Callable[[], Any]) -> str:
    """The message with which `call` fails."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was wrong"


class Checks:
    def __init__(self, kind: str, folder: Path):
        from accelerate import Accelerator

        from mmreason.rollout.vllm import VLLMColocateEngine

        checkpoint = tiny_vlm(kind, folder / kind)
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.image_token = self.processor.image_token_id
        self.end = self.processor.tokenizer.eos_token_id
        self.requests = [
            make_request(self.processor, f"Question {i}: how many?", [picture(SIZES[j], 10 * i + j) for j in range(n)])
            for i in range(8)
            for n in (0, 1, 3)
        ]
        self.greedy = Sampling(max_tokens=TOKENS).greedy()
        self.engine = VLLMColocateEngine(
            self.model,
            Accelerator(cpu=True),
            checkpoint,
            dtype=torch.float32,
            eos_token_ids=[self.end],
            banned_token_ids=[self.image_token],
            max_model_length=256,
            max_images_per_prompt=3,
        )

    def answers(self) -> list[Completion]:
        return [group[0] for group in self.engine.generate(self.requests, self.greedy, 0)]

    def greedy_parity(self) -> dict[str, Any]:
        """Greedy text and log-probabilities of vLLM and of transformers' generate, each prompt on its own."""
        same, gaps, lengths = [], [], []
        for request, ours in zip(self.requests, self.answers(), strict=True):
            ids = torch.tensor([request.prompt_ids])
            inputs = request.visual.inputs if request.visual else {}
            with torch.no_grad():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=TOKENS,
                    do_sample=False,
                    suppress_tokens=[self.image_token],
                    return_dict_in_generate=True,
                    output_scores=True,
                    **inputs,
                )
            theirs = out.sequences[0, ids.shape[1] :].tolist()
            same.append(theirs == ours.token_ids)
            lengths.append(len(theirs))
            logps = [float(score[0].log_softmax(-1)[t]) for score, t in zip(out.scores, theirs, strict=True)]
            gaps += [abs(x - y) for x, y in zip(logps, ours.logps, strict=False)]
        return {"same": sum(same), "of": len(same), "gap": max(gaps), "tokens": sum(lengths)}

    def gap(self, answers: list[Completion]) -> float:
        """max |Δlogp| between the engine's answers and one forward pass of the trainer's current weights."""
        worst = 0.0
        for request, answer in zip(self.requests, answers, strict=True):
            ids = request.prompt_ids + answer.token_ids
            start = len(request.prompt_ids) - 1
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids]), **collate_visual([request.visual], len(ids))).logits
            logits[..., self.image_token] = float("-inf")
            logps = logits[0, start:-1].log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
            worst = max(worst, float((logps - torch.tensor(answer.logps)).abs().max()))
        return worst

    def step(self, seed: int, size: float, part: str = "") -> None:
        """Move every weight whose name contains `part`."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if part in name:
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    def syncs(self) -> dict[str, Any]:
        """Far from the trainer after each step, equal after each sync; the last step moves the tower alone."""
        stale, fresh = [], []
        for seed, part in enumerate(["", "", "vis"]):
            before = self.answers()
            self.step(seed, 0.02, part)
            stale.append(self.gap(before))
            self.engine.sync()
            fresh.append(self.gap(self.answers()))
        return {"stale": stale, "fresh": fresh}

    def image_token_ban(self) -> dict[str, float]:
        """How often a model that prefers the image token by far writes it, with and without the ban.

        gap: max |Δlogp| to a trainer that masks the token, while it is banned.
        """
        head = self.model.get_output_embeddings()
        seen: list[torch.Tensor] = []
        hook = head.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()[0, -1]))
        self.gap(self.answers())
        hook.remove()
        kept = head.weight.detach().clone()
        with torch.no_grad():
            head.weight[self.image_token] = 40 * torch.stack(seen).mean(0)
        self.engine.sync()
        sampling = Sampling(max_tokens=TOKENS)
        pictured = [request for request in self.requests if request.visual]
        plain = [request for request in self.requests if not request.visual]
        found: dict[str, float] = {}
        for name, banned in (("free", []), ("banned", [self.image_token])):
            self.engine.banned_token_ids = banned
            for where, requests in (("pictured", pictured), ("plain", plain)):
                for how, settings in (("sampled", sampling), ("greedy", self.greedy)):
                    groups = self.engine.generate(requests, settings, 0)
                    ids = [t for group in groups for c in group for t in c.token_ids]
                    found[f"{name} {where} {how}"] = ids.count(self.image_token)
        found["gap"] = self.gap(self.answers())
        with torch.no_grad():
            head.weight.copy_(kept)
        self.engine.sync()
        return found

    def refusals(self) -> dict[str, str]:
        request = self.requests[1]
        assert request.visual is not None
        expanded = replace(request, visual=replace(request.visual, engine_ids=request.visual.ids))
        crowd = make_request(self.processor, "Who?", [picture((56, 56), seed) for seed in range(4)])
        return {
            "expanded twice": reason(lambda: self.engine.generate([expanded], self.greedy, 0)),
            "too many": reason(lambda: self.engine.generate([crowd], self.greedy, 0)),
            "still works": reason(lambda: self.engine.generate([request], self.greedy, 0)),
        }

    def without_reset(self) -> str:
        """Comes last: the engine does not survive it."""
        self.answers()
        self.engine.llm.llm_engine.reset_encoder_cache = lambda: None
        self.step(9, 0.02, "vis")
        self.engine.sync()
        return reason(lambda: self.gap(self.answers()))


def main(kind: str, folder: Path) -> None:
    checks = Checks(kind, folder)
    found: dict[str, Any] = {"parity": checks.greedy_parity(), "syncs": checks.syncs(), "ban": checks.image_token_ban()}
    if kind == "qwen2_5_vl":
        found |= {"refusals": checks.refusals(), "without_reset": checks.without_reset()}
    checks.engine.close()
    (folder / f"{kind}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
