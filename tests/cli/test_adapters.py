"""`mmreason adapters`: what it lists, makes and answers, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmreason.cli.adapters import METHODS, _weighted, find_adapters
from mmreason.cli.main import main
from mmreason.models import adapter_ops
from mmreason.models.peft import add_adapter, load_adapter
from tests.models.peft_parts import arguments, logits


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: str) -> Path:
    """A folder as a run leaves it: two adapters of the tiny model and a checkpoint's."""
    folder = tmp_path_factory.mktemp("run")
    for seed, (name, kind) in enumerate((("one", "lora"), ("two", "rslora"), ("steps/checkpoint-3", "prefix"))):
        model = add_adapter(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), arguments(kind))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)
    (folder / "empty").mkdir()
    return folder


def test_list(run: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "list", str(run)]) == 0
    told = capsys.readouterr().out
    assert f"{run}/one\n  lora, rank 4, 1,792 numbers" in told and f"base {tiny_checkpoint}" in told
    assert "on q_proj, v_proj" in told and "can be used: vLLM, merge" in told
    assert f"{run}/steps/checkpoint-3\n  prefix, rank 4" in told and "can be used: as it is" in told
    found = {each.folder.name: each for each in find_adapters(run)}
    assert found["two"].kind == "rslora" and found["two"].size > 4 * 1792


def test_a_folder_with_a_number_in_its_name_has_no_weight(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.5"
    folder.symlink_to(run / "one")
    assert _weighted(str(folder)) == (str(folder), 1.0) and _weighted(f"{folder}=2") == (str(folder), 2.0)


def test_combine_and_use(run: Path, tmp_path: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both"
    assert main(["adapters", "combine", f"{run}/one=0.5", f"{run}/two=-1", "--out", str(out)]) == 0
    assert "rank 8, 100.00 % of the wanted change" in capsys.readouterr().out
    one, two = (
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), run / name).merge_and_unload()
        for name in ("one", "two")
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    both = load_adapter(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), out).merge_and_unload()
    for (name, w), a, b, found in zip(
        base.state_dict().items(), one.state_dict().values(), two.state_dict().values(), both.state_dict().values(),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(found, w + 0.5 * (a - w) - (b - w), atol=1e-4, rtol=1e-4, msg=name)
    assert tuple(adapter_ops.METHODS) == METHODS


def test_merge_then_extract(
    run: Path, tmp_path: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main(["adapters", "merge", f"{run}/one", "--out", str(whole)]) == 0
    assert "a whole model; its logits differ by at most" in capsys.readouterr().out
    assert main(["adapters", "extract", tiny_checkpoint, str(whole), "--rank", "4", "--out", str(again)]) == 0
    assert "4 layers, 100.00 % of their change" in capsys.readouterr().out
    found = load_adapter(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), again)
    wanted = logits(AutoModelForCausalLM.from_pretrained(whole))
    torch.testing.assert_close(logits(found), wanted, atol=1e-3, rtol=1e-3)


def test_switch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--adapter", f"a={run}/one", "--adapter", f"b={run}/two", "--max_tokens", "4"]
    assert main(["adapters", "switch", "a: 1 + 1 =", "base: 1 + 1 =", "b: 1 + 1 =", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if ":" in line][:3] == ["a", "base", "b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "RUN/onee"], "no such folder. Did you mean RUN/one?"),
        (["list", "RUN/one/README.md"], "is no folder"),
        (["list", "RUN/empty"], "no adapter (adapter_config.json) in it or below"),
        (["combine", "RUN/one=nan", "--out", "OUT"], "'nan' is no weight"),
        (["combine", "RUN/one", "RUN/onee", "--out", "OUT"], "is no adapter: no such folder. Did you mean RUN/one?"),
        (["combine", "RUN/one", "RUN/two", "--density", "5", "--out", "OUT"], "--density 5 must be"),
        (["combine", "RUN/one", "RUN/two", "--rank", "0", "--out", "OUT"], "--rank 0 must be"),
        (["combine", "RUN/one", "RUN/two", "--out", "RUN/one"], "RUN/one is there already"),
        (["merge", "RUN/one", "--out", "RUN/two"], "RUN/two is there already"),
        (["extract", "a", "b", "--out", "RUN/two"], "RUN/two is there already"),
        (["switch", "a: hi", "--adapter", "a=RUN/one", "--max_tokens", "0"], "--max_tokens 0 must be at least 1"),
        (["switch", "a: hi", "--adapter", "a=RUN/one", "--adapter", "a=RUN/two"], "'a' is given twice"),
        (["switch", "base: hi", "--adapter", "base=RUN/one"], "means the model without an adapter"),
        (["combine", "RUN/one=x", "--out", "OUT"], "'x' is no weight; write FOLDER=0.5"),
        (["combine", "RUN/one", "RUN/steps/checkpoint-3", "--out", "OUT"], "is of kind prefix: only lora and rslora"),
        (["merge", "RUN/steps/checkpoint-3", "--out", "OUT"], "kind 'prefix' can't be merged"),
        (["merge", "RUN/one", "--base", "OUT/nowhere", "--out", "OUT"], "can't be loaded"),
        (["extract", "a", "b", "--rank", "0", "--out", "OUT"], "--rank 0 must be at least 1"),
        (["switch", "a: hi", "--adapter", "RUN/one"], "write NAME=FOLDER"),
        (["switch", "hi", "--adapter", "a=RUN/one"], "write NAME:PROMPT"),
        (["switch", "aa: hi", "--adapter", "a=RUN/one"], "no adapter 'aa'; named: base, a"),
    ],
)
def test_what_is_refused(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    for short, path in paths.items():
        words, said = [word.replace(short, path) for word in words], said.replace(short, path)
    assert main(["adapters", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.startswith("mmreason: error: ") and not (tmp_path / "out").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["adapters"])
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and all(name in told for name in ("list", "combine", "merge", "extract", "switch"))
