"""HTTP/1.1 for a server: what the seed box, the playheads' API and the status have in common.

How it works: h11 speaks the protocol and trio moves the bytes. A request is read whole, bounded in size and in time,
its `Service` decides what it is answered with, and only then that is sent. So what goes wrong is told apart by where
it does: a request that can't be read, or a service at fault, is answered with a refusal; what breaks while an answer
is sent is the client's or the network's, and costs the connection. Nothing costs more than that.

A connection takes one request after the other. A refusal is its last answer, for what follows a request that wasn't
understood can't be told apart. Closing while the client sends resets the connection, and the answer may be lost with
it: so after a last answer only our side is closed, and the client is heard out, for `LINGER_TIMEOUT` at most. Where all
connections are taken, the one that has asked nothing for longest gives way (`crowd.py`). Formats: RFC 9110 and 9112.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Protocol, cast
from urllib.parse import urlsplit

import h11
import trio

from cachefs.crowd import Crowd
from cachefs.errors import ConfigError
from cachefs.sockets import serve_clients

MAX_HEADERS = 16 * 2**10
"""The most bytes of request line and headers that are kept while the rest of them is waited for."""

MAX_BODY = 4 * 2**10
"""The most bytes of a request's body."""

IDLE_TIMEOUT = 60.0
"""Seconds in which the next request must have arrived, from the first byte to the last."""

STALL_TIMEOUT = 30.0
"""Seconds for which a client may take no byte of an answer."""

LINGER_TIMEOUT = 3.0
"""Seconds for which a client may go on sending after the last answer."""

log = logging.getLogger(__name__)

Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Response:
    """An answer, decided. One whose body isn't bytes at hand is of a class of its own."""

    status: int
    headers: Headers
    body: bytes = b""

    @property
    def length(self) -> int | None:
        """Bytes of the whole body; None if that isn't known before its end."""
        return len(self.body)

    async def send_rest(self, connection: Connection) -> None:
        """Send what of the body isn't in `body`; the head has been sent, and none of this to HEAD."""

    def close(self) -> None:
        """Give back what the answer holds open; called in any case, once it was sent or can't be."""


class Service(Protocol):
    """Who decides what is answered."""

    async def answer(self, stream: trio.SocketStream, request: h11.Request, body: bytes) -> Response:
        """What a whole request is answered with; any error is a fault, which is logged and answered with 500."""
        ...

    def refusal(self, status: int) -> Response:
        """What is said when there is no answer: the request can't be read (400 and so on), or a fault (500)."""
        ...


async def listen(host: str, port: int, what: str) -> tuple[list[trio.SocketListener], str]:
    """Listen on a TCP address, any free port if it is 0; the URL has no slash at its end.

    ConfigError if that can't be, which says that `what` can't be served.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ConfigError(f"{host}:{port}", f"can't serve {what} there: {error.strerror or error}") from error
    bound: tuple[str, int] = listeners[0].socket.getsockname()
    return listeners, f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"


class Server:
    """Answers clients for a service, at most so many `connections` at a time."""

    def __init__(self, service: Service, connections: int) -> None:
        self._service = service
        self._most = connections
        self._crowd = Crowd(connections)

    async def run(self, listeners: Iterable[trio.SocketListener]) -> None:
        """Serve until cancelled; the listeners are closed then."""
        await serve_clients(listeners, self._converse)

    async def _converse(self, stream: trio.SocketStream) -> None:
        try:
            with self._crowd.entered() as let_in:
                if let_in:
                    await Connection(stream, self._service, self._crowd).run()
                else:
                    log.warning("%d connections are open; one more was refused", self._most)
        finally:
            await trio.aclose_forcefully(stream)


class Connection:
    """One client's connection: requests answered one after the other until either side ends it."""

    def __init__(self, stream: trio.SocketStream, service: Service, crowd: Crowd) -> None:
        self._stream = stream
        self._service = service
        self._crowd = crowd
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._head_only = False

    async def run(self) -> None:
        """Answer until the connection ends; whatever the client or the network does is no error of ours."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("%s: connection dropped: %r", peer(self._stream), error)
        except Exception:  # a fault of ours costs a connection, not the process
            log.exception("%s: connection dropped", peer(self._stream))

    async def _exchange(self) -> bool:
        """One request and its answer; True if the connection can take another."""
        response = await self._response()
        if response is None:
            return False
        try:
            await self._send(response)
        finally:
            response.close()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            return True
        await self._linger()
        return False

    async def _response(self) -> Response | None:
        """What the next request is answered with; None if there is none."""
        self._head_only = False
        try:
            asked = await self._asked()
        except h11.RemoteProtocolError as error:
            return self._refusal(error.error_status_hint)
        if asked is None:
            return None
        request, body = asked
        if body is None:
            return self._refusal(413)
        try:
            return await self._service.answer(self._stream, request, body)
        except Exception:
            log.exception("%s: answering %s", peer(self._stream), request.target.decode("ascii", "replace"))
            return self._refusal(500)

    async def _asked(self) -> tuple[h11.Request, bytes | None] | None:
        """The next request with its body, which is None if it is too long; None if nothing is asked any more."""
        with self._crowd.waiting(), trio.fail_after(IDLE_TIMEOUT):
            request = await self._event()
            if isinstance(request, h11.Request):
                self._head_only = request.method == b"HEAD"
                return request, await self._body()
        return None

    async def _body(self) -> bytes | None:
        """The request's body; None if it is too long."""
        body = bytearray()
        while isinstance(part := await self._event(), h11.Data):
            body += part.data
            if len(body) > MAX_BODY:
                return None
        return bytes(body)

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(MAX_HEADERS))
        return event

    def _refusal(self, status: int) -> Response:
        response = self._service.refusal(status)
        response.headers.append(("Connection", "close"))
        return response

    async def _send(self, response: Response) -> None:
        headers = [("Date", formatdate(usegmt=True)), *response.headers]
        if response.length is not None and response.status != 304:
            headers.append(("Content-Length", str(response.length)))
        head = h11.Response(status_code=response.status, headers=headers)
        if self._head_only:  # h11 knows that its answer has no body, whatever its Content-Length
            await self._write(head)
        else:
            await self._write(head, h11.Data(response.body))
            await response.send_rest(self)
        await self._write(h11.EndOfMessage())

    async def send_part(self, data: bytes) -> None:
        """Send some of the answer's body."""
        await self._write(h11.Data(data))

    def socket_for(self, length: int) -> trio.socket.SocketType:
        """The socket, for `length` bytes of the answer's body that are sent by other means."""
        self._http.send_with_data_passthrough(h11.Data(data=cast(bytes, _Placeholder(length))))
        return self._stream.socket

    async def _write(self, *events: h11.Event) -> None:
        raw = b"".join(self._http.send(event) or b"" for event in events)
        if raw:
            with trio.fail_after(STALL_TIMEOUT):
                await self._stream.send_all(raw)

    async def _linger(self) -> None:
        await self._stream.send_eof()
        with self._crowd.waiting(), trio.move_on_after(LINGER_TIMEOUT):
            while await self._stream.receive_some():
                pass


class _Placeholder:
    """Stands for bytes that are sent past h11, in its bookkeeping: it asks for the length only."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def peer(stream: trio.SocketStream) -> str:
    """Who is at the other end, for the log: a host, or `?` of a Unix socket or a client that is gone."""
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "?"
    return str(name[0]) if isinstance(name, tuple) else "?"


def asked_by_address(host: str) -> bool:
    """Whether a request's Host is an address or `localhost`, and not a name that somebody points at this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
