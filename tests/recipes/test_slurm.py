"""recipes/slurm: the script composes the right commands. Slurm's own programs are replaced by small scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "slurm" / "grpo_math.sbatch"

# srun runs its command once per node, as Slurm's does; the launcher prints what it was given, and waits if told to.
PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\nnode3\\n"; else echo "scontrol $*" >> "$LOG"; fi',
    "scancel": 'echo "scancel $*" >> "$LOG"; touch "$LOG.stop"',
    "srun": (
        'n=1; for a in "$@"; do case "$a" in --ntasks=*) n="${a#*=}";; esac; done\n'
        'while [ "${1#--}" != "$1" ]; do shift; done\n'
        'for i in $(seq 0 $((n - 1))); do SLURM_PROCID=$i "$@"; done'
    ),
    "accelerate": 'echo "accelerate $*" >> "$LOG"\nif [ -n "${WAIT:-}" ]; then until [ -e "$LOG.stop" ]; do sleep 0.05; done; fi\nexit "${STATUS:-0}"',  # noqa: E501
    "trl": 'echo "trl $*" >> "$LOG"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on three nodes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[1-3]"}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return os.environ | job | {"PATH": path, "SLURM_GPUS_ON_NODE": "8", "LOG": str(tmp_path / "log")}


def run(environment: dict[str, str], *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "error" not in done.stderr, done.stderr
    return done.returncode, Path(environment["LOG"]).read_text(encoding="utf-8").splitlines()


def test_one_launcher_per_node(slurm: dict[str, str]) -> None:
    status, lines = run(slurm, "--learning_rate", "2e-6")
    assert status == 0
    assert lines == [
        f"accelerate launch --machine_rank {rank} --config_file recipes/accelerate/multi_node.yaml --num_machines 3 "
        "--num_processes 24 --main_process_ip node1 --main_process_port 20042 recipes/grpo_math.py "
        "--config recipes/configs/grpo_math/qwen2.5-7b-zero3-multinode.yaml --learning_rate 2e-6"
        for rank in range(3)
    ]


def test_a_node_for_the_vllm_server(slurm: dict[str, str]) -> None:
    status, lines = run(slurm | {"VLLM_SERVER": "1", "MODEL": "some/model"})
    assert status == 0
    assert "trl vllm-serve --model some/model --tensor_parallel_size 8 --host 0.0.0.0 --port 8000" in lines
    launches = [line for line in lines if line.startswith("accelerate")]
    assert len(launches) == 2
    assert all("--num_processes 16" in line and "--vllm_server_host node3" in line for line in launches)


def test_a_failure_is_the_jobs_failure(slurm: dict[str, str]) -> None:
    status, lines = run(slurm | {"STATUS": "7"})
    assert status == 7
    assert not any("requeue" in line for line in lines)


def test_the_warning_before_the_time_limit_saves_and_requeues(slurm: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", str(SCRIPT)], env=slurm | {"WAIT": "1"}, stdout=subprocess.PIPE, text=True)
    log = Path(slurm["LOG"])
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert "scancel --signal=USR1 42" in lines
    assert lines[-1] == "scontrol requeue 42"


def test_the_files_it_names_exist() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    for word in ("recipes/grpo_math.py", "recipes/accelerate/multi_node.yaml"):
        assert word in text
        assert (ROOT / word).exists()
