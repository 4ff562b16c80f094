"""Which processes hold the same data: partners in tensor parallelism do, all others don't."""

from __future__ import annotations

from accelerate import Accelerator


def tensor_parallel_size(accelerator: Accelerator) -> int:
    """Processes that hold one copy of the policy between them."""
    config = getattr(accelerator, "parallelism_config", None)
    return config.tp_size if config is not None and config.tp_enabled else 1


def data_rank(accelerator: Accelerator) -> int:
    """The same number on tensor-parallel partners, which must sample alike; different elsewhere."""
    return int(accelerator.process_index) // tensor_parallel_size(accelerator)
