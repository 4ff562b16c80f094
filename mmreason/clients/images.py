"""Images of a request: what they are, and the data URL in which an endpoint takes them. Standard library only."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.types import ConfigError

_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def media_type(image: bytes) -> str:
    """ "image/png" or "image/jpeg", by the first bytes.

    Raises:
        ConfigError: neither.
    """
    for magic, name in _MAGIC.items():
        if image.startswith(magic):
            return name
    raise ConfigError(f"an image must be PNG or JPEG; these {len(image)} bytes begin with {bytes(image[:8])!r}")


def data_url(image: bytes) -> str:
    """The image as a `data:` URL (RFC 2397)."""
    return f"data:{media_type(image)};base64,{base64.b64encode(image).decode('ascii')}"


def with_images(messages: Sequence[Mapping[str, Any]], images: Sequence[bytes]) -> list[dict[str, Any]]:
    """The messages with each `{"type": "image"}` part as the `image_url` part that servers know.

    Args:
        messages: a conversation; its image parts take `images` in order.
        images: PNG or JPEG bytes.

    Raises:
        ConfigError: more or fewer image parts than images, or an image of another format.
    """
    places = sum(
        part.get("type") == "image"
        for message in messages
        if not isinstance(message.get("content"), str)
        for part in message.get("content") or ()
    )
    if places != len(images):
        raise ConfigError(f'a request has {places} {{"type": "image"}} parts and {len(images)} images')
    urls = iter([data_url(image) for image in images])
    sent = []
    for message in messages:
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            content = [
                {"type": "image_url", "image_url": {"url": next(urls)}} if part.get("type") == "image" else dict(part)
                for part in content
            ]
        sent.append({**message, "content": content} if "content" in message else dict(message))
    return sent
