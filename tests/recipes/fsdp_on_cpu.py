"""Runs the GRPO recipe under real FSDP2 on CPU processes (gloo), for test_fsdp.py.

Accelerate builds its FSDP plugin only where the processes are not CPU processes to it. So the distributed state is made
here, before the recipe does it, and told that it is an accelerator's: all that follows (fully_shard, DTensors, sharded
checkpoints) is what runs on GPUs.
"""

from __future__ import annotations

import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from tests.recipes.launch import RECIPE

if __name__ == "__main__":
    state = PartialState(cpu=True)
    state.distributed_type = DistributedType.MULTI_GPU
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.argv[0] = str(RECIPE)
    runpy.run_path(str(RECIPE), run_name="__main__")
