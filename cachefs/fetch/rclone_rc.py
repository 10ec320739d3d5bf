"""Talking to rclone's remote control: JSON commands, and files read in ranges.

How it works: commands are `POST /group/name` with a JSON body. Files are `GET /[remote:path]/name`, which
answers ranges; what stands between the brackets is ours or the operator's, and a name from a catalogue is only
ever the path behind it, percent-encoded whole. A body is received straight into the buffer in which it is
going to be verified: after the head of an answer nothing of HTTP is left but a number of bytes. A thread
receives it, a whole buffer in one call: rclone writes 32 KiB at a time, and to wake the event loop for each of
those took as long as to hash them.

Each request has a connection of its own: on a Unix socket that costs less than keeping a pool in order.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

import h11
import trio

from cachefs.content import Span
from cachefs.errors import NotAtSource, RcloneGone, SourceFailed

_MOST_JSON = 16 * 2**20
_ANSWER_WITHIN = 10.0
_HEAD_WITHIN = 75.0
"""Seconds after which rclone itself has given a host up: its --contimeout and --timeout."""
_MOMENT = struct.pack("@ll", 0, 100_000)  # a struct timeval
_receivers = trio.CapacityLimiter(64)
_Headers: TypeAlias = "list[tuple[str, str]] | tuple[()]"
_Exchange: TypeAlias = "tuple[h11.Response, trio.socket.SocketType, h11.Connection]"
_HTTP_ERROR = re.compile(r"HTTP Error: (\d{3}[^\"\\]*)")


class Body:
    """The bytes of an answer: `length` of them come, of a file of `total`."""

    def __init__(self, connection: socket.socket, head: bytes, length: int, total: int) -> None:
        self.length = length
        self.total = total
        self._socket = connection
        self._head = memoryview(head)

    async def read_some(self, buffer: memoryview) -> int:
        """Receive into `buffer` until it is full, or what a moment brings, at least a byte; 0 when nothing more comes.

        Cancelled, it returns after that moment at the latest.
        """
        if self._head:
            count = min(len(self._head), len(buffer))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        while True:
            try:
                return await trio.to_thread.run_sync(self._receive, buffer, limiter=_receivers)
            except BlockingIOError:  # nothing came in this moment
                continue
            except OSError:  # the child was killed
                return 0

    def _receive(self, buffer: memoryview) -> int:
        return self._socket.recv_into(buffer, len(buffer), socket.MSG_WAITALL)


class RemoteControl:
    """An rclone that listens on the Unix socket `address`."""

    def __init__(self, address: str, user: str, password: str) -> None:
        self._address = address
        self._authorization = b"Basic " + b64encode(f"{user}:{password}".encode())

    async def answers(self) -> bool:
        """Whether it is there."""
        try:
            with trio.fail_after(_ANSWER_WITHIN):
                await self.call("rc/noop", {})
        except (RcloneGone, SourceFailed, trio.TooSlowError):
            return False
        return True

    async def call(self, command: str, parameters: Mapping[str, Any]) -> Any:
        """The result of a command. RcloneGone if nobody answers, SourceFailed with what rclone says went wrong."""
        data = json.dumps(parameters).encode()
        async with self._exchange("POST", f"/{command}", (), data) as (response, connection, http):
            raw = await _rest(connection, http)
        if response.status_code != 200:
            raise SourceFailed(_reason(raw, response.status_code))
        return json.loads(raw)

    @contextlib.asynccontextmanager
    async def open(self, remote: str, path: str, span: Span | None = None) -> AsyncIterator[Body]:
        """A file's bytes, or those of a span. NotAtSource, SourceFailed, RcloneGone.

        `remote` is in rclone's own words, `path` is any text.
        """
        headers = [("Range", f"bytes={span.offset}-{span.end - 1}")] if span else []
        target = quote(f"/[{remote}]/", safe="/[]:,='\"@") + quote(path, safe="/")
        async with self._exchange("GET", target, headers, b"") as (response, connection, http):
            if response.status_code in (200, 206):
                with _blocking(connection) as stream:
                    yield _body(stream, http, response)
                return
            raw = await _rest(connection, http)
        reason = _reason(raw, response.status_code)
        raise NotAtSource(reason) if response.status_code == 404 else SourceFailed(reason)

    @contextlib.asynccontextmanager
    async def _exchange(self, method: str, target: str, headers: _Headers, data: bytes) -> AsyncIterator[_Exchange]:
        connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with connection:
            try:
                with trio.fail_after(_HEAD_WITHIN):
                    await connection.connect(self._address)
                    http = h11.Connection(h11.CLIENT)
                    await _send(connection, http, self._request(method, target, headers, data), data)
                    response = await _next(connection, http)
                if not isinstance(response, h11.Response):
                    raise RcloneGone("rclone gave no answer")
            except (OSError, h11.ProtocolError) as error:
                raise RcloneGone(f"rclone doesn't answer: {error}") from error
            except trio.TooSlowError:
                raise SourceFailed(f"no answer through rclone within {_HEAD_WITHIN:g} s") from None
            yield response, connection, http

    def _request(self, method: str, target: str, headers: _Headers, data: bytes) -> h11.Request:
        fixed = [("Host", "rclone"), ("Connection", "close"), ("Authorization", self._authorization)]
        described = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))] if data else []
        return h11.Request(method=method, target=target, headers=[*fixed, *described, *headers])


async def _send(connection: trio.socket.SocketType, http: h11.Connection, request: h11.Request, data: bytes) -> None:
    raw = (http.send(request) or b"") + ((http.send(h11.Data(data=data)) or b"") if data else b"")
    rest = memoryview(raw + (http.send(h11.EndOfMessage()) or b""))
    while rest:
        rest = rest[await connection.send(rest) :]


async def _next(connection: trio.socket.SocketType, http: h11.Connection) -> h11.Event | None:
    """The next thing that the other end says; None if it is done."""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await connection.recv(65536))
        elif not isinstance(event, h11.InformationalResponse):
            return event if isinstance(event, h11.Event) else None


async def _rest(connection: trio.socket.SocketType, http: h11.Connection) -> bytes:
    """The whole body of an answer whose head was read. RcloneGone."""
    raw = bytearray()
    try:
        while len(raw) < _MOST_JSON:
            event = await _next(connection, http)
            if not isinstance(event, h11.Data):
                break
            raw += event.data
    except (OSError, h11.ProtocolError) as error:
        raise RcloneGone(f"rclone stopped in the middle of an answer: {error}") from error
    return bytes(raw)


def _blocking(connection: trio.socket.SocketType) -> socket.socket:
    """The same connection for threads, whose calls take no longer than a moment."""
    stream = socket.socket(fileno=connection.detach())
    stream.setblocking(True)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _MOMENT)
    return stream


def _body(connection: socket.socket, http: h11.Connection, response: h11.Response) -> Body:
    headers = {bytes(name): bytes(value) for name, value in response.headers}
    length = int(headers.get(b"content-length", b"-1"))
    _, _, total = headers.get(b"content-range", b"").partition(b"/")
    return Body(connection, http.trailing_data[0], length, int(total) if total.isdigit() else length)


def _reason(raw: bytes, status: int) -> str:
    """What rclone says went wrong, in few words."""
    try:
        text = str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        text = raw.decode("utf-8", "replace").strip() or f"status {status}"
    http = _HTTP_ERROR.search(text)
    return f"HTTP {http[1]}" if http else text.removeprefix("failed to find object: ")
