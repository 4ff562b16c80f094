"""Files written whole: the old one or all of the new one, and nothing beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmreason._files import whole_file, whole_folder, write_whole

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("data", "expected"), [("é\n", "é\n".encode()), (b"\x00\xff", b"\x00\xff"), (memoryview(b"x"), b"x")]
)
def test_what_is_written_is_there(tmp_path: Path, data: str | bytes, expected: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_whole(path, data)
    write_whole(path, data)
    assert path.read_bytes() == expected and list(path.parent.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mmreason._files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n    file.write(b'half')\n    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "in" / "new"
    with whole_folder(path) as writing:
        (writing / "file").write_text("first")
        assert not path.exists() and writing.parent == path.parent
    assert (path / "file").read_text() == "first" and list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError), whole_folder(path) as writing:
        (writing / "file").write_text("second")
    with pytest.raises(ZeroDivisionError), whole_folder(path, replace=True) as writing:
        (writing / "file").write_text("half")
        1 / 0  # noqa: B018
    assert (path / "file").read_text() == "first" and list(path.parent.iterdir()) == [path]
    with whole_folder(path, replace=True) as writing:
        (writing / "other").write_text("third")
    assert [each.name for each in path.iterdir()] == ["other"] and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new"
    path.mkdir()
    (path / "file").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"), whole_folder(path, replace=True):
        pass
    assert (path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [path]
