"""A composed model in vLLM, split between processes and read in pieces, against transformers; writes JSON.

python -m tests.models.vllm_split FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.models.vllm_composed import save
from tests.rollout.vllm_images import TOKENS, make_request, picture

PIECE = 72  # tokens of a step: fewer than three pictures of 64 take


def main(folder: Path) -> None:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    checkpoint = save("timm", folder)
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    text = "Count the squares, then the circles, then the triangles, and add them up. "
    requests = [
        make_request(processor, text * times, [picture((96, 32), 10 * times + j) for j in range(images)])
        for times, images in ((1, 0), (1, 1), (2, 3), (3, 2))
    ]
    llm = LLM(
        checkpoint,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        max_num_batched_tokens=PIECE,
        tensor_parallel_size=2,
        distributed_executor_backend="mp",
        limit_mm_per_prompt={"image": 3},
        generation_config="vllm",
    )
    prompts: list[Any] = [
        {"prompt_token_ids": r.visual.engine_ids, "multi_modal_data": {"image": r.visual.images}}
        if r.visual
        else {"prompt_token_ids": r.prompt_ids}
        for r in requests
    ]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=0), use_tqdm=False)
    same, gaps, lengths = [], [], []
    for request, output in zip(requests, outputs, strict=True):
        ids = torch.tensor([request.prompt_ids])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
                suppress_tokens=[processor.image_token_id],
                return_dict_in_generate=True,
                output_scores=True,
                **(request.visual.inputs if request.visual else {}),
            )
        theirs, ours = out.sequences[0, ids.shape[1] :].tolist(), output.outputs[0]
        same.append(theirs == list(ours.token_ids))
        lengths.append(len(request.prompt_ids))
        for score, token, given in zip(out.scores, theirs, ours.logprobs, strict=False):
            gaps.append(abs(float(score[0].log_softmax(-1)[token]) - given[token].logprob))
    found = {"same": same, "gap": max(gaps), "prompts": lengths}
    (folder / "split.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
