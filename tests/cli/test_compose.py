"""`mmreason compose`: a checkpoint of parts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmreason.cli.main import main

TOWER = "{source: timm, name: vit_tiny_patch16_224, weights: random, image_size: 64, max_tiles: 2, config: {depth: 1}}"


def compose(out: Path, decoder: str, *flags: str, vision: str = TOWER) -> int:
    return main(["compose", "--out", str(out), "--decoder", decoder, "--vision", vision, *flags])


def test_it_writes_a_checkpoint_and_says_what_it_is(
    tmp_path: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageTextToText

    out = tmp_path / "vlm"
    assert compose(out, tiny_checkpoint, "--projector", "{kind: pixel_shuffle}") == 0
    told = capsys.readouterr().out
    model = AutoModelForImageTextToText.from_pretrained(out)
    for name in ("vision_tower", "projector", "language_model"):
        count = sum(p.numel() for p in getattr(model, name).parameters())
        assert f"{name:<15} {count / 1e6:10.2f} M parameters" in told
    assert "64 px, 4 x 4 patches, 4 tokens; up to 3 views" in told
    assert json.loads((out / "parts.json").read_text())["projector"] == {"kind": "pixel_shuffle"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vlm"], "nothing half-written stays behind"


def test_the_same_parts_again_change_nothing_others_are_refused(
    tmp_path: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vlm"
    assert compose(out, tiny_checkpoint) == 0
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert compose(out, tiny_checkpoint) == 0
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    capsys.readouterr()
    assert compose(out, tiny_checkpoint, "--seed", "1") == 2
    assert "holds another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ("{source: tim, name: resnet18}", "vision.source='tim'; known: timm, open_clip, hf. Did you mean 'timm'?"),
        ("{source: timm, name: vit_tini_patch16_224}", "Did you mean 'vit_tiny_patch16_224'?"),
        ("{source: timm, name: resnet18, sise: 3}", "vision.sise is no setting"),
        ("{source: timm}", "vision.name is missing"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, tiny_checkpoint: str, vision: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(tmp_path / "vlm", tiny_checkpoint, vision=vision) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "vlm").exists()
