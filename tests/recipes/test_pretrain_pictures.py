"""Pretraining on pictures through the command line: alignment, documents with pictures, contrastive towers."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmreason.types import ConfigError
from recipes.pretrain import main
from tests.pictures import cell, picture
from tests.recipes.launch import metrics, run, run_and_signal
from tests.tiny_vlms import tiny_vlm

SMALL = [
    "--use_cpu", "--logging_steps", "1", "--save_steps", "3", "--max_steps", "6", "--eval_steps", "3",
    "--per_device_train_batch_size", "8", "--eval_samples", "12", "--warmup_steps", "0", "--learning_rate", "3e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    from data_builders.shapes import build

    folder = tmp_path_factory.mktemp("shapes")
    build(folder, tasks=["describe"], level=1, n=120, n_test=40, n_unseen=0, image_size=32)
    return str(folder)


def command(objective: str, data: str, folder: Path, *flags: str, accelerate: str | None = None) -> list[str]:
    start = [sys.executable]
    if accelerate is not None:
        start += ["-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{accelerate}.yaml"]
    config = ["--config", f"recipes/configs/pretrain/{objective}-embedded.yaml", "--dataset_name", data]
    return [*start, "recipes/pretrain.py", *config, "--output_dir", str(folder), *SMALL, *flags]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_projector_first_then_the_tower(shapes: str, tmp_path: Path) -> None:
    main(command("align", shapes, tmp_path / "run", "--unfreeze_at", "{vision_tower: 3}")[2:])
    start, half, end = (weights(tmp_path / "run" / name) for name in ("composed", "checkpoint-3", "final"))
    moved = [{n.split(".")[0] for n in start if not torch.equal(a[n], b[n])} for a, b in ((start, half), (half, end))]
    assert moved == [{"projector"}, {"projector", "vision_tower"}]
    measured = [line["eval/loss"] for line in metrics(tmp_path / "run") if "eval/loss" in line]
    assert measured[-1] < measured[0]
    assert (tmp_path / "run" / "final" / "processor_config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["true", "false"])
def test_documents_with_pictures(packing: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = [
        {"text": f"Here is one: <image> and number {i} follows: <image> The end.", "images": [
            cell(picture(56, 56, i)), cell(picture(56, 56, i + 1))]}
        for i in range(40)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "docs.parquet")
    model = tiny_vlm("qwen2_5_vl", tmp_path / "model")
    flags = ["--interleaved", "--dataset_name", str(tmp_path / "docs.parquet"), "--model_name_or_path", str(model)]
    flags += ["--output_dir", str(tmp_path / "run"), "--max_length", "96", "--packing", packing, *SMALL]
    main([*flags, "--validation_split_percentage", "20", "--gradient_checkpointing", "false"])
    measured = [line["eval/loss"] for line in metrics(tmp_path / "run") if "eval/loss" in line]
    assert measured[-1] < measured[0]


@pytest.mark.slow
def test_contrastive_runs_resume_and_two_processes_see_each_other(shapes: str, tmp_path: Path) -> None:
    """Killed, gone on: the same weights. Two processes of 4 pairs: the losses of one of 8, all pairs against all."""
    sgd = ["--optim", "sgd", "--weight_decay", "0", "--max_grad_norm", "0", "--learning_rate", "0.02"]
    one = command("contrastive", shapes, tmp_path / "one", *sgd)
    done = run(one)
    assert done.returncode == 0 and "no two with the same text" in done.stdout, done.stderr[-3000:]
    killed = command("contrastive", shapes, tmp_path / "killed", *sgd)
    run_and_signal(killed, tmp_path / "killed", step=4, number=signal.SIGKILL)
    again = run(killed)
    assert again.returncode == 0 and "Continuing from" in again.stdout, again.stderr[-3000:]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "one")
    want = weights(tmp_path / "one" / "final")
    got = weights(tmp_path / "killed" / "final")
    assert all(torch.equal(got[name], want[name]) for name in want)
    for local in ("true", "false"):
        flags = ["--per_device_train_batch_size", "4", "--local_loss", local]
        two = command("contrastive", shapes, tmp_path / local, *sgd, *flags, accelerate="cpu_ddp2")
        done = run(two)
        assert done.returncode == 0, done.stderr[-3000:]
        for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / local), strict=True):
            for name in {"loss", "eval/image_to_text_r1"} & a.keys():
                assert b[name] == pytest.approx(a[name], rel=1e-5)
        both = weights(tmp_path / local / "final")
        assert all(torch.allclose(both[name], want[name], rtol=1e-5, atol=2e-6) for name in want)
    place = tmp_path / "one" / "final" / "vision_tower"
    vision = f"{{source: timm, name: vit_tiny_patch16_224, image_size: 64, weights: {place}, config: {{embed_dim: 128, "
    vision += "depth: 4, num_heads: 4, patch_size: 16, class_token: false, global_pool: avg}}"
    main(command("align", shapes, tmp_path / "next", "--vision", vision, "--max_steps", "1")[2:])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--objective", "align", "--dataset_name", "x"], "need a model that sees"),
        (["--objective", "contrastive", "--dataset_name", "x"], "needs vision"),
        (["--objective", "mlm", "--interleaved", "--dataset_name", "x"], "interleaved belongs to objective clm"),
        (["--objective", "clm", "--dataset_name", "x", "--unfreeze_at", "{vision_tower: 3}"], "objective align"),
        (["--objective", "span", "--dataset_name", "x", "--decoder", "y"], "learns from texts alone"),
        (["--objective", "clm", "--shapes", "{n: 8}", "--word_problems", "{n: 8}"], "made of one of them"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(flags: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        main([*flags, "--output_dir", str(tmp_path / "run")])
