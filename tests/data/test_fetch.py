"""Images at http(s) addresses, from a real server: public ones only, the address that was checked, limits."""

from __future__ import annotations

import datetime
import http.server
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from mmreason.data import _fetch
from mmreason.data._fetch import FetchError, fetch, public_address
from mmreason.data.images import ImageError, image_cell, load_image

buffer = io.BytesIO()
PIL.Image.new("RGB", (5, 4), "red").save(buffer, "PNG")
PNG = buffer.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    """/a.png; /to?URL redirects, /loop to itself; /short promises more than it sends; /slow trickles; /big is big."""

    hosts: list[str]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        path, _, target = self.path.partition("?")
        if path in ("/to", "/loop"):
            self.send_response(302)
            self.send_header("Location", target or "/loop")
            self.end_headers()
        elif path == "/a%20b.png" or path == "/a.png":
            self.answer({"Content-Length": str(len(PNG))}, PNG)
        elif path == "/short":
            self.answer({"Content-Length": str(len(PNG) + 9)}, PNG)
        elif path in ("/slow", "/big"):
            self.answer({}, b"")
            try:
                for _ in range(200):
                    self.wfile.write(b"x" if path == "/slow" else bytes(1 << 16))
                    time.sleep(0.05 if path == "/slow" else 0)
            except OSError:
                pass
        else:
            self.send_error(404)

    def answer(self, headers: dict[str, str], body: bytes) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's address; 127.0.0.1 counts as public, and nothing else of this machine does."""
    public = _fetch._is_public
    monkeypatch.setattr(_fetch, "_is_public", lambda address: address == "127.0.0.1" or public(address))
    monkeypatch.setattr(Server, "hosts", [], raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_image_is_fetched_where_that_is_asked_for(server: str) -> None:
    for url in (f"{server}/a.png", f"{server}/a b.png", f"{server}/to?/a.png", f"{server}/to?{server}/a.png"):
        assert image_cell(url, allow_urls=True) == {"bytes": PNG, "path": None}
    assert load_image({"bytes": None, "path": f"{server}/a.png"}, allow_urls=True).size == (5, 4)


def test_not_unless_asked_for(server: str) -> None:
    for value in (f"{server}/a.png", {"path": f"{server}/a.png"}):
        with pytest.raises(ImageError) as caught:
            load_image(value, root="/")
        assert caught.value.reason == "image_url" and "asked for" in str(caught.value)
    assert Server.hosts == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *(
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::7f00:1",
            "::127.0.0.1",
            "fec0::1",
            "2002:7f00:1::",
            "2002:a00:1::",
        ),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not _fetch._is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert _fetch._is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:1/a.png", "http://localhost:1/a.png", "http://[::1]:1/a.png", "http://2130706433:1/a.png"),
        *(
            "http://0x7f.1:1/a.png",
            "http://169.254.169.254/latest/meta-data",
            "http://user@127.0.0.1:1/",
            "http://0:1/",
        ),
    ],
)
def test_private_hosts_are_refused_however_they_are_written(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(url, allow_urls=True)
    assert caught.value.reason == "image_url" and "not a public address" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x/a.png", "file:///etc/passwd", "http://", "http://x:99999/", "s3://bucket/a.png"]
)
def test_other_schemes_and_no_addresses(url: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(url, allow_urls=True)
    assert caught.value.reason == "image_url"


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:1/a.png", "http://169.254.169.254/", "file:///etc/passwd", "//10.0.0.1/"]
)
def test_redirects_are_checked_again(server: str, target: str) -> None:
    with pytest.raises(FetchError, match="not a public address|only http and https"):
        fetch(f"{server}/to?{target}")


def test_every_address_of_a_name_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(FetchError, match="10.0.0.1"):
        public_address("two.test", 80)


def test_the_checked_address_is_the_one_that_is_used(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that points elsewhere at its second resolution (DNS rebinding) is resolved once."""
    real, asked = socket.getaddrinfo, []

    def resolve(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != "rebind.test":
            return real(host, port, *args, **options)
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.3", port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = server.rpartition(":")[2]
    assert fetch(f"http://rebind.test:{port}/a.png") == PNG
    assert asked == ["rebind.test"] and Server.hosts == [f"rebind.test:{port}"]


def test_limits(server: str) -> None:
    assert fetch(f"{server}/a.png", max_bytes=len(PNG)) == PNG
    with pytest.raises(FetchError, match="larger than"):
        fetch(f"{server}/a.png", max_bytes=len(PNG) - 1)
    with pytest.raises(FetchError, match="larger than"):
        fetch(f"{server}/big", max_bytes=1 << 20)
    with pytest.raises(FetchError, match="too early"):
        fetch(f"{server}/short")
    with pytest.raises(FetchError, match="404"):
        fetch(f"{server}/b.png")
    with pytest.raises(FetchError, match="redirects"):
        fetch(f"{server}/loop")
    start = time.monotonic()
    with pytest.raises(FetchError, match="too long"):
        fetch(f"{server}/slow", timeout_s=0.5)
    assert time.monotonic() - start < 3
    assert threading.active_count() < 20


def self_signed(folder: Path) -> Path:
    """A key and a certificate for localhost in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=now.year + 1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (folder / "both.pem").write_bytes(private + certificate.public_bytes(pem))
    return folder / "both.pem"


def test_https_wants_a_trusted_certificate(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: real("127.0.0.1", *rest, **options))
    pem = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        running.handle_error = lambda *args: None  # type: ignore[method-assign, assignment]
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(FetchError, match="certificate"):
            fetch(f"https://localhost:{running.server_port}/a.png")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert fetch(f"https://localhost:{running.server_port}/a.png") == PNG
        with pytest.raises(FetchError, match="certificate"):
            fetch(f"https://other.test:{running.server_port}/a.png")
        running.shutdown()


def test_rows_with_urls(server: str, tmp_path: Path) -> None:
    from mmreason.data import load_examples
    from mmreason.types import DataError

    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"question": "What colour?", "answer": "red", "image": "{server}/a.png"}}\n')
    columns = ("prompt", "images", "id")
    with pytest.raises(DataError, match="image_url"):
        load_examples(str(path), columns=columns)
    row = load_examples(str(path), columns=columns, image_urls=True).dataset[0]
    assert row["images"] == [{"bytes": PNG, "path": None}]
