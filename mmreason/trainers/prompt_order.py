"""Which problems a rollout asks: the rows in shuffled epochs, or a selection of them by how often they were solved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mmreason.trainers.arguments import PolicyConfig
from mmreason.trainers.rewarding import Rewarder
from mmreason.trainers.selection import PromptSelection, SelectionOptions
from mmreason.trainers.value_tracker import ValueTracker
from mmreason.types import ConfigError


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


class PromptStream:
    """The rows that are asked, one group each, the same on all processes.

    Args:
        order: of the rows where nothing is selected. selection: chooses among them by what was observed, or None.
        passes: (N, R) rewards → (N,), how far each completion solved its problem.

    Attributes: drawn: groups that were asked since the run began. Without a selection it is all there is to remember.
    """

    def __init__(
        self,
        order: PromptOrder,
        selection: PromptSelection | None = None,
        passes: Callable[[Tensor], Tensor] = lambda per_func: per_func.nansum(1),
    ) -> None:
        self.order, self.selection, self.passes, self.drawn = order, selection, passes, 0

    def draw(self, n: int) -> list[int]:
        """The next n rows."""
        if self.selection is None:
            rows = [self.order[self.drawn + i] for i in range(n)]
        else:
            rows = self.selection.draw(n, self.drawn)
        self.drawn += n
        return rows

    def observe(self, rows: Sequence[int], per_func: Tensor) -> None:
        """Tell how the completions of a draw did. Args: rows: N. per_func: (N, R) their rewards, of all processes."""
        if self.selection is not None:
            self.selection.observe(rows, self.passes(per_func).tolist())

    def metrics(self) -> dict[str, float]:
        """What metrics.jsonl tells of the selection."""
        return {} if self.selection is None else self.selection.metrics()

    def state_dict(self) -> dict[str, Any]:
        """See mmreason.trainers.state.Stateful."""
        kept = {} if self.selection is None else self.selection.state_dict()
        return {"drawn": self.drawn, "selection": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.drawn = int(state["drawn"])
        if self.selection is not None:
            self.selection.load_state_dict(state["selection"])


def open_prompts(args: PolicyConfig, dataset: Any, rewarder: Rewarder, tracker: ValueTracker | None) -> PromptStream:
    """The prompts of a run, as its options have it. tracker: SPO's, by whose values `priority` goes.

    Raises: ConfigError for a block, a reward or a column that can't be used.
    """
    order = PromptOrder(len(dataset), args.seed, args.shuffle_dataset)
    if not args.prompt_selection:
        return PromptStream(order)
    options = SelectionOptions.of(args.prompt_selection)
    selection = PromptSelection(
        options,
        len(dataset),
        args.seed,
        args.shuffle_dataset,
        difficulty=None if options.difficulty is None else _numbers(dataset, options.difficulty),
        value=None if tracker is None else tracker.value,
    )
    reward = options.reward or ("accuracy" if "accuracy_reward" in rewarder.names else None)
    return PromptStream(order, selection, rewarder.values("prompt_selection: reward", reward))


def _numbers(dataset: Any, column: str) -> list[float]:
    """A column of numbers; one of the rows' `meta` where the set has no such column."""
    if column in dataset.column_names:
        values = dataset[column]
    elif "meta" in dataset.column_names and column in (dataset[0]["meta"] or ()):
        values = [(meta or {}).get(column) for meta in dataset["meta"]]
    else:
        raise ConfigError(
            f"prompt_selection: difficulty: the training rows have no column {column!r}, nor one of that name in meta; "
            f"there are {', '.join(dataset.column_names)}"
        )
    numbers = []
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ConfigError(f"prompt_selection: difficulty: row {number} has {column}={value!r}, which is no number")
        numbers.append(float(value))
    return numbers
