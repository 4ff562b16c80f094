"""The one place that opens images: whatever a row holds becomes the RGB picture that a person would see.

`image_cell` brings what a row holds into the form in which it is stored (``{"bytes": ..., "path": ...}``, nothing is
decoded), `load_image` decodes. Both refuse what is unsafe: paths and symlinks that leave the data's folder, pictures of
too many pixels (read from the header, before memory is spent), kinds of files that Pillow reads by starting other
programs, and network addresses, unless asked for, and then private ones.

| pixels | become |
|---|---|
| EXIF orientation | turned and mirrored to stand upright |
| alpha, a transparent palette entry or colour | composited on white |
| CMYK, YCbCr, HSV, Lab | RGB (CMYK as Adobe's inverted JPEGs mean it); colour profiles are not applied |
| grey of 16 bits | 0..65535 scaled to 0..255, not clipped |
| integers of 32 bits | as 16 bits where they fit, else the image's own smallest to largest value |
| floats | 0..1 and 0..255 scaled to 0..255 where they fit, else the image's own smallest to largest value |
| animations, several pages | the first frame |

Pillow's global switches are read, never set, so threads may load side by side.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

from mmreason.data.formats.common import REASONS, shorten
from mmreason.types import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

ImageRoot = str | Path | Sequence[str | Path]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened: widely used, and decoded inside this process (Pillow hands EPS to Ghostscript, for one)."""

MAX_PIXELS = 89_478_485
"""Default limit of width x height: a quarter GiB as RGB, which is where Pillow itself begins to warn."""

_CURES = {
    "bad_image": "Replace it, or save it anew as PNG or JPEG",
    "truncated_image": "Copy or download it again",
    "too_many_pixels": "Scale it down, or raise max_pixels",
    "outside_root": "Move it into that folder, or name the folder of the images as their root",
    "missing_image": "Put it there, mend the path, or name the folder of the images as their root",
    "image_url": "Download it into the data's folder, or allow public addresses",
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_DATA_URL = re.compile(r"data:[\w.+\-/]*(?:;[\w.+\-]+=[^;,]*)*(;base64)?,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{32}")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P4\n", b"P5\n", b"P6\n")
_NO_IMAGE = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, such as an SVG drawing"),
    (b"%!ps", "PostScript"),
    (b"%pdf", "a PDF"),
    (b"\0\0\0\x0cjp  ", "JPEG 2000"),
)
_UPRIGHT = {  # EXIF orientation -> member of PIL.Image.Transpose that undoes it
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_BYTES_PER_PIXEL = 16  # at most, uncompressed
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags: bits per sample; 0 means that white is zero
_BAND = 1 << 20  # pixels


class ImageCell(TypedDict):
    """An image as it is stored (the storage form of `datasets.Image`): its encoded bytes, or an absolute path."""

    bytes: bytes | None
    path: str | None


class ImageError(DataError):
    """An image that can't be used. `detail`: which one and what was seen, without the advice of the whole message."""

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        row: str | None = None,
        reason: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message, path=path, row=row, reason=reason)
        self.detail = detail


def _refusal(reason: str, what: str, detail: str) -> ImageError:
    """The error for image `what` ("row 3: a.png"); `reason` is a key of mmreason.data.formats.REASONS."""
    message = f"{what}: {REASONS[reason]} ({detail}). {_CURES[reason]}"
    return ImageError(message, path=what, reason=reason, detail=f"{what}: {detail}")


def load_image(
    value: Any,
    *,
    root: ImageRoot | None = None,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
    where: str = "",
) -> Image.Image:
    """The upright RGB picture that `value` holds.

    Args:
        value: encoded bytes, a path, a PIL image, a ``data:`` URL or base64 text, or ``{"bytes": ..., "path": ...}``.
        root: folder (or folders) from which relative paths start and outside which no image may lie, links followed.
            None: paths are the caller's own, from the working folder.
        allow_urls: fetch http(s) URLs too, from public addresses only.
        max_pixels: limit of width x height. Beyond 178,956,970 Pillow's own limit holds.
        where: put before an error's text: the row and the number of the image.

    Returns: (H, W) pixels of mode RGB, 8 bits, without metadata. A PIL image that is so already, and was not opened
        from a file, is returned as it is.
    Raises: ImageError with a `reason`; ConfigError where the process has told Pillow to accept truncated files.
    """
    label = f"{where}: " if where else ""
    if _is_pil(value):
        return _finish(value, f"{label}a PIL image", max_pixels)
    cell = image_cell(value, root=root, allow_urls=allow_urls, where=where)
    if cell["bytes"] is not None:
        return _decode(io.BytesIO(cell["bytes"]), f"{label}image of {len(cell['bytes'])} bytes", max_pixels)
    path = Path(str(cell["path"]))
    try:
        file = path.open("rb")
    except OSError as error:
        raise _refusal("missing_image", f"{label}{path}", error.strerror or str(error)) from error
    with file:
        return _decode(file, f"{label}{path}", max_pixels)


def image_cell(value: Any, *, root: ImageRoot | None = None, allow_urls: bool = False, where: str = "") -> ImageCell:
    """What a row holds as its image -> the form in which it is stored. Nothing is decoded.

    Args: see `load_image`.
    Returns: bytes without a path, or an absolute path without bytes. A name beside bytes is dropped: `datasets` would
        read a file of that name instead of the bytes wherever it finds one.
    Raises: ImageError: missing_image, outside_root, image_url, bad_image (nothing that could be an image).
    """
    label = f"{where}: " if where else ""
    if isinstance(value, Mapping):
        held = value.get("bytes")
        value = value.get("path") if held is None else held
    if value is None or value == "":
        raise _refusal("missing_image", f"{label}image", "neither bytes nor a path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_cell(bytes(value), label)
    if _is_pil(value):
        buffer = io.BytesIO()
        _finish(value, f"{label}a PIL image", MAX_PIXELS).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    if isinstance(value, str):
        inline = _inline_bytes(value, label)
        if inline is not None:
            return _bytes_cell(inline, label)
        if _URL.match(value):
            return _bytes_cell(_fetched(value, allow_urls, label), label)
    if not isinstance(value, (str, os.PathLike)):
        raise _refusal("bad_image", f"{label}image", f"{shorten(value)} is neither bytes, a path nor a PIL image")
    return {"bytes": None, "path": str(_inside(Path(value), root, label))}


def image_digest(image: Image.Image) -> str:
    """SHA-256 (hex) of an image's size and RGB pixels: equal for equal pictures, however they were encoded."""
    rgb = image if image.mode == "RGB" else to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}\0".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def encoded_digest(cell: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a stored image's encoded bytes, read from its file where the cell has a path.

    Raises: ImageError where the file can't be read.
    """
    held = cell.get("bytes")
    if held is not None:
        return hashlib.sha256(held).hexdigest()
    path = str(cell.get("path"))
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _refusal("missing_image", path, error.strerror or str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded PIL image of any mode -> mode RGB, by the table at the top of this module. EXIF is not looked at.

    Raises: ValueError for pixels that are no numbers (NaN, infinite) and for modes that have no RGB.
    """
    if image.mode == "F" or image.mode.split(";")[0] == "I":
        return _grey(image).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode == "La":  # grey with alpha multiplied in; Pillow converts it to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        from PIL import Image

        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Deep grey -> 8 bits, rounded to the nearest: see the table at the top."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" and not np.isfinite(values).all():
        raise ValueError("has pixels that are no numbers (NaN or infinite)")
    tags = getattr(image, "tag_v2", {})
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (4095.0 if tags.get(_BITS) == (12,) else 65535.0,)
    bottom, top = next(((0.0, limit) for limit in tops if low >= 0 and high <= limit), (low, high))
    key = image.info.get("transparency")
    grey = np.empty(values.shape, np.uint8)
    step = max(1, _BAND // image.width)
    for start in range(0, image.height, step):  # in bands: float64 takes eight times the room
        band = values[start : start + step]
        scaled = (band.astype(np.float64) - bottom) * (255.0 / (top - bottom or 1.0))
        if tags.get(_PHOTOMETRIC) == 0:
            scaled = 255.0 - scaled
        if isinstance(key, int):
            scaled[band == key] = 255.0
        grey[start : start + step] = np.floor(scaled + 0.5)
    return Image.fromarray(grey)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # None is for conversion in place
    return converted


def _is_pil(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _bytes_cell(held: bytes, label: str) -> ImageCell:
    if not held:
        raise _refusal("bad_image", f"{label}image", "it is empty (0 bytes)")
    return {"bytes": held, "path": None}


def _inline_bytes(text: str, label: str) -> bytes | None:
    """The bytes of a data: URL or of base64 text; None for other texts. Base64 is told from a path by what it holds."""
    if text[:5].lower() == "data:":
        match = _DATA_URL.match(text)
        if match is None:
            raise _refusal("bad_image", f"{label}data URL", f"it is malformed: {shorten(text)}")
        payload = text[match.end() :]
        return _base64(payload, f"{label}data URL") if match[1] else urllib.parse.unquote_to_bytes(payload)
    head = "".join(text[:64].split())[:32]
    if not _BASE64.fullmatch(head) or not base64.b64decode(head, altchars=b"-_").startswith(_MAGIC):
        return None
    return _base64(text, f"{label}base64 text")


def _base64(text: str, what: str) -> bytes:
    packed = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal("bad_image", what, f"no base64: {error}") from None


def _fetched(url: str, allow_urls: bool, label: str) -> bytes:
    from mmreason.data._fetch import FetchError, fetch

    what = f"{label}{url}"
    if not allow_urls:
        raise _refusal("image_url", what, "addresses are not followed unless that is asked for")
    try:
        return fetch(url)
    except FetchError as error:
        raise _refusal("image_url", what, str(error)) from error


def _inside(path: Path, root: ImageRoot | None, label: str) -> Path:
    """The existing file that `path` means, links followed; ImageError where it lies in none of the roots."""
    what = label + (str(path) if len(str(path)) <= 200 else shorten(str(path)))
    given = () if root is None else (root,) if isinstance(root, (str, Path)) else tuple(root)
    try:
        roots = [Path(folder).resolve() for folder in given]
        places = [(folder / path).resolve() for folder in roots or [Path.cwd()]]
        allowed = [place for place in places if not roots or any(place.is_relative_to(folder) for folder in roots)]
        if not allowed:
            listed = " and ".join(str(folder) for folder in roots)
            raise _refusal("outside_root", what, f"it leads to {places[0]}, which is not inside {listed}")
        found = next((place for place in allowed if place.is_file()), None)
        if found is None and allowed[0].exists():
            raise _refusal("bad_image", what, f"{allowed[0]} is no regular file")
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a null byte
        raise _refusal("missing_image", what, _say(error)) from error
    if found is None:
        folder = allowed[0].parent
        raise _refusal("missing_image", what, f"no such file in {folder}" if folder.is_dir() else f"no folder {folder}")
    return found


def _decode(file: BinaryIO, what: str, max_pixels: int) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    # Some readers take the whole file into memory before they look at it.
    size, most = file.seek(0, os.SEEK_END), _BYTES_PER_PIXEL * max(max_pixels, 1 << 20)
    if size > most:
        raise _refusal("too_many_pixels", what, f"{size:,} bytes are more than {max_pixels:,} pixels can take")
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise _refusal("bad_image", what, _why_unknown(head)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refusal("too_many_pixels", what, str(error)) from None
    except Exception as error:  # hostile bytes make Pillow's readers raise almost anything
        raise _unreadable(what, error) from error
    return _finish(image, what, max_pixels)


def _finish(image: Image.Image, what: str, max_pixels: int) -> Image.Image:
    """Check the header, decode, turn upright, make RGB."""
    from PIL import Image, ImageFile

    if image.format is not None and image.format not in (*FORMATS, "MPO"):  # MPO: a JPEG that holds several pictures
        raise _refusal("bad_image", what, f"{image.format} is none of {', '.join(FORMATS)}")
    width, height = image.size
    if width < 1 or height < 1:
        raise _refusal("bad_image", what, f"it has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise _refusal("too_many_pixels", what, f"{width} x {height} pixels are more than {max_pixels:,}")
    from_file = isinstance(image, ImageFile.ImageFile)
    if from_file and ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on in this process, so the missing part of a truncated image would "
            "become grey without a word: set it to False"
        )
    try:
        image.load()
        orientation = _orientation(image)
        rgb = to_rgb(image)
    except Exception as error:  # as above
        raise _unreadable(what, error) from error
    if orientation in _UPRIGHT:
        # Not ImageOps.exif_transpose: it writes the EXIF block anew, which fails on many a camera's block.
        rgb = rgb.transpose(Image.Transpose[_UPRIGHT[orientation]])
    elif rgb is image and from_file:
        rgb = rgb.copy()
    if rgb is not image:
        rgb.info.clear()  # the orientation is used up, and others stumble over a damaged block
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none. A block that can't be read says nothing, as in any viewer."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _unreadable(what: str, error: Exception) -> ImageError:
    """What Pillow could not read: cut off, as far as its words tell, or damaged."""
    words = str(error).lower()
    cut = isinstance(error, EOFError) or any(word in words for word in ("truncated", "unexpected end", "premature"))
    return _refusal("truncated_image" if cut else "bad_image", what, _say(error))


def _say(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _why_unknown(head: bytes) -> str:
    if not head:
        return "it is empty (0 bytes)"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return f"it is HEIF or AVIF; read are {', '.join(FORMATS)}"
    kind = next((name for magic, name in _NO_IMAGE if head.lstrip().lower().startswith(magic)), None)
    if kind is not None:
        return f"it is {kind}; read are {', '.join(FORMATS)}"
    return f"none of {', '.join(FORMATS)}, or its header is damaged: it begins with {shorten(head[:12])}"
