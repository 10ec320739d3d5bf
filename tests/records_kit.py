"""What the tests of the record catalogue share: songs, a web server that does what it is told, and data directories.

How it works: `Host` is a real HTTP server in threads, so that commands and mounts in other processes can ask it. A
path's `Page` says what it gives and how it misbehaves; what was asked is written down. It knows Range, If-Range and
strong ETags as RFC 9110 has them, unless a page says otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from cachefs.cli import main
from cachefs.config import Records

PIECE = 2**18
OPEN = Records(allow_http=True, allow_private=True)
"""The settings under which a server on loopback may be asked."""

OPEN_TOML = "[records]\nallow_http = true\nallow_private = true\n"


def song(seed: int, size: int) -> bytes:
    """Bytes that begin like an MP3, and that only the arguments decide."""
    return b"ID3\x04\x00\x00" + random.Random(seed).randbytes(size - 6)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Page:
    """What a path gives.

    `body`, its `media` type and an `etag` ("" for none, "auto" for the bytes' hash); `status` other than 200 gives no
    body; `headers` are added, or replace others, and several values make several lines. `ranges` false ignores Range,
    `most` is how much of one is given. `chunked` bodies have no length. Faults: the answer breaks off after `cut` bytes
    of a body, as often as `cuts` says, and if there is a page `then`, the path has it from there on; `declared` is
    another Content-Length; `endless` never ends; `gate` holds the body back until it is set, `hold` bytes before it;
    `busy` is how often it answers 503 first, with `headers`.
    """

    body: bytes = b""
    media: str = "audio/mpeg"
    etag: str = "auto"
    status: int = 200
    headers: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    ranges: bool = True
    most: int | None = None
    chunked: bool = False
    cut: int = 0
    cuts: int = 1
    then: Page | None = None
    declared: int | None = None
    endless: bool = False
    gate: threading.Event | None = None
    hold: int = 0
    busy: int = 0

    @property
    def tag(self) -> str:
        return f'"{sha256(self.body)[:16]}"' if self.etag == "auto" else self.etag


@dataclass(frozen=True)
class Asked:
    """One request: the path and the headers, with lower-case names; `x-from` is the port that it came from."""

    path: str
    headers: Mapping[str, str]


class Host:
    """A running server; `pages` by path, `asked` what was asked so far, `sent` how many bytes of bodies went out."""

    def __init__(self, port: int, scheme: str = "http") -> None:
        self.url = f"{scheme}://127.0.0.1:{port}/"
        self.pages: dict[str, Page] = {}
        self.asked: list[Asked] = []
        self.sent = 0

    def put(self, path: str, body: bytes, **how: Any) -> str:
        """Serve `body` at `path`; its URL."""
        self.pages[f"/{path}"] = Page(body, **how)
        return self.url + path

    def asked_for(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == f"/{path}"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: Host

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionResetError, ssl.SSLError):  # a client that goes away in the middle of a body
            super().handle()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers["x-from"] = str(self.client_address[1])
        self.host.asked.append(Asked(self.path, headers))
        page = self.host.pages.get(self.path, Page(status=404))
        if page.busy and not page.cuts * page.cut:
            page.busy -= 1
            page = Page(status=503, headers=page.headers)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer(page, headers)

    def _answer(self, page: Page, headers: Mapping[str, str]) -> None:
        start, end = self._range(page, headers)
        if start >= end and page.body:
            page = Page(status=416)
            start = end = 0
        part = page.body[start:end]
        partial = (start, end) != (0, len(page.body))
        self.send_response_only(page.status if page.status != 200 else 206 if partial else 200)
        length = len(part) if page.declared is None else page.declared - start
        told = {"Content-Type": page.media, "Content-Length": str(length)}
        if page.tag:
            told["ETag"] = page.tag
        if partial:
            told["Content-Range"] = f"bytes {start}-{end - 1}/{len(page.body)}"
        if page.endless:
            del told["Content-Length"]
            told["Connection"] = "close"
        chunked = page.chunked and not partial
        if chunked:
            del told["Content-Length"]
            told["Transfer-Encoding"] = "chunked"
        for name, values in {**told, **page.headers}.items():
            for value in (values,) if isinstance(values, str) else values:
                self.send_header(name, value)
        self.end_headers()
        if chunked:
            self.wfile.write(b"%x\r\n" % len(part))
        self._send(page, part)
        if chunked and not self.close_connection:
            self.wfile.write(b"\r\n0\r\n\r\n")

    def _range(self, page: Page, headers: Mapping[str, str]) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        everything = (0, len(page.body))
        if not page.ranges or page.status != 200 or match is None:
            return everything
        if "if-range" in headers and headers["if-range"] != page.tag:
            return everything
        end = int(match[2]) + 1 if match[2] else len(page.body)
        if page.most is not None:
            end = min(end, int(match[1]) + page.most)
        return int(match[1]), min(end, len(page.body))

    def _send(self, page: Page, part: bytes) -> None:
        if page.cut and page.cuts > 0 and len(part) > page.cut:
            page.cuts -= 1
            self._write(part[: page.cut])
            if page.then is not None:
                self.host.pages[self.path] = page.then
            self._break_off()
            return
        self._write(part[: page.hold])
        if page.gate is not None and len(part) > page.hold:
            page.gate.wait(30)
        self._write(part[page.hold :])
        while page.endless:
            self._write(bytes(2**16))
        if page.declared is not None:
            self._break_off()

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), 2**16):
            self.wfile.write(data[at : at + 2**16])
            self.host.sent += len(data[at : at + 2**16])

    def _break_off(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)


class _Server(socketserver.ThreadingTCPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses our certificate is no fault of the server's."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextmanager
def web(certificate: Path | None = None) -> Iterator[Host]:
    """A server on a free loopback port; https with the key and certificate in a file."""
    handler = type("Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        scheme = "https" if certificate else "http"
        host = handler.host = Host(server.server_address[1], scheme)  # type: ignore[attr-defined]  # a class of its own for each server
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield host
        finally:
            for page in host.pages.values():
                if page.gate is not None:
                    page.gate.set()
                page.endless = False
            server.shutdown()
            thread.join()


def make_certificate(directory: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that nobody vouches for but itself."""
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key, crt, both = (directory / name for name in ("key.pem", "crt.pem", "both.pem"))
    subprocess.run(["openssl", "req", *options, *names, "-keyout", key, "-out", crt], check=True, capture_output=True)
    both.write_text(key.read_text() + crt.read_text())
    return both


def digest_header(body: bytes) -> dict[str, str]:
    return {"Repr-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"}


def data_dir(place: Path) -> Path:
    """`place`/data, whose settings allow loopback."""
    path = place / "data"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    (path / "cachefs.toml").write_text(OPEN_TOML)
    return path


def etch(data: Path, url: str, *options: str | Path) -> str:
    """`cachefs etch`, which must succeed; what it printed."""
    done = _run("etch", url, "--data-dir", data, *options)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(data: Path, url: str, *options: str | Path) -> str:
    """`cachefs etch`, which must fail; what it said."""
    done = _run("etch", url, "--data-dir", data, *options)
    assert done.exit_code == 1, done.output
    return done.stderr.strip()


def _run(*arguments: str | Path) -> Result:
    """A command run in this process: starting one takes longer than most etches."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def leftovers(data: Path) -> list[str]:
    """The temporary files in a data directory."""
    incoming = data / "incoming"
    return sorted(path.name for path in incoming.iterdir()) if incoming.exists() else []


def stored(data: Path) -> list[str]:
    """The SHA-256 digests of the objects in the store."""
    return sorted(path.parent.name for path in (data / "store").glob("sha256/*/*/data"))
