"""Programs that try to get out, in every isolation that this machine offers, as root and as another user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmreason.tools import _sandbox_cells as cells
from mmreason.tools._cell.system import MACHINE
from mmreason.tools.sandbox import Limits, Sandbox
from tests.tools.attacks import World, attacks, survive

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(wall_s=0.6, cpu_s=1, memory_mb=256, scratch_mb=4)
NOBODY = 65534


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), ROOT)
    yield made
    made.close()


@pytest.fixture(scope="module", params=cells.TIERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    reason = cells.probe(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(LIMITS, workers=1, isolation=request.param) as made:
        made.warm()
        yield made


def names() -> list[str]:
    """The attacks' names, without a world to aim them at."""

    class Nowhere(World):
        def __init__(self) -> None:
            self.folder = self.secret_file = self.project = Path("/nowhere")
            self.pid = self.port = 1
            self.abstract = ""

    return [attack.name for attack in attacks(Nowhere())]


def test_there_are_many() -> None:
    assert len(names()) == len(set(names())) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_it_holds(sandbox: Sandbox, world: World, name: str) -> None:
    attack = next(attack for attack in attacks(world) if attack.name == name)
    if attack.machine not in ("", MACHINE):
        pytest.skip(f"an attack on {attack.machine}")
    if attack.nested and not sandbox._free[0].forks:
        pytest.skip("no program may fork with this isolation")
    faults, run = survive(sandbox, attack, world, LIMITS)
    assert not faults, run


@pytest.mark.slow
def test_the_same_programs_get_through_without_a_sandbox(world: World, tmp_path: Path) -> None:
    """The attacks are no blanks: run openly they read, write, connect and kill."""
    for name in ("reads the machine's files", "network", "open descriptors"):
        attack = next(attack for attack in attacks(world) if attack.name == name)
        open_run = subprocess.run(
            [sys.executable, "-c", attack.code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "ESCAPED" in open_run.stdout, name
    assert world.faults(), "the listening sockets saw no connection"


UNPRIVILEGED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.tools.attacks import World, attacks, survive
from mmreason.tools import _sandbox_cells as cells
from mmreason.tools._cell.system import MACHINE
from mmreason.tools.sandbox import Limits, Sandbox
folder = Path(sys.argv[2])
world, found = World(folder, Path(sys.argv[1])), {}
limits = Limits(wall_s=0.6, cpu_s=1, memory_mb=256, scratch_mb=4)
for tier in cells.TIERS:
    reason = cells.probe(tier)
    if reason is not None:
        found[tier] = {"skipped": reason}
        continue
    found[tier] = {"run": 0, "faults": {}}
    with Sandbox(limits, workers=1, isolation=tier) as sandbox:
        sandbox.warm()
        for attack in attacks(world):
            if attack.machine in ("", MACHINE) and (sandbox._free[0].forks or not attack.nested):
                faults, run = survive(sandbox, attack, world, limits)
                found[tier]["run"] += 1
                if faults:
                    found[tier]["faults"][attack.name] = [*faults, str(run)[:2000]]
world.close()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_they_hold_for_a_user_without_rights() -> None:
    if os.geteuid() != 0:
        pytest.skip("this test user has no rights to begin with")
    # Its own interpreter may lie in a folder of root's; the sandbox needs the standard library only.
    versions = ("python3.13", "python3.12", "python3.11", "python3")
    candidates = [sys.executable, *filter(None, map(shutil.which, versions)), "/usr/bin/python3"]
    works = [path for path in candidates if can_run(path)]
    if not works:
        pytest.skip("no Python 3.11 or newer that the user nobody may run")
    # Not below pytest's own folder, which every session that starts closes to other users.
    with tempfile.TemporaryDirectory(prefix="unprivileged-") as name:
        run_unprivileged(works[0], Path(name))


def run_unprivileged(python: str, folder: Path) -> None:
    folder.chmod(0o755)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mmreason", folder / "mmreason", ignore=ignored)
    (folder / "tests" / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "tools" / "attacks.py", folder / "tests" / "tools")
    place = folder / "world"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    done = subprocess.run(
        [python, "-B", "-c", UNPRIVILEGED, str(folder), str(place)], user=NOBODY, group=NOBODY, extra_groups=[],
        cwd="/", capture_output=True, text=True, timeout=600, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert any(tier.get("run", 0) >= 40 for tier in found.values()), found
    assert not {tier: result["faults"] for tier, result in found.items() if result.get("faults")}


def can_run(path: str) -> bool:
    command = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env={}).returncode == 0
    except OSError:
        return False
