"""Measures vLLM's class of composed models, colocated, against transformers, and writes what it saw as JSON.

Run by test_vllm_plugin.py, one process per case, because only one engine per process is safe:
    python -m tests.models.vllm_composed CASE FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmreason.rollout.types import Sampling
from mmreason.rollout.vllm import VLLMColocateEngine
from tests.models.parts import HF_SIGLIP, OPEN_CLIP_VIT, TIMM_VIT, compose, save_decoder
from tests.rollout.vllm_images import TOKENS, Checks, make_request, picture

BATCH_NORM = {"source": "timm", "name": "mobilenetv3_small_050", "weights": "random", "image_size": 64}
RELATIVE = {
    "source": "timm", "name": "swin_tiny_patch4_window7_224", "weights": "random", "image_size": 64,
    "config": {"embed_dim": 32, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2},
}  # fmt: skip
RENAMED = {
    "source": "hf", "name": "dinov3_vit", "weights": "random", "image_size": 64,
    "config": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": 64, "patch_size": 32, "num_register_tokens": 4,
    },
}  # fmt: skip
FUSED = {"towers": [TIMM_VIT, HF_SIGLIP], "max_tiles": 3}
QUERIES = {"queries": 5, "heads": 2, "layers": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "timm": (TIMM_VIT | {"max_tiles": 3}, {"kind": "mlp"}, "qwen2-tied"),
    "open_clip": (OPEN_CLIP_VIT | {"max_tiles": 3}, {"kind": "pixel_shuffle"}, "llama"),
    "hf": (HF_SIGLIP | {"max_tiles": 3}, {"kind": "perceiver", **QUERIES}, "qwen3"),
    "fused": (FUSED, {"kind": "avg_pool"}, "mistral-tied"),
    # statistics beside the parameters, buffers that no checkpoint holds, and names that files don't have
    "special": ({"towers": [BATCH_NORM, RELATIVE, RENAMED]}, {"kind": "qformer", **QUERIES}, "gemma"),
    "text_only": (TIMM_VIT, {"kind": "linear"}, "gpt_neox"),  # its head has another name in files
}
# No picture, one, three, and one that is cut into three tiles.
PICTURES = {"none": [], "one": [(40, 40)], "three": [(50, 50), (90, 30), (30, 90)], "tiled": [(96, 32)]}


def save(case: str, folder: Path) -> str:
    """Compose the model of a case and save it with its processor; returns its path."""
    vision, projector, decoder = CASES[case]
    model, processor = compose(vision, projector, save_decoder(folder / "decoder", decoder))
    path = folder / case
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


class ComposedChecks(Checks):
    """The checks of any vision-language model, on a composed one."""

    def __init__(self, case: str, folder: Path):
        checkpoint = save(case, folder)
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.image_token = self.processor.image_token_id
        self.end = self.processor.tokenizer.eos_token_id
        sees = case != "text_only"
        self.requests = [
            make_request(
                self.processor, f"Question {i}: how many?", [picture(s, 10 * i + j) for j, s in enumerate(sizes)]
            )
            for i in range(8 if case in ("timm", "open_clip", "hf", "fused") else 2)
            for sizes in (PICTURES.values() if sees else [[]])
        ]
        self.greedy = Sampling(max_tokens=TOKENS).greedy()
        if case == "hf":
            pretend_zero3()
        self.engine = VLLMColocateEngine(
            self.model,
            Accelerator(cpu=True),
            checkpoint,
            dtype=torch.float32,
            eos_token_ids=[self.end],
            banned_token_ids=[],  # the class bans the image token by itself
            max_model_length=512,
            max_images_per_prompt=3 if sees else 0,
        )

    def steps(self, count: int) -> dict[str, Any]:
        """Far from the trainer after each step of all weights, equal after each sync."""
        stale, fresh = [], []
        for seed in range(count):
            before = self.answers()
            self.step(seed, 0.02, "" if seed < count - 1 else "vision_tower")
            stale.append(self.gap(before))
            self.engine.sync()
            fresh.append(self.gap(self.answers()))
        return {"stale": stale, "fresh": fresh}

    def prefix_cache(self) -> dict[str, Any]:
        """A long prompt whose beginning was read before, with the same picture and with another one there."""
        text = "Count the squares, then the circles, then the triangles, and add them up. " * 4
        kept, gaps, cached, answers = self.requests, [], [], []
        for seed in (1, 1, 2, 1):
            self.requests = [make_request(self.processor, text, [picture((40, 40), seed)])]
            prompt = self.engine._prompt(self.requests[0])
            params = {"max_tokens": TOKENS, "temperature": 0.0}
            cached.append(self.engine.llm.generate([prompt], make_params(params), use_tqdm=False)[0].num_cached_tokens)
            answer = self.answers()
            answers.append(answer[0].token_ids)
            gaps.append(self.gap(answer))
        self.requests = kept
        return {"cached": cached, "gap": max(gaps), "answers": answers}

    def bias(self) -> dict[str, Any]:
        """How often a model that prefers the image token by far writes it. Comes last: the model is left so.

        wanted: share of tokens at which the trainer's own distribution is led by it.
        """
        head = self.model.get_output_embeddings()
        seen: list[torch.Tensor] = []
        hook = head.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()[0, -1]))
        self.gap(self.answers())
        hook.remove()
        with torch.no_grad():
            head.weight[self.image_token] = 40 * torch.stack(seen).mean(0)
        self.engine.sync()
        found: dict[str, Any] = {}
        for how, sampling in (("sampled", Sampling(max_tokens=TOKENS)), ("greedy", self.greedy)):
            groups = self.engine.generate(self.requests, sampling, 0)
            ids = [t for group in groups for c in group for t in c.token_ids]
            found[how], found["tokens"] = ids.count(self.image_token), len(ids)
        found["gap"] = self.gap(self.answers())
        found["wanted"] = self.wanted()
        return found

    def wanted(self) -> float:
        led = []
        for request in self.requests:
            inputs = request.visual.inputs if request.visual else {}
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([request.prompt_ids]), **inputs).logits[0, -1]
            led.append(int(logits.argmax()) == self.image_token)
        return sum(led) / len(led)


def make_params(settings: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**settings)


def pretend_zero3() -> None:
    """A trainer under ZeRO-3 has told transformers to split every model that it builds."""
    from transformers.integrations import HfDeepSpeedConfig

    global _kept
    _kept = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})


def main(case: str, folder: Path) -> None:
    checks = ComposedChecks(case, folder)
    found: dict[str, Any] = {"parity": checks.greedy_parity()}
    if case == "fused":
        found["prefix_cache"] = checks.prefix_cache()
    found["syncs"] = checks.steps(5 if case in ("timm", "open_clip", "hf", "fused") else 2)
    if case in ("timm", "open_clip"):  # a tied and an untied head
        found["bias"] = checks.bias()
    checks.engine.close()
    (folder / f"{case}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
