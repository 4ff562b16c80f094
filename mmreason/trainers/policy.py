"""The RL loop: rollout → reward → advantage → update, on Accelerate (one process, DDP, DeepSpeed ZeRO, FSDP2).

Read `PolicyTrainer.train` first; each stage is one method below it, in the order in which they run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from mmreason.data.visual import VisualPrompt, image_counts, visuals_of
from mmreason.losses.advantages import GroupAdvantages, group_advantages
from mmreason.losses.policy import BatchSize, aggregate, clipped_surrogate, importance_weights, kl_to_reference
from mmreason.models.peft_adalora import follow_ranks
from mmreason.rewards.accuracy import judge
from mmreason.rewards.run import RewardBatch, compute_rewards
from mmreason.rollout.engines import build_engine, end_token_ids, placeholder_token_ids
from mmreason.rollout.evaluate import Evaluation, GreedyAnswer
from mmreason.rollout.scoring import completion_logps, completion_mask, pad_right
from mmreason.rollout.types import Engine, Request, Sampling
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples, StepMetrics, unpad
from mmreason.trainers.canary import TrainingCanary, canary_rows
from mmreason.trainers.checkpointing import load_policy, save_policy
from mmreason.trainers.distributed import (
    DataParallel,
    build_optimizer,
    configure_model,
    lr_schedule,
    prepare_for_images,
    prepare_reference,
)
from mmreason.trainers.evaluation import measure
from mmreason.trainers.features import open_features
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.records import RunRecords, tracker_config
from mmreason.trainers.reporting import Reporter, decode
from mmreason.trainers.state import Checkpoints, RunState, stop_on_signal


class PromptOrder:
    """The endless stream of training rows: shuffled anew each epoch, a pure function of the position in it."""

    def __init__(self, rows: int, seed: int, shuffle: bool):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self._epoch, self._order = -1, np.arange(rows)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if self.shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            self._epoch = epoch
        return int(self._order[offset])


class PolicyTrainer:
    """Trains a policy with verifiable rewards: GRPO, Dr. GRPO, DAPO, BNPO.

    Args:
        model: any causal LM, vision-language model or PEFT model, not yet prepared.
        args: resolved options (`build_accelerator` does that).
        reward_funcs: see mmreason.rewards. reward_weights: one number each, or None for ones.
        train_dataset: rows with `prompt` and, where they have pictures, `images`; all other columns go to the rewards.
        prompt_ids: the tokenized prompt of each row, image placeholders expanded (mmreason.data.check_prompts).
        tokenizer: decodes completions and is saved with the model; for images the model's processor, which renders
            them again whenever they are used. accelerator: from `build_accelerator`.
        held_out: sets that will be measured: their prompts have to fit into the engine, too.
        checkpoint: folder or hub id that vLLM reads configuration and initial weights from.
        ref_model: a second copy, needed where beta > 0 and the model has no adapter that could be switched off.
    """

    def __init__(
        self,
        model: Any,
        args: PolicyConfig,
        *,
        reward_funcs: Sequence[Callable[..., Any]],
        train_dataset: Any,
        prompt_ids: Sequence[list[int]],
        tokenizer: Any,
        accelerator: Accelerator,
        checkpoint: str = "",
        held_out: Mapping[str, HeldOut] | None = None,
        reward_weights: Sequence[float] | None = None,
        ref_model: Any = None,
    ):
        self.args, self.accelerator, self.processor = args, accelerator, tokenizer
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.reward_funcs, self.reward_weights = list(reward_funcs), reward_weights
        self.dataset, self.prompt_ids = train_dataset, list(prompt_ids)
        self.visuals = visuals_of(train_dataset, self.prompt_ids, tokenizer, args.chat_template_kwargs)
        self.parallel = DataParallel(accelerator)
        self.state = RunState()
        self.order = PromptOrder(len(self.prompt_ids), args.seed, args.shuffle_dataset)
        self.total_steps = self._count_steps()
        self.learning_rate = lr_schedule(args, self.total_steps)
        self.is_peft = hasattr(model, "peft_config")
        eos, banned = end_token_ids(model, self.tokenizer), placeholder_token_ids(model)
        self.banned_token_ids = banned
        self.compute_dtype = torch.bfloat16 if args.bf16 else next(model.parameters()).dtype
        configure_model(model, args)
        self.reference = None
        if args.beta > 0 and not self.is_peft:
            if ref_model is None:
                raise ValueError("beta > 0 without an adapter needs ref_model")
            self.reference = prepare_reference(ref_model, accelerator)
        for rows in (train_dataset, *(held.dataset for held in (held_out or {}).values())):
            prepare_for_images(model, accelerator, list(image_counts(rows)))
        self.policy, self.optimizer = accelerator.prepare(model, build_optimizer(model, args))
        follow_ranks(self.policy, self.optimizer, self.total_steps, lambda: self.state.step)  # of AdaLoRA
        self.sampling = Sampling(
            max_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            extra=args.generation_kwargs or {},
        )
        sets = [held.dataset for held in (held_out or {}).values()]
        shown = canary_rows(args, [*sets, train_dataset], tokenizer)
        self.canary = None if shown is None else TrainingCanary(self, shown)
        visuals = [self.visuals, *(held.visuals for held in (held_out or {}).values())]
        self.features = open_features(args, self.policy, tokenizer, accelerator, visuals)
        self.engine = self._build_engine(checkpoint, held_out or {}, eos)
        self.checkpoints = Checkpoints(args.output_dir, self.parallel, args.save_total_limit)
        self.records = RunRecords(args.output_dir, accelerator.is_main_process)
        self.reporter = Reporter(
            args, self.state, self.parallel, self.records, self.dataset, self.tokenizer, self.total_steps
        )
        self._samples: Samples | None = None

    # ---- the loop

    def train(self, evaluate: Callable[[bool], dict[str, float]] | None = None) -> RunState:
        """Run to `total_steps` (or to a signal, after saving) and return where the run stands.

        Args: evaluate: called every `eval_steps` with whether that step is the last; what it returns goes to the
            step's line of metrics.jsonl. It may not change what the next steps compute.
        """
        args, state = self.args, self.state
        self.records.rewind(state.step, state.rollouts)
        if args.report_to:
            self.accelerator.init_trackers("mmreason", config=tracker_config(args))
        with stop_on_signal() as stop_asked, self.reporter.progress_bar() as bar:
            while state.step < self.total_steps:
                started = time.perf_counter()
                metrics: dict[str, float] = {}
                if self.canary is not None and self.canary.is_due():
                    with _timed(metrics, "time/canary"):
                        metrics |= self.canary.check()
                if self._samples is None:
                    self._samples = self._rollout(metrics)
                metrics |= self._update(self._samples)
                state.step += 1
                state.updates_in_rollout += 1
                if state.updates_in_rollout == args.updates_per_rollout:
                    self._samples, state.updates_in_rollout = None, 0
                metrics["time/step"] = time.perf_counter() - started
                state.seconds += metrics["time/step"]
                if evaluate is not None and args.evaluates_after(state.step, self.total_steps):
                    with _timed(metrics, "time/evaluation"):
                        metrics |= evaluate(state.step == self.total_steps)
                self.reporter.step(metrics, bar)
                stop = self.parallel.any(stop_asked())
                if stop or state.step == self.total_steps or (args.save_steps and state.step % args.save_steps == 0):
                    self.save()
                if stop:
                    break
        return state

    # ---- stage 1: rollout

    def _rollout(self, metrics: dict[str, float]) -> Samples:
        """Sample G completions of the next prompts, reward them and turn rewards into advantages."""
        with _timed(metrics, "time/sync"):
            self.engine.sync()
        requests, rows = self._next_requests()
        with _timed(metrics, "time/rollout"):
            groups = self.engine.generate(requests, self.sampling, self._seed(self.state.rollouts))
            groups = self.parallel.share(groups)
        completions = [completion for group in groups for completion in group]
        samples = Samples(
            rows=rows,
            prompt_ids=[self.prompt_ids[row] for row in rows],
            completion_ids=[c.token_ids for c in completions],
            sampling_logps=[c.logps for c in completions],
            truncated=[c.truncated for c in completions],
            in_loss=[not (c.truncated and self.args.mask_truncated_completions) for c in completions],
        )
        texts = [decode(self.tokenizer, ids) for ids in samples.completion_ids]
        with _timed(metrics, "time/reward"):
            rewards = self._reward(samples, texts, metrics)
        per_func = self.parallel.gather(torch.tensor(rewards.per_func, device=self.accelerator.device))
        advantages = self._advantages(per_func, samples)
        with _timed(metrics, "time/score"):
            self._score_fixed(samples)
        self.state.rollouts += 1
        self.reporter.rollout(samples, texts, rewards, per_func, advantages, metrics)
        return samples

    def _next_requests(self) -> tuple[list[Request], list[int]]:
        """This process's share of the next prompts. A group is one request with n = G; a shared one is split."""
        args = self.args
        local = args.per_device_train_batch_size * args.micro_batches_per_rollout
        total = local * self.parallel.size
        first_prompt = self.state.rollouts * (total // args.num_generations)
        slots = range(self.parallel.rank * local, (self.parallel.rank + 1) * local)
        rows = [self.order[first_prompt + slot // args.num_generations] for slot in slots]
        groups = [slot // args.num_generations for slot in slots]
        counts = [(group, groups.count(group)) for group in dict.fromkeys(groups)]
        asked = [(self.order[first_prompt + group], n) for group, n in counts]
        seen = [None if self.visuals is None else self.visuals[row] for row, _ in asked]
        return [Request(self.prompt_ids[row], n, visual) for (row, n), visual in zip(asked, seen, strict=True)], rows

    def _seed(self, number: int) -> int:
        return (self.args.seed * 1_000_003 + number * 104_729) % 2**31

    # ---- stage 2: reward

    def _columns(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        picked = [self.dataset[row] for row in dict.fromkeys(rows)]
        by_row = dict(zip(dict.fromkeys(rows), picked, strict=True))
        return {name: [by_row[row][name] for row in rows] for name in self.dataset.column_names}

    def _reward(self, samples: Samples, texts: list[str], metrics: dict[str, float]) -> RewardBatch:
        columns = self._columns(samples.rows)
        prompts = columns.pop("prompt")
        completions = [
            [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        rewards = compute_rewards(
            self.reward_funcs,
            self.reward_weights,
            prompts=prompts,
            completions=completions,
            completion_ids=samples.completion_ids,
            columns=columns,
            trainer_state=self.state,
        )
        metrics |= {f"time/reward/{name}": s for name, s in zip(rewards.names, rewards.seconds.tolist(), strict=True)}
        metrics |= {name: sum(values) / len(values) for name, values in rewards.metrics.items()}
        if "answer" in columns and "verdict" not in rewards.extra:
            judged = judge(completions, columns["answer"], columns.get("meta"))
            rewards.extra["verdict"] = [None if j is None else str(j.verdict) for j in judged]
            rewards.extra["extracted"] = [None if j is None else j.answer for j in judged]
        return rewards

    # ---- stage 3: advantage

    def _advantages(self, per_func: Tensor, samples: Samples) -> GroupAdvantages:
        """Groups may be spread over processes: rewards are compared globally, each process keeps its slice."""
        args = self.args
        weights = torch.tensor(self.reward_weights or [1.0] * per_func.shape[1], device=per_func.device)
        result = group_advantages(
            per_func.float(),
            weights,
            args.num_generations,
            scale_rewards=args.scale_rewards,
            aggregation=args.multi_objective_aggregation,
        )
        start = self.parallel.rank * len(samples)
        samples.advantages = result.advantages[start : start + len(samples)].tolist()
        return result

    def _score_fixed(self, samples: Samples) -> None:
        """Log-probabilities that stay fixed while this rollout is used: π_old where updates move away, and π_ref."""
        if not self.args.aligned:
            samples.old_logps = self._score_all(self.policy, samples)
        if self.args.beta > 0:
            if self.reference is not None:
                samples.ref_logps = self._score_all(self.reference, samples)
            else:
                with self.accelerator.unwrap_model(self.policy).disable_adapter():
                    samples.ref_logps = self._score_all(self.policy, samples)

    @torch.no_grad()
    def _score_all(self, model: Any, samples: Samples) -> list[list[float]]:
        training = model.training
        model.eval()
        scored: list[list[float]] = []
        for batch in self._micro_batches(samples):
            scored += unpad(self._logps(model, batch, with_entropy=False)[0], batch.completion_ids)
        model.train(training)
        return scored

    def _logps(self, model: Any, batch: Samples, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        seen = None if self.visuals is None else [self.visuals[row] for row in batch.rows]
        return self.score(
            model,
            batch.prompt_ids,
            batch.completion_ids,
            seen,
            temperature=self.args.temperature,
            with_entropy=with_entropy,
        )

    def score(
        self,
        model: Any,
        prompts: list[list[int]],
        completions: list[list[int]],
        visuals: list[VisualPrompt | None] | None,
        *,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`completion_logps` as the loss takes it; for the canary, too."""
        return completion_logps(
            model,
            prompts,
            completions,
            visuals=visuals,
            temperature=temperature,
            banned_token_ids=self.banned_token_ids,
            with_entropy=with_entropy,
        )

    # ---- stage 4: update

    def _micro_batches(self, samples: Samples) -> Iterator[Samples]:
        size = self.args.per_device_train_batch_size
        for start in range(0, len(samples), size):
            yield samples.slice(start, start + size)

    def _update(self, samples: Samples) -> dict[str, float]:
        """One optimizer step on the part of the rollout whose turn it is."""
        args, accelerator = self.args, self.accelerator
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        start = (self.state.updates_in_rollout * rows) % len(samples)
        window = samples.slice(start, start + rows)
        counts = torch.tensor([len(window), window.loss_tokens()], dtype=torch.float64, device=accelerator.device)
        sequences, tokens = (int(c) for c in self.parallel.sum(counts.float()).tolist())
        size = BatchSize(sequences, tokens, args.gradient_accumulation_steps * self.parallel.size)
        started = time.perf_counter()
        self._set_learning_rate(self.learning_rate(self.state.step))
        self.policy.train()
        measured, loss_sum, norm = StepMetrics(), torch.zeros((), device=accelerator.device), math.nan
        for batch in self._micro_batches(window):
            with accelerator.accumulate(self.policy):
                loss = self.loss(batch, size, measured)
                loss_sum += loss.detach()
                # Shares add up to the loss, but Accelerate divides by the accumulation steps and data parallelism
                # averages over processes.
                accelerator.backward(loss * (args.gradient_accumulation_steps * self.parallel.size))
                if accelerator.sync_gradients:
                    norm = self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            norm = float(self.policy.get_global_grad_norm())
        out = measured.reduce(self.parallel.gather)
        out["loss"] = self.parallel.sum(loss_sum.view(1)).item()
        out |= {"grad_norm": norm, "learning_rate": self.learning_rate(self.state.step)}
        out["time/update"] = time.perf_counter() - started
        return out

    def loss(self, batch: Samples, size: BatchSize, measured: StepMetrics) -> Tensor:
        """This micro-batch's share of the objective of one optimizer step (a scalar with gradient)."""
        args, device = self.args, self.accelerator.device
        logps, entropy = self._logps(self.policy, batch, with_entropy=True)
        used = torch.tensor(batch.in_loss, device=device).float().unsqueeze(1)
        mask = completion_mask(batch.completion_ids, device) * used
        old = pad_right(batch.old_logps, 0.0, torch.float32, device) if batch.old_logps else logps.detach()
        sampled = pad_right(batch.sampling_logps, 0.0, torch.float32, device)
        surrogate = clipped_surrogate(
            logps,
            old,
            torch.tensor(batch.advantages, device=device),
            epsilon_low=args.epsilon,
            epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
            delta=args.delta,
        )
        token_loss = surrogate.loss
        if args.use_vllm and args.vllm_importance_sampling_correction:
            token_loss = token_loss * importance_weights(
                old,
                sampled,
                mask,
                args.vllm_importance_sampling_mode,
                args.vllm_importance_sampling_clip_max,
                args.vllm_importance_sampling_clip_min,
            )
        if args.beta > 0:
            kl = kl_to_reference(logps, pad_right(batch.ref_logps, 0.0, torch.float32, device))
            token_loss = token_loss + args.beta * (kl * surrogate.ratio if args.use_bias_correction_kl else kl)
            measured.mean("kl", (kl * mask).sum(), mask.sum())
        measured.mean("clip_ratio/low_mean", (surrogate.clipped_low * mask).sum(), mask.sum())
        measured.mean("clip_ratio/high_mean", (surrogate.clipped_high * mask).sum(), mask.sum())
        if entropy is not None:
            measured.mean("entropy", (entropy * mask).sum(), mask.sum())
        self._measure_engine(old, sampled, mask, measured)
        return aggregate(token_loss, mask, args.loss_type, size, args.max_completion_length)

    def _measure_engine(self, old: Tensor, sampled: Tensor, mask: Tensor, measured: StepMetrics) -> None:
        """How far the engine's log-probabilities are from the trainer's: 0, and ratio 1, for the same policy."""
        gap = torch.nan_to_num((old - sampled) * mask, nan=0.0)
        measured.mean("sampling/sampling_logp_difference/mean", gap.abs().sum(), mask.sum())
        measured.maximum("sampling/sampling_logp_difference/max", gap.abs().max())
        ratio = torch.exp(gap.sum(-1))
        measured.mean("sampling/importance_sampling_ratio/mean", ratio.sum(), mask.new_tensor(float(len(ratio))))
        measured.maximum("sampling/importance_sampling_ratio/max", ratio.max())

    def _clip(self) -> float:
        """Clip the gradient (DeepSpeed's engine does it itself) and return its norm before that."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return math.nan
        limit = self.args.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    # ---- evaluation, checkpoints

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Greedy and maj@k accuracy of the current policy on a held-out set, and its greedy answers (collective)."""
        self.engine.sync()
        return measure(self.engine, held_out, self.tokenizer, self.sampling, self.parallel, k=k, seed=self._seed(-1))

    def close(self) -> None:
        """Free the engine and leave the process group."""
        self.engine.close()
        if self.features is not None:
            self.features.close()
        self.accelerator.end_training()

    def save(self) -> Path:
        """Write `checkpoint-<step>`: the model in Hugging Face format, and what continuing needs."""
        return self.checkpoints.save(self.state, self._write_checkpoint)

    def _write_checkpoint(self, folder: Path) -> None:
        save_policy(self.policy, self.processor, self.accelerator, folder, only_model=self.args.save_only_model)
        if self._samples is not None and not self.args.save_only_model:
            self._samples.save(folder / f"samples-{self.accelerator.process_index:05d}.parquet")

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint: weights, optimizer, generators, position in the data, rollout in flight."""
        state = self.checkpoints.read_state(checkpoint)
        load_policy(self.policy, self.accelerator, checkpoint)
        vars(self.state).update(vars(state))
        self._samples = None
        if state.updates_in_rollout:
            self._samples = Samples.load(checkpoint / f"samples-{self.accelerator.process_index:05d}.parquet")

    # ---- set-up

    def _count_steps(self) -> int:
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        prompts_per_rollout = (args.generation_batch_size or 0) // args.num_generations
        rollouts = math.ceil(args.num_train_epochs * len(self.prompt_ids) / prompts_per_rollout)
        return rollouts * args.updates_per_rollout

    def _build_engine(self, checkpoint: str, held_out: Mapping[str, HeldOut], eos: list[int]) -> Engine:
        prompts = [self.prompt_ids, *(held.prompt_ids for held in held_out.values())]
        visuals = [self.visuals, *(held.visuals for held in held_out.values())]
        longest = 0 if self.canary is None else self.canary.rows.longest_prompt()  # some images change places there
        return build_engine(
            self.args,
            self.policy,
            self.accelerator,
            self.processor,
            checkpoint=checkpoint,
            dtype=self.compute_dtype,
            eos_token_ids=eos,
            banned_token_ids=self.banned_token_ids,
            max_prompt_tokens=max(longest, *(len(ids) for part in prompts for ids in part)),
            max_images=max(0 if part is None else part.max_images for part in visuals),
        )


@contextlib.contextmanager
def _timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    metrics[name] = time.perf_counter() - start
