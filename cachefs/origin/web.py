"""The web seed: an HTTP/1.1 server for a fixed set of names, enough of it for clients that fetch ranges.

How it works: h11 speaks the protocol and trio moves the bytes. A request is answered in two steps. `respond`
decides, without awaiting anything: the status, the headers and which span of which open file goes out. Then
the connection sends that span with sendfile(2), from the page cache to the socket without passing through
Python, waiting for the socket only when its buffer is full.

A request names a key of a dictionary, never a path, so there is nothing to traverse. Before the dictionary is
there (the seed box is still hashing), or when a file can't be opened at the moment (no descriptor is left), the answer
is 503 with Retry-After, for 404 would send a client away for good. Headers are bounded in size, connections in number,
and each wait in time. Formats: RFC 9110 and 9112.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import cast
from urllib.parse import unquote_to_bytes, urlsplit

import h11
import trio

from cachefs.content import Span
from cachefs.errors import ConfigError

MAX_HEADERS = 16 * 2**10
"""The most bytes of request line and headers that are kept while the rest of them is waited for."""

MAX_CONNECTIONS = 1000
IDLE_TIMEOUT = 60.0
"""Seconds in which the next request must have arrived, from the first byte to the last."""

STALL_TIMEOUT = 30.0
"""Seconds for which a client may take no byte of an answer."""

LINGER_TIMEOUT = 3.0
"""Seconds for which a refused client may go on sending before the connection is closed."""

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

Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Site:
    """The names that are served, each with its file; None until they are known."""

    assets: Mapping[str, Path] | None = None


NOTHING = Span(0, 0)


@dataclass(slots=True)
class Response:
    """An answer, decided: `body` is sent, or `span` of the open file `descriptor`, which the sender closes."""

    status: int
    headers: Headers
    body: bytes = b""
    descriptor: int = -1
    span: Span = NOTHING

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def respond(request: h11.Request, site: Site) -> Response:
    """What `request` is answered with. A `descriptor` in it is open and must be closed."""
    if request.method not in (b"GET", b"HEAD"):
        return _plain(405, [("Allow", "GET, HEAD")])
    if site.assets is None:
        return _later()
    path = site.assets.get(_name(request.target))
    if path is None:
        return _plain(404)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        log.warning("%s: %s", path, error.strerror)
        return _plain(404) if error.errno in _NOT_THERE else _later()
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        response = _file(request, path, os.fstat(descriptor))
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


def _file(request: h11.Request, path: Path, state: os.stat_result) -> Response:
    if not stat.S_ISREG(state.st_mode):
        return _plain(404)
    asked, etag, modified = dict(request.headers), f'"{state.st_size:x}-{state.st_mtime_ns:x}"', _modified(state)
    headers = [("Accept-Ranges", "bytes"), ("ETag", etag), ("Last-Modified", modified)]
    if etag in asked.get(b"if-none-match", b"").decode("latin-1"):
        return Response(304, headers)
    headers.append(("Content-Type", _TYPES.get(path.suffix, "application/octet-stream")))
    span = _wanted_range(request, asked, (etag, modified), state.st_size)
    if span is None:
        return Response(200, headers, span=Span(0, state.st_size))
    if not span.length:
        return Response(416, [*headers, ("Content-Range", f"bytes */{state.st_size}")])
    headers.append(("Content-Range", f"bytes {span.offset}-{span.end - 1}/{state.st_size}"))
    return Response(206, headers, span=span)


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
    host: str,
    port: int,
    site: Site,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `site` until cancelled; started with the base URL, which ends in `/`.

    ConfigError if the address can't be listened on. Port 0 takes any free one.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ConfigError(f"{host}:{port}", f"can't serve HTTP there: {error.strerror or error}") from error
    gate = _Gate(site)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, gate.handle, listeners)
        bound: tuple[str, int] = listeners[0].socket.getsockname()
        task_status.started(f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}/")


class _Gate:
    """Counts the open connections and turns away what is over the limit."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._open = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        if self._open >= MAX_CONNECTIONS:
            log.warning("%d connections are open; one more was refused", self._open)
            return
        self._open += 1
        try:
            await Connection(stream, self._site).run()
        finally:
            self._open -= 1


class _Placeholder:
    """Stands for bytes that sendfile sends, in h11's bookkeeping: it asks for the length only."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


class Connection:
    """One client's connection: requests answered one after the other until either side ends it."""

    def __init__(self, stream: trio.SocketStream, site: Site) -> None:
        self._stream = stream
        self._site = site
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._peer = "?"

    async def run(self) -> None:
        """Answer until the connection ends; whatever the client or the network does is no error of ours."""
        try:
            self._peer = str(self._stream.socket.getpeername()[0])
            while await self._exchange():
                self._http.start_next_cycle()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError) as error:
            log.debug("%s: connection dropped: %r", self._peer, error)
        except Exception:  # a fault of ours costs a connection, not the seed box
            log.exception("%s: connection dropped", self._peer)

    async def _exchange(self) -> bool:
        """One request and its answer; True if the connection can take another."""
        try:
            with trio.fail_after(IDLE_TIMEOUT):
                request = await self._event()
                if not isinstance(request, h11.Request):
                    return False
                has_body = not isinstance(await self._event(), h11.EndOfMessage)
        except h11.RemoteProtocolError as error:
            return await self._refuse(error.error_status_hint)
        if has_body:
            return await self._refuse(400)
        response = self._answer(request)
        try:
            await self._send(response, head_only=request.method == b"HEAD")
        finally:
            response.close()
        self._log(request, response)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _answer(self, request: h11.Request) -> Response:
        try:
            return respond(request, self._site)
        except Exception:
            log.exception("%s: answering %s", self._peer, request.target.decode("ascii", "replace"))
            return _plain(500, [("Connection", "close")])

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(MAX_HEADERS))
        return event

    async def _refuse(self, status: int) -> bool:
        """Answer a request that can't be taken, and end the connection: what follows it can't be told apart."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        await self._send(_plain(status, [("Connection", "close")]), head_only=False)
        # Closing with unread bytes resets the connection, and the answer with it: let the client finish first.
        await self._stream.send_eof()
        with trio.move_on_after(LINGER_TIMEOUT):
            while await self._stream.receive_some():
                pass
        return False

    async def _send(self, response: Response, *, head_only: bool) -> None:
        length = response.span.length or len(response.body)
        headers = [("Date", formatdate(usegmt=True)), *response.headers]
        if response.status != 304:
            headers.append(("Content-Length", str(length)))
        head = self._http.send(h11.Response(status_code=response.status, headers=headers))
        await self._write((head or b"") + (b"" if head_only else response.body))
        if head_only:
            # h11 knows that an answer to HEAD has no body, whatever its Content-Length.
            self._http.send(h11.EndOfMessage())
            return
        if length:
            self._http.send_with_data_passthrough(h11.Data(data=cast(bytes, _Placeholder(length))))
        if response.descriptor >= 0:
            await self._send_span(response.descriptor, response.span)
        self._http.send(h11.EndOfMessage())

    async def _write(self, data: bytes) -> None:
        with trio.fail_after(STALL_TIMEOUT):
            await self._stream.send_all(data)

    async def _send_span(self, descriptor: int, span: Span) -> None:
        sock, offset = self._stream.socket, span.offset
        while offset < span.end:
            try:
                sent = os.sendfile(sock.fileno(), descriptor, offset, min(span.end - offset, _SENDFILE_CHUNK))
            except BlockingIOError:
                await _writable(sock)
                continue
            if not sent:
                # The file became shorter: the client sees a broken connection rather than a short answer.
                raise trio.BrokenResourceError(f"the file ended at byte {offset}, not {span.end}")
            offset += sent
            await trio.lowlevel.checkpoint()

    def _log(self, request: h11.Request, response: Response) -> None:
        if log.isEnabledFor(logging.INFO):
            method, target = request.method.decode("ascii"), request.target.decode("ascii", "replace")
            log.info("%s %s %s %d %d", self._peer, method, target, response.status, response.span.length)


async def _writable(sock: trio.socket.SocketType | socket.socket) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await trio.lowlevel.wait_writable(sock.fileno())
