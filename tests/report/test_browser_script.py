"""`.ci/browser.sh` finds a browser, installs one where it may, and never fails a build that has none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "browser.sh"
NEEDED = ("id", "mktemp", "rm", "tail", "timeout")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with what the script calls, and no browser."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def program(folder: Path, name: str, body: str = "exit 0") -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def run(tools: Path, **environment: str) -> str:
    bash = shutil.which("bash")
    assert bash is not None
    variables = {"PATH": str(tools), "TMPDIR": str(tools.parent)} | environment
    done = subprocess.run([bash, str(SCRIPT)], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_script_can_be_run() -> None:
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_that_is_there_is_named(tools: Path, name: str) -> None:
    program(tools, name)
    assert run(tools) == f"browser: {tools / name}\n"


def test_the_variable_comes_first(tools: Path) -> None:
    program(tools, "chromium")
    program(tools, "mine")
    assert run(tools, MMREASON_BROWSER=str(tools / "mine")) == f"browser: {tools / 'mine'}\n"
    said = run(tools, MMREASON_BROWSER="/no/such/browser")
    assert "MMREASON_BROWSER=/no/such/browser is no program; the tests of the report in a browser will skip" in said


def test_without_apt_or_root_it_says_what_to_do(tools: Path) -> None:
    assert "there is no apt-get to install one with; the tests" in run(tools)
    program(tools, "apt-get")
    program(tools, "id", "echo 1000")
    said = run(tools)
    assert "only root may install one" in said and "set MMREASON_BROWSER" in said


def test_root_with_apt_installs_one(tools: Path) -> None:
    program(tools, "id", "echo 0")
    calls = tools.parent / "calls"
    # Stands for apt-get: this must not change the machine it runs on.
    body = f'echo "$@" >> {calls}; [ "$1" = update ] || printf "#!/bin/bash\\necho Chromium" > {tools}/chromium; '
    program(tools, "apt-get", body + f"[ ! -f {tools}/chromium ] || /bin/chmod +x {tools}/chromium")
    said = run(tools)
    assert "browser: none found, installing the packages chromium" in said
    assert said.endswith(f"browser: {tools / 'chromium'}\n")
    assert calls.read_text().splitlines() == [
        "update",
        "install -y --no-install-recommends chromium fonts-dejavu-core fonts-noto-cjk",
    ]


@pytest.mark.parametrize(
    ("apt", "reason"),
    [
        ("echo E: no network; exit 100", "apt-get could not install one"),
        ("exit 0", "none found after the installation"),
        ('printf "#!/bin/bash\\nexit 1" > $(dirname $0)/chromium; chmod +x $(dirname $0)/chromium', "doesn't start"),
    ],
)
def test_an_installation_that_fails_is_said(tools: Path, apt: str, reason: str) -> None:
    program(tools, "id", "echo 0")
    program(tools, "apt-get", f"PATH=/usr/bin:/bin; {apt}")
    said = run(tools)
    assert reason in said and "will skip" in said
