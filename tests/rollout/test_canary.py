"""The canary passes models that see, and finds the path on which pictures are lost."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from mmreason.data.images import image_digest
from mmreason.data.schema import RL_COLUMNS, to_dataset
from mmreason.rollout.canary import TRAINING, PathRecord, observe
from mmreason.rollout.canary_report import CanaryReport, change, judge_paths
from mmreason.rollout.canary_rows import CanaryRows
from mmreason.rollout.scoring import completion_logps
from mmreason.types import DataError
from tests.pictures import ask, cell, picture
from tests.rollout.test_images import VLM, load

KINDS = ["llava", "qwen2_5_vl"]  # absolute positions; M-RoPE, and as many image tokens as the picture is large


def problems(count: int) -> Dataset:
    """Rows with one or two pictures of different sizes; each fourth is text."""
    rows = []
    for i in range(count):
        images = 0 if i % 4 == 3 else 1 + i % 2
        rows.append(
            {
                "prompt": ask(f"What is {i}?", images),
                "images": [cell(picture(30 + 7 * (i % 5), 60 - 5 * (i % 4), 10 * i + j)) for j in range(images)],
                "answer": str(100 + i),
                "id": f"p{i}",
                "source": "test",
                "meta": {},
            }
        )
    return to_dataset(rows, (*RL_COLUMNS, "images"))  # type: ignore[arg-type]


@dataclass
class Trial:
    vlm: VLM
    rows: CanaryRows
    max_tokens: int = 4

    def run(self, completion: str = "gold", engines: dict[str, Any] | None = None) -> CanaryReport:
        vlm = self.vlm
        records = observe(
            self.rows,
            lambda prompts, completions, visuals: completion_logps(
                vlm.model, prompts, completions, visuals=visuals, banned_token_ids=vlm.banned
            )[0],
            {"hf": vlm.engine(batch_size=4)} if engines is None else engines,
            max_tokens=self.max_tokens,
            batch_size=4,
            completion=completion,  # type: ignore[arg-type]
        )
        decode = functools.partial(vlm.processor.tokenizer.decode, skip_special_tokens=True)
        return judge_paths(self.rows, records, dtype="float32", gold=completion == "gold", decode=decode)


@pytest.fixture(scope="module", params=KINDS)
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    vlm = load(request.param, tmp_path_factory.mktemp(request.param))
    return Trial(vlm, CanaryRows(problems(12), vlm.processor, samples=8, seed=0))


def verdicts(report: CanaryReport) -> dict[str, tuple[str, str]]:
    return {path.name: (path.status, path.verdict) for path in report.paths}


# ---- the pictures


def test_blank_and_noise_leave_the_prompt_as_it_is(trial: Trial) -> None:
    for row in range(len(trial.rows)):
        true, blank, noise = (trial.rows.prompt(row, kind) for kind in ("true", "blank", "noise"))
        assert true.ids == blank.ids == noise.ids
        assert [p.size for p in true.images] == [p.size for p in blank.images] == [p.size for p in noise.images]
        assert all(p.getcolors() == [(p.width * p.height, (127, 127, 127))] for p in blank.images)
        for pictures in zip(true.images, blank.images, noise.images, strict=True):
            assert len(set(map(image_digest, pictures))) == 3


def test_shuffled_pictures_are_those_of_another_row(trial: Trial) -> None:
    rows = trial.rows
    used = []
    for row, partner in enumerate(rows.partners):
        assert partner is not None and partner != row
        mine, theirs = rows.prompt(row, "shuffled").images, rows.prompt(partner, "true").images
        assert [image_digest(p) for p in mine] == [image_digest(p) for p in theirs]
        assert len(mine) == len(rows.examples[row]["images"])
        used.append(partner)
    assert len(set(used)) == len(used)


def test_the_same_picture_is_no_other_one(trial: Trial) -> None:
    """Several questions about one picture, as most sets have them: it is swapped with none of them, or with none."""
    base = problems(4)
    same = [[cell(picture(30, 30, i // 2))] for i in range(3)] + [[]]
    rows = base.remove_columns("images").add_column("images", same, feature=base.features["images"])
    rows = rows.map(lambda row: {"prompt": ask("What?", len(row["images"]))})
    found = CanaryRows(rows, trial.vlm.processor, samples=9, seed=3)
    assert [example["id"] for example in found.examples] == ["p0", "p1", "p2"]  # the text row is none of them
    assert found.partners[:2] == [2, 2] and found.partners[2] in (0, 1)
    alone = CanaryRows(rows.select([0, 1]), trial.vlm.processor, samples=9, seed=3)
    assert alone.partners == [None, None]
    report = Trial(trial.vlm, alone).run(engines={})
    assert "2 of 2 rows keep their own pictures" in report.notes[0]
    assert report.paths[0].status == "warn" and "can't be said from 0 rows" in report.paths[0].verdict


def test_rows_are_drawn_by_the_seed(trial: Trial) -> None:
    drawn = [
        [e["id"] for e in CanaryRows(problems(24), trial.vlm.processor, samples=5, seed=seed).examples]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 5


def test_rows_without_pictures_are_refused(trial: Trial) -> None:
    with pytest.raises(DataError, match="no row of the dataset has an image"):
        CanaryRows(problems(12).select([3, 7]), trial.vlm.processor, samples=4, seed=0)


# ---- models that see, and planted bugs


def test_a_random_model_sees_but_gains_nothing(trial: Trial) -> None:
    report = trial.run()
    found = verdicts(report)
    assert found[TRAINING][0] == "warn" and "the true ones help no more than others" in found[TRAINING][1]
    assert found["hf"] == ("pass", "sees the images")
    for path in report.paths:
        assert path.reacting == path.n == 8 and path.gap_max < 1e-4 < path.reaction
    assert report.status == "warn"
    engine = report.paths[1]
    assert engine.accuracy is not None and engine.accuracy["true"].n == 8


def test_numbers_are_the_models_own(trial: Trial) -> None:
    """Row by row, through the model's forward alone."""
    vlm, rows = trial.vlm, trial.rows
    total = 0.0
    for row in range(len(rows)):
        visual, said = rows.prompt(row, "noise"), rows.gold(row)
        ids = torch.tensor([visual.ids + said])
        extra = {
            name: torch.cat([value, value.new_zeros(1, len(said))], 1) if value.shape == (1, len(visual.ids)) else value
            for name, value in visual.inputs.items()
        }
        with torch.no_grad():
            logits = vlm.model(input_ids=ids, **extra).logits[0, len(visual.ids) - 1 : -1].double()
        logits[:, vlm.banned] = -math.inf
        total += float(logits.log_softmax(-1)[torch.arange(len(said)), said].sum())
    assert trial.run(engines={}).paths[0].logp["noise"] == pytest.approx(total / len(rows), abs=1e-4)


def dropping(collate: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Every picture becomes zeros, as if its features were lost."""

    def collate_without(*args: Any, **kwargs: Any) -> dict[str, Any]:
        out = collate(*args, **kwargs)
        return {name: torch.zeros_like(value) if name == "pixel_values" else value for name, value in out.items()}

    return collate_without


def turned(collate: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The pictures are joined in reverse order: each goes to another row."""

    def collate_turned(*args: Any, **kwargs: Any) -> dict[str, Any]:
        out = collate(*args, **kwargs)
        return {name: value.flip(0) if name == "pixel_values" else value for name, value in out.items()}

    return collate_turned


@pytest.mark.parametrize(("module", "path"), [("scoring", TRAINING), ("hf", "hf")])
def test_pictures_lost_on_one_path(trial: Trial, monkeypatch: pytest.MonkeyPatch, module: str, path: str) -> None:
    """The verdict names that path, and leaves the other one as it was."""
    import mmreason.rollout.hf
    import mmreason.rollout.scoring

    broken = {"scoring": mmreason.rollout.scoring, "hf": mmreason.rollout.hf}[module]
    monkeypatch.setattr(broken, "collate_visual", dropping(broken.collate_visual))  # type: ignore[attr-defined]
    found = verdicts(trial.run())
    assert found[path][0] == "fail"
    assert found[path][1].startswith("images don't reach the model: 8 of 8 rows don't react")
    (other,) = set(found) - {path}
    assert found[other][0] != "fail" and ("sees the images" in found[other][1] or "images reach" in found[other][1])


@pytest.mark.parametrize(("module", "path", "says"), [
    ("scoring", TRAINING, "depend on its neighbours"), ("hf", "hf", "engine and training disagree"),
])  # fmt: skip
def test_pictures_of_other_rows_on_one_path(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, module: str, path: str, says: str
) -> None:
    import mmreason.rollout.hf
    import mmreason.rollout.scoring

    broken = {"scoring": mmreason.rollout.scoring, "hf": mmreason.rollout.hf}[module]
    monkeypatch.setattr(broken, "collate_visual", turned(broken.collate_visual))  # type: ignore[attr-defined]
    found = verdicts(trial.run())
    assert found[path][0] == "fail" and says in found[path][1]


def test_a_model_without_eyes(trial: Trial) -> None:
    """Its vision tower is given zeros, whatever the picture: no path reacts."""
    inner = trial.vlm.model.model
    tower = inner.visual if hasattr(inner, "visual") else inner.vision_tower

    def dark(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return torch.zeros_like(value) if floating else value

    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: (tuple(map(dark, args)), {name: dark(value) for name, value in kwargs.items()}),
        with_kwargs=True,
    )
    try:
        report = trial.run()
    finally:
        handle.remove()
    assert [path.status for path in report.paths] == ["fail", "fail"] and report.status == "fail"


def test_sampled_completions_say_nothing_about_help(trial: Trial) -> None:
    """They were drawn with the true pictures, so these make them likelier, whatever they show."""
    training = trial.run("sampled").paths[0]
    assert (training.status, training.verdict, training.gain) == ("pass", "sees the images", None)


# ---- the verdict's parts


def record(**kinds: list[tuple[int, float]]) -> PathRecord:
    return PathRecord(
        {kind: [token for token, _ in given] for kind, given in kinds.items()},
        {kind: [logp for _, logp in given] for kind, given in kinds.items()},
    )


def test_texts_are_compared_as_far_as_they_are_the_same() -> None:
    common = [(5, -1.0), (6, -0.5)]
    parted = record(true=[*common, (7, -0.25), (8, -9.0)], blank=[(5, -1.5), (6, -0.5), (9, -0.75), (3, -1.0)])
    assert change(parted, "true", "blank") == pytest.approx(0.5)
    tie = record(true=[*common, (7, -0.7)], blank=[*common, (9, -0.7000001), (3, -8.0)])
    assert change(tie, "true", "blank") == pytest.approx(1e-7)
    assert change(record(true=common, blank=common[:1]), "true", "blank") == 0.0


def test_the_report_can_be_written(trial: Trial) -> None:
    report = Trial(trial.vlm, CanaryRows(problems(12).select([0, 4, 1]), trial.vlm.processor, samples=9, seed=0)).run()
    assert math.isinf(report.paths[0].gain.low)  # type: ignore[union-attr]
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["paths"][0]["gain"]["low"] is None and written["status"] == "warn"
    assert 0 <= written["paths"][1]["accuracy"]["true"]["low"] <= written["paths"][1]["accuracy"]["true"]["high"] <= 1
    metrics = report.metrics()
    assert all(np.isfinite(value) for value in metrics.values())
    assert {"canary/training/logp_true", "canary/hf/reacting", "canary/hf/accuracy_blank"} <= set(metrics)
    assert report.table().count("\n") > 10


# ---- models that have learnt


@pytest.mark.slow
def test_a_model_that_names_colours_sees_and_uses(tmp_path: Path) -> None:
    """Its answers are right with the true squares and those of the square that it was shown with others."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmreason.rollout.engines import placeholder_token_ids
    from tests.colours import colour_model, colour_rows

    path = colour_model(tmp_path, steps=90)
    model, processor = AutoModelForImageTextToText.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    vlm = VLM(model, processor, [], [], placeholder_token_ids(model))
    rows = CanaryRows(colour_rows(40, seed=9), processor, samples=24, seed=0)
    report = Trial(vlm, rows, max_tokens=8).run()
    training, engine = report.paths
    assert training.status == "pass" and "sees the images and uses them" in training.verdict
    assert training.gain is not None and training.gain.low > 0.5
    assert engine.accuracy is not None
    assert engine.accuracy["true"].value > 0.9 > 0.7 > engine.accuracy["shuffled"].value
    assert report.status == "pass"


@pytest.mark.slow
def test_vllm_rollouts(tmp_path: Path, repo_root: Path) -> None:
    """One engine: as it is, with blank pictures in place of those it is given, and with another row's."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.rollout.canary_vllm", "qwen2_5_vl", str(tmp_path)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["right"]["vllm_colocate"] == ["pass", "sees the images"]
    assert found["right"]["difference"] < 1e-4
    status, verdict = found["blank"]["vllm_colocate"]
    assert status == "fail" and verdict.startswith("images don't reach the model: 8 of 8 rows don't react")
    status, verdict = found["other"]["vllm_colocate"]
    assert status == "fail" and "engine and training disagree" in verdict
    assert all(found[name]["training"][0] == "warn" for name in found)  # a random model, which sees
