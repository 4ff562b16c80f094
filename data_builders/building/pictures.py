"""Pictures of rows as endpoints take them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmreason.types import ConfigError, DataError


def image_bytes(cell: Mapping[str, Any]) -> bytes:
    """An image's cell as PNG or JPEG bytes: as stored where it is either, else as a PNG. Raises: ImageError."""
    from mmreason.clients.images import media_type
    from mmreason.data.images import load_image

    held = cell.get("bytes")
    if held is None and cell.get("path"):
        try:
            held = Path(str(cell["path"])).read_bytes()
        except OSError as error:
            raise DataError(
                f"{cell['path']}: {error.strerror}", path=str(cell["path"]), reason="missing_image"
            ) from None
    try:
        media_type(held or b"")
        return bytes(held or b"")
    except ConfigError:
        buffer = io.BytesIO()
        load_image(cell).save(buffer, "PNG")
        return buffer.getvalue()
