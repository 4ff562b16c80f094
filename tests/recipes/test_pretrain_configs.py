"""Every YAML of the pretraining recipe: it opens with its command, is read, checked, and run small where it can be."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmreason.config import parse_config
from recipes.pretrain import OPTIONS, main, with_defaults
from tests.recipes.launch import ROOT, environment, metrics

FOLDER = ROOT / "recipes" / "configs" / "pretrain"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_the_set_of_configs() -> None:
    names = ["align-demo-vision", "align-embedded", "align-llava", "contrastive-embedded", "demo-vision"]
    assert [path.stem for path in CONFIGS] == [
        *names,
        "embedded",
        "long-context",
        "mlm",
        "moe-code-fim",
        "text-small",
        "ul2",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_opens_with_its_command_and_is_sound(path: Path) -> None:
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert words[:2] == ["accelerate", "launch"] and "recipes/pretrain.py" in words
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    flags = words[words.index("recipes/pretrain.py") + 1 :]
    assert with_defaults(flags)[with_defaults(flags).index("--config") + 1].endswith(path.name)
    model, fresh, corpus, options = parse_config(OPTIONS, with_defaults(flags))
    options.check(model, fresh, corpus)
    assert options.output_dir.startswith("outputs/") and options.save_steps > 0


@pytest.mark.slow
def test_text_small_falls_along_its_curve(shared_data: Path, tmp_path: Path) -> None:
    """A few steps of the shipped YAML on a real book: losses and perplexities are those that were recorded."""
    from tests.golden.record_pretrain import BOOK, GOLDEN, check, flags, load

    main([*flags(shared_data / BOOK), "--output_dir", str(tmp_path / "run")])
    check(load(GOLDEN), metrics(tmp_path / "run"))


def test_the_recorded_curve_falls() -> None:
    from tests.golden.record_pretrain import GOLDEN, load

    curve = [row["eval/perplexity"] for row in load(GOLDEN)["steps"] if "eval/perplexity" in row]
    assert len(curve) >= 4 and all(after < before for before, after in itertools.pairwise(curve))
    assert curve[-1] < 0.4 * curve[0]


@pytest.mark.slow
def test_help_is_quick_and_lists_every_option() -> None:
    words = [sys.executable, "-X", "importtime", "recipes/pretrain.py", "--help"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert "--objective" in done.stdout and "--rope_scaling" in done.stdout
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
