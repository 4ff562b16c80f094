"""image_cell: bytes in every dress, paths that stay inside their root, and what a digest is of."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmreason.data.images import ImageError, encoded_digest, image_cell, image_digest, load_image, to_rgb
from tests.image_rows import encode, fails, pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


PNG = encode(PIL.Image.fromarray(PIXELS))
TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        memoryview(PNG),
        {"bytes": PNG, "path": "anything.jpg"},
        {"bytes": PNG},
        {"bytes": TEXT, "path": None},
        TEXT,
        TEXT.rstrip("="),
        TEXT.replace("+", "-").replace("/", "_"),
        "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        "data:image/png;base64," + TEXT,
        "data:image/png;name=a.png;base64," + TEXT,
        "DATA:;base64," + TEXT,
        "data:image/x-portable-pixmap,P6 1 1 255\n%FF%00%80",
    ],
)
def test_bytes_in_every_dress(value: Any) -> None:
    cell = image_cell(value)
    assert cell["path"] is None and isinstance(cell["bytes"], bytes)
    wanted = [[[255, 0, 128]]] if isinstance(value, str) and "portable" in value else PIXELS
    assert (pixels(load_image(value)) == wanted).all() and (pixels(load_image(cell)) == wanted).all()


@pytest.mark.parametrize("value", ["data:image/png;base64", "data:image/png;base64,@@@", "data:image/png;base64,"])
def test_broken_data_urls(value: str) -> None:
    assert fails(value).reason == "bad_image"


def test_base64_is_told_from_a_path_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "abcdefghijklmnopqrstuvwxyz0123456789ABCD"  # its letters are base64, its meaning is not an image
    Path(name).write_bytes(PNG)
    assert image_cell(name) == {"bytes": None, "path": str(tmp_path.resolve() / name)}


def test_bytes_win_over_a_file_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would take the file: a row could so read any image of the machine."""
    from mmreason.data import to_dataset

    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(encode(PIL.Image.new("RGB", (1, 1))))
    cell = image_cell({"bytes": PNG, "path": "a.png"})
    assert cell == {"bytes": PNG, "path": None}
    assert to_dataset([{"images": [cell]}], ("images",))[0]["images"] == [cell]


def test_a_pil_image_is_stored_without_loss() -> None:
    cell = image_cell(PIL.Image.fromarray(PIXELS))
    assert cell["path"] is None and (pixels(load_image(cell)) == PIXELS).all()


# Paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


@pytest.mark.parametrize("path", ["images/a.png", "./images/../images/a.png", "images//a.png"])
def test_paths_inside_the_root(root: Path, path: str) -> None:
    wanted = {"bytes": None, "path": str((root / "images/a.png").resolve())}
    for value in (path, Path(path), {"path": path}, {"bytes": None, "path": path}, str(root / path)):
        assert image_cell(value, root=root) == wanted
        assert (pixels(load_image(value, root=root)) == PIXELS).all()


@pytest.mark.parametrize(
    "path", ["../secret.png", "images/../../secret.png", "/etc/hostname", "../no-such-file.png", "/"]
)
def test_paths_out_of_the_root(root: Path, path: str) -> None:
    error = fails(path, root=root)
    assert error.reason == "outside_root" and str(root) in str(error) and path in str(error)


def test_symlinks(root: Path, tmp_path: Path) -> None:
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "outer").symlink_to(tmp_path)
    (root / "in.png").symlink_to(root / "images" / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (tmp_path / "alias").symlink_to(root)
    for path in ("out.png", "outer/secret.png"):
        assert fails(path, root=root).reason == "outside_root"
    assert load_image("in.png", root=root).size == (17, 13)
    assert load_image("images/a.png", root=tmp_path / "alias").size == (17, 13)  # the root itself may be a link
    assert fails("loop.png", root=root).reason == "missing_image"
    assert load_image("out.png", root=(root, tmp_path)).size == (17, 13)  # several roots


def test_a_neighbour_whose_name_begins_alike_is_outside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data-private").mkdir()
    (tmp_path / "data-private" / "a.png").write_bytes(PNG)
    assert fails("../data-private/a.png", root=root).reason == "outside_root"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("images/b.png", "missing_image"),
        ("nowhere/a.png", "missing_image"),
        ("images/a.png/b.png", "missing_image"),
        ("a\0b.png", "missing_image"),
        ("x" * 5000, "missing_image"),
        ("images", "bad_image"),
    ],
)
def test_what_is_no_file(root: Path, path: str, reason: str) -> None:
    error = fails(path, root=root)
    assert error.reason == reason and len(str(error)) < 1000


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    assert fails("pipe.png", root=root).reason == "bad_image"


def test_without_a_root_paths_start_in_the_working_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "images")
    assert load_image("a.png").size == (17, 13) and load_image("../../secret.png").size == (17, 13)


def test_a_file_that_is_gone_since_is_named(root: Path) -> None:
    cell = image_cell("images/a.png", root=root)
    (root / "images/a.png").unlink()
    error = fails(cell, where="row 7")
    assert error.reason == "missing_image" and "row 7" in str(error) and "a.png" in str(error)


# Digests


def test_digest_is_of_size_and_pixels() -> None:
    image = PIL.Image.fromarray(PIXELS)
    wanted = hashlib.sha256(b"17x13\0" + PIXELS.tobytes()).hexdigest()
    assert image_digest(image) == image_digest(load_image(encode(image))) == wanted
    assert image_digest(load_image(encode(image, "BMP"))) == wanted
    assert image_digest(PIL.Image.new("RGB", (2, 3))) != image_digest(PIL.Image.new("RGB", (3, 2)))
    assert image_digest(PIL.Image.new("L", (2, 2), 9)) == image_digest(PIL.Image.new("RGB", (2, 2), (9, 9, 9)))
    assert to_rgb(image) is image


def test_encoded_digest_reads_the_file(root: Path) -> None:
    wanted = hashlib.sha256(PNG).hexdigest()
    assert (
        encoded_digest(image_cell("images/a.png", root=root)) == encoded_digest({"bytes": PNG, "path": None}) == wanted
    )
    with pytest.raises(ImageError) as caught:
        encoded_digest({"bytes": None, "path": str(root / "b.png")})
    assert caught.value.reason == "missing_image"
