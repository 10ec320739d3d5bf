"""The web seed: an HTTP/1.1 server for a fixed set of names, enough of it for clients that fetch ranges.

How it works: `httpserver` speaks the protocol. A request is answered in two steps. `respond` decides, without
awaiting anything: the status, the headers and which span of which open file goes out. Then that span is sent
with sendfile(2), from the page cache to the socket without passing through Python, waiting for the socket only
when its buffer is full.

A request names a key of a dictionary, never a path, so there is nothing to traverse; and no link is followed on the way
to what it stands for (`opening.py`). Before the dictionary is
there (the seed box is still hashing), or when a file can't be opened at the moment (no descriptor is left), the answer
is 503 with Retry-After, for 404 would send a client away for good. Formats: RFC 9110.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import h11
import trio

from cachefs.content import Span
from cachefs.httpserver import STALL_TIMEOUT, Connection, Headers, Response, Server, listen, peer
from cachefs.origin.opening import open_plainly

MAX_CONNECTIONS = 1000

_SENDFILE_CHUNK = 4 * 2**20
_RANGE = re.compile(rb"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
_TYPES = {".torrent": "application/x-bittorrent", ".txt": "text/plain", ".toml": "application/toml"}
_REASONS = {
    404: b"not found\n",
    405: b"GET and HEAD only\n",
    500: b"a fault of this server\n",
    503: b"not now, come again\n",
}
_NOT_THERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG))

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Site:
    """The names that are served, each with its file, whose path has no links; None until they are known."""

    assets: Mapping[str, Path] | None = None

    async def answer(self, stream: trio.SocketStream, request: h11.Request, body: bytes) -> Response:
        response = _plain(400) if body else respond(request, self)
        if log.isEnabledFor(logging.INFO):
            method, target = request.method.decode("ascii"), request.target.decode("ascii", "replace")
            log.info("%s %s %s %d %d", peer(stream), method, target, response.status, response.length)
        return response

    def refusal(self, status: int) -> Response:
        return _plain(status)


NOTHING = Span(0, 0)


@dataclass(slots=True)
class FilePart(Response):
    """An answer whose body is a span of an open file, if there is any of it to send."""

    descriptor: int = -1
    span: Span = NOTHING

    @property
    def length(self) -> int:
        return self.span.length

    async def send_rest(self, connection: Connection) -> None:
        if self.span.length:
            await _send_span(connection.socket_for(self.span.length), self.descriptor, self.span)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def respond(request: h11.Request, site: Site) -> Response:
    """What `request` is answered with; it must be closed."""
    if request.method not in (b"GET", b"HEAD"):
        return _plain(405, [("Allow", "GET, HEAD")])
    if site.assets is None:
        return _later()
    path = site.assets.get(_name(request.target))
    if path is None:
        return _plain(404)
    try:
        descriptor = open_plainly(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        log.warning("%s: %s", path, error.strerror)
        return _plain(404) if error.errno in _NOT_THERE else _later()
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            return _plain(404)
        response = _file(request, path, state)
        if response.span.length:
            stack.pop_all()
            response.descriptor = descriptor
    return response


def _later() -> Response:
    return _plain(503, [("Retry-After", "10")])


def _plain(status: int, headers: Headers | None = None) -> Response:
    return Response(status, [*(headers or []), ("Content-Type", "text/plain")], _REASONS.get(status, b"bad request\n"))


def _name(target: bytes) -> str:
    """The name that a request target asks for; `%2F` and `/` are the same, a query is ignored."""
    try:
        return unquote_to_bytes(urlsplit(target).path).removeprefix(b"/").decode()
    except ValueError:
        return ""


def _file(request: h11.Request, path: Path, state: os.stat_result) -> FilePart:
    asked, etag, modified = dict(request.headers), f'"{state.st_size:x}-{state.st_mtime_ns:x}"', _modified(state)
    headers = [("Accept-Ranges", "bytes"), ("ETag", etag), ("Last-Modified", modified)]
    if etag in asked.get(b"if-none-match", b"").decode("latin-1"):
        return FilePart(304, headers)
    headers.append(("Content-Type", _TYPES.get(path.suffix, "application/octet-stream")))
    span = _wanted_range(request, asked, (etag, modified), state.st_size)
    if span is None:
        return FilePart(200, headers, span=Span(0, state.st_size))
    if not span.length:
        return FilePart(416, [*headers, ("Content-Range", f"bytes */{state.st_size}")])
    headers.append(("Content-Range", f"bytes {span.offset}-{span.end - 1}/{state.st_size}"))
    return FilePart(206, headers, span=span)


def _modified(state: os.stat_result) -> str:
    """The file's time as a date; never one to come (RFC 9110, 8.8.2.1), which might have no four-digit year either."""
    return formatdate(max(0.0, min(state.st_mtime, time.time())), usegmt=True)


def _wanted_range(
    request: h11.Request, asked: dict[bytes, bytes], validators: tuple[str, str], size: int
) -> Span | None:
    """The range that counts: only a GET has one, and If-Range makes it depend on the file being the same."""
    only_if = asked.get(b"if-range")
    if request.method != b"GET" or (only_if is not None and only_if.decode("latin-1") not in validators):
        return None
    return parse_range(asked.get(b"range", b""), size)


def parse_range(value: bytes, size: int) -> Span | None:
    """The span that a Range header asks for of `size` bytes; of length 0 if it can't be satisfied.

    None if the whole file is to be sent: there is no range, several, or one that makes no sense (RFC 9110, 14.2).
    """
    match = _RANGE.fullmatch(value.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return Span(size - length, length)
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    return Span(first, max(0, min(last + 1, size) - first))


async def serve(
    host: str, port: int, site: Site, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `site` until cancelled; started with the base URL, which ends in `/`.

    ConfigError if the address can't be listened on. Port 0 takes any free one.
    """
    listeners, url = await listen(host, port, "HTTP")
    task_status.started(f"{url}/")
    await Server(site, MAX_CONNECTIONS).run(listeners)


async def _send_span(sock: trio.socket.SocketType, descriptor: int, span: Span) -> None:
    offset = span.offset
    while offset < span.end:
        try:
            sent = os.sendfile(sock.fileno(), descriptor, offset, min(span.end - offset, _SENDFILE_CHUNK))
        except BlockingIOError:
            with trio.fail_after(STALL_TIMEOUT):
                await trio.lowlevel.wait_writable(sock.fileno())
            continue
        if not sent:
            # The file became shorter: the client sees a broken connection rather than a short answer.
            raise trio.BrokenResourceError(f"the file ended at byte {offset}, not {span.end}")
        offset += sent
        await trio.lowlevel.checkpoint()
