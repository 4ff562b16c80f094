"""The reward of a trained reward model: completions are written anew with its own chat template and scored."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from mmreason.rewards.text import completion_text
from mmreason.types import ConfigError, DataError

Steps = Literal["min", "mean", "product", "last"]
# What a completion can do to rendering, as `DataError.reason` calls it.
_UNREADABLE = ("template", "empty_turn", "no_loss", "image_count", "bad_messages", "null_bytes", "bad_unicode")


def reward_model_reward(
    completions: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    images: Sequence[Any] | None = None,
    tools: Sequence[Any] | None = None,
    *,
    path: str,
    batch_size: int = 16,
    max_length: int | None = None,
    sigmoid: bool | None = None,
    steps: str = "min",
    unreadable: float | None = None,
    scale: float = 1.0,
    dtype: str = "float32",
    device: str | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """What a reward model of `recipes/reward_model.py`, or a sequence classifier with one label, says of a completion.

    The policy's tokens play no part: prompt and completion are rendered as text with the reward model's own tokenizer,
    chat template and image processor, so the two may be of different families.

    Args:
        completions: N completions, strings or messages. prompts: N, messages or texts.
        images, tools: N cells of the data's columns, where there are any.
        path: folder (a run's `final/`) or hub id of the reward model.
        batch_size: sequences per forward pass.
        max_length: tokens that are read at most; a longer one is unreadable. None: the model's own limit.
        sigmoid: give probabilities. None: of outcome and process heads, whose numbers are log-odds.
        steps: of a process head, how the lines' probabilities become one reward: min, mean, product or last.
        unreadable: the reward of a completion that is empty, too long, or written with tokens that stand for images,
            null bytes or half characters.
            None leaves it out.
        scale: what rewards are multiplied by.
        dtype: of the model's weights. device: where it runs; None: this process's GPU, or the CPU.

    Raises: ConfigError: no reward model at `path`, wrong parameters, or images that it can't see.
    """
    if steps not in get_args(Steps) or batch_size < 1 or not math.isfinite(scale):
        raise ConfigError(
            f"reward_model: steps={steps!r} is one of {', '.join(get_args(Steps))}; batch_size={batch_size} is at "
            f"least 1; scale={scale} is finite"
        )
    if not completions:  # asked before training, whether the parameters can be
        _check_path(path)
        return []
    if prompts is None:
        raise ConfigError("reward_model: it reads a completion behind its prompt, and no prompts were given")
    judge = loaded(path, dtype, device)
    told = [_cells(column, len(completions)) for column in (images, tools)]
    rendered = [
        judge.render(prompt, completion, pictures, schemas, max_length)
        for prompt, completion, pictures, schemas in zip(prompts, completions, *told, strict=True)
    ]
    values = judge.values([one for one in rendered if one is not None], batch_size)
    odds = judge.head != "preference" if sigmoid is None else sigmoid
    found = iter(values)
    rewards = [None if one is None else scale * _one(next(found), odds, steps) for one in rendered]
    _log(kwargs, rewards)
    return [unreadable if reward is None else reward for reward in rewards]


def _cells(column: Sequence[Any] | None, n: int) -> Sequence[Any]:
    return [None] * n if column is None else column


def _check_path(path: str) -> None:
    from mmreason.models.reward import is_reward_model

    if not is_reward_model(path):
        what = "is no reward model" if Path(path).is_dir() else "is no folder with a reward model"
        raise ConfigError(
            f"reward_model: path={path!r} {what}: name the final/ folder of a run of recipes/reward_model.py, or a "
            "sequence classifier with one label"
        )


def _one(values: Sequence[float], sigmoid: bool, steps: str) -> float:
    found = [1 / (1 + math.exp(-min(max(value, -700.0), 700.0))) for value in values] if sigmoid else list(values)
    if steps == "last":
        return found[-1]
    if steps == "mean":
        return sum(found) / len(found)
    return math.prod(found) if steps == "product" else min(found)


def _log(kwargs: Mapping[str, Any], rewards: Sequence[float | None]) -> None:
    log_metric: Callable[[str, float], None] | None = kwargs.get("log_metric")
    if log_metric is not None:
        log_metric("reward_model/unreadable", sum(reward is None for reward in rewards) / len(rewards))


class LoadedRewardModel:
    """A reward model with its processor, ready to score texts.

    Attributes: head: see `mmreason.models.reward.Head`. limit: tokens that its positions allow; None: not said.
    """

    def __init__(self, path: str, dtype: str, device: str | None) -> None:
        import torch

        from mmreason.data.supervised_rendering import SupervisedRenderer
        from mmreason.models.loading import load_processor, whole_models
        from mmreason.models.reward import load_reward_model

        if device is None:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        with whole_models():
            model = load_reward_model(path, dtype=dtype, option="path")
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor = load_processor(_Source(path))
        self.renderer = SupervisedRenderer(self.processor)
        config = self.model.config
        self.head: str = config.head
        self.limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)

    def render(
        self, prompt: Any, completion: Any, images: Any, tools: Any, max_length: int | None
    ) -> tuple[Any, tuple[int, ...]] | None:
        """(the tokens, the places that are read) of a completion; None for one that can't be read."""
        text = completion_text(completion)
        if not text.strip():
            return None
        said: Any = text if isinstance(prompt, str) else list(completion)
        if isinstance(completion, str) and not isinstance(prompt, str):
            said = [{"role": "assistant", "content": completion}]
        example = {"id": "", "prompt": prompt, "completion": said, "images": images or [], "tools": tools}
        try:
            rendered = self.renderer.render(example)
            written, row = rendered.rows[-1]
            places: tuple[int, ...] = (len(row.ids) - 1,)
            if self.head == "process":
                places = self._line_ends(written, row, text)
        except DataError as error:
            if error.reason in _UNREADABLE:
                return None
            raise
        limits = [limit for limit in (max_length, self.limit) if limit is not None]
        return None if limits and len(row.ids) > min(limits) else (row, places)

    def _line_ends(self, written: Any, row: Any, text: str) -> tuple[int, ...]:
        from mmreason.data.step_ends import step_ends

        return step_ends(written, row, [line for line in text.splitlines() if line.strip()], self.renderer)

    def values(self, rows: Sequence[tuple[Any, tuple[int, ...]]], batch_size: int) -> list[list[float]]:
        """What the head says at each row's places."""
        import torch

        from mmreason.data.collate import collate_rows

        weight = next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())
        tokenizer = self.renderer.tokenizer
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0].ids))
        found: dict[int, list[float]] = {}
        for start in range(0, len(order), batch_size):
            own = order[start : start + batch_size]
            batch = collate_rows([rows[i][0] for i in own], tokenizer.pad_token_id, visual_dtype=weight.dtype)
            for name in ("labels", "loss_weights", "row_numbers"):
                del batch[name]
            widest = max(len(rows[i][1]) for i in own)
            batch["places"] = torch.tensor([[*rows[i][1], *[0] * (widest - len(rows[i][1]))] for i in own])
            with torch.no_grad():
                logits = self.model(**{name: value.to(weight.device) for name, value in batch.items()}).logits
            found |= {i: row[: len(rows[i][1])] for i, row in zip(own, logits.tolist(), strict=True)}
        return [found[i] for i in range(len(rows))]


class _Source:
    """What `load_processor` reads of ModelArguments."""

    model_revision, trust_remote_code, chat_template_path = "main", False, None

    def __init__(self, path: str) -> None:
        self.model_name_or_path = path


@functools.lru_cache(maxsize=2)
def loaded(path: str, dtype: str = "float32", device: str | None = None) -> LoadedRewardModel:
    """A reward model, kept for the next call: rewards are called every step. Raises: ConfigError."""
    return LoadedRewardModel(path, dtype, device)
