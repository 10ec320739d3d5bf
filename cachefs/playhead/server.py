"""The playhead API: HTTP/1.1 with JSON and server-sent events, on a Unix socket and, if configured, on an address.

    GET  /time                  {"utc": seconds since 1970}: the clock by which anchors are meant
    GET  /playheads             all of them
    GET  /playheads/NAME        one; revision 0 if nobody has touched it
    POST /playheads/NAME        a change {"action": …, "position_ms": …, "rate": …, "if_revision": …}; what it became
    GET  /events[?record=NAME]  the present playheads as events, then each change

How it works: h11 speaks the protocol, and a request is routed to one function that gives a status and an object. A
change whose `if_revision` is not the present one is answered 409 with the present playhead, so the caller need not
ask. An event stream begins with what is, so a client that lost its connection has only to open it again.

Who may: on the Unix socket the kernel tells who is at the other end, and only root and the daemon's own user are
answered. On an address a shared secret (`Authorization: Bearer …`) is needed unless it is a loopback one. A web page in
a local browser must not move anybody's music: a POST has to be `application/json`, which a page of another origin can't
send without asking first, and without a secret the Host must be an address or `localhost`, so a name that somebody
points at 127.0.0.1 doesn't get in.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import trio

from cachefs.errors import CachefsError, ConfigError, PlayheadConflict, PlayheadInvalid, PlayheadUnreachable
from cachefs.playhead import events
from cachefs.playhead.board import Heads
from cachefs.playhead.model import Change, record_name
from cachefs.sockets import listening

SOCKET = "playhead.sock"

MAX_CONNECTIONS = 500
MAX_HEADERS = 16 * 2**10
MAX_BODY = 4 * 2**10
IDLE_TIMEOUT = 60.0
"""Seconds in which the next request must have arrived."""

KEEP_ALIVE = 10.0
"""Seconds without a change after which an event stream says that it is still there."""

STALL_TIMEOUT = 20.0
"""Seconds for which a client may take nothing of what it is sent."""

log = logging.getLogger(__name__)


class Refused(CachefsError):
    """A request that isn't done: the status and the object that it is answered with."""

    def __init__(self, status: int, answer: object) -> None:
        super().__init__(f"{status}: {answer}")
        self.status = status
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: the path and the query apart, header names in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[bytes, bytes]
    body: bytes


Gate = Callable[[trio.SocketStream, Request], None]
"""Returns if the request may be answered, raises Refused otherwise."""


async def serve_socket(
    heads: Heads, data_dir: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on `<data-dir>/playhead.sock` for ever; the file is there while this runs."""
    async with listening(data_dir, SOCKET) as listeners:
        task_status.started()
        if not listeners:
            await trio.sleep_forever()
        await trio.serve_listeners(Api(heads, _same_user).converse, listeners)


async def serve_address(
    heads: Heads, host: str, port: int, token: str, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on a TCP address for ever; started with the URL. ConfigError if it can't be listened on."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ConfigError(f"{host}:{port}", f"can't serve playheads there: {error.strerror or error}") from error
    bound: tuple[str, int] = listeners[0].socket.getsockname()
    task_status.started(f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}")
    await trio.serve_listeners(Api(heads, partial(_knows_secret, token)).converse, listeners)


def _same_user(stream: trio.SocketStream, request: Request) -> None:
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] not in (0, os.getuid()):
        raise Refused(403, {"error": "another user's daemon"})


def _knows_secret(token: str, stream: trio.SocketStream, request: Request) -> None:
    if token:
        given = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, token.encode()):
            raise Refused(401, {"error": "the shared secret is needed: Authorization: Bearer …"})
    elif not _is_address(request.headers.get(b"host", b"").decode("latin-1")):
        raise Refused(403, {"error": "without a shared secret, ask by address"})


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class Api:
    """Conversations with clients. `gate` decides on each request whether it may be answered."""

    def __init__(self, heads: Heads, gate: Gate) -> None:
        self._heads = heads
        self._gate = gate
        self._open = 0

    async def converse(self, stream: trio.SocketStream) -> None:
        """Answer one client's requests until either side ends it; what the network does is no error of ours."""
        if self._open >= MAX_CONNECTIONS:
            log.warning("%d clients listen to playheads; one more was refused", self._open)
            await stream.aclose()
            return
        self._open += 1
        connection = Connection(stream)
        try:
            async with stream:
                while await self._exchange(connection):
                    pass
        except (trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError, OSError) as error:
            log.debug("playhead client gone: %r", error)
        except Exception:  # a fault of ours costs a conversation, not the mount
            log.exception("answering a playhead client")
        finally:
            self._open -= 1

    async def _exchange(self, connection: Connection) -> bool:
        try:
            request = await connection.request()
            if request is None:
                return False
            self._gate(connection.stream, request)
            if request.path == "/events":
                await self._stream(connection, request)
                return False
            await connection.send(200, await self._answer(request))
        except Refused as refused:
            await connection.send(refused.status, refused.answer)
        except h11.RemoteProtocolError as error:
            await connection.send(error.error_status_hint, {"error": "not HTTP that can be understood"})
        return connection.next_cycle()

    async def _answer(self, request: Request) -> object:
        record = request.path.removeprefix("/playheads/")
        handlers: dict[tuple[str, str], Callable[[], Awaitable[object]]] = {
            ("GET", "/time"): self._time,
            ("GET", "/playheads"): self._all,
            ("GET", f"/playheads/{record}"): partial(self._one, record),
            ("POST", f"/playheads/{record}"): partial(self._change, record, request),
        }
        handler = handlers.get((request.method, request.path))
        if handler is None:
            raise Refused(404, {"error": f"no {request.method} {request.path[:200]}"})
        try:
            return await handler()
        except PlayheadInvalid as error:
            raise Refused(400, {"error": str(error)}) from None
        except PlayheadConflict as error:
            raise Refused(409, {"error": str(error), "present": error.present}) from None
        except PlayheadUnreachable as error:
            raise Refused(502, {"error": str(error)}) from None

    async def _time(self) -> object:
        return {"utc": self._heads.utc()}

    async def _all(self) -> object:
        return [head.as_json() for head in self._heads.heads().values()]

    async def _one(self, record: str) -> object:
        return self._heads.get(record_name(record)).as_json()

    async def _change(self, record: str, request: Request) -> object:
        if request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, {"error": "Content-Type: application/json is needed"})
        try:
            change = Change.from_json(json.loads(request.body))
        except (ValueError, RecursionError):
            raise PlayheadInvalid("the body is not JSON") from None
        return (await self._heads.change(record_name(record), change)).as_json()

    async def _stream(self, connection: Connection, request: Request) -> None:
        """Send what is and then each change; ends when the client goes."""
        if request.method != "GET":
            raise Refused(405, {"error": "GET only"})
        asked = request.query.get("record")
        try:
            record = record_name(asked[0]) if asked else None
        except PlayheadInvalid as error:
            raise Refused(400, {"error": str(error)}) from None
        await connection.begin_events()
        async with self._heads.watch(record) as watch:
            while True:
                chunk = events.KEEP_ALIVE
                with trio.move_on_after(KEEP_ALIVE):
                    chunk = events.encode(await watch.next())
                await connection.send_event(chunk)


class Connection:
    """One client's connection, in HTTP's terms."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._only_head = False

    async def request(self) -> Request | None:
        """The next request with its body; None if the client has nothing more to ask."""
        with trio.move_on_after(IDLE_TIMEOUT):
            event = await self._event()
            if not isinstance(event, h11.Request):
                return None
            self._only_head = event.method == b"HEAD"
            body = bytearray()
            while isinstance(part := await self._event(), h11.Data):
                body += part.data
                if len(body) > MAX_BODY:
                    raise Refused(413, {"error": f"more than {MAX_BODY} bytes"})
            return _request(event, bytes(body))
        return None

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive_some(MAX_HEADERS))
        return event

    async def send(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if self._http.their_state is not h11.DONE:
            headers.append(("Connection", "close"))
        content = [] if self._only_head else [h11.Data(body)]
        await self._write(h11.Response(status_code=status, headers=headers), *content, h11.EndOfMessage())

    async def begin_events(self) -> None:
        headers = [("Content-Type", events.MEDIA_TYPE), ("Cache-Control", "no-store")]
        await self._write(h11.Response(status_code=200, headers=headers))

    async def send_event(self, chunk: bytes) -> None:
        await self._write(h11.Data(chunk))

    async def _write(self, *parts: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        raw = b"".join(self._http.send(part) or b"" for part in parts)
        with trio.fail_after(STALL_TIMEOUT):
            await self.stream.send_all(raw)

    def next_cycle(self) -> bool:
        """Whether the connection can take another request; it is ready for it then."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False


def _request(event: h11.Request, body: bytes) -> Request:
    try:
        target = urlsplit(event.target.decode("ascii"))
    except ValueError as error:
        raise Refused(400, {"error": f"the request's target can't be read: {error}"}) from None
    return Request(
        method=event.method.decode("ascii"),
        path=unquote(target.path),
        query=parse_qs(target.query, keep_blank_values=True),
        headers=dict(event.headers),
        body=body,
    )
