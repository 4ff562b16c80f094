"""Sampling with transformers' `generate`: no extra memory, no extra package, slower than vLLM on long completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from trl.models import unwrap_model_for_generation

from mmreason.data.visual import collate_visual
from mmreason.rollout.parallel import data_rank
from mmreason.rollout.scoring import check_visuals, floating_dtype
from mmreason.rollout.types import Completion, Request, Sampling


class _TokenRecorder(LogitsProcessor):
    """Keeps the log-probability of each sampled token while `generate` runs.

    `generate` calls a processor with the scores of the *next* token and the ids so far, so the token that the previous
    call's scores led to is `input_ids[:, -1]` of this call. Storing one (B,) vector per step instead of
    `output_logits`'s (B, V) keeps memory flat. It stands before temperature and top-k/top-p in transformers' list, so
    it divides by the temperature itself and records the whole distribution: what the trainer scores.
    """

    def __init__(self, temperature: float, prompt_length: int):
        self.temperature = temperature if temperature > 0 else 1.0
        self.prompt_length = prompt_length
        self.columns: list[Tensor] = []
        self._scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._take(input_ids)
        self._scores = scores.float() / self.temperature
        return scores

    def _take(self, input_ids: Tensor) -> None:
        if self._scores is not None:
            picked = self._scores.gather(-1, input_ids[:, -1:]).squeeze(-1)
            self.columns.append(picked - torch.logsumexp(self._scores, dim=-1))

    def finish(self, sequences: Tensor) -> Tensor:
        """(B, new tokens) float32, after `generate` returned `sequences` (B, prompt + new tokens)."""
        if sequences.shape[1] - self.prompt_length > len(self.columns):
            self._take(sequences)
        self._scores = None
        return torch.stack(self.columns, dim=1)[:, : sequences.shape[1] - self.prompt_length]


@contextmanager
def _without_checkpoint_defaults(model: Any) -> Iterator[None]:
    """Blank the model's `generation_config` for a while.

    transformers fills every setting that a call leaves open from the checkpoint's generation_config.json (Qwen2.5 ships
    top_p=0.8, top_k=20, repetition_penalty=1.05; others min_new_tokens, no_repeat_ngram_size …), which would sample
    from another policy than the one that is trained.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = kept


def lone_process(device: torch.device) -> Any:
    """What `HFEngine` asks of an Accelerator, for a whole model that one process has to itself."""
    return SimpleNamespace(
        device=device,
        process_index=0,
        state=SimpleNamespace(deepspeed_plugin=None),
        unwrap_model=lambda model, **_: model,
        is_fsdp2=False,
    )


class HFEngine:
    """`model.generate` on the training model itself, under DDP, ZeRO-1/2/3 and FSDP2.

    Args:
        model: the prepared (wrapped) policy.
        eos_token_ids: any of them ends a completion.
        banned_token_ids: never sampled, e.g. a VLM's image placeholder.
        batch_size: rows per `generate` call; None takes all rows at once. With sharded weights every process must make
            the same number of calls, so all processes have to bring the same number of rows.
        gradient_checkpointing_kwargs: checkpointing is off while sampling and comes back with these.
    """

    name = "hf"

    def __init__(
        self,
        model: Any,
        accelerator: Accelerator,
        *,
        pad_token_id: int,
        eos_token_ids: Sequence[int],
        banned_token_ids: Sequence[int] = (),
        batch_size: int | None = None,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    ):
        self.model, self.accelerator = model, accelerator
        self.pad_token_id, self.eos_token_ids = pad_token_id, list(eos_token_ids)
        self.banned_token_ids = list(banned_token_ids)
        self.batch_size = batch_size
        self.gradient_checkpointing_kwargs = gradient_checkpointing_kwargs

    def sync(self) -> None:
        """Nothing to do: it samples from the training weights."""

    def close(self) -> None:
        """Nothing to free."""

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        settings: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens,
            "do_sample": sampling.temperature > 0,
            "repetition_penalty": sampling.repetition_penalty,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": self.eos_token_ids,
            "suppress_tokens": self.banned_token_ids or None,
        }
        if sampling.temperature > 0:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
            settings["min_p"] = sampling.min_p
        return GenerationConfig(**(settings | sampling.extra))

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        check_visuals([request.prompt_ids for request in requests], [request.visual for request in requests])
        rows = [request for request in requests for _ in range(request.n)]
        step = self.batch_size or max(len(rows), 1)
        flat: list[Completion] = []
        wrapped_training = self.model.training
        self.model.eval()
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        # The sampler draws from torch's global generator; it is seeded for this call and put back after it, so that a
        # resumed run draws what the unbroken one drew, whatever else used random numbers in between.
        try:
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                torch.manual_seed(seed + 7919 * data_rank(self.accelerator))
                config = self._generation_config(sampling)
                checkpointing = self.gradient_checkpointing_kwargs
                with (
                    unwrap_model_for_generation(
                        self.model, self.accelerator, gradient_checkpointing_kwargs=checkpointing
                    ) as unwrapped,
                    _without_checkpoint_defaults(unwrapped),
                ):
                    for start in range(0, len(rows), step):
                        flat += self._generate_rows(unwrapped, rows[start : start + step], config, sampling)
        finally:
            self.model.train(wrapped_training)
        out, position = [], 0
        for request in requests:
            out.append(flat[position : position + request.n])
            position += request.n
        return out

    def _generate_rows(
        self, model: Any, rows: list[Request], config: GenerationConfig, sampling: Sampling
    ) -> list[Completion]:
        width = max(len(row.prompt_ids) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            start = width - len(row.prompt_ids)
            ids[i, start:] = torch.tensor(row.prompt_ids)
            mask[i, start:] = 1
        device = self.accelerator.device
        visuals = [row.visual for row in rows]
        recorder = _TokenRecorder(sampling.temperature, width)
        sequences = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([recorder]),
            **collate_visual(visuals, width, padding_side="left", device=device, dtype=floating_dtype(model)),
        )
        logps = recorder.finish(sequences).cpu().tolist()
        out = []
        for row_ids, row_logps in zip(sequences[:, width:].cpu().tolist(), logps, strict=True):
            end = next((i + 1 for i, token in enumerate(row_ids) if token in self.eos_token_ids), None)
            length = end if end is not None else len(row_ids)
            out.append(Completion(row_ids[:length], row_logps[:length], truncated=end is None))
        return out
