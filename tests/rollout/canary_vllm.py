"""What `test_canary.py` checks about a colocated vLLM engine; in a process of its own, as an engine marks it for life.

python -m tests.rollout.canary_vllm KIND FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmreason.rollout.canary_rows import CanaryRows
from mmreason.rollout.engines import end_token_ids
from tests.rollout.test_canary import Trial, problems
from tests.rollout.test_images import load


def main(kind: str, folder: Path) -> None:
    from accelerate import Accelerator

    from mmreason.rollout.vllm import VLLMColocateEngine

    vlm = load(kind, folder)
    trial = Trial(vlm, CanaryRows(problems(12), vlm.processor, samples=8, seed=0))
    engine = VLLMColocateEngine(
        vlm.model,
        Accelerator(cpu=True),
        str(folder),
        dtype=torch.float32,
        eos_token_ids=end_token_ids(vlm.model, vlm.processor.tokenizer),
        banned_token_ids=vlm.banned,
        max_model_length=trial.rows.longest_prompt() + 4,
        max_images_per_prompt=2,
    )
    engine.sync()
    prompt = engine._prompt

    def try_with(change: Any) -> dict[str, Any]:
        """The report where each prompt's pictures go through `change` on their way to vLLM."""

        def changed(request: Any) -> dict[str, Any]:
            made = prompt(request)
            made["multi_modal_data"] = {"image": [change(image) for image in made["multi_modal_data"]["image"]]}
            return made

        engine._prompt = changed  # type: ignore[method-assign]
        report = trial.run(engines={engine.name: engine})
        found: dict[str, Any] = {path.name: [path.status, path.verdict] for path in report.paths}
        return found | {"difference": report.paths[1].gap_max}

    found = {
        "right": try_with(lambda image: image),
        "blank": try_with(lambda image: Image.new("RGB", image.size)),
        "other": try_with(lambda image: image.transpose(Image.Transpose.ROTATE_180)),
    }
    engine.close()
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
