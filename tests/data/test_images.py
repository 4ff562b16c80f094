"""load_image: every mode against float64 formulas, EXIF against Pillow and numpy, hostile files and paths."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ImageFile, ImageOps

from mmreason.data.images import (
    MAX_PIXELS,
    ImageError,
    load_image,
)
from mmreason.types import ConfigError, DataError
from tests.image_rows import encode, fails, pixels

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (13, 17, 4), dtype=np.uint8)


def on_white(colours: Array, alpha: Array) -> Array:
    """The formula of compositing over white, in float64."""
    share = alpha[..., None] / 255.0
    return colours * share + 255.0 * (1.0 - share)


def tiff(values: Array, *, bits: int = 16, photometric: int = 1) -> bytes:
    """An uncompressed little-endian grey TIFF, written by hand: Pillow writes neither 12 bits nor white as zero."""
    if bits == 16:
        data = values.astype("<u2").tobytes()
    else:  # 12 bits, most significant first
        joined = "".join(f"{value:012b}" for value in values.ravel())
        data = int(joined, 2).to_bytes(len(joined) // 8, "big")
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 12 * 9 + 4)]
    tags += [(277, 1), (278, height), (279, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + directory + bytes(4) + data


def png_of(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A grey PNG whose header claims any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK"])
def test_opaque_modes_are_what_pillow_makes_of_them(mode: str) -> None:
    image = PIL.Image.fromarray(PIXELS[..., :3]).convert(mode)
    assert (pixels(load_image(image)) == np.asarray(image.convert("RGB"))).all()


def test_black_and_white() -> None:
    bits = PIXELS[..., 0] > 127
    grey = bits.astype(np.uint8) * 255
    assert (pixels(load_image(encode(PIL.Image.fromarray(bits)))) == grey[..., None]).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(format: str) -> None:
    image = PIL.Image.fromarray(PIXELS)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    wanted = on_white(PIXELS[..., :3], PIXELS[..., 3])
    assert np.abs(pixels(load_image(encode(image, format, **options))) - wanted).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_grey_with_alpha(mode: str) -> None:
    image = PIL.Image.fromarray(PIXELS[..., [0, 3]], mode="LA")
    wanted = on_white(PIXELS[..., [0, 0, 0]], PIXELS[..., 3])
    tolerance = 1 if mode == "LA" else 2  # "La" was rounded once more, when alpha was multiplied in
    assert np.abs(pixels(load_image(image.convert(mode))) - wanted).max() <= tolerance


def test_alpha_that_was_multiplied_in() -> None:
    image = PIL.Image.fromarray(PIXELS)
    wanted = on_white(PIXELS[..., :3], PIXELS[..., 3])
    assert np.abs(pixels(load_image(image.convert("RGBa"))) - wanted).max() <= 2


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_transparent_palette_entries(transparency: int | bytes) -> None:
    palette = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]], np.uint8)
    index = PIXELS[..., 0] % 3
    image = PIL.Image.fromarray(index, mode="P")
    image.putpalette(palette.ravel().tobytes())
    alpha = np.array([255, 0, 255 if transparency == 1 else 128])[index]
    loaded = pixels(load_image(encode(image, "PNG", transparency=transparency)))
    assert np.abs(loaded - on_white(palette[index], alpha)).max() <= 1


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_is_white(mode: str, key: Any) -> None:
    colours = PIXELS[..., :3].copy() if mode == "RGB" else PIXELS[..., 0].copy()
    colours[2:5, 3:9] = key
    loaded = pixels(load_image(encode(PIL.Image.fromarray(colours), "PNG", transparency=key)))
    wanted = np.broadcast_to(colours if mode == "RGB" else colours[..., None], (13, 17, 3)).copy()
    hidden = (colours == key).all(-1) if mode == "RGB" else colours == key
    wanted[hidden] = 255
    assert (loaded == wanted).all()


def test_palette_with_alpha_channel() -> None:
    image = PIL.Image.fromarray(PIXELS[..., :3]).convert("P").convert("PA")
    assert (pixels(load_image(image)) == np.asarray(image.convert("RGB"))).all()


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    ink = (40, 200, 90, 60)
    data = encode(PIL.Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    assert b"Adobe" in data
    wanted = [255 * (1 - c / 255) * (1 - ink[3] / 255) for c in ink[:3]]
    assert np.abs(pixels(load_image(data)).mean((0, 1)) - wanted).max() < 4


def test_lab() -> None:
    """L* 53.24, a* 80.09, b* 67.20 is sRGB red (D65 white; Pillow's Lab is of D50, hence the tolerance)."""
    image = PIL.Image.frombytes("LAB", (2, 2), bytes([round(53.24 * 2.55), 80, 67]) * 4)
    red, green, blue = pixels(load_image(image))[0, 0]
    assert red > 240 and green < 40 and blue < 40


DEEP = RNG.integers(0, 65536, (13, 17)).astype(np.uint16)
DEEP[0, :3] = 0, 65535, 32768


def scaled(values: Array, low: float, high: float) -> Array:
    return np.round((values.astype(np.float64) - low) / (high - low) * 255.0)[..., None]


@pytest.mark.parametrize(
    ("name", "make", "wanted"),
    [
        ("png", lambda: encode(PIL.Image.fromarray(DEEP)), scaled(DEEP, 0, 65535)),
        ("tiff", lambda: encode(PIL.Image.fromarray(DEEP), "TIFF"), scaled(DEEP, 0, 65535)),
        ("tiff, white is zero", lambda: tiff(DEEP, photometric=0), 255 - scaled(DEEP, 0, 65535)),
        ("tiff of 12 bits", lambda: tiff(DEEP[:, :16] >> 4, bits=12), scaled(DEEP[:, :16] >> 4, 0, 4095)),
        ("pgm", lambda: b"P5 17 13 65535\n" + DEEP.astype(">u2").tobytes(), scaled(DEEP, 0, 65535)),
        (
            "pgm of 10 bits",
            lambda: b"P5 17 13 1023\n" + (DEEP >> 6).astype(">u2").tobytes(),
            scaled(DEEP >> 6, 0, 1023),
        ),
        ("dark png", lambda: encode(PIL.Image.fromarray(DEEP >> 8)), scaled(DEEP >> 8, 0, 65535)),
    ],
)
def test_deep_grey_is_scaled_not_clipped(name: str, make: Callable[[], bytes], wanted: Array) -> None:
    assert np.abs(pixels(load_image(make())) - wanted).max() == 0, name


def test_a_transparent_depth_is_white() -> None:
    data = encode(PIL.Image.fromarray(DEEP))
    chunk = b"tRNS" + struct.pack(">H", int(DEEP[4, 4]))
    at = data.index(b"IDAT") - 4
    keyed = data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    wanted = scaled(DEEP, 0, 65535)
    wanted[DEEP[4, 4] == DEEP] = 255
    assert (pixels(load_image(keyed)) == wanted).all()


@pytest.mark.parametrize("scale", [1.0, 255.0, 7000.0])
@pytest.mark.parametrize("signed", [False, True])
def test_floats_and_integers_of_32_bits(scale: float, signed: bool) -> None:
    floats = (RNG.random((13, 17)) - (0.5 if signed else 0.0)).astype(np.float32) * np.float32(scale)
    low, high = float(floats.min()), float(floats.max())
    if not signed and scale < 7000:
        low, high = 0.0, scale
    image = PIL.Image.fromarray(floats)
    assert np.abs(pixels(load_image(image)) - scaled(floats, low, high)).max() <= 0
    assert (pixels(load_image(encode(image, "TIFF"))) == pixels(load_image(image))).all()
    whole = (floats * 1e4).astype(np.int32)
    fits = whole.min() >= 0 and whole.max() <= 65535
    bounds = (0.0, 65535.0) if fits else (float(whole.min()), float(whole.max()))
    assert np.abs(pixels(load_image(PIL.Image.fromarray(whole))) - scaled(whole, *bounds)).max() <= 0


def test_flat_and_impossible_floats() -> None:
    assert pixels(load_image(PIL.Image.new("F", (3, 2), -5.0))).max() == 0
    for value in (float("nan"), float("inf")):
        error = fails(PIL.Image.new("F", (3, 2), value))
        assert error.reason == "bad_image" and "NaN" in str(error)


def test_deep_grey_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pixels(load_image(PIL.Image.fromarray(DEEP)))
    monkeypatch.setattr("mmreason.data.images._BAND", 40)  # two rows at a time
    assert (pixels(load_image(PIL.Image.fromarray(DEEP))) == whole).all()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG", "GIF"])
def test_every_format_is_read_as_pillow_reads_it(format: str, tmp_path: Path) -> None:
    image = PIL.Image.fromarray(PIXELS[..., :3])
    data = encode(image, format, **({"lossless": True} if format == "WEBP" else {}))
    with PIL.Image.open(io.BytesIO(data)) as opened:
        wanted = np.asarray(opened.convert("RGB"))
    (tmp_path / "image.bin").write_bytes(data)  # the name plays no part
    for value in (data, bytearray(data), tmp_path / "image.bin", str(tmp_path / "image.bin")):
        loaded = load_image(value)
        assert (pixels(loaded) == wanted).all() and type(loaded) is PIL.Image.Image and loaded.info == {}
    if format not in ("JPEG", "GIF"):
        assert (wanted == PIXELS[..., :3]).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    red, blue = PIL.Image.new("RGB", (8, 6), "red"), PIL.Image.new("RGB", (8, 6), "blue")
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(red, format, save_all=True, append_images=[blue], **options)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 2  # type: ignore[attr-defined]
    assert (pixels(load_image(data)) == [255, 0, 0]).all()


def test_a_jpeg_of_several_pictures_is_read() -> None:
    red, blue = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (8, 8), "blue")
    data = encode(red, "MPO", save_all=True, append_images=[blue])
    red_value = pixels(load_image(data))[4, 4]
    assert red_value[0] > 240 and red_value[2] < 20


# EXIF

UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(orientation: int, format: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(PIL.Image.fromarray(PIXELS[..., :3]), format, exif=exif, **options)
    loaded = load_image(data)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert (pixels(loaded) == np.asarray(ImageOps.exif_transpose(opened))).all()
    if format != "JPEG":
        assert (pixels(loaded) == UPRIGHT[orientation](PIXELS[..., :3])).all()
    assert loaded.getexif().get(0x0112) is None  # nobody turns it a second time
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert (pixels(load_image(opened)) == pixels(loaded)).all()


def test_orientation_and_alpha_together() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    loaded = pixels(load_image(encode(PIL.Image.fromarray(PIXELS), "PNG", exif=exif)))
    assert np.abs(loaded - np.rot90(on_white(PIXELS[..., :3], PIXELS[..., 3]), -1)).max() <= 1


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_cost_the_picture(exif: bytes) -> None:
    loaded = load_image(encode(PIL.Image.new("RGB", (8, 6), "red"), "JPEG", exif=exif))
    assert loaded.size == (8, 6) and loaded.info == {}


# What can't be used


def test_bombs_are_refused_by_their_header() -> None:
    error = fails(png_of(60_000, 60_000))
    assert error.reason == "too_many_pixels" and "max_pixels" in str(error)
    animation = bytearray(ENCODED["gif"])
    animation[6:10] = struct.pack("<HH", 65535, 65535)
    assert fails(bytes(animation)).reason == "too_many_pixels"
    with pytest.warns(PIL.Image.DecompressionBombWarning):
        assert fails(png_of(MAX_PIXELS + 1, 1)).reason == "too_many_pixels"
    assert fails(png_of(MAX_PIXELS, 1)).reason == "truncated_image"  # allowed, and decoded: it holds nothing


def test_the_limit_is_exact() -> None:
    data = encode(PIL.Image.new("RGB", (10, 7)))
    assert load_image(data, max_pixels=70).size == (10, 7)
    error = fails(data, max_pixels=69, where="row q/3, image 2")
    assert str(error).startswith("row q/3, image 2: ") and "10 x 7" in str(error)
    assert fails(PIL.Image.new("RGB", (10, 7)), max_pixels=69).reason == "too_many_pixels"
    assert fails(data + bytes(1 << 25), max_pixels=70).reason == "too_many_pixels"  # a file beyond reason


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"not an image", "begins with"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b'\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIF"),
        (encode(PIL.Image.new("RGB", (16, 16)), "ICO"), "begins with"),
        (encode(PIL.Image.new("RGB", (16, 16)), "JPEG2000"), "JPEG 2000"),
        (png_of(0, 5), ""),
    ],
)
def test_no_picture(data: bytes, said: str) -> None:
    error = fails(data)
    assert error.reason == "bad_image" and said in str(error)
    assert isinstance(error, DataError) and "PNG or JPEG" in str(error)


def test_eps_is_not_handed_to_ghostscript() -> None:
    with PIL.Image.open(io.BytesIO(encode(PIL.Image.new("RGB", (8, 8)), "EPS"))) as opened:
        error = fails(opened)
    assert error.reason == "bad_image" and "EPS" in str(error)


@pytest.mark.parametrize("value", [7, ["a.png"], object(), {"bytes": 3}])
def test_no_kind_of_image(value: Any) -> None:
    assert fails(value).reason == "bad_image"


@pytest.mark.parametrize("value", [None, "", {}, {"bytes": None, "path": None}, {"path": ""}])
def test_no_image_at_all(value: Any) -> None:
    assert fails(value).reason == "missing_image"


def smooth(size: int = 48) -> PIL.Image.Image:
    """No grey in it, so that a part that was filled in shows."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    return PIL.Image.fromarray(
        np.stack([np.tile(ramp, (size, 1)), np.full((size, size), 200, np.uint8), ramp[::-1, None].repeat(size, 1)], -1)
    )


ENCODED = {
    "png": encode(smooth()),
    "jpeg": encode(smooth(), "JPEG", quality=90),
    "progressive": encode(smooth(), "JPEG", quality=90, progressive=True),
    "gif": encode(smooth(), "GIF"),
    "webp": encode(smooth(), "WEBP", lossless=True),
    "bmp": encode(smooth(), "BMP"),
    "tiff": encode(smooth(), "TIFF", compression="tiff_lzw"),
    "ppm": encode(smooth(), "PPM"),
}
WHOLE = {name: pixels(load_image(data)) for name, data in ENCODED.items()}


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(ENCODED)), cut=st.floats(0, 1))
@example(name="jpeg", cut=1.0)
@example(name="png", cut=1.0)
@pytest.mark.filterwarnings("ignore")
def test_truncated_files_are_never_filled_up(name: str, cut: float) -> None:
    """An error, or, where only an end mark was cut off, the whole picture."""
    length = min(int(cut * len(ENCODED[name])), len(ENCODED[name]) - 1)
    try:
        loaded = load_image(ENCODED[name][:length])
    except ImageError as error:
        assert error.reason in ("truncated_image", "bad_image")
    else:
        assert (pixels(loaded) == WHOLE[name]).all()


@pytest.mark.parametrize("name", ["png", "jpeg", "progressive", "gif", "bmp", "ppm"])
def test_half_a_file_is_called_truncated(name: str) -> None:
    error = fails(ENCODED[name][: len(ENCODED[name]) // 2])
    assert error.reason == "truncated_image" and "again" in str(error)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(ENCODED)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_an_image_or_the_one_error(name: str, edits: list[tuple[float, int]]) -> None:
    data = bytearray(ENCODED[name])
    for place, value in edits:
        data[min(int(place * len(data)), len(data) - 1)] = value
    try:
        assert load_image(bytes(data), max_pixels=1 << 20).mode == "RGB"
    except ImageError as error:
        assert error.reason in ("truncated_image", "bad_image", "too_many_pixels")


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"P6 "]),
)
@pytest.mark.filterwarnings("ignore")
def test_noise_gives_the_one_error(data: bytes, magic: bytes) -> None:
    with contextlib.suppress(ImageError):
        load_image(magic + data, max_pixels=1 << 20)


def test_a_process_that_accepts_truncated_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        load_image(ENCODED["png"])
    assert load_image(smooth()).size == (48, 48)  # decoded already


@pytest.mark.filterwarnings("ignore")
def test_threads_side_by_side_and_switches_untouched() -> None:
    before = (PIL.Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)

    def check(number: int) -> bool:
        name = sorted(ENCODED)[number % len(ENCODED)]
        if number % 3 == 0:
            return fails(ENCODED[name][:60]).reason in ("truncated_image", "bad_image")
        return bool((pixels(load_image(ENCODED[name])) == WHOLE[name]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(200)))
    assert before == (PIL.Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(fails(b"x", where="row 3")))
    assert (error.reason, error.detail[:6]) == ("bad_image", "row 3:") and str(error).startswith("row 3: ")
