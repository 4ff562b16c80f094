"""Log-probabilities of a rollout's completions: under the policy as it learns, as it was, and under the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from mmreason.data.visual import VisualPrompt, Visuals
from mmreason.models.router_replay import RouterReplay, Routes, load_routes
from mmreason.rollout.shared import SharedScoring, SharingError
from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.batch import Samples, unpad
from mmreason.trainers.ppo_arguments import PPOConfig
from mmreason.trainers.state import CheckpointError


class Scorer:
    """Scores completions as the loss takes them.

    Args:
        policy: the prepared model. reference: a prepared second model, or None: the policy without its adapter.
        visuals: the pictures of the training rows. banned_token_ids: what the sampler may not choose.
    """

    def __init__(
        self,
        args: PolicyConfig,
        accelerator: Accelerator,
        policy: Any,
        reference: Any,
        visuals: Visuals | None,
        banned_token_ids: list[int],
    ) -> None:
        self.args, self.accelerator, self.visuals = args, accelerator, visuals
        self.policy, self.reference, self.banned_token_ids = policy, reference, banned_token_ids
        self.sharing = SharedScoring(
            # A critic values the places of separate rows, that behind the last token among them.
            enabled=args.share_prompts and not isinstance(args, PPOConfig),
            autocast=accelerator.native_amp,
            tell=tqdm.write if accelerator.is_main_process else lambda reason: None,
        )
        self.router = RouterReplay(policy) if args.router_replay else None
        self.routes: list[Routes] = []  # of this rollout's micro-batches, in order

    def score(
        self,
        model: Any,
        prompts: list[list[int]],
        completions: list[list[int]],
        visuals: list[VisualPrompt | None] | None,
        *,
        temperature: float,
        with_entropy: bool,
        groups: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`completion_logps` as the loss takes it, each prompt read once for its group; for the canary, too.

        Args: groups: neighbours with the same number have the same prompt and pictures; None: no two of them.
        """
        return self.sharing.score(
            model,
            prompts,
            completions,
            groups,
            visuals=visuals,
            temperature=temperature,
            banned_token_ids=self.banned_token_ids,
            with_entropy=with_entropy,
        )

    def logps(self, model: Any, batch: Samples, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(B, C) log-probabilities and entropies, nats; 0 on padding and on tokens that the policy didn't sample."""
        seen = None if self.visuals is None else [self.visuals[row] for row in batch.rows]
        logps, entropy = self.score(
            model,
            batch.prompt_ids,
            batch.completion_ids,
            seen,
            temperature=self.args.temperature,
            with_entropy=with_entropy,
            groups=batch.rows,
        )
        if batch.sampled:  # what a tool wrote may be a banned token, of probability 0
            logps = torch.where(batch.sampled_mask(logps.device).bool(), logps, 0.0)
        return logps, entropy

    @torch.no_grad()
    def verify(self, batch: Samples, step: int) -> dict[str, float]:
        """Where `verify_sharing` asks for it at this step: how far shared are from separate log-probabilities.

        Args: batch: a micro-batch of this process. Returns: nats for metrics.jsonl; nothing at other steps. Collective.
        Raises: SharingError, on all processes, where it is more than rounding.
        """
        every, policy = self.args.verify_sharing, self.policy
        if every is None or step % every:
            return {}
        training = policy.training
        policy.eval()
        try:
            if not self.sharing.shares(policy):
                return {}
            seen = None if self.visuals is None else [self.visuals[row] for row in batch.rows]
            options: dict[str, Any] = {"visuals": seen, "temperature": self.args.temperature}
            options["banned_token_ids"] = self.banned_token_ids
            gaps = self.sharing.gaps(policy, batch.prompt_ids, batch.completion_ids, batch.rows, **options)
        finally:
            policy.train(training)
        worst = self.accelerator.gather(torch.tensor([list(gaps.values())], device=self.accelerator.device))
        gaps = dict(zip(gaps, worst.nan_to_num(nan=torch.inf).amax(0).tolist(), strict=True))
        drift = self.sharing.drift(policy, gaps)
        if drift is not None:
            raise SharingError(f"step {step}: {drift}")
        return {f"sharing/logp_difference/{name}": value for name, value in gaps.items()}

    @contextmanager
    def replaying(self, number: int) -> Iterator[None]:
        """Loss and gradient of a micro-batch with the experts that π_old chose, where `router_replay` asks for it.

        Args: number: of the micro-batch in its rollout.
        """
        if self.router is None:
            yield
            return
        self.sharing.shares(self.policy)  # its trial, where it is due, has other tokens
        with self.router.replay(self.routes[number]):
            yield

    def resume(self, samples: Samples, routes: Path) -> None:
        """Go on within a rollout that a checkpoint holds. Collective.

        Args: routes: the file of its experts, with `router_replay`.
        Raises: CheckpointError naming that file.
        """
        if self.router is not None:
            try:
                self.routes = load_routes(routes)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{routes}: the experts of the rollout in flight can't be read ({error}); was router_replay on "
                    "when it was saved? Name another checkpoint with --resume"
                ) from error
        if self.args.beta > 0 and not samples.ref_logps:  # the run began without a KL
            self.score_fixed(samples)

    def score_fixed(self, samples: Samples) -> None:
        """Log-probabilities that stay fixed while this rollout is used: π_old where updates move away, and π_ref."""
        moves = not self.args.aligned or self.args.penalizes_reward  # a reward's KL is that of π_old
        if moves and not samples.old_logps:
            self.routes = []
            samples.old_logps = self.score_all(self.policy, samples, keep_routes=self.router is not None)
        if self.args.beta > 0:
            if self.reference is not None:
                samples.ref_logps = self.score_all(self.reference, samples)
            else:
                with self.accelerator.unwrap_model(self.policy).disable_adapter():
                    samples.ref_logps = self.score_all(self.policy, samples)

    @torch.no_grad()
    def score_all(self, model: Any, samples: Samples, *, keep_routes: bool = False) -> list[list[float]]:
        """Log-probabilities of each completion, without dropout.

        Args: keep_routes: for `replaying`.
        """
        training = model.training
        model.eval()
        scored: list[list[float]] = []
        for batch in micro_batches(samples, self.args.per_device_train_batch_size):
            with self.router.record() if keep_routes and self.router is not None else nullcontext() as routes:
                logps, _ = self.logps(model, batch, with_entropy=False)
            if routes is not None:
                self.routes.append(routes)
            scored += unpad(logps, batch.completion_ids)
        model.train(training)
        return scored


def micro_batches(samples: Samples, size: int) -> Iterator[Samples]:
    """`samples` in pieces of `size`, in order."""
    for start in range(0, len(samples), size):
        yield samples.slice(start, start + size)
