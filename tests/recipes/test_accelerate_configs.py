"""Every file in recipes/accelerate is one that accelerate takes, and those that can run on a CPU do run."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
NAMES = (
    "cpu cpu_ddp2 cpu_zero3 ddp fsdp2 multi_node one_gpu tensor_parallel zero1 zero2 zero3 zero3_offload".split()  # noqa: SIM905
)

# Trains a few steps and says what it ran under. On a CPU, DeepSpeed has to be told its backend, everything else that it
# is a CPU.
SCRIPT = """
import json, os, sys, torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
handlers = [InitProcessGroupKwargs(backend="gloo")] if "LOCAL_RANK" in os.environ else []
accelerator = Accelerator(cpu=not deepspeed, kwargs_handlers=handlers)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = torch.utils.data.DataLoader(torch.arange(32.0).reshape(8, 4), batch_size=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for batch in loader:
    loss = model(batch).pow(2).mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
ranks = accelerator.gather(torch.tensor([accelerator.process_index])).tolist()
if accelerator.is_main_process:
    plugin = accelerator.state.deepspeed_plugin
    report = {
        "type": accelerator.distributed_type.value,
        "processes": accelerator.num_processes,
        "ranks": ranks,
        "device": accelerator.device.type,
        "stage": plugin.zero_stage if plugin else None,
        "precision": accelerator.mixed_precision,
        "learned": losses[-1] < losses[0] * 1e3,
    }
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(report))
accelerator.wait_for_everyone()
os._exit(0)  # gloo may abort while Python is finalised, see mmreason.config.run_as_script
"""


def test_the_set_of_configs() -> None:
    assert [p.stem for p in CONFIGS] == NAMES


def parse_launch(path: Path) -> tuple[Any, Any]:
    """(arguments, config) as `accelerate launch --config_file path script.py` makes them, its own checks included."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, config, _ = _validate_launch_command(arguments)
    return arguments, config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_takes_it(path: Path) -> None:
    arguments, config = parse_launch(path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert arguments.num_processes == raw["num_processes"]
    assert config.distributed_type.value == raw["distributed_type"]
    assert arguments.use_deepspeed == (raw["distributed_type"] == "DEEPSPEED")
    assert arguments.use_fsdp == (raw["distributed_type"] == "FSDP")
    # accelerate refuses unknown keys at the top level only; below, a mistyped key would be ignored.
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("deepspeed_config", "fsdp_config", "parallelism_config"):
        assert set(raw.get(section, {})) <= known


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_an_unknown_key_is_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8") + "num_proceses: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_proceses"):
        parse_launch(copy)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_opens_with_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# accelerate launch --config_file recipes/accelerate/{path.name} ")
    words = shlex.split(first.removeprefix("# "))
    assert words[words.index("--config") - 1] == "recipes/grpo_math.py"
    for word in words:
        if word.startswith("recipes/"):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_precision_is_left_to_the_recipe(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["mixed_precision"] == "no"


def test_parallel_sizes_multiply_to_the_processes() -> None:
    raw = yaml.safe_load((FOLDER / "tensor_parallel.yaml").read_text(encoding="utf-8"))
    sizes = raw["parallelism_config"]
    product = 1
    for name in ("cp_size", "dp_replicate_size", "dp_shard_size", "tp_size"):
        product *= sizes[f"parallelism_config_{name}"]
    assert product == raw["num_processes"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "flags", "expected"),
    [
        ("cpu", [], {"type": "NO", "processes": 1, "ranks": [0], "stage": None}),
        ("cpu_ddp2", [], {"type": "MULTI_CPU", "processes": 2, "ranks": [0, 1], "stage": None}),
        ("cpu_zero3", [], {"type": "DEEPSPEED", "processes": 2, "ranks": [0, 1], "stage": 3}),
        ("zero1", ["--num_processes", "2"], {"type": "DEEPSPEED", "processes": 2, "ranks": [0, 1], "stage": 1}),
        ("zero2", ["--num_processes", "2"], {"type": "DEEPSPEED", "processes": 2, "ranks": [0, 1], "stage": 2}),
    ],
    ids=["cpu", "cpu_ddp2", "cpu_zero3", "zero1", "zero2"],
)
def test_it_runs_on_the_cpu(tmp_path: Path, config: str, flags: list[str], expected: dict[str, Any]) -> None:
    script, report = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{config}.yaml")]
    if config != "cpu":
        command += ["--main_process_port", str(free_port())]
    # The files for GPUs run here as they do on a machine without one.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, *flags, str(script), str(report)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = yaml.safe_load(report.read_text(encoding="utf-8"))
    assert found == expected | {"device": "cpu", "precision": "no", "learned": True}
