"""For scripts that tests run in several processes on the CPU: how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def run_in_several(main: Callable[[], None]) -> None:
    """Run `main` with all DDP models kept to the end: `mmreason.trainers.distributed.keep_until_exit` says why."""
    from torch.nn.parallel import DistributedDataParallel

    from mmreason.config import run_as_script

    made: list[Any] = []
    wrap = DistributedDataParallel.__init__

    def keep(model: Any, *args: Any, **kwargs: Any) -> None:
        made.append(model)
        wrap(model, *args, **kwargs)

    DistributedDataParallel.__init__ = keep  # type: ignore[method-assign]
    run_as_script(main)
