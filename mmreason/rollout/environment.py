"""What a policy acts in. A user writes one small class:

    class Guess(Environment):
        def reset(self, row, *, seed):
            self.secret = int(row["answer"])

        def step(self, action):
            if action.strip() == str(self.secret):
                return Step(reward=1.0, done=True)
            return Step("higher" if action.strip() < str(self.secret) else "lower")

Each sample has an instance of its own, so state is plain attributes. Names are gymnasium's (arXiv:2407.17032). This
module imports no torch: environments run in processes of their own (see `isolated`), which start in milliseconds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mmreason._functions import did_you_mean, find_object
from mmreason.types import ConfigError, Message, MMReasonError

Observation = str | Sequence[Message]
"""What an environment says: a text (a user's message), or messages of roles such as "tool" and "user"."""


# fmt: off
RESERVED = frozenset({
    "rollout", "step", "group", "id", "prompt", "prompts", "completion", "completions", "completion_ids",
    "completion_tokens", "completion_length", "prompt_length", "answer", "truncated", "reward", "advantage",
    "sampling_logps", "images", "messages", "verdict", "extracted", "trainer_state", "log_extra", "log_metric",
    "environment_turns", "environment_reward", "environment_error",
})
# fmt: on
"""Columns of the loop; no `info` of an environment may go by one of these names, or by a data set's column's."""


class EnvironmentFailure(MMReasonError):  # noqa: N818  (EnvironmentError is a builtin)
    """An environment that failed where `on_environment_error: stop` asks for an end, or that breaks its contract."""


@dataclass(frozen=True, slots=True)
class Step:
    """What follows an action.

    Attributes:
        observation: what the policy sees next; nothing of it is shown once the episode is done.
        reward: of this action, None for none. An episode's reward is their sum; the reward function `environment` gives
            it to the loop.
        done: the episode is over.
        info: numbers and texts about the episode so far, by name; later ones replace earlier ones of the same name.
            Reward functions get them as columns, so names of the data set's and the loop's columns are refused; the
            rollouts' parquet has them as info/NAME, metrics.jsonl the means of numbers and truth values as
            environment/info/NAME.
        message: the action as a message (with `tool_calls`, …), where it is more than its text.
    """

    observation: Observation = ()
    reward: float | None = None
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    message: Message | None = None


class Environment:
    """One episode of one sample; `reset` begins it, `step` answers each turn of the policy until it is done.

    Attributes:
        isolated: run in a process of its own, which is killed when a call takes too long. False: in a thread of the
            trainer's process, for environments that can't hang (a thread can't be stopped: it would be left behind).
        opens: `reset` returns an observation, which stands at the end of the prompt.
    """

    isolated: ClassVar[bool] = True
    opens: ClassVar[bool] = False

    def reset(self, row: Mapping[str, Any], *, seed: int) -> Observation | None:
        """Begin the episode of a row of the data set.

        What it returns (where `opens`) stands at the end of the prompt, so it may depend on the row only; what differs
        between the samples of a row comes later, from `seed`. The same row and seed give the same episode.
        """
        return None

    def step(self, action: str) -> Step:
        """Answer a turn of the policy. action: its text, without special tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no step(action)")

    def close(self) -> None:
        """The episode is over, or was given up; not called for a process that was killed. What it raises is lost, and a
        process in which it hangs is ended."""


@dataclass(frozen=True)
class EnvironmentFactory:
    """Makes an environment for each sample.

    Attributes:
        make: gives a new instance. For isolated environments it can be pickled: a class or function that a module or
            file names, with its arguments.
        name: for messages.
        isolated, opens: see `Environment`.
        tools: schemas of which the chat template shall tell. instructions: what a system message tells.
        at_once: calls that may run at the same time, because more would wait for one another and that counts against
            their deadlines. None: as many as the host runs.
        call_limit_s: wall seconds after which a call of a tool ends by itself; None where nothing does.
        stops: texts that only the environment writes. A sampled turn is cut before the first of them.
    """

    make: Callable[[], Environment]
    name: str
    isolated: bool = True
    opens: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    instructions: str = ""
    at_once: int | None = None
    call_limit_s: float | None = None
    stops: tuple[str, ...] = ()


class _Named:
    """Makes environments of the class that a text names. Sent to another process, it looks the class up again there:
    the module of a file (`path/to/file.py:Class`) can't be imported by its name."""

    def __init__(self, entry: str, params: Mapping[str, Any]) -> None:
        file, _, attribute = entry.rpartition(":")
        self.entry = f"{Path(file).expanduser().resolve()}:{attribute}" if file.endswith(".py") else entry
        self.params = dict(params)
        self.cls: type[Environment] = find_object(self.entry, "environment", ())

    def __getstate__(self) -> tuple[str, dict[str, Any]]:
        return self.entry, self.params

    def __setstate__(self, state: tuple[str, dict[str, Any]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __call__(self) -> Environment:
        return self.cls(**self.params)


def load_environment(entry: str | Mapping[str, Any] | type[Environment] | EnvironmentFactory) -> EnvironmentFactory:
    """A factory from what a configuration says.

    Args:
        entry: a dotted path "my_package.module.Class", a file "path/to/file.py:Class", a mapping {"name": one of those,
            **parameters}, a class, or a factory, which is given back.

    Raises: ConfigError: no such class, one that is no environment, an unknown or missing parameter.
    """
    if isinstance(entry, EnvironmentFactory):
        return entry
    params: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        params = dict(entry)
        if "name" not in params:
            raise ConfigError(f"the environment entry {dict(entry)!r} has no 'name'")
        entry = params.pop("name")
    label = entry if isinstance(entry, str) else getattr(entry, "__name__", repr(entry))
    cls: Any = find_object(entry, "environment", ()) if isinstance(entry, str) else entry
    if not (inspect.isclass(cls) and issubclass(cls, Environment)):
        raise ConfigError(
            f"environment {label!r} must be a class that extends mmreason.rollout.environment.Environment"
        )
    known = inspect.signature(cls).parameters
    for name in params:
        if name not in known:
            has = ", ".join(known) or "none"
            raise ConfigError(
                f"environment {label!r} has no parameter {name!r}; it has: {has}.{did_you_mean(name, known)}"
            )
    required = [name for name, p in known.items() if p.default is p.empty and "VAR_" not in p.kind.name]
    missing = [name for name in required if name not in params]
    if missing:
        raise ConfigError(f"environment {label!r} needs {', '.join(missing)}: {{name: {label}, {missing[0]}: ...}}")
    make = _Named(entry, params) if isinstance(entry, str) else functools.partial(cls, **params)
    return EnvironmentFactory(make, str(label), cls.isolated, cls.opens)


def as_messages(observation: Observation | None) -> list[Message]:
    """An observation as messages. Raises: EnvironmentFailure for what is none."""
    if not observation:
        return []
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}]
    messages = list(observation)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise EnvironmentFailure(
                f"an observation is a text or messages with a text as content, not {message!r:.200}"
            )
        if message.get("role") in (None, "assistant"):
            raise EnvironmentFailure(
                f"an observation's role is user, tool …, not {message.get('role')!r}: it isn't the policy"
            )
    return messages


def prepare_prompts(dataset: Any, factory: EnvironmentFactory, limit_s: float) -> Any:
    """The rows with prompts as the environment wants them. Call it before prompts are tokenized.

    Its instructions become (part of) the system message, its tools the column `tools`, which chat templates are given,
    and what `reset` returns stands at the end.

    Args: dataset: rows with `id` and `prompt`. limit_s: wall seconds of one `reset`.

    Raises: DataError naming the row where `reset` fails; ConfigError for a prompt of plain text that would need any.
    """
    opened: list[list[Message]] = [[]] * len(dataset)
    if factory.opens:
        from mmreason.rollout.environment_host import openings

        opened = openings(factory, dataset, limit_s)
    if factory.instructions or any(opened):
        prompts = []
        for row, opening in zip(dataset.select_columns(["id", "prompt"]), opened, strict=True):
            if isinstance(row["prompt"], str):
                raise ConfigError(f"row {row['id']}: {factory.name} needs prompts of messages: chat: true")
            prompts.append([*_instructed(row["prompt"], factory.instructions), *opening])
        dataset = _with_column(dataset.remove_columns("prompt"), "prompt", prompts)
    if factory.tools and "tools" not in dataset.column_names:
        dataset = _with_column(dataset, "tools", [list(factory.tools)] * len(dataset))
    return dataset


def _with_column(dataset: Any, name: str, values: list[Any]) -> Any:
    from datasets import Dataset, concatenate_datasets

    from mmreason.data.schema import example_features

    return concatenate_datasets([dataset, Dataset.from_dict({name: values}, features=example_features([name]))], axis=1)


def _instructed(prompt: Sequence[Message], instructions: str) -> list[Message]:
    if not instructions:
        return list(prompt)
    if prompt and prompt[0]["role"] == "system":
        return [{"role": "system", "content": f"{prompt[0]['content']}\n\n{instructions}"}, *prompt[1:]]
    return [{"role": "system", "content": instructions}, *prompt]
