"""Run a script that trains a policy, with a loss that is NaN in one step, on the last of its processes only.

python tests/recipes/nan_at.py STEP SCRIPT [ARGUMENTS …]
"""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path
from typing import Any

from mmreason.trainers.policy import PolicyTrainer

if __name__ == "__main__":
    step, script, *arguments = sys.argv[1:]
    real = PolicyTrainer.loss

    def loss(trainer: PolicyTrainer, *inputs: Any, **named: Any) -> Any:
        value = real(trainer, *inputs, **named)
        accelerator = trainer.accelerator
        here = trainer.state.step == int(step) - 1 and accelerator.process_index == accelerator.num_processes - 1
        return value * math.nan if here else value

    PolicyTrainer.loss = loss  # type: ignore[method-assign]
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
