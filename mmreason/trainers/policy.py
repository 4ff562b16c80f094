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

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from mmreason.data.visual import image_counts, visuals_of
from mmreason.losses.policy import BatchSize
from mmreason.models.peft_adalora import follow_ranks
from mmreason.models.router_replay import save_routes
from mmreason.rollout.engines import build_engine, end_token_ids, placeholder_token_ids
from mmreason.rollout.evaluate import Evaluation, GreedyAnswer
from mmreason.rollout.multi_turn import EnvironmentSettings
from mmreason.rollout.types import Engine, Request, Sampling
from mmreason.trainers.ahead import Asked, RolloutsAhead
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples, StepMetrics
from mmreason.trainers.canary import TrainingCanary, canary_rows
from mmreason.trainers.checkpointing import load_policy, save_policy
from mmreason.trainers.critic import ActorCritic, build_critic
from mmreason.trainers.distributed import (
    DataParallel,
    build_optimizer,
    configure_model,
    keep_until_exit,
    lr_schedule,
    prepare_for_images,
    prepare_reference,
)
from mmreason.trainers.dynamic_sampling import Drawn, DynamicSampling
from mmreason.trainers.environments import act_in, acts
from mmreason.trainers.estimators import estimate_advantages, policy_drift
from mmreason.trainers.evaluation import measure
from mmreason.trainers.features import open_features
from mmreason.trainers.guards import Guards
from mmreason.trainers.objective import policy_loss
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.trainers.problems import HeldOut
from mmreason.trainers.prompt_order import open_prompts
from mmreason.trainers.records import RunRecords, tracker_config
from mmreason.trainers.reference import check_reference
from mmreason.trainers.reporting import Reporter, decode
from mmreason.trainers.rewarding import Rewarder
from mmreason.trainers.scorer import Scorer, micro_batches
from mmreason.trainers.state import (
    Checkpoints,
    RunState,
    Stateful,
    read_parts,
    stop_on_signal,
    write_alarms,
    write_parts,
)
from mmreason.trainers.value_tracker import TrackerOptions, ValueTracker
from mmreason.types import ConfigError


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
        value_model: what a separate critic begins as (PPO, see PPOConfig.value_model).
        environment: answers the policy's turns; without one a completion is one turn.
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
        value_model: Any = None,
        environment: EnvironmentSettings | None = None,
    ):
        self.args, self.accelerator, self.processor = args, accelerator, tokenizer
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.dataset, self.prompt_ids = train_dataset, list(prompt_ids)
        self.visuals = visuals_of(train_dataset, self.prompt_ids, tokenizer, args.chat_template_kwargs)
        self.parallel = DataParallel(accelerator)
        keep_until_exit(accelerator, self)
        self.state = RunState()
        self.rewarder = Rewarder(
            train_dataset,
            reward_funcs,
            reward_weights,
            self.state,
            on_error=args.on_reward_error,
            timeout=args.reward_timeout,
            parallel=self.parallel,
        )
        self.tracker = ValueTracker(TrackerOptions.of(args.spo)) if args.advantage_estimator == "spo" else None
        self.prompts = open_prompts(args, train_dataset, self.rewarder, self.tracker)
        self.dynamic = DynamicSampling(args, self.rewarder, self.parallel) if args.dynamic_sampling else None
        self.total_steps = self._count_steps()
        self.learning_rate = lr_schedule(args, self.total_steps)
        eos, banned = end_token_ids(model, self.tokenizer), placeholder_token_ids(model)
        self.banned_token_ids = banned
        self.compute_dtype = torch.bfloat16 if args.bf16 else next(model.parameters()).dtype
        configure_model(model, args)
        reference = self._reference(model, ref_model)
        for rows in (train_dataset, *(held.dataset for held in (held_out or {}).values())):
            prepare_for_images(model, accelerator, list(image_counts(rows)))
        critic = build_critic(model, args, accelerator, value_model)
        self.policy, self.optimizer = accelerator.prepare(model, build_optimizer(model, args))
        follow_ranks(self.policy, self.optimizer, self.total_steps, lambda: self.state.step)  # of AdaLoRA
        self.scorer = Scorer(args, accelerator, self.policy, reference, self.visuals, banned)
        self.ppo: ActorCritic | None = None
        if critic is not None and isinstance(args, PPOConfig):
            self.ppo = ActorCritic(args, accelerator, self.policy, critic, self.scorer, self.parallel)
        self.sampling = _sampling(args)
        sets = [held.dataset for held in (held_out or {}).values()]
        shown = canary_rows(args, [*sets, train_dataset], tokenizer)
        self.canary = None if shown is None else TrainingCanary(self, shown)
        visuals = [self.visuals, *(held.visuals for held in (held_out or {}).values())]
        self.features = open_features(args, self.policy, tokenizer, accelerator, visuals)
        self.engine = self._build_engine(checkpoint, held_out or {}, eos)
        if environment is not None:
            self.engine = act_in(environment, self.engine, tokenizer, eos, args.chat_template_kwargs, self.parallel)
        self.checkpoints = Checkpoints(args.output_dir, self.parallel, args.save_total_limit)
        self.records = RunRecords(args.output_dir, accelerator.is_main_process)
        self.reporter = Reporter(
            args, self.state, self.parallel, self.records, self.dataset, self.tokenizer, self.total_steps
        )
        self.guards = Guards(args.guards, self.parallel, args.output_dir)
        self.parts = self._parts()
        # Of completions whose answer is not their text: see `evaluate`.
        self.read_answers: Callable[[list[str]], list[str]] | None = None
        self.ahead = self._draw_ahead() if args.max_staleness else None
        self._samples: Samples | None = None

    # ---- the loop

    def train(self, evaluate: Callable[[bool], dict[str, float]] | None = None) -> RunState:
        """Run to `total_steps` (or to a signal, after saving) and return where the run stands.

        Args: evaluate: called every `eval_steps` with whether that step is the last; what it returns goes to the
            step's line of metrics.jsonl. It may not change what the next steps compute.
        """
        args, state = self.args, self.state
        self.records.rewind(state.step, state.rollouts)
        self.guards.rewind(state.step)
        if args.report_to:
            self.accelerator.init_trackers("mmreason", config=tracker_config(args))
        with stop_on_signal() as stop_asked, self.reporter.progress_bar() as bar:
            while state.step < self.total_steps:
                started = time.perf_counter()
                metrics: dict[str, float] = {}
                if self.canary is not None and self.canary.is_due():
                    self._wait_for_engine()
                    with _timed(metrics, "time/canary"):
                        metrics |= self.canary.check()
                if self._samples is None:
                    self._samples = self._rollout(metrics)
                metrics |= self._update(self._samples)
                state.step += 1
                state.updates_in_rollout += 1
                if state.updates_in_rollout == args.updates_per_rollout:
                    if self.tracker is not None:
                        self._follow_policy(self.tracker, self._samples, metrics)
                    self._samples, state.updates_in_rollout = None, 0
                metrics["time/step"] = time.perf_counter() - started
                state.seconds += metrics["time/step"]
                metrics |= self.guards.observe(state.step, metrics)
                if evaluate is not None and args.evaluates_after(state.step, self.total_steps):
                    with _timed(metrics, "time/evaluation"):
                        metrics |= evaluate(state.step == self.total_steps)
                self.reporter.step(metrics, bar)
                self.guards.stop_if_asked(self.checkpoints)
                stop = self.parallel.any(stop_asked())
                if stop or state.step == self.total_steps or (args.save_steps and state.step % args.save_steps == 0):
                    self.save()
                if stop:
                    break
        return state

    # ---- stages 1 to 3: rollout, reward, advantage

    def _rollout(self, metrics: dict[str, float]) -> Samples:
        """Sample G completions of the next prompts, reward them and turn rewards into advantages."""
        if self.ahead is None:
            with _timed(metrics, "time/sync"):
                self.engine.sync()
        if self.dynamic is None:
            drawn, per_func = self._draw(self.args.groups_per_rollout, 0, metrics)
        else:
            filled = self.dynamic.fill(lambda groups, number: self._draw(groups, number, metrics))
            drawn, per_func = filled.drawn, filled.per_func
            metrics |= filled.metrics
            self.state.samples += filled.left_out[0]
            self.state.tokens += filled.left_out[1]
        samples = drawn.samples
        with _timed(metrics, "time/score"):
            if self.ppo is not None:
                self.ppo.score(samples)
            self.scorer.score_fixed(samples)
        if self.ppo is not None:
            advantages = self.ppo.estimate(self.rewarder.weights, per_func, samples, metrics)
        else:
            advantages = estimate_advantages(
                self.args, self.rewarder.weights, per_func, samples, self.parallel, self.tracker
            )
        self.state.rollouts += 1
        metrics |= self.prompts.metrics()
        self.reporter.rollout(samples, drawn.texts, drawn.rewards, per_func, advantages, metrics)
        return samples

    def _draw(self, groups: int, number: int, metrics: dict[str, float]) -> tuple[Drawn, Tensor]:
        """This process's completions of the next prompts with their rewards, and the rewards of all processes.

        Args: groups: prompts of all processes. number: of the draw within this rollout. metrics: seconds are added up.
        """
        with _timed(metrics, "time/rollout"):
            if self.ahead is None:
                asked = self._ask(groups)
                drawn = self.engine.generate(asked.requests, self.sampling, self._seed(self.state.rollouts, number))
                drawn = self.parallel.share(drawn)
            else:
                asked, drawn, metrics["rollout/staleness"] = self.ahead.take(self.state.rollouts)
        completions = [completion for group in drawn for completion in group]
        samples = Samples.of(asked.mine, self.prompt_ids, completions, self.args.mask_truncated_completions)
        texts = [decode(self.tokenizer, ids) for ids in samples.completion_ids]
        with _timed(metrics, "time/reward"):
            rewards = self.rewarder(samples, completions, texts, metrics)
        per_func = self.parallel.gather(torch.tensor(rewards.per_func, device=self.accelerator.device))
        self.prompts.observe([row for row in asked.rows for _ in range(self.args.num_generations)], per_func)
        return Drawn(samples, completions, texts, rewards), per_func

    def _ask(self, groups: int) -> Asked:
        """The next prompts. A group is one request with n = G; one that is spread over processes is split."""
        rows = self.prompts.draw(groups)
        size, rank, g = self.parallel.size, self.parallel.rank, self.args.num_generations
        local = len(rows) * g // size
        slots = [slot // g for slot in range(rank * local, (rank + 1) * local)]
        counts = [(rows[slot], slots.count(slot)) for slot in dict.fromkeys(slots)]
        return Asked(rows, [rows[slot] for slot in slots], [self._request(row, n) for row, n in counts])

    def _request(self, row: int, n: int) -> Request:
        """n completions of a row: with its pictures, and with all of it for an environment."""
        visual = None if self.visuals is None else self.visuals[row]
        return Request(self.prompt_ids[row], n, visual, self.dataset[row] if acts(self.engine) else None)

    def _seed(self, number: int, draw: int = 0) -> int:
        return (self.args.seed * 1_000_003 + number * 104_729 + draw * 15_485_863) % 2**31

    def _follow_policy(self, tracker: ValueTracker, samples: Samples, metrics: dict[str, float]) -> None:
        """Tell SPO's values how far the updates of this rollout moved the policy."""
        with _timed(metrics, "time/drift"):
            kl = policy_drift(self.scorer, self.policy, samples, self.parallel, self.args.per_device_train_batch_size)
        tracker.moved(kl)
        metrics |= {"spo/drift": kl, "spo/prompts": float(len(tracker))}

    # ---- stage 4: update

    def _update(self, samples: Samples) -> dict[str, float]:
        """One optimizer step on the part of the rollout whose turn it is."""
        args, accelerator = self.args, self.accelerator
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        window = self._window(samples, rows)
        counts = torch.tensor([len(window), window.loss_tokens()], dtype=torch.float64, device=accelerator.device)
        sequences, tokens = (int(c) for c in self.parallel.sum(counts.float()).tolist())
        size = BatchSize(sequences, tokens, args.gradient_accumulation_steps * self.parallel.size)
        started = time.perf_counter()
        self._set_learning_rate(self.learning_rate(self.state.step))
        self.policy.train()
        checked = self.scorer.verify(window.slice(0, args.per_device_train_batch_size), self.state.step)
        measured, loss_sum, norm = StepMetrics(), torch.zeros((), device=accelerator.device), math.nan
        first = self.state.updates_in_rollout * args.gradient_accumulation_steps % args.micro_batches_per_rollout
        for number, batch in enumerate(micro_batches(window, args.per_device_train_batch_size), start=first):
            with accelerator.accumulate(self.policy), self.scorer.replaying(number):
                loss = self.loss(batch, size, measured)
                loss_sum += loss.detach()
                # Shares add up to the loss, but Accelerate divides by the accumulation steps and data parallelism
                # averages over processes.
                accelerator.backward(loss * (args.gradient_accumulation_steps * self.parallel.size))
                if accelerator.sync_gradients:
                    norm = self._clip()
                if not accelerator.sync_gradients or self.guards.lets_step(norm, loss_sum):
                    if self.ppo is not None and accelerator.sync_gradients:
                        self.ppo.before_step(self.optimizer, self.state.step)
                    self.optimizer.step()
                self.optimizer.zero_grad()
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            norm = float(self.policy.get_global_grad_norm())
            self.guards.after_engine_step(self.policy)
        out = measured.reduce(self.parallel.gather)
        out["loss"] = self.parallel.sum(loss_sum.view(1)).item()
        out |= {"grad_norm": norm, "learning_rate": self.learning_rate(self.state.step)}
        out["time/update"] = time.perf_counter() - started
        return out | checked

    def _window(self, samples: Samples, rows: int) -> Samples:
        """The `rows` of the rollout whose turn it is."""
        updates = self.state.updates_in_rollout
        if self.ppo is not None:
            return self.ppo.minibatch(samples, self.state.rollouts, updates, rows)
        start = (updates * rows) % len(samples)
        return samples.slice(start, start + rows)

    def loss(self, batch: Samples, size: BatchSize, measured: StepMetrics) -> Tensor:
        """This micro-batch's share of the objective of one optimizer step (a scalar with gradient)."""
        if self.ppo is not None:
            return self.ppo.loss(batch, size, measured, self.state.step)
        logps, entropy = self.scorer.logps(self.policy, batch, with_entropy=True)
        return policy_loss(self.args, batch, logps, entropy, size, measured, self.parallel.gather_ragged)

    def _clip(self) -> float:
        """Clip the gradient (DeepSpeed's engine does it itself) and return its norm before that."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return math.nan
        limit = self.args.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _set_learning_rate(self, value: float) -> None:
        if self.ppo is not None:
            self.ppo.set_learning_rates(self.optimizer, value, self.state.step)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = value

    # ---- evaluation, checkpoints

    def measure(self, held_out: HeldOut, k: int) -> tuple[Evaluation, list[GreedyAnswer]]:
        """Greedy and maj@k accuracy of the current policy on a held-out set, and its greedy answers (collective)."""
        self._wait_for_engine()
        self.engine.sync()
        seed, read = self._seed(-1), self.read_answers
        return measure(self.engine, held_out, self.tokenizer, self.sampling, self.parallel, k=k, seed=seed, read=read)

    def close(self) -> None:
        """Free the engine and leave the process group."""
        if self.ahead is not None:
            self.ahead.close()
        self.engine.close()
        if self.features is not None:
            self.features.close()
        self.accelerator.end_training()

    def save(self) -> Path:
        """Write `checkpoint-<step>`: the model in Hugging Face format, and what continuing needs."""
        return self.checkpoints.save(self.state, self._write_checkpoint)

    def _write_checkpoint(self, folder: Path) -> None:
        save_policy(self.policy, self.processor, self.accelerator, folder, only_model=self.args.save_only_model)
        if self.accelerator.is_main_process:
            write_parts(folder, self.parts)
            write_alarms(folder, self.guards.alarms())
        if self.args.save_only_model:
            return
        if self._samples is not None:
            self._samples.save(folder / f"samples-{self.accelerator.process_index:05d}.parquet")
            if self.scorer.router is not None:
                save_routes(self.scorer.routes, folder / f"routes-{self.accelerator.process_index:05d}.safetensors")
        if self.ahead is not None:
            self.ahead.save(folder / f"ahead-{self.accelerator.process_index:05d}.json")

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint: weights, optimizer, generators, position in the data, rollout in flight."""
        state = self.checkpoints.read_state(checkpoint)
        load_policy(self.policy, self.accelerator, checkpoint)
        vars(self.state).update(vars(state))
        read_parts(checkpoint, self.parts)
        self._samples = None
        if self.ahead is not None:
            self.ahead.load(checkpoint / f"ahead-{self.accelerator.process_index:05d}.json")
        if "prompts" not in self.parts:
            drawn = state.rollouts + (0 if self.ahead is None else len(self.ahead))
            self.prompts.drawn = drawn * self.args.groups_per_rollout
        if state.updates_in_rollout:
            self._samples = Samples.load(checkpoint / f"samples-{self.accelerator.process_index:05d}.parquet")
            self.scorer.resume(self._samples, checkpoint / f"routes-{self.accelerator.process_index:05d}.safetensors")

    # ---- set-up

    def _count_steps(self) -> int:
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        rollouts = math.ceil(args.num_train_epochs * len(self.prompt_ids) / args.groups_per_rollout)
        return rollouts * args.updates_per_rollout

    def _reference(self, model: Any, ref_model: Any) -> Any:
        """The prepared second model; None where none is needed, or an adapter is switched off instead."""
        if self.args.beta == 0 or hasattr(model, "peft_config"):
            return None
        if ref_model is None:
            raise ValueError("beta > 0 without an adapter needs ref_model")
        check_reference(ref_model, model, self.tokenizer)
        return prepare_reference(ref_model, self.accelerator)

    def _parts(self) -> dict[str, Stateful]:
        """What remembers more than `RunState`, by its name in checkpoints."""
        parts: dict[str, Stateful] = {"guards": self.guards}
        if self.ppo is not None:
            parts |= self.ppo.parts
        if self.dynamic is not None or self.prompts.selection is not None:
            parts["prompts"] = self.prompts
        if self.tracker is not None:
            parts["values"] = self.tracker
        return parts

    def _draw_ahead(self) -> RolloutsAhead:
        if acts(self.engine):
            raise ConfigError("max_staleness: episodes in an environment can't be drawn ahead yet; leave it at 0")
        groups, last = self.args.groups_per_rollout, -(-self.total_steps // self.args.updates_per_rollout) - 1
        return RolloutsAhead(
            self.engine, lambda: self._ask(groups), self.sampling, self._seed, self.args.max_staleness, last
        )

    def _wait_for_engine(self) -> None:
        if self.ahead is not None:
            self.ahead.wait()

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


def _sampling(args: PolicyConfig) -> Sampling:
    return Sampling(
        max_tokens=args.max_completion_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        extra=args.generation_kwargs or {},
    )


@contextlib.contextmanager
def _timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    metrics[name] = metrics.get(name, 0.0) + time.perf_counter() - start
