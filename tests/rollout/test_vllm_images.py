"""vLLM with images, colocated on the CPU: it writes and scores what transformers does, before and after training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny_vlms import TINY_VLMS

BOUND = 1e-4
# An engine for each takes most of a minute: two in every run of the tests (one with M-RoPE), the others in `make soak`.
OFTEN = ("llava", "qwen2_5_vl")
KINDS = [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.soak) for kind in TINY_VLMS]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Callable[[str], dict[str, Any]]:
    """Results of vllm_images.py for a kind of model; each runs once, in a process of its own."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("vllm_images")

    def run(kind: str) -> dict[str, Any]:
        result = folder / f"{kind}.json"
        if not result.exists():
            done = subprocess.run(
                [sys.executable, "-m", "tests.rollout.vllm_images", kind, str(folder)],
                cwd=repo_root,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_equals_transformers(measured: Any, kind: str) -> None:
    """8 prompts × no, one and three images."""
    found = measured(kind)["parity"]
    assert found["same"] == found["of"] == 24
    assert found["tokens"] > 150
    assert found["gap"] <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_trainer_agree_after_every_sync(measured: Any, kind: str) -> None:
    """Twice all weights are trained, then those of the vision tower alone, on images that the engine has seen."""
    found = measured(kind)["syncs"]
    assert min(found["stale"]) > 0.1, found
    assert len(found["fresh"]) == 3 and max(found["fresh"]) <= BOUND, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_image_token_is_never_written(measured: Any, kind: str) -> None:
    found = measured(kind)["ban"]
    cases = [f"{where} {how}" for where in ("pictured", "plain") for how in ("sampled", "greedy")]
    for case in cases:
        assert found[f"free {case}"] > 10, "the model doesn't want it: this proves nothing"
        assert found[f"banned {case}"] == 0
    assert found["gap"] <= BOUND


@pytest.mark.slow
def test_features_of_the_old_tower_must_be_forgotten(measured: Any) -> None:
    """Should this fail, `reload_weights` resets the scheduler's side too, and `reset_encoder_cache` can go."""
    assert "Encoder cache miss" in measured("qwen2_5_vl")["without_reset"]


@pytest.mark.slow
def test_a_prompt_that_vllm_reads_differently_is_refused(measured: Any) -> None:
    found = measured("qwen2_5_vl")["refusals"]
    assert found["expanded twice"].startswith("ConfigError: vLLM read a prompt of 33 tokens where the trainer has 30")
    assert "first difference is at position" in found["expanded twice"]
    assert "use_vllm: false" in found["expanded twice"]
    assert "4 image(s)" in found["too many"] and "at most 3" in found["too many"]
    assert found["still works"] == "nothing was wrong"


@pytest.mark.slow
def test_models_that_vllm_cannot_give_images_or_cannot_share_a_process_with(
    tiny_checkpoint: str, tmp_path: Path
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from accelerate import Accelerator
    from transformers import AutoConfig

    from mmreason.rollout.vllm import VLLMColocateEngine
    from mmreason.types import ConfigError

    def start(checkpoint: str, **settings: Any) -> None:
        VLLMColocateEngine(
            None,
            Accelerator(cpu=True),
            checkpoint,
            dtype=torch.float32,
            eos_token_ids=[1],
            max_model_length=64,
            **settings,
        )

    with pytest.raises(ConfigError, match=r"text-only model \(qwen2\), but prompts bring up to 2 image"):
        start(tiny_checkpoint, max_images_per_prompt=2)
    with pytest.raises(ConfigError, match="Transformers backend.*use_vllm: false"):
        start(tiny_checkpoint, model_impl="transformers")
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    config.architectures = ["SomebodysOwnModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vLLM would run SomebodysOwnModel with its Transformers backend"):
        start(str(tmp_path))


@pytest.mark.parametrize(
    ("read", "where"),
    [([1, 2, 3], "position 3: the end instead of 4"), ([1, 9, 3, 4, 5], "position 1: 9 instead of 2")],
)
def test_the_first_difference_is_named(read: list[int], where: str) -> None:
    from mmreason.rollout.vllm_models import check_prompt
    from mmreason.types import ConfigError

    check_prompt([1, 2, 3, 4], (1, 2, 3, 4), "folder")
    with pytest.raises(ConfigError, match=f"{len(read)} tokens where the trainer has 4.*{where}"):
        check_prompt([1, 2, 3, 4], read, "folder")


def space(processor: Any) -> list[int]:
    """The token of a space, which is written as another character: its own text does not lead back to it."""
    ids: list[int] = processor.tokenizer.encode(" ", add_special_tokens=False)
    return ids


def server_engine(processor: Any, sent: list[Any]) -> Any:
    """A server needs NCCL, so a recorder stands in for TRL's client: it shows what it is asked."""
    from mmreason.rollout.vllm import VLLMServerEngine, _bans

    def generate(prompts: Any, images: Any, num_generations: int) -> Any:
        sent.append((prompts, images, num_generations))
        return prompts, [[7, 1] for _ in prompts], [[[-0.5], [-0.25]] for _ in prompts], None

    def post(url: str) -> Any:
        sent.append(url)
        return SimpleNamespace(raise_for_status=lambda: None)

    engine = object.__new__(VLLMServerEngine)
    engine.processing_class = processor
    engine.accelerator = SimpleNamespace(is_main_process=True)
    engine.extra = {"stop_token_ids": [1], **_bans([processor.image_token_id, *space(processor)], processor.tokenizer)}
    engine.backend = SimpleNamespace(
        generate=generate,
        sync_weights=lambda: sent.append("weights"),
        vllm_client=SimpleNamespace(base_url="http://host", session=SimpleNamespace(post=post)),
    )
    return engine


def test_the_server_gets_images_and_bans(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    from mmreason.rollout.types import Request, Sampling
    from mmreason.types import ConfigError
    from tests.rollout.vllm_images import make_request, picture
    from tests.tiny_vlms import tiny_vlm

    processor = AutoProcessor.from_pretrained(tiny_vlm("qwen2_5_vl", tmp_path))
    sent: list[Any] = []
    engine = server_engine(processor, sent)
    seen = make_request(processor, "What?", [picture((56, 56), 0), picture((56, 56), 1)])
    unseen = make_request(processor, "What?", [])
    groups = engine.generate([Request(r.prompt_ids, 2, r.visual) for r in (seen, unseen)], Sampling(4), 0)
    prompts, images, n = sent.pop()
    assert seen.visual is not None
    assert prompts == [seen.visual.ids] * 2 + [unseen.prompt_ids] * 2
    assert images == [seen.visual.images] * 2 + [None] * 2 and n == 2
    assert [[c.token_ids for c in group] for group in groups] == [[[7, 1], [7, 1]]] * 2

    # exactly where the token's text leads back to it, else with the lowest bias
    assert engine.backend.generation_kwargs == {
        "stop_token_ids": [1],
        "bad_words": ["<|image_pad|>"],
        "logit_bias": dict.fromkeys(space(processor), -100.0),
    }

    engine.sync()
    assert sent == ["weights", "http://host/reset_encoder_cache"]

    # two images in one run of tokens, as LLaVA's template may place them
    joined = [token for token in seen.visual.ids if token == processor.image_token_id]
    with pytest.raises(ConfigError, match=r"2 image\(s\) has 1 separate run\(s\).*vllm_mode: colocate"):
        engine.generate([Request(joined, 2, seen.visual)], Sampling(4), 0)
