"""PNG files whose bytes depend on the pixels alone.

What zlib makes of the same pixels changes with its version and with its builds for different processors, and with it
the bytes and hashes of a built set. Rendered scenes are flat, so a copy of the pixel to the left or of the one above
says nearly everything about them: this writer knows these two copies and the fixed Huffman code, nothing else.
Sources: PNG (W3C, third edition) and DEFLATE (RFC 1951, sections 3.2.5 and 3.2.6).
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LITERAL, _LEFT, _ABOVE = 0, 1, 2
_CHANNELS = 3
_LONGEST_COPY = 258  # bytes, RFC 1951; a multiple of a pixel's three


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """The PNG file (8-bit RGB, no filters, no interlacing) of an image.

    Args:
        pixels: (H, W, 3) uint8.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + width * _CHANNELS), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    stream = b"\x78\x01" + _deflate(pixels) + struct.pack(">I", zlib.adler32(rows.tobytes()))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _deflate(pixels: NDArray[np.uint8]) -> bytes:
    """One final block with the fixed Huffman code."""
    height, width, _ = pixels.shape
    wide = pixels.astype(np.uint32)
    colors = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    kinds = np.zeros((height, width), np.uint8)
    kinds[:, 1:][colors[:, 1:] == colors[:, :-1]] = _LEFT
    kinds[1:][colors[1:] == colors[:-1]] = _ABOVE
    flat = kinds.ravel()
    begins = np.ones(flat.size, bool)
    begins[1:] = (flat[1:] != flat[:-1]) | (flat[1:] == _LITERAL)
    begins[::width] = True
    starts = np.flatnonzero(begins)
    runs = np.diff(starts, append=flat.size)

    distances = {_LEFT: _CHANNELS, _ABOVE: width * _CHANNELS + 1}
    bits = ["110"]  # the last block; its type is 01, low bit first
    for start, run, kind, color in zip(
        starts.tolist(), runs.tolist(), flat[starts].tolist(), colors.ravel()[starts].tolist(), strict=True
    ):
        if start % width == 0:
            bits.append(_byte(0))
        bits.append(_copy(run * _CHANNELS, distances[kind]) if kind else _pixel(color))
    bits.append("0000000")  # end of block
    text = "".join(bits)[::-1]  # bytes are filled from their low bits
    return int(text, 2).to_bytes((len(text) + 7) // 8, "little")


@functools.cache
def _byte(value: int) -> str:
    return f"{0x30 + value:08b}" if value < 144 else f"{0x190 + value - 144:09b}"


@functools.lru_cache(maxsize=4096)
def _pixel(color: int) -> str:
    return _byte(color >> 16) + _byte(color >> 8 & 255) + _byte(color & 255)


@functools.lru_cache(maxsize=4096)
def _copy(length: int, distance: int) -> str:
    whole, rest = divmod(length, _LONGEST_COPY)
    return (_length(_LONGEST_COPY) + _distance(distance)) * whole + (
        _length(rest) + _distance(distance) if rest else ""
    )


def _length(length: int) -> str:
    """3 to 258: the code and its extra bits."""
    if length == _LONGEST_COPY:
        return f"{0xC0 + 285 - 280:08b}"
    if length < 11:
        symbol, extra, count = 254 + length, 0, 0
    else:
        symbol, extra, count = _with_extra_bits(length - 3, 2)
        symbol += 257
    code = f"{symbol - 256:07b}" if symbol < 280 else f"{0xC0 + symbol - 280:08b}"
    return code + _low_first(extra, count)


def _distance(distance: int) -> str:
    if distance < 5:
        return f"{distance - 1:05b}"
    symbol, extra, count = _with_extra_bits(distance - 1, 1)
    return f"{symbol:05b}" + _low_first(extra, count)


def _with_extra_bits(value: int, kept: int) -> tuple[int, int, int]:
    """(symbol, extra bits, their number): a symbol names the leading bit and the `kept` bits after it."""
    count = value.bit_length() - 1 - kept
    symbol = (count << kept) + (value >> count)
    return symbol, value & ((1 << count) - 1), count


def _low_first(value: int, count: int) -> str:
    return f"{value:0{count}b}"[::-1] if count else ""
