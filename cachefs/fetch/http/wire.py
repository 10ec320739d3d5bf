"""HTTP on one connection, for bodies that are large and wanted in one place.

How it works: requests and the heads of answers are small and go through h11. A body of known length is received
straight into the buffer in which it is going to be verified: after the head nothing of HTTP is left but a number of
bytes. A thread receives it, a whole buffer in one call: senders write tens of kilobytes at a time, and to wake the
event loop for each of those took as long as to hash them. No call in a thread takes longer than a moment, so
cancellation is never far; who is in a thread already may make such calls himself. A body that comes in chunks takes
the slow way, through h11.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeVar, TypeVarTuple, Unpack

import h11
import trio

_MOMENT = 0.1
_MOMENT_TIMEVAL = struct.pack("@ll", 0, round(_MOMENT * 1e6))
_AT_ONCE = 65536
_receivers = trio.CapacityLimiter(64)
_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/(?:([0-9]{1,19})|\*)")
T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Line:
    """A connection, plain or with TLS, of which threads may receive; `close` it when it isn't needed any more."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(_MOMENT)
        else:
            connection.setblocking(True)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _MOMENT_TIMEVAL)

    async def shake_hands(self) -> None:
        """Begin TLS. OSError, of which ssl.SSLError is one."""
        if isinstance(self._socket, ssl.SSLSocket):
            await _patiently(self._socket.do_handshake)

    def send(self, data: bytes) -> None:
        """Send something small: a request, which always has room in the kernel's buffer. OSError."""
        self._socket.sendall(data)

    async def receive(self) -> bytes:
        """What comes next; empty at the end. OSError."""
        if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            await trio.lowlevel.wait_readable(self._socket)
        return await _patiently(lambda: self._socket.recv(_AT_ONCE))

    async def receive_next(self, buffer: memoryview) -> int:
        """Receive into `buffer` what comes next; 0 at the end. OSError."""
        if isinstance(self._socket, ssl.SSLSocket):
            if not self._socket.pending():
                await trio.lowlevel.wait_readable(self._socket)
            return await _patiently(lambda: self._socket.recv_into(buffer))
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                return self._socket.recv_into(buffer, len(buffer), socket.MSG_DONTWAIT)

    def receive_into(self, buffer: memoryview) -> int | None:
        """Receive until `buffer` is full, or what a moment brings; None if that is nothing, 0 at the end. OSError.

        Blocks for that moment.
        """
        try:
            return self._fill(buffer)
        except OSError as error:
            if _is_pause(error):
                return None
            raise

    def _fill(self, buffer: memoryview) -> int:
        if not isinstance(self._socket, ssl.SSLSocket):
            return self._socket.recv_into(buffer, len(buffer), socket.MSG_WAITALL)
        at = self._socket.recv_into(buffer)
        try:
            while at < len(buffer) and (count := self._socket.recv_into(buffer[at:])):
                at += count
        except TimeoutError:
            pass
        return at

    def close(self) -> None:
        self._socket.close()


def _is_pause(error: OSError) -> bool:
    """Whether a blocking call only gave up after its moment."""
    # With an errno (ETIMEDOUT) it is the connection that has ended.
    return isinstance(error, BlockingIOError) or (isinstance(error, TimeoutError) and error.errno is None)


async def _patiently(receive: Callable[[], T]) -> T:
    """What a blocking call returns that gives up after a moment, and is made again until it does not."""
    while True:
        try:
            return await in_thread(receive)
        except OSError as error:
            if not _is_pause(error):
                raise


async def in_thread(receive: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
    """Run in one of the threads that receive: for calls that take a moment, or a second."""
    return await trio.to_thread.run_sync(receive, *arguments, limiter=_receivers)


class Body(Protocol):
    """The bytes of an answer: `length` of them come, from `start` on, of a file of `total`; -1 where it isn't told."""

    length: int
    start: int
    total: int

    @property
    def whole(self) -> bool:
        """Whether all of it was received."""

    async def read_some(self, buffer: memoryview) -> int:
        """Receive into `buffer`; how many bytes came, 0 when nothing more does.

        Cancelled, it returns after a moment at the latest.
        """

    async def read_next(self, buffer: memoryview) -> int:
        """As `read_some`, but not more than has come by now, if anything has; cancelled, it returns at once."""


class Measured:
    """A body of known length; `whole` when all of it was received, so that the connection may be used again."""

    def __init__(self, line: Line, head: bytes, length: int, start: int, total: int) -> None:
        self.length, self.start, self.total = length, start, total
        self._left = length
        self._line = line
        self._head = memoryview(head)

    @property
    def whole(self) -> bool:
        return not self._left and not self._head

    async def read_some(self, buffer: memoryview) -> int:
        while (count := await in_thread(self.receive, buffer)) is None:
            pass
        return count

    async def read_next(self, buffer: memoryview) -> int:
        buffer = buffer[: self._left]
        if self._head or not buffer:
            return self.receive(buffer) or 0
        try:
            count = await self._line.receive_next(buffer)
        except OSError:
            return 0
        self._left -= count
        return count

    def receive(self, buffer: memoryview) -> int | None:
        """As `read_some`, for threads: blocks for a moment at most; None if nothing came within it."""
        buffer = buffer[: self._left]
        count: int | None
        if self._head:
            count = min(len(self._head), len(buffer))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
        else:
            count = self._received(buffer) if buffer else 0
        self._left -= count or 0
        return count

    def _received(self, buffer: memoryview) -> int | None:
        try:
            return self._line.receive_into(buffer)
        except OSError:  # the other end was killed, or the way to it
            return 0


class Framed:
    """A body that says itself where it ends."""

    def __init__(self, line: Line, http: h11.Connection, start: int, total: int) -> None:
        self.length, self.start, self.total = -1, start, total
        self.whole = False
        self._line = line
        self._http = http
        self._rest = memoryview(b"")

    async def read_some(self, buffer: memoryview) -> int:
        if not self._rest:
            try:
                event = await next_event(self._line, self._http)
            except (OSError, h11.ProtocolError):
                return 0
            if not isinstance(event, h11.Data):
                self.whole = isinstance(event, h11.EndOfMessage)
                return 0
            self._rest = memoryview(bytes(event.data))
        count = min(len(self._rest), len(buffer))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def read_next(self, buffer: memoryview) -> int:
        return await self.read_some(buffer)


async def ask(line: Line, http: h11.Connection, request: h11.Request, data: bytes = b"") -> h11.Response:
    """The head of the answer to a request. OSError; h11.ProtocolError, in words for the user, if none comes."""
    told = (http.send(request) or b"") + ((http.send(h11.Data(data=data)) or b"") if data else b"")
    line.send(told + (http.send(h11.EndOfMessage()) or b""))
    try:
        answer = await next_event(line, http)
    except h11.RemoteProtocolError:
        raise h11.RemoteProtocolError(_no_answer(*http.trailing_data)) from None
    if not isinstance(answer, h11.Response):
        raise h11.RemoteProtocolError(_no_answer(b"", True))
    return answer


def _no_answer(came: bytes, closed: bool) -> str:
    """What an answer is instead of one."""
    if not closed:
        return "its answer can't be read as HTTP"
    return "it hung up in the midst of an answer" if came else "it hung up without an answer"


async def next_event(line: Line, http: h11.Connection) -> h11.Event | None:
    """The next thing that the other end says; None if it is done. OSError, h11.ProtocolError."""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await line.receive())
        elif not isinstance(event, h11.InformationalResponse):
            return event if isinstance(event, h11.Event) else None


async def small_body(line: Line, http: h11.Connection, most: int) -> bytes:
    """The body of an answer whose head was read, or what `most` bytes and one part more have of it."""
    raw = bytearray()
    while len(raw) < most and isinstance(event := await next_event(line, http), h11.Data):
        raw += event.data
    return bytes(raw)


class ContentRange(NamedTuple):
    """What follows: bytes `first` to `last` of `total`, which is None if nobody knows; 0 and -1 where no byte does."""

    first: int
    last: int
    total: int | None


def content_range(value: str) -> ContentRange | None:
    """What a Content-Range tells (RFC 9110, 14.4); None if it is none, or tells of more than a file can have."""
    told = _RANGE.fullmatch(value)
    if told is None or (told[1] is None and told[3] is None):
        return None
    return ContentRange(int(told[1] or 0), int(told[2] or -1), int(told[3]) if told[3] else None)


def body(line: Line, http: h11.Connection, response: h11.Response) -> Measured | Framed:
    """The body that follows `response`."""
    headers = {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in response.headers}
    length = int(headers.get("content-length", "-1"))
    told = content_range(headers.get("content-range", ""))
    start, total = (told.first, -1 if told.total is None else told.total) if told else (0, length)
    if length < 0 or "transfer-encoding" in headers:
        return Framed(line, http, start, total)
    return Measured(line, http.trailing_data[0], length, start, total)
