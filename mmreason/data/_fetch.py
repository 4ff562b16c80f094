"""Fetch one file over http(s) from a public address, within limits: for images that rows give as URLs."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse

MAX_BYTES = 32 * 2**20
TIMEOUT_S = 20.0
_REDIRECTS = 5
_CHUNK = 1 << 16
# Networks whose addresses end with an IPv4 address: NAT64 (well-known and local), IPv4-compatible.
_CARRIERS = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))


class FetchError(Exception):
    """What was fetched can't or may not be used; the text says why."""


def fetch(url: str, *, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S) -> bytes:
    """The bytes at a URL.

    The host's name is resolved once, each of its addresses must be public, and the connection goes to the address that
    was checked, so that a name can't point elsewhere a moment later. Each redirect is checked like the first address.
    Proxies of the environment are not used: they would resolve the name themselves.

    Args:
        url: http or https.
        max_bytes: size limit of the answer.
        timeout_s: wall seconds for all of it, redirects included.

    Raises: FetchError.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(_REDIRECTS + 1):
        try:
            body, target = _get(url, max_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a port or name that is none
            raise FetchError(str(error) or type(error).__name__) from error
        if target is None:
            return body
        url = urllib.parse.urljoin(url, target)
    raise FetchError(f"more than {_REDIRECTS} redirects")


def _get(url: str, max_bytes: int, deadline: float) -> tuple[bytes, str | None]:
    """(body, None), or (b"", where a redirect leads)."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError(f"only http and https addresses are read, not {url!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, port)
    sock = socket.create_connection((public_address(parts.hostname, port), port), timeout=_left(deadline))
    # The time limits of a socket begin anew with each byte; this one ends a trickle too.
    twin = sock.dup()
    alarm = threading.Timer(_left(deadline), twin.shutdown, (socket.SHUT_RDWR,))
    alarm.start()
    try:
        connection.sock = sock
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        target = urllib.parse.quote(target, safe="/?%:@!$&'()*+,;=~")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "mmreason"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
            return b"", response.headers["Location"]
        if response.status != 200:
            raise FetchError(f"the server answered {response.status} {response.reason}")
        body = response.read(max_bytes + 1)
        _left(deadline)
        if len(body) > max_bytes:
            raise FetchError(f"it is larger than {max_bytes:,} bytes")
        if response.length:  # what Content-Length promised and the connection did not bring
            raise FetchError(f"the connection ended {response.length:,} bytes too early")
        return body, None
    finally:
        alarm.cancel()
        connection.close()
        sock.close()
        twin.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError("it takes too long")
    return left


def public_address(host: str, port: int) -> str:
    """The first address of a host. Raises: FetchError where any of its addresses is not public; OSError."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not _is_public(address):
            raise FetchError(f"{host} is at {address}, which is not a public address")
    return found[0]


def _is_public(address: str) -> bool:
    """Global and unicast; an IPv6 address that carries an IPv4 one is judged by both."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        teredo = ip.teredo[1] if ip.teredo else None
        carries = any(ip in network for network in _CARRIERS)
        tail = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if carries else None
        inner = ip.ipv4_mapped or ip.sixtofour or teredo or tail
        if ip.is_site_local:
            return False
        if inner is not None and not _is_public(str(inner)):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast
