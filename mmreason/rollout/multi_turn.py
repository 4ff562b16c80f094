"""Rollouts of several turns: the policy and an environment speak by turns, in one row of tokens."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmreason.data.visual import VisualPrompt
from mmreason.rollout.environment import RESERVED, EnvironmentFactory, EnvironmentFailure, Step, as_messages
from mmreason.rollout.environment_host import Call, Failure, Handle, Host
from mmreason.rollout.turns import TurnRenderer
from mmreason.rollout.types import Completion, Engine, Request, Sampling
from mmreason.types import ConfigError, Message

_log = logging.getLogger(__name__)
OnEnvironmentError = Literal["observe", "mask", "stop"]
"""What follows a failure or a call past its deadline. observe: the policy reads the error and goes on (for its last
turn if the environment is lost). mask: the episode ends, gets no reward and is left out of the loss. stop: the run
ends."""


@dataclass(frozen=True)
class EnvironmentSettings:
    """An environment and its limits.

    Attributes:
        factory: makes one for each sample.
        max_turns: turns of the policy; an episode that isn't done by then is cut (`truncated`).
        limit_s: wall seconds of one call of the environment.
        on_error: see `OnEnvironmentError`.

    Raises: ConfigError for limits out of their range, and where a tool may take as long as the environment.
    """

    factory: EnvironmentFactory
    max_turns: int = 8
    limit_s: float = 30.0
    on_error: OnEnvironmentError = "observe"

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise ConfigError(f"max_turns={self.max_turns} must be at least 1")
        if not 0 < self.limit_s < float("inf"):
            raise ConfigError(f"environment_timeout={self.limit_s} must be above 0 and finite")
        if self.factory.call_limit_s is not None and self.factory.call_limit_s >= self.limit_s:
            raise ConfigError(
                f"tool_timeout={self.factory.call_limit_s:g} must be below environment_timeout={self.limit_s:g}: a "
                "call that takes too long is an error for the policy to read, not the end of its environment"
            )


@dataclass
class _Episode:
    """One sample on its way. request: of which it is one; ids, logps, sampled: what stands behind the prompt so far."""

    request: Request
    seed: int
    handle: Handle | None = None
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None
    turns: int = 0
    over: bool = False
    truncated: bool = False
    failed: str | None = None
    action: str = ""

    @property
    def row(self) -> Mapping[str, Any]:
        return self.request.example or {}

    def append(self, ids: Sequence[int], logps: Sequence[float], sampled: bool) -> None:
        self.ids += ids
        self.logps += logps
        self.sampled += [sampled] * len(ids)

    def completion(self) -> Completion:
        columns = {"environment_turns": self.turns, "environment_reward": self.reward, **self.info}
        return Completion(
            self.ids,
            self.logps,
            truncated=self.truncated,
            sampled=self.sampled,
            messages=self.messages,
            columns=columns,
            failed=self.failed,
        )


class MultiTurnEngine:
    """An engine whose completions are episodes. Requests without an `example` pass through as they are.

    Where a turn goes on to write what only the environment writes (the factory's `stops`), its tokens from there on are
    dropped, as if the engine had stopped there.

    All live episodes sample their next turn in one call of the engine. A turn's ids and log-probabilities are kept as
    the engine gave them; the environment's tokens stand between them with `sampled` False. The same weights, requests
    and seed give the same episodes, as far as the environment does.

    Args:
        engine: samples the turns.
        settings: of the environment.
        processor: the model's, or its tokenizer. end_token_ids: what ends a turn.
        chat_template_kwargs: as prompts are rendered with.
        most: largest of a number over all processes. They all make the same calls of the engine, because sharded
            weights need that.
        rank: of this process; the seeds of its episodes depend on it.
    """

    def __init__(
        self,
        engine: Engine,
        settings: EnvironmentSettings,
        processor: Any,
        *,
        end_token_ids: Sequence[int],
        chat_template_kwargs: Mapping[str, Any] | None = None,
        most: Callable[[int], int] = lambda n: n,
        rank: int = 0,
    ) -> None:
        self.engine, self.settings, self.processor = engine, settings, processor
        self.name = engine.name
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.end_token_ids = set(end_token_ids)
        self.render = TurnRenderer(processor, end_token_ids, chat_template_kwargs)
        self.most, self.rank = most, rank
        self.host = Host(settings.factory, settings.limit_s)

    def sync(self) -> None:
        self.engine.sync()

    def close(self) -> None:
        self.host.close()
        self.engine.close()

    def generate(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See Engine. `sampling.max_tokens` bounds the whole episode, the environment's tokens included.

        Raises: EnvironmentFailure where an environment fails and on_error is "stop", and where one breaks its contract;
            ConfigError where the chat template can't show what it says.
        """
        if any(request.example is None for request in requests):
            return self.engine.generate(requests, sampling, seed)
        groups = [[_Episode(request, 0) for _ in range(request.n)] for request in requests]
        episodes = [episode for group in groups for episode in group]
        for number, episode in enumerate(episodes):
            episode.seed = (seed * 1_000_003 + self.rank * 7_919 + number) % 2**31
        try:
            self._reset(episodes)
            for turn in range(self.settings.max_turns + 1):  # one more for a last word to an error
                live = [episode for episode in episodes if not episode.over]
                if not self.most(len(live)):
                    break
                # Of each turn its own, so that a run that goes on from here draws what the unbroken one drew.
                self._sample(groups, live, requests, sampling, (seed + 15_485_863 * turn) % 2**31, first=turn == 0)
                self._step([episode for episode in live if not episode.over], sampling.max_tokens)
        finally:
            for episode in episodes:
                if episode.handle is not None:
                    episode.handle.close()
        return [[episode.completion() for episode in group] for group in groups]

    # ---- the policy's turns

    def _sample(
        self,
        groups: Sequence[Sequence[_Episode]],
        live: Sequence[_Episode],
        requests: Sequence[Request],
        sampling: Sampling,
        seed: int,
        *,
        first: bool,
    ) -> None:
        """The next turn of every live episode; in the first, those of a prompt are n samples of one request."""
        if first:
            parts = [[episode for episode in group if not episode.over] for group in groups]
            parts = [part for part in parts if part]
        else:
            parts = [[episode] for episode in live]
        asked = [_continued(part[0], len(part)) for part in parts]
        if self.engine.name != "vllm_colocate":  # the others want as many rows from each process
            missing = self.most(len(live)) - len(live)
            asked += [replace(requests[0], n=1)] * missing
        room = max((sampling.max_tokens - len(episode.ids) for episode in live), default=1)
        drawn = self.engine.generate(asked, replace(sampling, max_tokens=room), seed)
        for part, completions in zip(parts, drawn, strict=False):
            for episode, completion in zip(part, completions, strict=True):
                self._take(episode, completion, sampling.max_tokens)

    def _take(self, episode: _Episode, turn: Completion, max_tokens: int) -> None:
        """Add a sampled turn, as much of it as there is room for."""
        room = max_tokens - len(episode.ids)
        ids, logps = turn.token_ids[:room], turn.logps[:room]
        text_ids = ids[:-1] if ids and ids[-1] in self.end_token_ids else ids
        episode.action = self._decode(text_ids)
        stopped = self._until_stop(text_ids, episode.action)
        if stopped is not None:
            kept, episode.action = stopped
            ids, logps = ids[:kept], logps[:kept]
        episode.append(ids, logps, sampled=True)
        episode.turns += 1
        episode.truncated = stopped is None and (turn.truncated or len(turn.token_ids) > room)
        episode.messages.append({"role": "assistant", "content": episode.action})
        episode.over = episode.truncated or episode.handle is None  # without an environment this was the last word

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _until_stop(self, ids: Sequence[int], text: str) -> tuple[int, str] | None:
        """(how many tokens stand before what only the environment writes, their text); None where there is none of it.

        A token that begins before the stop and reaches into it is kept, unless only space would be lost with it.
        """
        starts = [at for stop in self.settings.factory.stops if (at := text.find(stop)) >= 0]
        if not starts:
            return None
        before = text[: min(starts)].rstrip()
        kept = bisect.bisect_left(range(len(ids)), True, key=lambda n: self._decode(ids[:n]).startswith(before))
        return max(kept, 1), before  # a turn has a token to learn from

    # ---- the environment's turns

    def _reset(self, episodes: Sequence[_Episode]) -> None:
        for episode in episodes:
            episode.handle = self.host.start()
        calls: list[Call] = [(e.handle, "reset", (e.row,), {"seed": e.seed}) for e in episodes if e.handle is not None]
        for episode, result in zip(episodes, self.host.call_all(calls), strict=True):
            if isinstance(result, Failure):
                # There is no conversation yet that could show the error: without an environment, answer at once.
                self._fail(episode, replace(result, dead=True), room=0)
                continue
            opening = as_messages(result)
            prompt = episode.row.get("prompt")
            if opening and (isinstance(prompt, str) or prompt is None or list(prompt[-len(opening) :]) != opening):
                raise EnvironmentFailure(
                    f"row {episode.row.get('id')}: environment {self.settings.factory.name}: reset returned "
                    f"{opening!r:.300}, which isn't the end of the prompt. Set opens = True in the class, and let it "
                    "depend on the row only"
                )

    def _step(self, episodes: Sequence[_Episode], max_tokens: int) -> None:
        """Let the environments answer; what they say is appended where the episode goes on."""
        calls: list[Call] = [(e.handle, "step", (e.action,), {}) for e in episodes if e.handle is not None]
        for episode, result in zip(episodes, self.host.call_all(calls), strict=True):
            if isinstance(result, Failure):
                self._fail(episode, result, max_tokens - len(episode.ids))
                continue
            if not isinstance(result, Step):
                raise EnvironmentFailure(
                    f"environment {self.settings.factory.name}: step returned {type(result).__name__}, not a Step"
                )
            if result.reward is not None:
                episode.reward = (episode.reward or 0.0) + float(result.reward)
            episode.info |= self._checked(result.info, episode.row)
            if result.message is not None:
                episode.messages[-1] = result.message
            if result.done:
                episode.over = True
            elif episode.turns >= self.settings.max_turns:
                episode.over = episode.truncated = True
            else:
                self._observe(episode, as_messages(result.observation), max_tokens - len(episode.ids))

    def _checked(self, info: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """An environment's info. Raises: EnvironmentFailure for names that are columns already: rewards would read
        what the environment says in place of what the data say."""
        taken = sorted(name for name in info if name in RESERVED or name in row)
        if taken:
            raise EnvironmentFailure(
                f"environment {self.settings.factory.name}: its info may not have the name {taken[0]!r}, which is a "
                "column of the data set or of the loop; call it otherwise"
            )
        return dict(info)

    def _observe(self, episode: _Episode, observation: list[Message], room: int) -> None:
        if not observation:
            raise EnvironmentFailure(
                f"environment {self.settings.factory.name}: step returned neither an observation nor done=True"
            )
        ended = bool(episode.ids) and episode.ids[-1] in self.end_token_ids
        ids = self.render(observation, plain=isinstance(episode.row.get("prompt"), str), ended=ended)
        if len(ids) >= room:  # no token would be left for an answer
            episode.over = episode.truncated = True
            return
        episode.append(ids, [0.0] * len(ids), sampled=False)
        episode.messages += observation

    def _fail(self, episode: _Episode, failure: Failure, room: int) -> None:
        """A call that failed, as `on_error` says. room: tokens that are left; 0 before the first turn."""
        name, row = self.settings.factory.name, episode.row.get("id")
        told = f"row {row}, turn {episode.turns}: environment {name}: {failure.message}"
        if self.settings.on_error == "stop":
            raise EnvironmentFailure(f"{told} (on_environment_error: stop; observe or mask would go on)")
        _log.warning("%s (on_environment_error: %s)", told, self.settings.on_error)
        episode.info |= {"environment_error": failure.message}
        if failure.dead and episode.handle is not None:
            episode.handle.close()
            episode.handle = None
        if self.settings.on_error == "mask":
            episode.failed, episode.over = failure.message, True
        elif episode.turns >= self.settings.max_turns and episode.handle is not None:
            episode.over = episode.truncated = True
        elif room:
            self._observe(episode, [{"role": "user", "content": f"Error: {failure.message}"}], room)


def _continued(episode: _Episode, n: int) -> Request:
    """The request for an episode's next turn: the prompt, what followed it, and the prompt's own pictures."""
    request = episode.request
    visual = None if request.visual is None else continued_visual(request.visual, episode.ids)
    return replace(request, prompt_ids=[*request.prompt_ids, *episode.ids], n=n, visual=visual)


def continued_visual(visual: VisualPrompt, ids: Sequence[int]) -> VisualPrompt:
    """A visual prompt with tokens of text behind it; per-token inputs are 0 there, as on completions.

    Args: ids: without a placeholder among them.
    """
    inputs = {}
    for name, tensor in visual.inputs.items():
        per_token = tuple(tensor.shape) == (1, len(visual.ids))
        inputs[name] = _padded(tensor, len(ids)) if per_token else tensor
    return VisualPrompt(
        [*visual.ids, *ids], [*visual.engine_ids, *ids] if visual.engine_ids else [], visual.images, inputs
    )


def _padded(tensor: Any, n: int) -> Any:
    import torch

    return torch.nn.functional.pad(tensor, (0, n))
