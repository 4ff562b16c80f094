"""Measures a real colocated vLLM engine against the trainer's own scoring, and prints what it saw as JSON.

Run by test_vllm.py, one process per case, because only one engine per process is safe:
    python -m tests.rollout.vllm_checks CASE FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEMPERATURE = 0.8
BANNED = [65, 200]
PROMPTS = [[10, 20, 30], [40, 41], list(range(50, 90)), [7]]


def make_checkpoint(folder: Path, tied: bool) -> Path:
    """A tiny decoder whose generation_config.json would ruin the samples if anything read it."""
    from transformers import GenerationConfig

    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer

    model = tiny_decoder(tie_word_embeddings=tied)
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=1.3, min_new_tokens=20)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_model(checkpoint: Path, lora: bool) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if lora:
        from mmreason.models.peft import add_adapter
        from mmreason.trainers.arguments import ModelArguments

        # the embedding is trained too, and the head is tied to it
        model = add_adapter(
            model, ModelArguments(use_peft=True, lora_r=4, lora_dropout=0.0, lora_modules_to_save=["embed_tokens"])
        )
    return model


def perturb(model: Any, seed: int) -> None:
    """A step that every trainable tensor takes, adapters included, large enough to change the samples."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.03 * torch.randn(param.shape, generator=generator))


class Checks:
    def __init__(self, folder: Path, tied: bool, lora: bool):
        from accelerate import Accelerator

        from mmreason.rollout.types import Request, Sampling
        from mmreason.rollout.vllm import VLLMColocateEngine

        checkpoint = make_checkpoint(folder, tied)
        self.model = make_model(checkpoint, lora)
        self.requests = [Request(prompt, 4) for prompt in PROMPTS]
        self.singles = [Request(prompt, 1) for prompt in PROMPTS]  # what greedy decoding allows in vLLM
        self.sampling = Sampling(max_tokens=12, temperature=TEMPERATURE)
        self.greedy = Sampling(max_tokens=12).greedy()
        before = self.generators()
        self.engine = VLLMColocateEngine(
            self.model,
            Accelerator(cpu=True),
            str(checkpoint),
            dtype=torch.float32,
            # Several, so that samples of a random model do end; the tokenizer's own end token is not among them.
            eos_token_ids=[3, 4, 5, 6],
            banned_token_ids=BANNED,
            max_model_length=64,
        )
        self.start_left_generators = self.generators() == before

    def generators(self) -> list[str]:
        return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]

    def sample(self, seed: int) -> list[list[Any]]:
        return self.engine.generate(self.requests, self.sampling, seed)

    def gap(self, groups: list[list[Any]], banned: list[int] = BANNED) -> tuple[float, float]:
        """(max |Δlogp|, mean importance ratio of a sequence) between the engine and the trainer's current weights."""
        from mmreason.rollout.scoring import completion_logps

        prompts = [request.prompt_ids for request in self.requests for _ in range(request.n)]
        flat = [completion for group in groups for completion in group]
        with torch.no_grad():
            scored, _ = completion_logps(
                self.model, prompts, [c.token_ids for c in flat], temperature=TEMPERATURE, banned_token_ids=banned
            )
        differences, ratios = [], []
        for row, completion in zip(scored.tolist(), flat, strict=True):
            gaps = [x - y for x, y in zip(row, completion.logps, strict=False)]
            differences += [abs(gap) for gap in gaps]
            ratios.append(float(np.exp(sum(gaps))))
        return max(differences), float(np.mean(ratios))

    def syncs(self) -> dict[str, Any]:
        """After each of three steps: far from the trainer before the sync, equal after it."""
        stale, fresh, ratios = [], [], []
        for step in range(3):
            self.engine.sync()
            perturb(self.model, seed=step)
            stale.append(self.gap(self.sample(step))[0])
            self.engine.sync()
            largest, ratio = self.gap(self.sample(step))
            fresh.append(largest)
            ratios.append(ratio)
        return {"stale": stale, "fresh": fresh, "ratios": ratios}

    def without_head_repacking(self) -> float:
        from mmreason.rollout import vllm

        kept = vllm._repack_tied_head
        vllm._repack_tied_head = lambda model: None
        perturb(self.model, seed=20)
        self.engine.sync()
        largest = self.gap(self.sample(5))[0]
        vllm._repack_tied_head = kept
        self.engine.sync()
        return largest

    def repeatability(self) -> dict[str, bool]:
        before = self.generators()
        first, again, other = self.sample(11), self.sample(11), self.sample(12)
        torch.rand(3), random.random(), np.random.rand()  # somebody else draws
        later = self.sample(11)
        torch.set_rng_state(torch.tensor(json.loads(before[2]), dtype=torch.uint8))
        ids = [[[c.token_ids for c in group] for group in groups] for groups in (first, again, later, other)]
        calm = self.generators()[2]
        self.sample(13)
        return {
            "same_seed": ids[0] == ids[1] == ids[2],
            "other_seed_differs": ids[0] != ids[3],
            "samples_of_a_group_differ": len({tuple(i) for i in ids[0][0]}) > 1,
            "left_generators": self.generators()[2] == calm,
        }

    def beside_other_work(self) -> dict[str, bool]:
        """With generators of the engine's own, in a thread, while this one draws from those of the process."""
        engine, sampling = self.engine, replace(self.sampling, own_generators=True)
        with ThreadPoolExecutor(1) as worker:
            torch.manual_seed(5)
            job = worker.submit(engine.generate, self.requests, sampling, 11)
            drawn = torch.stack([torch.rand(4) for _ in range(50)])
            first = job.result()
        torch.manual_seed(5)
        alone = torch.stack([torch.rand(4) for _ in range(50)])
        again, other = engine.generate(self.requests, sampling, 11), engine.generate(self.requests, sampling, 12)
        ids = [[[c.token_ids for c in group] for group in groups] for groups in (first, again, other)]
        return {
            "same_seed": ids[0] == ids[1],
            "other_seed_differs": ids[0] != ids[2],
            "samples_of_a_group_differ": len({tuple(i) for i in ids[0][0]}) > 1,
            "disturbs_no_draw": torch.equal(drawn, alone),
        }

    def one_request_per_prompt(self) -> dict[str, Any]:
        seen: list[Any] = []
        generate = self.engine.llm.generate

        def spy(prompts: Any, params: Any, **kwargs: Any) -> Any:
            seen.append((len(prompts), [p.n for p in params]))
            return generate(prompts, params, **kwargs)

        self.engine.llm.generate = spy
        groups = self.sample(3)
        self.engine.llm.generate = generate
        return {"seen": seen, "got": [len(group) for group in groups]}

    def ends(self) -> dict[str, Any]:
        """A completion is cut, at the limit, or ends with an end token that appears nowhere before."""
        eos = set(self.engine.eos_token_ids)
        flat = [c for seed in range(8) for group in self.sample(seed) for c in group]
        right = [
            (len(c.token_ids) == 12 and not eos & set(c.token_ids))
            if c.truncated
            else (c.token_ids[-1] in eos and not eos & set(c.token_ids[:-1]))
            for c in flat
        ]
        return {
            "right": all(right) and all(len(c.logps) == len(c.token_ids) for c in flat),
            "cut": sum(c.truncated for c in flat),
            "ended": sum(not c.truncated for c in flat),
        }

    def banned(self) -> dict[str, Any]:
        """Ban the tokens that a peaked policy samples most."""
        embedding = self.model.get_output_embeddings().weight
        kept = embedding.detach().clone()
        with torch.no_grad():
            embedding.mul_(4)
        self.engine.sync()
        free = Counter(token for group in self.sample(21) for c in group for token in c.token_ids)
        self.engine.banned_token_ids = banned = [token for token, _ in free.most_common(2)]
        groups = self.sample(21)
        greedy = self.engine.generate(self.singles, self.greedy, 0)
        tokens = [t for gs in (groups, greedy) for group in gs for c in group for t in c.token_ids]
        found = {
            "sampled_without_ban": sum(free[token] for token in banned),
            "sampled": sum(t in banned for t in tokens),
            "gap": self.gap(groups, banned)[0],
            "gap_if_scoring_forgot": self.gap(groups, [])[0],
        }
        self.engine.banned_token_ids = BANNED
        with torch.no_grad():
            embedding.copy_(kept)
        self.engine.sync()
        return found

    def episodes(self) -> dict[str, Any]:
        """Two turns with an environment's between them: the second is sampled behind the tokens that are scored."""
        from mmreason.models.tiny import tiny_tokenizer
        from mmreason.rollout.environment import load_environment
        from mmreason.rollout.multi_turn import EnvironmentSettings, MultiTurnEngine
        from mmreason.rollout.scoring import completion_logps
        from mmreason.rollout.types import Request, Sampling

        tokenizer = tiny_tokenizer()
        factory = load_environment({"name": "tests.rollout.worlds.InThread", "turns": 2})
        ends = [*self.engine.eos_token_ids, tokenizer.eos_token_id]
        engine = MultiTurnEngine(self.engine, EnvironmentSettings(factory), tokenizer, end_token_ids=ends)
        example = {"id": "r", "prompt": [{"role": "user", "content": "?"}]}
        requests = [Request(prompt, 8, example=example) for prompt in PROMPTS if len(prompt) < 9]
        sampling = Sampling(max_tokens=50, temperature=TEMPERATURE)
        groups = engine.generate(requests, sampling, 2)
        again = engine.generate(requests, sampling, 2)
        flat = [(request.prompt_ids, c) for request, group in zip(requests, groups, strict=True) for c in group]
        with torch.no_grad():
            scored, _ = completion_logps(
                self.model,
                [prompt for prompt, _ in flat],
                [c.token_ids for _, c in flat],
                temperature=TEMPERATURE,
                banned_token_ids=BANNED,
            )
        gaps, others = [0.0], 0
        for row, (_, completion) in zip(scored.tolist(), flat, strict=True):
            for value, logp, mine in zip(row, completion.logps, completion.sampled or [], strict=False):
                others += not mine
                gaps += [abs(value - logp)] if mine else []
        turns = Counter(c.columns["environment_turns"] for _, c in flat)
        return {"gap": max(gaps), "others": others, "two_turns": turns[2], "same_seed": groups == again}

    def greedy_is_the_argmax(self) -> bool:
        """Also proof that top_k, repetition_penalty and min_new_tokens of the checkpoint's defaults play no part."""
        groups = self.engine.generate(self.singles, self.greedy, 0)
        for request, group in zip(self.singles, groups, strict=True):
            ids = list(request.prompt_ids)
            for token in group[0].token_ids:
                with torch.no_grad():
                    logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
                logits[BANNED] = float("-inf")
                if int(logits.argmax()) != token:
                    return False
                ids.append(token)
        return True


def main(case: str, folder: Path) -> None:
    checks = Checks(folder / case, tied=case != "untied", lora=case == "lora")
    found: dict[str, Any] = {"syncs": checks.syncs(), "start_left_generators": checks.start_left_generators}
    if case == "tied":
        found |= {
            "without_head_repacking": checks.without_head_repacking(),
            "repeatability": checks.repeatability(),
            "beside_other_work": checks.beside_other_work(),
            "one_request_per_prompt": checks.one_request_per_prompt(),
            "ends": checks.ends(),
            "banned": checks.banned(),
            "episodes": checks.episodes(),
            "greedy_is_the_argmax": checks.greedy_is_the_argmax(),
        }
    checks.engine.close()
    (folder / f"{case}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
