"""vLLM's own class of composed models writes and scores what transformers does, before and after training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmreason.types import ConfigError

pytestmark = pytest.mark.slow
BOUND = 1e-4
# An engine for each takes most of a minute: one in every run of the tests, the others in `make soak`.
TOWERS = ["timm", *(pytest.param(case, marks=pytest.mark.soak) for case in ("open_clip", "hf", "fused"))]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Callable[[str], dict[str, Any]]:
    """What a script wrote about a case; each case runs once, in a process of its own."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("vllm_plugin")

    def run(case: str) -> dict[str, Any]:
        result = folder / f"{case}.json"
        arguments = ["tests.models.vllm_split"] if case == "split" else ["tests.models.vllm_composed", case]
        if not result.exists():
            done = subprocess.run(
                [sys.executable, "-m", *arguments, str(folder)],
                cwd=repo_root,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found

    return run


@pytest.mark.parametrize("case", TOWERS)
def test_greedy_text_equals_transformers(measured: Any, case: str) -> None:
    """8 prompts × no picture, one, three, and one in tiles; each tower with another projector and another decoder."""
    found = measured(case)["parity"]
    assert found["same"] == found["of"] == 32
    assert found["tokens"] > 200
    assert found["gap"] <= BOUND


@pytest.mark.parametrize("case", TOWERS)
def test_engine_and_trainer_agree_after_every_sync(measured: Any, case: str) -> None:
    """Four steps move all weights, the fifth those of the tower alone."""
    found = measured(case)["syncs"]
    assert min(found["stale"]) > 0.1, found
    assert len(found["fresh"]) == 5 and max(found["fresh"]) <= BOUND, found


def test_towers_with_buffers_and_with_other_names_in_files(measured: Any) -> None:
    """Batch norm's statistics, which a trainer doesn't send, and tables that no checkpoint holds outlive each sync."""
    found = measured("special")
    assert found["parity"]["same"] == found["parity"]["of"] == 8 and found["parity"]["gap"] <= BOUND
    assert min(found["syncs"]["stale"]) > 0.1 and max(found["syncs"]["fresh"]) <= BOUND, found


def test_the_image_token_is_never_written(measured: Any) -> None:
    """Though nobody asks vLLM to ban it, and log-probabilities are those of a trainer that masks it."""
    for case in ("timm", "open_clip"):
        found = measured(case)["bias"]
        assert found["wanted"] > 0.5, "it is not likely enough: this proves nothing"
        assert found["sampled"] == found["greedy"] == 0 and found["tokens"] > 200, found
        assert found["gap"] <= BOUND


def test_prefix_cache_knows_pictures_apart(measured: Any) -> None:
    found = measured("fused")["prefix_cache"]
    first, same, other, again = found["cached"]
    assert first == other == 0 and same == again > 0, found
    answers = found["answers"]
    assert answers[0] == answers[1] == answers[3] != answers[2]
    assert found["gap"] <= BOUND


def test_split_between_processes_and_read_in_pieces(measured: Any) -> None:
    """Tensor parallelism over two processes, and prompts of which a step reads a part, also of a picture."""
    from tests.models.vllm_split import PIECE

    found = measured("split")
    assert found["same"] == [True] * 4 and found["gap"] <= BOUND
    assert max(found["prompts"]) > 4 * PIECE


def test_without_pictures_the_tower_is_left_out(measured: Any) -> None:
    found = measured("text_only")
    assert found["parity"]["same"] == found["parity"]["of"] and found["parity"]["gap"] <= BOUND
    assert found["syncs"]["stale"][0] > 0.1 and max(found["syncs"]["fresh"]) <= BOUND, found


def test_adapters_without_a_place_are_refused() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from mmreason.models.vllm_adapters import AdapterNames

    decoder = "language_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tower = "vision_tower.towers.0.encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    projector = "projector.layers.0.lora_B.weight"
    for with_connector in (False, True):
        names = AdapterNames(with_connector).get_rename_mapper()
        assert names.map_name(decoder) == decoder
        assert names.map_name("vision_tower.towers.0.encoder.norm.weight") is not None
        with pytest.raises(ConfigError, match="vision tower.*merge it"):
            names.map_name(tower)
    assert names.map_name(projector) == projector
    with pytest.raises(ConfigError, match="--enable-tower-connector-lora"):
        AdapterNames(with_connector=False).map_name(projector)


def test_a_decoder_without_a_class_in_vllm_is_refused() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from mmreason.models.vllm_model import check_decoder

    check_decoder(["Qwen2ForCausalLM"], "here")
    with pytest.raises(ConfigError, match="here: vLLM has no class .* BioGptForCausalLM.*use_vllm: false"):
        check_decoder(["BioGptForCausalLM"], "here")


def test_a_build_for_texts_goes_on_without_composed_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A warning where vLLM loads the plugin; colocating a composed model is refused with what is missing."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    import vllm.plugins
    from vllm import ModelRegistry

    from mmreason.models.configuration import MMReasonConfig
    from mmreason.models.vllm_plugin import ARCHITECTURE, register
    from mmreason.rollout.vllm_models import model_settings

    register()
    register()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()
    monkeypatch.delitem(ModelRegistry.models, ARCHITECTURE)
    monkeypatch.setattr(vllm.plugins, "plugins_loaded", True)
    monkeypatch.setitem(sys.modules, "vllm.multimodal.processing", None)  # makes its import fail
    warned: list[str] = []
    monkeypatch.setattr("logging.Logger.warning", lambda self, text, *values: warned.append(text % values))
    MMReasonConfig(architectures=[ARCHITECTURE]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"{ARCHITECTURE}.*a vLLM for texts only.*VLLM_PLUGINS"):
        model_settings(str(tmp_path), 1, "auto", False)
    assert ARCHITECTURE not in ModelRegistry.get_supported_archs()
    assert "can't take images" in warned[0] and "install the full vllm" in warned[0]
