"""API keys: read from the environment, sent to the server, and kept out of everything that is written or shown."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from urllib.parse import quote, urlsplit

from mmreason.types import ConfigError

NO_KEY = "EMPTY"
"""What a local server without keys is sent; the SDK insists on some text."""
SHOWN = 300
"""Characters of a server's own words that a message quotes."""

_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_KEY_LIKE = re.compile(r"(?i)\b(?:bearer\s+|sk-)[^\s\"',}<>]+")


def is_local(base_url: str) -> bool:
    """Is the server this machine or one of a private network?"""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or "." not in host
    return address.is_loopback or address.is_private or address.is_link_local


def is_loopback(base_url: str) -> bool:
    """Is the server this machine itself?"""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_address(base_url: str) -> None:
    """Raises: ConfigError for what is no http(s) address, or one with a user name, a password or a query in it."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"base_url must be an address such as http://localhost:8000/v1, not {redact(base_url)!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"base_url (host {parts.hostname}) holds a user name, a password or a query, which would end up in "
            "logs and manifests: put the key into an environment variable and name it with api_key_env"
        )


def check_variable(api_key_env: str | None) -> None:
    """Raises: ConfigError for what can't be a variable's name; it may be a key, so it is not repeated."""
    if api_key_env is not None and not _VARIABLE.fullmatch(api_key_env):
        raise ConfigError(
            "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY; what was given is none "
            "(is it the key itself? then take it out of the file, and revoke it if others could read it)"
        )


def read_key(api_key_env: str | None, base_url: str) -> str:
    """The key to send.

    Args:
        api_key_env: the variable that holds it; None for a server that wants none.
        base_url: a local server does without where the variable isn't set.

    Raises:
        ConfigError: the variable isn't set, holds what no header can carry, or would travel unencrypted to a stranger.
    """
    if api_key_env is None:
        return NO_KEY
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        if is_local(base_url):
            return NO_KEY
        raise ConfigError(
            f"no API key for {base_url}: set the environment variable {api_key_env} "
            f"(export {api_key_env}=...), name another one with api_key_env, or none (api_key_env: null)"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"the environment variable {api_key_env} holds a blank or a character that no key has")
    if urlsplit(base_url).scheme == "http" and not is_local(base_url):
        raise ConfigError(f"{base_url} is not encrypted, and the key of {api_key_env} would be sent to it: use https")
    return key


def redact(text: str, key: str = "") -> str:
    """The text with the key, and whatever else looks like one, as [key]. Nothing may be cut off before this."""
    if key and key != NO_KEY:
        for form in {key, quote(key, safe=""), json.dumps(key)[1:-1]}:
            text = text.replace(form, "[key]")
    return _KEY_LIKE.sub("[key]", text)


def quoted(text: str, key: str) -> str:
    """A server's words for a message: on one line, without the key, cut to SHOWN characters."""
    line = " ".join(redact(text, key).split())
    return line if len(line) <= SHOWN else line[:SHOWN] + " ..."
